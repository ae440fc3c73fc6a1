//! The wire between the coordinator and one participant, as a proxy that speaks their protocol.
//!
//! It sees every message of a link, which is what the judge knows of them, and does to messages
//! what no connection does: it doubles them, delays one behind others, and brings old ones back on
//! a later link, as a paused coordinator does when it wakes. Everything else passes as it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use concord_coordinator::participants::MESSAGE_BYTES_MAX;
use concord_core::id::{Bqual, BranchId, Gtrid};
use concord_proto::v1;
use concord_proto::v1::link_command::Command;
use concord_proto::v1::link_reply::Reply;
use concord_proto::v1::participant_client::ParticipantClient;
use concord_proto::v1::participant_server::Participant;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::chance::Chance;
use super::judge::Judge;
use super::trace::Trace;

/// Old messages that may come back.
const OLD_MAX: usize = 64;
/// Numbers of the proxy's own messages begin here, so that their answers are nobody's.
const OWN_SEQ: u64 = 1 << 60;

/// What is done to messages, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mischief {
    /// Commands that come twice.
    pub double: u64,
    /// Commands that come late.
    pub delay: u64,
    /// Answers that come late.
    pub delay_answer: u64,
}

#[derive(Debug)]
struct State {
    chance: Chance,
    mischief: Mischief,
    old: VecDeque<v1::LinkCommand>,
    /// The way into the current link.
    current: Option<Link>,
    own_seq: u64,
    /// The highest epoch that the participant has given an answer to.
    highest: u64,
    doubled: u64,
    delayed: u64,
    stale: u64,
}

/// The proxy before one participant. Clones are the same one.
#[derive(Clone, Debug)]
pub struct LinkProxy {
    name: Arc<str>,
    place: usize,
    state: Arc<Mutex<State>>,
    behind: Arc<OnceLock<Channel>>,
    trace: Trace,
    judge: Judge,
}

