//! The way to the driver for everybody else: the gateway's [`Engine`], and the calls of the
//! transaction, outcome and administration services.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use concord_core::coordinator::{Resolve, Seen};
use concord_core::id::{BranchId, Gtrid, ParticipantName, Request, RequestId};
use concord_core::message::{Decision, Outcome};
use concord_core::reason::{Reason, code};
use concord_core::transaction::Ack;
use concord_proto::convert::common::timeout_ms;
use concord_proto::model::{Isolation, Statement};
use concord_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::driver::{Call, Ended, Enlisted, Numbers, Ordered, Told, stopped};
use crate::engine::{Engine, Executed, Failure, Migration, OneShot};
use crate::former::{former_of, judged};
use crate::mint::Mint;
use crate::participants::{Participants, Peer, reason_of, result_of};

/// What a read or migration may take longer than its own time-out on its way.
const RPC_GRACE: Duration = Duration::from_secs(2);
/// Time for the migrations of one schema on one server.
const MIGRATE_TIMEOUT: Duration = Duration::from_mins(1);

/// The way to the driver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    calls: mpsc::Sender<Call>,
    mint: Arc<Mint>,
    participants: Participants,
    accepting: Arc<AtomicBool>,
}

/// Of a request when the driver ended before it said whether it knows it. There is no transaction
/// to ask about, and that it is not known would be a lie.
fn not_told() -> Failure {
    let text = "the coordinator stops, and what became of this request is not known; ask the next \
                one with the same request id";
    Failure::Refused(Reason::new(code::OUTCOME_UNKNOWN, text))
}

impl Handle {
    /// A handle on a driver. No transaction begins while `accepting` is false.
    pub fn new(
        calls: mpsc::Sender<Call>,
        mint: Arc<Mint>,
        participants: Participants,
        accepting: Arc<AtomicBool>,
    ) -> Self {
        Self {
            calls,
            mint,
            participants,
            accepting,
        }
    }

    fn admit(&self) -> Result<(), Reason> {
        if self.accepting.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(stopped())
        }
    }

    /// Why nothing can be begun there: that nothing was begun could not be made sure of, and such
    /// transactions would pile up until the server is back.
    fn stands_still(&self, participant: &ParticipantName) -> Option<Reason> {
        let peer = self.participants.get(participant);
        peer.ok().and_then(|peer| peer.stands_still())
    }

    /// The participant, unless the data behind it is known not to be the cluster's: what it says
    /// would be told as true, and tables be made where nobody looks for them.
    fn own_data(&self, participant: &ParticipantName) -> Result<&Arc<Peer>, Reason> {
        let peer = self.participants.get(participant)?;
        peer.strange_data().map_or(Ok(peer), Err)
    }

    /// The participants and their health.
    pub fn peers(&self) -> &Participants {
        &self.participants
    }

    /// Calls the driver and waits for the answer. None: the driver ended, and whether the call
    /// had an effect is not known.
    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Option<T> {
        let (answer, wait) = oneshot::channel();
        self.calls.send(call(answer)).await.ok()?;
        wait.await.ok()
    }

    /// What a ledger said of a former attempt, checked against what is known of that one.
    async fn checked(&self, told: Result<Executed, Failure>) -> Result<Executed, Failure> {
        match former_of(&told) {
            Some(former) => judged(former, self.look(former).await.ok()),
            None => told,
        }
    }

    /// Begins an interactive transaction.
    pub async fn begin(
        &self,
        isolation: Option<Isolation>,
        timeout: Duration,
    ) -> Result<Gtrid, Reason> {
        self.admit()?;
        let gtrid = self.mint.mint();
        let begun = self
            .ask(|answer| Call::Begin {
                gtrid,
                isolation,
                timeout,
                answer,
            })
            .await;
        begun.unwrap_or_else(|| Err(stopped())).map(|()| gtrid)
    }

    /// The branch in which a statement of an interactive transaction may run.
    pub async fn enlist(
        &self,
        gtrid: Gtrid,
        participant: ParticipantName,
    ) -> Result<Enlisted, Reason> {
        let down = self.stands_still(&participant);
        let enlisted = self
            .ask(|answer| Call::Enlist {
                gtrid,
                participant,
                down,
                answer,
            })
            .await;
        enlisted.unwrap_or_else(|| Err(stopped()))
    }

    /// Says that the statement has ended.
    pub async fn statement_done(&self, gtrid: Gtrid, failed: Option<Reason>) {
        // A driver that ended has aborted it.
        let _ = self.calls.send(Call::StatementDone { gtrid, failed }).await;
    }

    /// Commits an interactive transaction.
    pub async fn commit(&self, gtrid: Gtrid, ack: Ack) -> Result<Executed, Failure> {
        let told = self.ask(|answer| Call::Commit { gtrid, ack, answer }).await;
        told.map_or(Err(Failure::Unknown { gtrid }), executed)
    }

    /// Rolls an interactive transaction back.
    pub async fn rollback(&self, gtrid: Gtrid, reason: Reason) -> Result<Executed, Failure> {
        let told = self
            .ask(|answer| Call::Rollback {
                gtrid,
                reason,
                answer,
            })
            .await;
        told.map_or_else(|| Err(Failure::Refused(stopped())), executed)
    }

    /// What became of a transaction.
    pub async fn look(&self, gtrid: Gtrid) -> Result<Seen, Reason> {
        self.ask(|answer| Call::Look { gtrid, answer })
            .await
            .ok_or_else(stopped)
    }

    /// What became of a request.
    pub async fn look_up(&self, request: RequestId) -> Result<Seen, Reason> {
        self.ask(|answer| Call::LookUp { request, answer })
            .await
            .ok_or_else(stopped)
    }

    /// The answer to a participant in doubt.
    pub async fn inquire(
        &self,
        from: ParticipantName,
        branch: BranchId,
    ) -> Result<Decision, Reason> {
        let decision = self
            .ask(|answer| Call::Inquire {
                from,
                branch,
                answer,
            })
            .await;
        decision.ok_or_else(stopped)
    }

    /// Checks and records an operator's order.
    pub async fn resolve(&self, resolve: Resolve) -> Result<Ordered, Reason> {
        self.ask(|answer| Call::Resolve { resolve, answer })
            .await
            .ok_or_else(stopped)
    }

    /// Numbers for the status page.
    pub async fn numbers(&self) -> Result<Numbers, Reason> {
        self.ask(|answer| Call::Numbers { answer })
            .await
            .ok_or_else(stopped)
    }
}

