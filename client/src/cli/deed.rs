//! A command that changes something: carried out, and its end told, whatever comes in between.
//!
//! It refuses to end without a word on whether the change was made and how to ask for it again:
//! not when somebody presses Ctrl-C, and not when its result cannot be written.

use std::io;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::exit::{Exit, Failure, advice};
use crate::cli::output::Ctx;
use crate::cli::view;
use crate::outcome::Outcome;

/// What a command is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deed<'a> {
    /// "the transfer"
    pub what: &'a str,
    /// "made"
    pub done: &'a str,
    /// Its request id.
    pub id: &'a Id,
}

/// A request id, by which a command takes effect at most once.
#[derive(Clone, Debug)]
pub(crate) enum Id {
    /// The user's. Something else may have been asked for under it before.
    Given(String),
    /// Made up for this command.
    New(String),
}

impl Id {
    /// The user's, or a new one, so that the command's own retries are safe.
    pub(crate) fn of(given: Option<String>) -> Self {
        given.map_or_else(
            || Self::New(format!("cli-{}", uuid::Uuid::now_v7())),
            Self::Given,
        )
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Given(id) | Self::New(id) => id,
        }
    }
}

impl Ctx {
    /// Makes a call that changes something and tells its outcome: `committed` words one that was
    /// committed, from its results and its gtrid. Every other one is a failure.
    pub(crate) async fn carry_out<R>(
        &self,
        deed: Deed<'_>,
        call: impl Future<Output = Outcome<R>>,
        committed: impl FnOnce(&R, &str, &mut Value) -> String,
    ) -> Result<(), Failure> {
        let outcome = tokio::select! {
            outcome = call => outcome,
            name = interruption() => return self.interrupted(deed, name),
        };
        match outcome {
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
                self.tell_done(deed, &gtrid, &value, text)
            }
            Outcome::Aborted { reason, gtrid } => {
                let value = json!({
                    "outcome": "aborted", "gtrid": gtrid, "reason": view::reason(&reason),
                });
                let what = format!("{} was not {}", deed.what, deed.done);
                let failure = Failure::new(Exit::of(&reason), what)
                    .why(&reason)
                    .why("nothing was changed on any server");
                let failure = match advice(&reason.code) {
                    Some(next) => failure.next(next),
                    None => failure,
                };
                Err(self.tell_too(&value, failure))
            }
            Outcome::Unknown { gtrid, message, .. } => {
                let known = tokio::select! {
                    known = self.ask_again(gtrid.as_deref(), deed.id) => known,
                    _ = interruption() => None,
                };
                if let Some(gtrid) = known {
                    let value = json!({
                        "outcome": "committed", "gtrid": gtrid, "replayed": false,
                        "results_lost": true,
                        "note": "the answer was lost; the coordinator says that it is committed",
                    });
                    let Deed { what, done, .. } = deed;
                    let text = format!("{what} was {done} in {gtrid} (the answer was lost)");
                    return self.tell_done(deed, &gtrid, &value, text);
                }
                Err(self.tell_too(
                    &not_known(deed, gtrid.as_deref(), &message),
                    unknown(deed, Exit::Unknown, &message),
                ))
            }
        }
    }

    /// Nobody waits for the answer any more. The transaction goes on.
    fn interrupted(&self, deed: Deed<'_>, signal: &str) -> Result<(), Failure> {
        let message = format!("{signal} came before the answer");
        Err(self.tell_too(
            &not_known(deed, None, &message),
            unknown(deed, Exit::Interrupted, &message),
        ))
    }

    /// Prints what was done. When that cannot be printed, it is told all the same.
    fn tell_done(
        &self,
        Deed { what, done, id }: Deed<'_>,
        gtrid: &str,
        value: &Value,
        text: String,
    ) -> Result<(), Failure> {
        let Err(unwritten) = self.print(value, || text) else {
            return Ok(());
        };
        let gtrid = match gtrid {
            "" => String::new(),
            gtrid => format!(" in {gtrid}"),
        };
        let text = format!("{what} WAS {done}{gtrid}; only its result could not be written");
        Err(Failure::new(Exit::Other, text)
            .why(words(&unwritten))
            .next(format!(
                "do not do it again as new; with --request-id {} the same command tells its \
                 outcome once more",
                id.as_str()
            )))
    }

    /// Prints a failure for programs too, and gives it back: how it ended outweighs what could not
    /// be written.
    fn tell_too(&self, value: &Value, failure: Failure) -> Failure {
        match self.print(value, String::new) {
            Ok(()) => failure,
            Err(unwritten) => failure.why(words(&unwritten)),
        }
    }

    /// Asks the coordinator about an outcome that a call left open. Only a commit is believed: an
    /// abort on record may be that of an earlier attempt than the one that is still on its way.
    /// Under an id that a user chose, what was committed may be something else.
    async fn ask_again(&self, gtrid: Option<&str>, id: &Id) -> Option<String> {
        let transaction = match (gtrid, id) {
            (Some(gtrid), _) => self.client.transaction(gtrid).await.ok()?,
            (None, Id::New(id)) => self.client.transaction_of_request(id).await.ok()?,
            (None, Id::Given(_)) => return None,
        };
        match Outcome::of(&transaction) {
            Outcome::Committed { gtrid, .. } => Some(gtrid),
            _ => None,
        }
    }
}

/// Resolves when somebody wants this process to end, with the signal's name.
async fn interruption() -> &'static str {
    let wait = async |kind| -> io::Result<()> {
        // A signal that cannot be listened to ends the process, as it does without us.
        signal(kind)?.recv().await;
        Ok(())
    };
    tokio::select! {
        Ok(()) = wait(SignalKind::interrupt()) => "SIGINT",
        Ok(()) = wait(SignalKind::terminate()) => "SIGTERM",
        Ok(()) = wait(SignalKind::hangup()) => "SIGHUP",
        else => std::future::pending().await,
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

fn not_known(deed: Deed<'_>, gtrid: Option<&str>, message: &str) -> Value {
    json!({
        "outcome": "unknown", "gtrid": gtrid, "request_id": deed.id.as_str(), "message": message,
    })
}

fn unknown(Deed { what, done, id }: Deed<'_>, exit: Exit, message: &str) -> Failure {
    let id = id.as_str();
    Failure::new(exit, format!("it is not known whether {what} was {done}"))
        .why(message)
        .why("it takes effect on all servers, or on none; nothing is half done")
        .next(format!(
            "repeat the same command with --request-id {id}: it takes effect at most once; or ask \
             `concord tx get --request-id {id}`"
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_says_how_to_ask_again() {
        let id = Id::of(Some("r-1".to_owned()));
        let deed = Deed {
            what: "the transfer",
            done: "made",
            id: &id,
        };
        for exit in [Exit::Unknown, Exit::Interrupted] {
            let failure = unknown(deed, exit, "lost");
            assert_eq!(failure.code(), exit);
            assert!(failure.advice().unwrap().contains("--request-id r-1"));
        }
    }

    #[test]
    fn every_command_has_an_id_of_its_own() {
        let (one, other) = (Id::of(None), Id::of(None));
        assert_ne!(one.as_str(), other.as_str());
    }
}
