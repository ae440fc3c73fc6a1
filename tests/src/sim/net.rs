//! The simulated network: connections between nodes, with latency, partitions, resets and deaths.
//!
//! A connection behaves as TCP does: bytes arrive in order or not at all; a cut delays them until
//! it heals; a process that is killed resets its connections; a machine that loses its power says
//! nothing, and what is sent to it is answered by a reset when it is back. Messages that are
//! doubled, late or out of order, which TCP cannot make, are the business of [`super::wire`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::{Bytes, BytesMut};

use super::chance::Chance;
use super::trace::Clock;

mod door;

pub use door::{Connecting, Door, Listener, Wire};

/// Where a process can be reached.
pub type Node = usize;

/// A SYN that met no machine is sent again after this.
const SYN_AGAIN_US: u64 = 1_000_000;
/// What a cut held back arrives up to this much after it healed.
const RESEND_MAX_US: u64 = 300_000;

#[derive(Debug)]
enum Segment {
    Syn,
    SynAck,
    Refused,
    Data(Bytes),
    Fin,
    Reset,
}

/// One direction of a connection.
#[derive(Debug)]
struct Pipe {
    /// With the time it decides how long a segment takes. Neither the order in which connections
    /// are used nor the number of segments that bytes travel in is anything that a run depends on:
    /// both may differ with the order in which a runtime polls the tasks of one moment.
    key: u64,
    in_flight: VecDeque<(u64, Segment)>,
    ready: BytesMut,
    ended: bool,
    reset: bool,
    reader: Option<Waker>,
}

impl Pipe {
    fn new(key: u64) -> Self {
        Self {
            key,
            in_flight: VecDeque::new(),
            ready: BytesMut::new(),
            ended: false,
            reset: false,
            reader: None,
        }
    }

