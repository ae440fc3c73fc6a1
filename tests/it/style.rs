//! The style that a reader may count on: lines, functions and files of a bounded size, and nothing
//! unfinished. `rustfmt` and clippy do the rest.
//!
//! Sources are scanned, not parsed: with comments and literals blanked out, counting braces is
//! enough to see where a function ends.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// Columns of a line.
const COLUMNS_MAX: usize = 100;
/// Lines of a function: one is read without scrolling.
const FUNCTION_LINES_MAX: usize = 70;
/// Lines of a file.
const FILE_LINES_MAX: usize = 600;
/// Files below which the scan has looked in the wrong place.
const FILES_MIN: usize = 200;

/// What is nowhere in the sources, also not in tests.
const NOWHERE: &[&str] = &["todo!", "dbg!", "unimplemented!", "#[ignore"];
/// What only tests may have.
const IN_TESTS_ONLY: &[&str] = &[".unwrap()", "panic!("];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The sources under a folder, without what is built or fetched.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let elsewhere = name.starts_with('.') || name == "target" || name == "node_modules";
        if path.is_dir() && !elsewhere {
            sources(&path, found)?;
        }
        let kind = path.extension().unwrap_or_default();
        if kind == "rs" || kind == "proto" {
            found.push(path);
        }
    }
    Ok(())
}

/// Whether all of a file is a test, or only ever used by tests.
fn is_test(path: &str) -> bool {
    let mut parts = path.split('/');
    let folder = parts.next() == Some("tests");
    let last = path.rsplit('/').next().unwrap_or_default();
    folder || last.ends_with("tests.rs") || parts.any(|part| part == "tests")
}

/// The same text with comments and the insides of literals blanked out.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let skipped = skipped(rest, code.chars().next_back());
        if skipped == 0 {
            code.push(next);
            rest = &rest[next.len_utf8()..];
            continue;
        }
        let blank = |c: char| if c == '\n' { c } else { ' ' };
        code.extend(rest[..skipped].chars().map(blank));
        rest = &rest[skipped..];
    }
    code
}

/// Bytes of the comment or literal that begins here, or 0.
fn skipped(text: &str, before: Option<char>) -> usize {
    let until = |from: usize, end: &str| text[from..].find(end).map(|at| from + at + end.len());
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return until(2, "*/").unwrap_or(text.len());
    }
    if text.starts_with('r') && !in_word {
        let hashes = text[1..].chars().take_while(|c| *c == '#').count();
        if text[1 + hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            return until(2 + hashes, &end).unwrap_or(text.len());
        }
    }
    if let Some(inside) = text.strip_prefix('"') {
        return 1 + quoted(inside, '"');
    }
    // A quote begins a character when another one ends it, and else a lifetime.
    if let Some(inside) = text.strip_prefix('\'') {
        let length = quoted(inside, '\'');
        let one = inside.starts_with('\\') || inside[..length].chars().count() == 2;
        return if one { 1 + length } else { 0 };
    }
    0
}

/// Bytes up to and with the quote that ends a literal.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The lines before the inline tests of a file.
fn before_tests(code: &str) -> &str {
    let tests = code.find("mod tests {");
    tests.map_or(code, |at| &code[..at])
}

/// Name, first line and number of lines of each function with a body.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let name: String = code[at + 3..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        let first = code[..at].matches('\n').count() + 1;
        if let Some(lines) = body_lines(&code[at..]).filter(|_| !name.is_empty()) {
            found.push((name, first, lines));
        }
    }
    found
}

/// Lines from the word `fn` to the brace that ends the body; none for a declaration.
fn body_lines(code: &str) -> Option<usize> {
    let (mut braces, mut brackets, mut lines) = (0_usize, 0_usize, 1);
    for c in code.chars() {
        match c {
            '\n' => lines += 1,
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.saturating_sub(1),
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces = braces.saturating_sub(1);
                if braces == 0 && brackets == 0 {
                    return Some(lines);
                }
            }
            _ => {}
        }
    }
    None
}

fn faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (line, at) in text.lines().zip(1..) {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            faults.push(format!("{path}:{at}: {columns} columns"));
        }
    }
    if Path::new(path).extension().is_none_or(|kind| kind != "rs") {
        return faults;
    }
    let code = code_of(text);
    let shipped = if is_test(path) {
        ""
    } else {
        before_tests(&code)
    };
    for (words, code) in [(NOWHERE, code.as_str()), (IN_TESTS_ONLY, shipped)] {
        for (line, at) in code.lines().zip(1..) {
            // What the compiler evaluates does not panic when it runs.
            let constant = line.trim_start().starts_with("const ");
            let has = |word: &&&str| line.contains(**word) && !constant;
            let found = words.iter().filter(has);
            faults.extend(found.map(|word| format!("{path}:{at}: {word}")));
        }
    }
    for (name, at, lines) in functions(shipped) {
        if lines > FUNCTION_LINES_MAX {
            faults.push(format!("{path}:{at}: {name} has {lines} lines"));
        }
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX && !path.starts_with("tests/it/") {
        faults.push(format!("{path}: {lines} lines"));
    }
    faults
}

#[test]
fn the_sources_are_in_style() -> anyhow::Result<()> {
    let root = root();
    let mut paths = Vec::new();
    sources(&root, &mut paths)?;
    ensure!(paths.len() >= FILES_MIN, "only {} sources", paths.len());
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(&root)?.to_string_lossy();
        all.extend(faults(&name, &text));
    }
    ensure!(all.is_empty(), "{} faults:\n{}", all.len(), all.join("\n"));
    Ok(())
}

#[test]
fn the_scan_finds_what_is_planted() {
    let long = format!(
        "fn long() {{\n{}}}\n",
        "    step();\n".repeat(FUNCTION_LINES_MAX)
    );
    let wide = format!("// {}\n", "x".repeat(COLUMNS_MAX));
    let big = "\n".repeat(FILE_LINES_MAX + 1);
    let planted = [
        (long.as_str(), "long has 72 lines"),
        (&wide, "103 columns"),
        (&big, "601 lines"),
        ("fn f() { g().unwrap() }\n", ".unwrap()"),
        ("fn f() { todo!() }\n", "todo!"),
        ("#[test]\n#[ignore = \"slow\"]\nfn f() {}\n", "#[ignore"),
    ];
    for (text, fault) in planted {
        let found = faults("core/src/a.rs", text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].ends_with(fault), "{found:?}");
    }
    // In comments, in literals and in tests it is something else.
    let fine = [
        "// dbg!() and .unwrap()\n",
        "const A: &str = \"todo!\\\" {\"; const B: char = '{'; fn f<'a>(_: &'a str) {}\n",
        "const A: &str = r#\"dbg!(\"{\")\"#; fn f() {}\n",
        "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    fn g() { h().unwrap() }\n}\n",
        "trait T {\n    fn f(&self, a: [u8; 2]);\n}\n",
    ];
    for text in fine {
        assert_eq!(faults("core/src/a.rs", text), [""; 0], "{text}");
    }
    assert_eq!(
        faults("tests/src/a.rs", "fn f() { g().unwrap() }\n"),
        [""; 0]
    );
    assert_eq!(functions("fn a() {\n    b();\n}\n"), [("a".into(), 1, 3)]);
}
