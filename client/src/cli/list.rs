//! Lists that are shown up to a limit, and never cut in silence.

use clap::Args;

use crate::cli::output;

/// How much of a list is shown.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Show at most this many; every page that this needs is read.
    #[arg(long, default_value_t = 100, value_parser = limit)]
    pub limit: usize,
}

/// Reads a limit of at least 1.
pub(crate) fn limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".to_owned()),
        Ok(limit) => Ok(limit),
        Err(_) => Err("a whole number, at least 1".to_owned()),
    }
}

/// How many entries to ask for: one more than are shown tells whether there are more.
pub(crate) fn one_more(limit: usize) -> usize {
    limit.saturating_add(1)
}

/// Keeps what is shown of a list that was asked for with [`one_more`]; true if there is more.
pub(crate) fn cut<T>(list: &mut Vec<T>, limit: usize) -> bool {
    let more = list.len() > limit;
    list.truncate(limit);
    more
}

/// Says that a list was cut. It does so on stderr: a program that reads the list from stdout must
/// not take a part for the whole either, or not without a word to who started it.
pub(crate) fn tell_cut(shown: usize, more: bool) {
    tell_cut_by("--limit", shown, more);
}

/// The same of a list that another argument than `--limit` cuts.
pub(crate) fn tell_cut_by(argument: &str, shown: usize, more: bool) {
    if more {
        output::note(&format!(
            "({shown} shown; there are more: raise {argument})"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_only_when_there_is_more() {
        for (there, limit, expected) in [(2, 3, (2, false)), (3, 3, (3, false)), (4, 3, (3, true))]
        {
            let asked_for = there.min(one_more(limit));
            let mut list = vec![(); asked_for];
            let more = cut(&mut list, limit);
            assert_eq!((list.len(), more), expected);
        }
        assert_eq!(one_more(usize::MAX), usize::MAX);
    }
}