fn executed(told: Told) -> Result<Executed, Failure> {
    match told {
        Told::Refused(reason) => Err(Failure::Refused(reason)),
        Told::Replayed { first, outcome } => outcome_of(first, outcome, None, Vec::new(), true),
        Told::Ended(Ended {
            gtrid,
            outcome,
            results,
            refused_by,
        }) => outcome_of(gtrid, outcome, refused_by, results, false),
    }
}

fn outcome_of(
    gtrid: Gtrid,
    outcome: Outcome,
    refused_by: Option<crate::driver::Refuser>,
    results: Vec<Vec<v1::StatementResult>>,
    replayed: bool,
) -> Result<Executed, Failure> {
    match outcome {
        Outcome::Committed => Ok(Executed {
            gtrid,
            results,
            replayed,
        }),
        Outcome::Unknown(gtrid) => Err(Failure::Unknown { gtrid }),
        Outcome::Aborted(reason) | Outcome::Damaged(reason) => {
            let (participant, branch_index, failed_statement) = match refused_by {
                Some(by) => (
                    Some(by.participant),
                    Some(by.branch_index),
                    by.failed_statement,
                ),
                None => (None, None, None),
            };
            Err(Failure::Aborted {
                gtrid,
                reason,
                participant,
                branch_index,
                failed_statement,
            })
        }
    }
}

impl Engine for Handle {
    fn mint(&self) -> Gtrid {
        self.mint.mint()
    }

    async fn execute(&self, tx: OneShot) -> Result<Executed, Failure> {
        self.admit().map_err(Failure::Refused)?;
        let gtrid = tx.gtrid;
        // Of several branches, one whose server is away votes so, and has ended. One whose server
        // takes no writes may not even be able to vote.
        let alone = tx.branches.len() == 1;
        let mut standing = tx.branches.iter();
        let down = standing.find_map(|branch| {
            let reason = self.stands_still(&branch.participant)?;
            (alone || &*reason.code == code::READ_ONLY_SERVER).then_some(reason)
        });
        let (answer, wait) = oneshot::channel();
        let run = Call::Run {
            tx: Box::new(tx),
            down,
            answer,
        };
        if self.calls.send(run).await.is_err() {
            return Err(Failure::Refused(stopped()));
        }
        let told = wait.await.map_or(Err(Failure::Unknown { gtrid }), executed);
        self.checked(told).await
    }

    async fn repeat(&self, request: Request) -> Option<Result<Executed, Failure>> {
        let gtrid = self.mint();
        let repeat = |answer| Call::Repeat {
            gtrid,
            request,
            answer,
        };
        let told = match self.ask(repeat).await {
            Some(None) => return None,
            Some(Some(wait)) => wait.await.ok(),
            None => None,
        };
        let told = told.map_or_else(|| Err(not_told()), executed);
        Some(self.checked(told).await)
    }

