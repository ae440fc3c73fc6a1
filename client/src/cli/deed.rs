//! A command that changes something: carried out, and its end told, whatever comes in between.
//!
//! It refuses to end without a word on whether the change was made and how to ask for it again:
//! not when somebody presses Ctrl-C, and not when its result cannot be written.

use std::fmt;
use std::thread;

use concord_core::reason::{Reason, code};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::cli::exit::{Exit, Failure, advice};
use crate::cli::interruption::Interruption;
use crate::cli::output::{self, Ctx};
use crate::cli::view;
use crate::outcome::Outcome;

/// What a command is to do.
#[derive(Debug)]
pub(crate) struct Deed {
    what: &'static str,
    done: &'static str,
    id: Id,
}

impl Deed {
    /// E.g. "the transfer" and "made", under the user's request id; without one, under a new one,
    /// so that the command's own retries are safe.
    pub(crate) fn new(what: &'static str, done: &'static str, given: Option<String>) -> Self {
        let id = given.map_or_else(
            || Id::New(format!("cli-{}", uuid::Uuid::now_v7())),
            Id::Given,
        );
        Self { what, done, id }
    }

    /// The request id of the command's call.
    pub(crate) fn request_id(&self) -> &str {
        match &self.id {
            Id::Given(id) | Id::New(id) => id,
        }
    }
}

/// A request id, by which a command takes effect at most once.
#[derive(Debug)]
enum Id {
    /// The user's. Something else may have been asked for under it before.
    Given(String),
    /// Made up for this command.
    New(String),
}

/// What there is to tell of an end: for programs, for people, and what is said on stderr.
struct End {
    value: Value,
    text: String,
    verdict: Result<Done, Failure>,
}

/// That it was done, in words for when its result cannot be written.
struct Done(String);

impl Ctx {
    /// Makes a call that changes something and tells its outcome: `committed` words one that was
    /// committed, from its results and its gtrid. Every other one is a failure.
    pub(crate) async fn carry_out<R>(
        &self,
        deed: &Deed,
        call: impl Future<Output = Outcome<R>>,
        committed: impl FnOnce(&R, &str, &mut Value) -> String,
    ) -> Result<(), Failure> {
        let mut interruption = Interruption::listen();
        let outcome = tokio::select! {
            biased;
            outcome = call => outcome,
            signal = interruption.came() => {
                let end = interrupted(deed, signal);
                return self.tell(deed, end, &mut interruption).await;
            }
        };
        let end = match outcome {
            Outcome::Committed {
                gtrid,
                results,
                replayed,
                results_lost,
            } => {
                let mut value = json!({
                    "outcome": "committed", "gtrid": gtrid, "replayed": replayed,
                    "results_lost": results_lost,
                });
                let mut text = committed(&results, &gtrid, &mut value);
                text.push_str(footnote(replayed, results_lost));
                done(deed, &gtrid, value, text)
            }
            Outcome::Aborted { reason, gtrid } => aborted(deed, &reason, gtrid.as_deref()),
            Outcome::Unknown {
                gtrid,
                reason,
                message,
                ..
            } => {
                let known = tokio::select! {
                    known = self.ask_again(gtrid.as_deref(), &deed.id) => known,
                    _ = interruption.came() => None,
                };
                match known {
                    Some(Outcome::Committed { gtrid, .. }) => found_done(deed, &gtrid),
                    Some(Outcome::Unknown {
                        gtrid,
                        reason: Some(reason),
                        message,
                        ..
                    }) => unknown(deed, gtrid.as_deref(), Some(&reason), &message),
                    _ => unknown(deed, gtrid.as_deref(), reason.as_ref(), &message),
                }
            }
        };
        self.tell(deed, end, &mut interruption).await
    }

    /// Prints an end. What it is outweighs that it could not be printed.
    async fn tell(
        &self,
        deed: &Deed,
        end: End,
        interruption: &mut Interruption,
    ) -> Result<(), Failure> {
        let json = self.json;
        let End {
            value,
            text,
            verdict,
        } = end;
        let (tell, written) = oneshot::channel();
        // A thread that nobody waits for: whoever is to read it may not.
        let printing = thread::Builder::new().spawn(move || {
            // Nobody is there to hear it when a signal came first.
            let _ = tell.send(output::print(json, &value, || text));
        });
        let cannot = |why: &dyn fmt::Display| {
            Failure::new(Exit::Other, "its result could not be written").why(why)
        };
        let unwritten = match printing {
            Err(error) => Err(cannot(&error)),
            Ok(_) => tokio::select! {
                biased;
                written = written => written.unwrap_or_else(|error| Err(cannot(&error))),
                signal = interruption.came() => Err(Failure::new(
                    Exit::Interrupted,
                    format!("{signal} came before its result was written"),
                )),
            },
        };
        match (verdict, unwritten) {
            (Ok(_), Ok(())) => Ok(()),
            (Err(failure), Ok(())) => Err(failure),
            (Err(failure), Err(unwritten)) => Err(failure.why(words(&unwritten))),
            (Ok(Done(text)), Err(unwritten)) => Err(Failure::new(unwritten.code(), text)
                .why(words(&unwritten))
                .next(format!(
                    "do not do it again as new; with --request-id {} the same command tells its \
                     outcome once more",
                    deed.request_id()
                ))),
        }
    }

    /// Asks the coordinator about an outcome that a call left open. An abort is not to be believed:
    /// it may be that of an earlier attempt than the one that is still on its way. Under an id that
    /// a user chose, what is on record may be something else.
    async fn ask_again(&self, gtrid: Option<&str>, id: &Id) -> Option<Outcome<()>> {
        let transaction = match (gtrid, id) {
            (Some(gtrid), _) => self.client.transaction(gtrid).await.ok()?,
            (None, Id::New(id)) => self.client.transaction_of_request(id).await.ok()?,
            (None, Id::Given(_)) => return None,
        };
        Some(Outcome::of(&transaction))
    }
}

