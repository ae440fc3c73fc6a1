//! Tests of the link.

use concord_core::id::{Bqual, Gtrid, ParticipantName};
use concord_proto::convert::link::{Finished, abort_request, commit_request, prepare_request};
use tonic::transport::Endpoint;

use super::*;
use crate::participants::Participants;

const BRANCH: BranchId = BranchId {
    gtrid: Gtrid([7; 16]),
    bqual: Bqual(1),
};
const EPOCH: Epoch = Epoch(1);

fn pump() -> (Pump, mpsc::Receiver<Call>) {
    let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
    let name = ParticipantName::new("p1");
    let peers = Participants::from_channels([(name, String::new(), channel)]);
    let (driver, calls) = mpsc::channel(8);
    let pump = Pump {
        peer: Arc::clone(&peers.all()[0]),
        generation: 1,
        epoch: EPOCH,
        driver,
        sent: HashMap::new(),
        told: HashSet::new(),
        next_seq: 1,
    };
    (pump, calls)
}

fn outbound(command: Command) -> Outbound {
    Outbound::Command {
        branch: BRANCH,
        command,
    }
}

#[tokio::test]
async fn an_outcome_is_not_sent_again_before_its_answer() {
    let (mut pump, _calls) = pump();
    let commit = || outbound(Command::Commit(commit_request(BRANCH, EPOCH, true, None)));
    let abort = || outbound(Command::Abort(abort_request(BRANCH, EPOCH)));
    let first = pump.number(commit()).map(|command| command.seq);
    assert_eq!(first, Some(1));
    assert_eq!(pump.number(commit()), None);
    let asked = pump.number(abort()).map(|command| command.seq);
    assert_eq!(asked, Some(2), "how it ended is another question");
    assert_eq!(pump.number(abort()), None);
    let busy = Reason::new(code::SERVER_DOWN, "not now");
    let answer = Reply::Aborted(Finished {
        finish: Finish::Retry(busy),
        results: Vec::new(),
        failed_statement: None,
    });
    pump.answered(2, Ok(answer)).await.unwrap();
    assert!(pump.number(abort()).is_some());
    assert_eq!(pump.number(commit()), None);
    assert_eq!(pump.sent.len(), 2);
}

#[tokio::test]
async fn the_answer_to_an_abort_brings_what_a_commit_returned() {
    let (mut pump, mut calls) = pump();
    pump.number(outbound(Command::Abort(abort_request(BRANCH, EPOCH))));
    let committed = Finished {
        finish: Finish::Committed,
        results: vec![v1::StatementResult::default()],
        failed_statement: None,
    };
    pump.answered(1, Ok(Reply::Aborted(committed)))
        .await
        .unwrap();
    let call = calls.recv().await;
    assert!(
        matches!(&call, Some(Call::Received { results, .. }) if results.len() == 1),
        "{call:?}"
    );
}

#[test]
fn whoever_cannot_vote_is_looked_at_often() {
    let health = |status| Health {
        status,
        ..Health::default()
    };
    let of = |can_vote| v1::GetStatusResponse {
        can_vote,
        ..v1::GetStatusResponse::default()
    };
    assert_eq!(look_interval(&health(Some(of(true)))), STATUS_INTERVAL);
    assert_eq!(look_interval(&health(Some(of(false)))), NO_VOTE_INTERVAL);
    assert_eq!(look_interval(&health(None)), NO_VOTE_INTERVAL);
}

#[test]
fn a_frame_takes_what_a_participant_takes() {
    let large = |seq| {
        let statement = v1::Statement {
            sql: "x".repeat(LINK_FRAME_BYTES / 2),
            ..v1::Statement::default()
        };
        let mut prepare = prepare_request(BRANCH, EPOCH, None);
        prepare.work = Some(v1::Work {
            statements: vec![statement],
            ..v1::Work::default()
        });
        v1::LinkCommand {
            seq,
            command: Some(Command::Prepare(prepare)),
        }
    };
    assert_eq!(in_frames(Vec::new()), []);
    let frames = in_frames((1..=3).map(large).collect());
    let seqs: Vec<Vec<u64>> = frames
        .iter()
        .map(|frame| frame.commands.iter().map(|command| command.seq).collect())
        .collect();
    assert_eq!(seqs, [vec![1], vec![2], vec![3]]);
}