    async fn query(
        &self,
        participant: &ParticipantName,
        statement: Statement,
        time: Duration,
    ) -> Result<v1::StatementResult, Reason> {
        let peer = self.own_data(participant)?;
        let request = v1::QueryRequest {
            statement: Some(statement.into()),
            timeout_ms: timeout_ms(time),
        };
        match timeout(time + RPC_GRACE, peer.client().query(request)).await {
            Ok(Ok(response)) => result_of(participant, response.into_inner().result),
            Ok(Err(status)) => Err(reason_of(participant, &status)),
            Err(_) => Err(silent(participant, time)),
        }
    }

    async fn migrate(
        &self,
        participant: &ParticipantName,
        schema: &str,
        migrations: &[Migration],
    ) -> Result<(), Reason> {
        let peer = self.own_data(participant)?;
        let migrations = migrations
            .iter()
            .map(|migration| v1::Migration {
                version: migration.version,
                statements: migration
                    .statements
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            })
            .collect();
        let request = v1::MigrateRequest {
            schema: schema.to_owned(),
            migrations,
        };
        match timeout(MIGRATE_TIMEOUT, peer.client().migrate(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(reason_of(participant, &status)),
            Err(_) => Err(silent(participant, MIGRATE_TIMEOUT)),
        }
    }

    fn participants(&self) -> Vec<ParticipantName> {
        self.participants.names()
    }
}

fn silent(participant: &ParticipantName, time: Duration) -> Reason {
    let text = format!("participant {participant} did not answer in {time:?}");
    Reason::new(code::PARTICIPANT_DOWN, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::surroundings::Machine;

    #[tokio::test]
    async fn a_driver_that_ended_never_says_that_a_request_is_not_known() {
        let (calls, mut driver) = mpsc::channel(1);
        let mint = Arc::new(Mint::above(Gtrid::MIN, Arc::new(Machine)));
        let handle = Handle::new(calls, mint, Participants::new(Vec::new()), Arc::default());
        let request = || Request {
            id: RequestId::new("r"),
            fingerprint: 1,
        };
        let is_open = |repeated: Option<Result<Executed, Failure>>| {
            let Some(Err(Failure::Refused(reason))) = repeated else {
                panic!("{repeated:?}");
            };
            assert!(reason.leaves_outcome_open(), "{reason}");
        };
        // It takes the call and ends, and then takes none.
        let take = async { drop(driver.recv().await) };
        let (repeated, ()) = tokio::join!(handle.repeat(request()), take);
        is_open(repeated);
        drop(driver);
        is_open(handle.repeat(request()).await);
    }

    /// Plays the driver: the ledger says that the request took effect in `former`, of which this is
    /// known.
    async fn retried(former: Gtrid, seen: Seen) -> Result<Executed, Failure> {
        let (calls, mut driver) = mpsc::channel(1);
        let mint = Arc::new(Mint::above(Gtrid::MIN, Arc::new(Machine)));
        let accepting = Arc::new(AtomicBool::new(true));
        let handle = Handle::new(calls, mint, Participants::new(Vec::new()), accepting);
        let tx = OneShot {
            gtrid: handle.mint(),
            branches: Vec::new(),
            request: None,
            isolation: None,
            ack: Ack::Applied,
            timeout: Duration::from_secs(1),
        };
        let said = Reason::new(code::REQUEST_ALREADY_COMMITTED, former.to_string());
        let play = async {
            let Some(Call::Run { tx, answer, .. }) = driver.recv().await else {
                panic!("no transaction");
            };
            let ended = Ended {
                gtrid: tx.gtrid,
                outcome: Outcome::Aborted(said),
                results: Vec::new(),
                refused_by: None,
            };
            answer.send(Told::Ended(ended)).expect("a caller");
            let Some(Call::Look { gtrid, answer }) = driver.recv().await else {
                panic!("the former transaction is not looked up");
            };
            assert_eq!(gtrid, former);
            answer.send(seen).expect("a caller");
        };
        let both = async { tokio::join!(handle.execute(tx), play).0 };
        timeout(Duration::from_secs(10), both)
            .await
            .expect("an end")
    }

    #[tokio::test]
    async fn a_request_that_a_ledger_knows_has_succeeded_unless_it_is_damaged() {
        let former = Mint::above(Gtrid::MIN, Arc::new(Machine)).mint();
        let executed = retried(former, Seen::Forgotten).await;
        assert!(
            matches!(&executed, Ok(done) if done.gtrid == former && done.replayed),
            "{executed:?}"
        );
        let damage = Reason::new(code::HEURISTIC_COMMIT, "by hand");
        let seen = Seen::Ended {
            gtrid: former,
            outcome: Outcome::Damaged(damage.clone()),
        };
        let executed = retried(former, seen).await;
        assert!(
            matches!(&executed, Err(Failure::Aborted { gtrid, reason, .. })
                if *gtrid == former && *reason == damage),
            "{executed:?}"
        );
    }
}
