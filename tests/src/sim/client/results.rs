//! What an answer says that its statements returned: all of it, or that it was lost; nothing is
//! made up.

use concord_proto::convert::text::parse_gtrid;
use concord_proto::v1;

use super::super::judge::Judge;

/// Judges the results of a transaction that is committed.
pub(super) fn check(
    judge: &Judge,
    statements: &[v1::TargetedStatement],
    answer: &v1::ExecuteTransactionResponse,
) {
    if let Err(text) = is_sound(statements, answer) {
        let text = format!("results: {text}");
        judge.broken(parse_gtrid(&answer.gtrid), text);
    }
}

fn is_sound(
    statements: &[v1::TargetedStatement],
    answer: &v1::ExecuteTransactionResponse,
) -> Result<(), String> {
    let (told, asked) = (answer.results.len(), statements.len());
    if answer.replayed || answer.results_lost {
        let mut servers = statements.iter().map(|one| &one.participant);
        let first = servers.next();
        let alone = servers.all(|server| Some(server) == first);
        return match (answer.replayed, answer.results_lost) {
            _ if told > 0 => Err(format!("{told} of them, which are said to be gone")),
            (true, true) => Err("of the first attempt, and lost by it as well".to_owned()),
            (false, true) if !alone => Err("lost by a commit in two phases".to_owned()),
            _ => Ok(()),
        };
    }
    if told != asked {
        return Err(format!("{told} of {asked} statements"));
    }
    for (result, targeted) in answer.results.iter().zip(statements) {
        // Each of the statements finds its row, and changes it or returns it.
        let sql = targeted.statement.as_ref().map_or("", |one| &one.sql);
        let returned = usize::from(sql.starts_with("SELECT"));
        if result.rows != 1 || result.result.len() != returned {
            return Err(format!("{result:?} of {sql}"));
        }
    }
    Ok(())
}