    fn chance(&self, now: u64) -> Chance {
        Chance::of(self.key ^ now.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    Sent,
    Open,
    Refused,
}

#[derive(Debug)]
struct Conn {
    /// Who connected, and to whom.
    ends: [Node; 2],
    /// What arrives at each end.
    pipes: [Pipe; 2],
    /// Whether the process at each end still holds it.
    held: [bool; 2],
    opening: Opening,
    connector: Option<Waker>,
}

#[derive(Debug, Default)]
struct NodeState {
    /// The process that is there, if one is.
    life: Option<u64>,
    /// Whether the machine is on.
    up: bool,
    listening: bool,
    backlog: VecDeque<u64>,
    acceptor: Option<Waker>,
}

#[derive(Debug)]
struct State {
    nodes: Vec<NodeState>,
    conns: BTreeMap<u64, Conn>,
    next: u64,
    cuts: BTreeMap<(Node, Node), u32>,
    slow_us: BTreeMap<(Node, Node), u64>,
    seed: u64,
    /// Connections that were ever made between two nodes.
    made: BTreeMap<(Node, Node), u64>,
    latency_us: (u64, u64),
    wakers: Vec<Waker>,
    resets: u64,
}

/// The network. Clones are the same network.
#[derive(Clone, Debug)]
pub struct Net {
    state: Arc<Mutex<State>>,
    clock: Clock,
}

impl Net {
    /// A network of so many nodes; a segment takes a time in this range, in microseconds.
    pub fn new(nodes: usize, latency_us: (u64, u64), mut chance: Chance, clock: Clock) -> Self {
        let state = State {
            nodes: (0..nodes).map(|_| NodeState::default()).collect(),
            conns: BTreeMap::new(),
            next: 1,
            cuts: BTreeMap::new(),
            slow_us: BTreeMap::new(),
            seed: chance.number(),
            made: BTreeMap::new(),
            latency_us,
            wakers: Vec::new(),
            resets: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, then wakes whoever waits for it.
    fn change<T>(&self, change: impl FnOnce(&mut State, u64) -> T) -> T {
        let (result, wakers) = {
            let mut state = self.lock();
            let result = change(&mut state, self.clock.now_us());
            (result, std::mem::take(&mut state.wakers))
        };
        wakers.into_iter().for_each(Waker::wake);
        result
    }

    /// A process begins at a node; what it does goes through the door.
    pub fn door(&self, node: Node) -> Door {
        let life = self.change(|state, _| {
            let life = state.number();
            state.nodes[node].life = Some(life);
            state.nodes[node].up = true;
            life
        });
        let net = self.clone();
        Door { net, node, life }
    }

    /// The process at a node is gone. Its peers hear of it, unless the machine lost its power.
    pub fn kill(&self, node: Node, power: bool) {
        self.change(|state, now| {
            let at = &mut state.nodes[node];
            (at.life, at.listening, at.up) = (None, false, !power);
            at.backlog.clear();
            let ids: Vec<u64> = state.conns.keys().copied().collect();
            for id in ids {
                state.let_go_of(id, node, now, power);
            }
        });
    }

    /// The machine is on again.
    pub fn power_on(&self, node: Node) {
        self.change(|state, _| state.nodes[node].up = true);
    }

    /// Cuts one direction, or heals one cut of it: cuts overlap.
    pub fn cut(&self, from: Node, to: Node, on: bool) {
        self.change(|state, now| {
            let cuts = state.cuts.entry((from, to)).or_default();
            *cuts = if on {
                *cuts + 1
            } else {
                cuts.saturating_sub(1)
            };
            if *cuts == 0 {
                state.cuts.remove(&(from, to));
                state.resend(from, to, now);
            }
        });
    }

    /// Makes one direction slower by so much.
    pub fn slow(&self, from: Node, to: Node, by_us: u64) {
        self.change(|state, _| {
            if by_us == 0 {
                state.slow_us.remove(&(from, to));
            } else {
                state.slow_us.insert((from, to), by_us);
            }
        });
    }

    /// Resets all connections between two nodes; tells how many.
    pub fn reset(&self, one: Node, other: Node) -> usize {
        self.change(|state, now| {
            let between = |conn: &Conn| conn.ends == [one, other] || conn.ends == [other, one];
            let ids: Vec<u64> = state
                .conns
                .iter()
                .filter(|(_, conn)| between(conn))
                .map(|(id, _)| *id)
                .collect();
            for id in &ids {
                state.push(*id, 0, Segment::Reset, now);
                state.push(*id, 1, Segment::Reset, now);
            }
            ids.len()
        })
    }

    /// Delivers what is due.
    pub fn deliver(&self) {
        self.change(State::deliver);
    }

    /// Connections that were reset by anything.
    pub fn resets(&self) -> u64 {
        self.lock().resets
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Puts a segment on its way to an end of a connection.
    fn push(&mut self, id: u64, to: usize, segment: Segment, now: u64) {
        let (low, high) = self.latency_us;
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let latency = conn.pipes[to].chance(now).between(low..high);
        let way = (conn.ends[1 - to], conn.ends[to]);
        let slow = self.slow_us.get(&way).copied().unwrap_or(0);
        let pipe = &mut conn.pipes[to];
        let after = pipe.in_flight.back().map_or(0, |(at, _)| *at);
        pipe.in_flight
            .push_back(((now + latency + slow).max(after), segment));
    }

    fn let_go_of(&mut self, id: u64, node: Node, now: u64, silently: bool) {
        for end in [0, 1] {
            let Some(conn) = self.conns.get_mut(&id) else {
                return;
            };
            if conn.ends[end] == node && conn.held[end] {
                conn.held[end] = false;
                if !silently {
                    self.push(id, 1 - end, Segment::Reset, now);
                }
            }
        }
    }

    fn resend(&mut self, from: Node, to: Node, now: u64) {
        for conn in self.conns.values_mut() {
            for end in [0, 1] {
                if conn.ends[1 - end] == from && conn.ends[end] == to {
                    let late = now + conn.pipes[end].chance(now).between(0..RESEND_MAX_US);
                    for (at, _) in &mut conn.pipes[end].in_flight {
                        *at = (*at).max(late);
                    }
                }
            }
        }
    }

    fn deliver(&mut self, now: u64) {
        let ids: Vec<u64> = self.conns.keys().copied().collect();
        for id in ids {
            for end in [0, 1] {
                while self.deliver_one(id, end, now) {}
            }
            if self.conns.get(&id).is_some_and(Conn::is_over) {
                self.conns.remove(&id);
            }
        }
    }

    /// Delivers the next segment to an end; false when there is none that can be.
    fn deliver_one(&mut self, id: u64, end: usize, now: u64) -> bool {
        let Some(conn) = self.conns.get_mut(&id) else {
            return false;
        };
        let (from, to) = (conn.ends[1 - end], conn.ends[end]);
        let pipe = &mut conn.pipes[end];
        match pipe.in_flight.front_mut() {
            Some((at, _)) if *at > now || self.cuts.contains_key(&(from, to)) => return false,
            Some((at, segment)) if !self.nodes[to].up => {
                if matches!(segment, Segment::Syn) {
                    *at = now + SYN_AGAIN_US;
                }
                return false;
            }
            Some(_) => {}
            None => return false,
        }
        let Some((_, segment)) = pipe.in_flight.pop_front() else {
            return false;
        };
        if let Segment::Syn = segment {
            let answer = if self.nodes[to].listening {
                conn.held[1] = true;
                self.nodes[to].backlog.push_back(id);
                self.wakers.extend(self.nodes[to].acceptor.take());
                Segment::SynAck
            } else {
                Segment::Refused
            };
            self.push(id, 0, answer, now);
            return true;
        }
        if !conn.held[end] {
            // Nobody has this connection any more: whoever still sends is told so.
            if !matches!(segment, Segment::Reset | Segment::Fin) {
                self.push(id, 1 - end, Segment::Reset, now);
            }
            return true;
        }
        match segment {
            Segment::SynAck => conn.opening = Opening::Open,
            Segment::Refused => conn.opening = Opening::Refused,
            Segment::Data(bytes) => pipe.ready.extend_from_slice(&bytes),
            Segment::Fin => pipe.ended = true,
            Segment::Reset => {
                pipe.reset = true;
                self.resets += 1;
                if conn.opening == Opening::Sent {
                    conn.opening = Opening::Refused;
                }
            }
            Segment::Syn => {}
        }
        self.wakers.extend(conn.pipes[end].reader.take());
        if end == 0 {
            self.wakers.extend(conn.connector.take());
        }
        true
    }
}

impl Conn {
    /// Nobody holds it, and nothing is on its way that would be answered.
    fn is_over(&self) -> bool {
        self.held == [false, false] && self.opening != Opening::Sent
    }
}
