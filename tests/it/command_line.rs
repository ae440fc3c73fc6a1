//! What the command line prints on a real cluster, for people and for programs, and its exit codes.

use anyhow::{Context, ensure};
use concord_client::local::binary::ServerKind;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::bank::World;

/// What a command did.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    /// It ended with this code, and these words are on stderr.
    fn is(self, code: i32, words: &[&str]) -> anyhow::Result<Self> {
        ensure!(self.code == Some(code), "not {code}: {self:?}");
        for word in words {
            ensure!(self.err.contains(word), "no {word:?}: {self:?}");
        }
        Ok(self)
    }

    fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {self:?}"))
    }
}

fn concord(world: &World, args: &[&str]) -> anyhow::Result<Said> {
    let output = world.cluster.concord(args).output()?;
    Ok(Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

pub async fn what_statements_return_is_shown(world: &World) -> anyhow::Result<()> {
    let work = [
        "p1: SELECT id, 'one' AS word FROM work.t WHERE id < ? ORDER BY id",
        "-p",
        "3",
        "p2: UPDATE work.t SET n = n WHERE id = 7",
    ];
    let said = concord(world, &[&["tx", "exec"], &work[..]].concat())?.is(0, &[])?;
    for part in [
        "p1: 2 rows",
        "│ id ┆ word │",
        "│ 2  ┆ one  │",
        "p2: 1 row\n",
        "committed in ",
    ] {
        ensure!(said.out.contains(part), "no {part:?}: {}", said.out);
    }
    let said = concord(world, &[&["--json", "tx", "exec"], &work[..]].concat())?.is(0, &[])?;
    let told = said.json()?;
    ensure!(
        told["outcome"] == "committed"
            && told["replayed"] == false
            && told["results_lost"] == false
            && told["results"][0]["columns"] == json!(["id", "word"])
            && told["results"][0]["result"] == json!([[1, "one"], [2, "one"]])
            && told["results"][1]["rows"] == 1,
        "{told:#}"
    );
    let gtrid = told["gtrid"].as_str().context("a gtrid")?;
    let found = concord(world, &["--json", "tx", "get", gtrid])?.is(0, &[])?;
    ensure!(found.json()?["state"] == "COMMITTED", "{found:?}");
    Ok(())
}

pub async fn a_write_that_returns_rows(world: &World) -> anyhow::Result<()> {
    let add = "p1: INSERT INTO work.t VALUES (60, 7) RETURNING n + 1 AS more";
    let said = concord(world, &["--json", "tx", "exec", add])?;
    if world.cluster.server.kind() == ServerKind::Mysql {
        let said = said.is(2, &["MySQL has no RETURNING", "nothing was changed"])?;
        let reason = &said.json()?["reason"]["code"];
        ensure!(reason == "STATEMENT_NOT_ALLOWED", "{said:?}");
        return Ok(());
    }
    let told = said.is(0, &[])?.json()?;
    let one = &told["results"][0];
    ensure!(
        one["columns"] == json!(["more"]) && one["result"] == json!([[8]]),
        "{told:#}"
    );
    let drop = "p1: DELETE FROM work.t WHERE id = 60 RETURNING id";
    let said = concord(world, &["tx", "exec", drop])?.is(0, &[])?;
    ensure!(said.out.contains("│ 60 │"), "{}", said.out);
    Ok(())
}

pub async fn each_end_has_its_exit_code(world: &World) -> anyhow::Result<()> {
    let nothing = "nothing was changed on any server";
    let empty = "p1: UPDATE work.t SET n = n WHERE id = 99";
    concord(world, &["tx", "exec", empty, "--expect", "1:NO_SUCH_ROW"])?
        .is(3, &["NO_SUCH_ROW", nothing])?;
    concord(world, &["tx", "exec", "p9: SELECT 1"])?
        .is(3, &["PARTICIPANT_NOT_FOUND", "concord status"])?;
    concord(world, &["tx", "exec", "p1: SELECT n FROM work.nowhere"])?.is(3, &[nothing])?;
    concord(world, &["tx", "exec", "p1: DROP TABLE work.t"])?.is(2, &["STATEMENT_NOT_ALLOWED"])?;
    concord(world, &["tx", "exec"])?.is(2, &["nothing to run"])?;
    concord(world, &["tx", "get", "--request-id", "nobody-sent-this"])?.is(3, &[])?;
    let nobody = ["--endpoint", "http://127.0.0.1:1", "--retry-for", "0s"];
    concord(world, &[&nobody[..], &["account", "list"]].concat())?.is(5, &["concord up"])?;
    concord(world, &["--json", "transfer", "nobody", "noone", "1.00EUR"])?
        .is(3, &["ACCOUNT_NOT_FOUND", "concord account open"])?;
    Ok(())
}

/// It is not known meanwhile, and the command says how to find out; found out that way, it took
/// effect once.
pub async fn an_outcome_that_nobody_knows(world: &World) -> anyhow::Result<()> {
    for n in 1..=2 {
        let sql = "INSERT INTO work.t VALUES (70, 0)";
        world.cluster.sql(n, sql).await?;
    }
    let add = [
        "tx",
        "exec",
        "p1: UPDATE work.t SET n = n + 1 WHERE id = 70",
        "p2: UPDATE work.t SET n = n + 1 WHERE id = 70",
        "--request-id",
        "asked-twice",
    ];
    world.cluster.signal("coordinator", Signal::SIGSTOP)?;
    let hurry = ["--json", "--timeout", "1s", "--retry-for", "0s"];
    let said = concord(world, &[&hurry[..], &add].concat());
    world.cluster.signal("coordinator", Signal::SIGCONT)?;
    let said = said?.is(4, &["it is not known whether", "--request-id asked-twice"])?;
    let told = said.json()?;
    ensure!(
        told["outcome"] == "unknown" && told["request_id"] == "asked-twice",
        "{told:#}"
    );
    for _ in 0..2 {
        concord(world, &add)?.is(0, &[])?;
    }
    let read = ["p1", "p2"].map(|p| format!("{p}: SELECT n FROM work.t WHERE id = 70"));
    let said = concord(world, &["--json", "tx", "exec", &read[0], &read[1]])?.is(0, &[])?;
    let results = &said.json()?["results"];
    ensure!(
        results[0]["result"] == json!([[1]]) && results[1]["result"] == json!([[1]]),
        "{results:#}"
    );
    Ok(())
}