fn done(Deed { what, done, .. }: &Deed, gtrid: &str, value: Value, text: String) -> End {
    let gtrid = match gtrid {
        "" => String::new(),
        gtrid => format!(" in {gtrid}"),
    };
    let words = format!("{what} WAS {done}{gtrid}; only its result could not be written");
    End {
        value,
        text,
        verdict: Ok(Done(words)),
    }
}

fn found_done(deed: &Deed, gtrid: &str) -> End {
    let value = json!({
        "outcome": "committed", "gtrid": gtrid, "replayed": false, "results_lost": true,
        "note": "the answer was lost; the coordinator says that it is committed",
    });
    let Deed {
        what, done: was, ..
    } = deed;
    let text = format!("{what} was {was} in {gtrid} (the answer was lost)");
    done(deed, gtrid, value, text)
}

fn aborted(Deed { what, done, .. }: &Deed, reason: &Reason, gtrid: Option<&str>) -> End {
    let failure = Failure::new(Exit::of(reason), format!("{what} was not {done}"))
        .why(reason)
        .why("nothing was changed on any server");
    failed(
        json!({ "outcome": "aborted", "gtrid": gtrid, "reason": view::reason(reason) }),
        match advice(&reason.code) {
            Some(next) => failure.next(next),
            None => failure,
        },
    )
}

/// Nobody waits for the answer any more. The transaction goes on.
fn interrupted(deed: &Deed, signal: &str) -> End {
    let message = format!("{signal} came before the answer");
    failed(
        not_known(deed, None, &message),
        open(deed, Exit::Interrupted, &message),
    )
}

fn unknown(deed: &Deed, gtrid: Option<&str>, reason: Option<&Reason>, message: &str) -> End {
    let value = not_known(deed, gtrid, message);
    let damage = reason.filter(|reason| &*reason.code != code::OUTCOME_UNKNOWN);
    let failure = match (damage, gtrid) {
        (Some(_), Some(gtrid)) => damaged(deed, gtrid, message),
        _ => open(deed, Exit::Unknown, message),
    };
    failed(value, failure)
}

fn failed(value: Value, failure: Failure) -> End {
    End {
        value,
        text: String::new(),
        verdict: Err(failure),
    }
}

/// What must be said beside the results of a commit.
fn footnote(replayed: bool, results_lost: bool) -> &'static str {
    if replayed {
        "\n(this is the outcome of an earlier attempt; nothing was done twice)"
    } else if results_lost {
        "\n(what its statements returned was lost after the commit; read again what you need)"
    } else {
        ""
    }
}

/// Why something could not be printed, in one line.
fn words(unwritten: &Failure) -> String {
    let mut words = vec![unwritten.to_string()];
    words.extend_from_slice(unwritten.reasons());
    words.join(": ")
}

fn not_known(deed: &Deed, gtrid: Option<&str>, message: &str) -> Value {
    json!({
        "outcome": "unknown", "gtrid": gtrid, "request_id": deed.request_id(), "message": message,
    })
}

fn open(deed: &Deed, exit: Exit, message: &str) -> Failure {
    let (Deed { what, done, .. }, id) = (deed, deed.request_id());
    Failure::new(exit, format!("it is not known whether {what} was {done}"))
        .why(message)
        .why("it takes effect on all servers, or on none; nothing is half done")
        .next(format!(
            "repeat the same command with --request-id {id}: it takes effect at most once; or ask \
             `concord tx get --request-id {id}`"
        ))
}

fn damaged(Deed { what, .. }: &Deed, gtrid: &str, message: &str) -> Failure {
    Failure::new(Exit::Unknown, format!("{what} was damaged"))
        .why(message)
        .why("somebody else finished a part of it, so that servers may disagree")
        .next(format!(
            "`concord tx get {gtrid}` shows what became of each part; mend the data by hand, and \
             do not repeat the command before"
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_says_how_to_ask_again() {
        let deed = &Deed::new("the transfer", "made", Some("r-1".to_owned()));
        let reason = Reason::new(code::OUTCOME_UNKNOWN, "not yet");
        for (end, exit) in [
            (
                unknown(deed, Some("g"), Some(&reason), "not yet"),
                Exit::Unknown,
            ),
            (unknown(deed, None, None, "lost"), Exit::Unknown),
            (interrupted(deed, "SIGINT"), Exit::Interrupted),
        ] {
            let failure = end.verdict.err().unwrap();
            assert_eq!(failure.code(), exit);
            assert!(failure.advice().unwrap().contains("--request-id r-1"));
        }
    }

    #[test]
    fn damage_is_not_called_all_or_nothing() {
        let deed = &Deed::new("the transfer", "made", None);
        let reason = Reason::new(code::HEURISTIC_ROLLBACK, "by hand");
        let end = unknown(
            deed,
            Some("g"),
            Some(&reason),
            "HEURISTIC_ROLLBACK: by hand",
        );
        let failure = end.verdict.err().unwrap();
        assert_eq!(failure.code(), Exit::Unknown);
        let told = format!("{failure} {:?} {:?}", failure.reasons(), failure.advice());
        assert!(
            told.contains("servers may disagree") && !told.contains("half"),
            "{told}"
        );
        assert!(!told.contains("repeat the same command"), "{told}");
    }

    #[test]
    fn every_command_has_an_id_of_its_own() {
        let of = || Deed::new("the transfer", "made", None);
        assert_ne!(of().request_id(), of().request_id());
    }
}