impl LinkProxy {
    /// Before the participant of this server.
    pub fn new(place: usize, chance: Chance, (trace, judge): (Trace, Judge)) -> Self {
        let state = State {
            chance,
            mischief: Mischief::default(),
            old: VecDeque::new(),
            current: None,
            own_seq: OWN_SEQ,
            highest: 0,
            doubled: 0,
            delayed: 0,
            stale: 0,
        };
        Self {
            name: format!("w{}", place + 1).into(),
            place,
            state: Arc::new(Mutex::new(state)),
            behind: Arc::default(),
            trace,
            judge,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what is done to messages from now on.
    pub fn set_mischief(&self, mischief: Mischief) {
        self.lock().mischief = mischief;
    }

    /// Brings some old messages back on the link that is up; tells how many.
    pub fn bring_back(&self, count: usize) -> usize {
        let mut state = self.lock();
        let Some(link) = state.current.clone() else {
            return 0;
        };
        let mut commands = Vec::new();
        for _ in 0..count.min(state.old.len()) {
            let len = state.old.len();
            let index = state.chance.index(len);
            let mut command = state.old[index].clone();
            state.own_seq += 1;
            command.seq = state.own_seq;
            if let Some(order) = describe(&command) {
                link.asked()
                    .insert(command.seq, Asked::of(&order, state.highest));
            }
            commands.push(command);
        }
        let count = commands.len();
        if count == 0 || link.outbound.send(v1::LinkRequest { commands }).is_err() {
            return 0;
        }
        state.stale += count as u64;
        count
    }

    /// Messages that came doubled, delayed, and brought back on a link that was up.
    pub fn counts(&self) -> (u64, u64, u64) {
        let state = self.lock();
        (state.doubled, state.delayed, state.stale)
    }

    /// Tells it where the participant is, once.
    pub fn lead_to(&self, channel: Channel) {
        // A second call would change nothing, and there is none.
        let _ = self.behind.set(channel);
    }

    fn client(&self) -> Result<ParticipantClient<Channel>, Status> {
        let channel = self.behind.get();
        let channel = channel.ok_or_else(|| Status::unavailable("it leads nowhere yet"))?;
        Ok(ParticipantClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn see_command(&self, command: &v1::LinkCommand) {
        let Some(Order {
            branch,
            what,
            epoch,
        }) = describe(command)
        else {
            return;
        };
        self.trace.note(
            &self.name,
            Some(branch.gtrid),
            format_args!("-> {what} (epoch {epoch}) {branch}"),
        );
        let work = match &command.command {
            Some(Command::Prepare(prepare)) => prepare.work.as_ref(),
            Some(Command::Commit(commit)) => commit.work.as_ref(),
            _ => None,
        };
        if let Some(work) = work.filter(|work| !work.request_id.is_empty()) {
            self.judge.attempt(&work.request_id, branch.gtrid);
        }
        self.judge
            .learn_branch(branch, Some(self.place), |facts| match &command.command {
                Some(Command::Commit(commit)) if !commit.one_phase => facts.told_commit = true,
                Some(Command::Abort(_)) => facts.told_abort = true,
                _ => {}
            });
    }

    /// A participant that has answered a coordinator refuses every one before it.
    fn check_fence(&self, asked: Asked, reply: &v1::LinkReply) {
        let refused = matches!(
            reply.reply,
            Some(Reply::Refused(_) | Reply::Unavailable(_)) | None
        );
        if refused {
            return;
        }
        let restored = self.judge.is_restored(self.place);
        if asked.epoch < asked.highest && !restored {
            let (branch, epoch, highest) = (asked.branch, asked.epoch, asked.highest);
            let text = format!("epoch {epoch} got in about {branch} after epoch {highest}");
            self.judge.broken(Some(branch.gtrid), text);
        }
        let mut state = self.lock();
        state.highest = state.highest.max(asked.epoch);
    }

    fn see_answer(&self, branch: BranchId, first: bool, reply: &v1::LinkReply) {
        let what = match &reply.reply {
            Some(Reply::Prepare(vote)) => format!("vote {:?}", vote.vote()),
            Some(Reply::Commit(done)) => format!("commit: {:?}", done.finish()),
            Some(Reply::Abort(done)) => format!("abort: {:?}", done.finish()),
            Some(Reply::Refused(reason)) => format!("refused {}", reason.code),
            Some(Reply::Unavailable(reason)) => format!("unavailable {}", reason.code),
            None => "nothing".to_owned(),
        };
        self.trace.note(
            &self.name,
            Some(branch.gtrid),
            format_args!("<- {what} {branch}"),
        );
        self.judge
            .learn_branch(branch, Some(self.place), |facts| match &reply.reply {
                Some(Reply::Prepare(vote)) => match vote.vote() {
                    v1::Vote::Commit => facts.voted_commit = true,
                    v1::Vote::ReadOnly if first && !facts.voted_commit => facts.left = true,
                    _ => {}
                },
                Some(Reply::Commit(done)) => facts.acknowledged |= is_over(done.finish()),
                Some(Reply::Abort(done)) => facts.acknowledged |= is_over(done.finish()),
                _ => {}
            });
    }

    /// Passes the commands of a frame on: at once, later, or twice.
    fn pass(&self, frame: v1::LinkRequest, link: &Link) {
        let mut at_once = Vec::new();
        for command in frame.commands {
            self.see_command(&command);
            if let Some(order) = describe(&command) {
                if link.forbidden {
                    let (what, branch) = (order.what, order.branch);
                    let text = format!("{what} {branch} to replaced data that nobody accepted");
                    self.judge.broken(Some(branch.gtrid), text);
                }
                let highest = self.lock().highest;
                link.asked().insert(command.seq, Asked::of(&order, highest));
            }
            let (late, twice) = {
                let mut state = self.lock();
                let mischief = state.mischief;
                if state.old.len() == OLD_MAX {
                    state.old.pop_front();
                }
                state.old.push_back(command.clone());
                let late = state.chance.permille(mischief.delay);
                let twice = state.chance.permille(mischief.double);
                let mut pause = |yes: bool| yes.then(|| state.chance.pause(1_000..2_000_000));
                (pause(late), pause(twice))
            };
            if let Some(pause) = twice {
                self.send_later(link, command.clone(), pause, |state| state.doubled += 1);
            }
            match late {
                Some(pause) => {
                    self.send_later(link, command, pause, |state| state.delayed += 1);
                }
                None => at_once.push(command),
            }
        }
        if !at_once.is_empty() {
            // A link that broke loses what is on it.
            let _ = link.outbound.send(v1::LinkRequest { commands: at_once });
        }
    }

    /// Sends a command later on its link, and counts it if that is still up.
    fn send_later(
        &self,
        link: &Link,
        command: v1::LinkCommand,
        pause: Duration,
        count: fn(&mut State),
    ) {
        let (outbound, this) = (link.outbound.clone(), self.clone());
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let commands = vec![command];
            if outbound.send(v1::LinkRequest { commands }).is_ok() {
                count(&mut this.lock());
            }
        });
    }

    /// Passes answers back.
    fn pass_back(
        &self,
        frame: v1::LinkResponse,
        link: &Link,
        answers: &mpsc::UnboundedSender<Result<v1::LinkResponse, Status>>,
    ) {
        let mut at_once = Vec::new();
        for reply in frame.replies {
            let asked = link.asked().get(&reply.seq).copied();
            let first = link.answered(reply.seq);
            if let Some(asked) = asked {
                self.check_fence(asked, &reply);
                self.see_answer(asked.branch, first, &reply);
            }
            let late = {
                let mut state = self.lock();
                let permille = state.mischief.delay_answer;
                let late = state.chance.permille(permille);
                late.then(|| state.chance.pause(1_000..1_000_000))
            };
            match late {
                Some(pause) => {
                    let (answers, this) = (answers.clone(), self.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        let replies = vec![reply];
                        let sent = answers.send(Ok(v1::LinkResponse { replies }));
                        this.lock().delayed += u64::from(sent.is_ok());
                    });
                }
                None => at_once.push(reply),
            }
        }
        if !at_once.is_empty() {
            let _ = answers.send(Ok(v1::LinkResponse { replies: at_once }));
        }
    }
}

/// Whether a finish is the branch's last word.
fn is_over(finish: v1::Finish) -> bool {
    match finish {
        v1::Finish::Committed | v1::Finish::Aborted | v1::Finish::Damaged => true,
        v1::Finish::Retry | v1::Finish::Unspecified => false,
    }
}

/// A command, in short.
struct Order {
    branch: BranchId,
    what: &'static str,
    epoch: u64,
}

/// A command that was passed on.
#[derive(Clone, Copy, Debug)]
struct Asked {
    branch: BranchId,
    epoch: u64,
    /// The participant had answered this epoch before.
    highest: u64,
}

impl Asked {
    fn of(order: &Order, highest: u64) -> Self {
        Self {
            branch: order.branch,
            epoch: order.epoch,
            highest,
        }
    }
}

fn describe(command: &v1::LinkCommand) -> Option<Order> {
    let (branch, what) = match command.command.as_ref()? {
        Command::Prepare(prepare) => (prepare.branch.as_ref()?, "prepare"),
        Command::Commit(commit) if commit.one_phase => {
            (commit.branch.as_ref()?, "commit in one phase")
        }
        Command::Commit(commit) => (commit.branch.as_ref()?, "commit"),
        Command::Abort(abort) => (abort.branch.as_ref()?, "abort"),
        Command::ForgetBelow(_) => return None,
    };
    let id = BranchId {
        gtrid: Gtrid(branch.gtrid.as_slice().try_into().ok()?),
        bqual: Bqual(branch.bqual),
    };
    Some(Order {
        branch: id,
        what,
        epoch: branch.epoch,
    })
}

/// One life of a link.
#[derive(Clone, Debug)]
struct Link {
    outbound: mpsc::UnboundedSender<v1::LinkRequest>,
    asked: Arc<Mutex<BTreeMap<u64, Asked>>>,
    answered: Arc<Mutex<BTreeSet<u64>>>,
    /// The data behind it was replaced before it came up, and nobody had accepted that.
    forbidden: bool,
}

impl Link {
    fn asked(&self) -> MutexGuard<'_, BTreeMap<u64, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an answer; true when it is the first one to its command.
    fn answered(&self, seq: u64) -> bool {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.insert(seq)
    }
}

type Answered<T> = Result<Response<T>, Status>;

/// Calls that pass as they are.
macro_rules! pass {
    ($($name:ident($request:ident) -> $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl Participant for LinkProxy {
            type LinkStream =
                Pin<Box<dyn Stream<Item = Result<v1::LinkResponse, Status>> + Send>>;

            async fn link(
                &self,
                request: Request<Streaming<v1::LinkRequest>>,
            ) -> Answered<Self::LinkStream> {
                self.link_up(request.into_inner()).await
            }

            $(async fn $name(&self, request: Request<v1::$request>) -> Answered<v1::$response> {
                let request = Request::new(request.into_inner());
                Ok(Response::new(self.client()?.$name(request).await?.into_inner()))
            })*
        }
    };
}

pass!(
    begin(BeginRequest) -> BeginResponse,
    execute(ExecuteRequest) -> ExecuteResponse,
    prepare(PrepareRequest) -> PrepareResponse,
    commit(CommitRequest) -> CommitResponse,
    abort(AbortRequest) -> AbortResponse,
    query(QueryRequest) -> QueryResponse,
    list_branches(ListBranchesRequest) -> ListBranchesResponse,
    get_status(GetStatusRequest) -> GetStatusResponse,
    acknowledge_damage(AcknowledgeDamageRequest) -> AcknowledgeDamageResponse,
    resolve(ResolveRequest) -> ResolveResponse,
    migrate(MigrateRequest) -> MigrateResponse,
);

impl LinkProxy {
    async fn link_up(
        &self,
        mut frames: Streaming<v1::LinkRequest>,
    ) -> Answered<<Self as Participant>::LinkStream> {
        let (outbound, onward) = mpsc::unbounded_channel();
        let over = CancellationToken::new();
        let stream =
            UnboundedReceiverStream::new(onward).take_until(over.clone().cancelled_owned());
        let mut inbound = self.client()?.link(stream).await?.into_inner();
        let (answers, back) = mpsc::unbounded_channel();
        let link = Link {
            outbound,
            asked: Arc::default(),
            answered: Arc::default(),
            forbidden: self.judge.is_unaccepted(self.place),
        };
        self.lock().current = Some(link.clone());
        self.trace.note(&self.name, None, format_args!("link up"));
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = answers.closed() => break,
                    frame = inbound.message() => match frame {
                        Ok(Some(frame)) => this.pass_back(frame, &link, &answers),
                        Ok(None) => break,
                        Err(status) => {
                            let _ = answers.send(Err(status));
                            break;
                        }
                    },
                    frame = frames.message() => match frame {
                        Ok(Some(frame)) => this.pass(frame, &link),
                        Ok(None) | Err(_) => break,
                    },
                }
            }
            over.cancel();
            this.trace.note(&this.name, None, format_args!("link down"));
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(back))))
    }
}
