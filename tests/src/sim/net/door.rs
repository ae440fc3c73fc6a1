//! The network as one process sees it: connecting, listening, reading and writing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use super::super::chance::Chance;
use super::{Conn, Net, Node, Opening, Pipe, Segment};

/// The network as one process sees it. When the process is killed, whatever its code still does
/// leads nowhere.
#[derive(Clone, Debug)]
pub struct Door {
    pub(super) net: Net,
    pub(super) node: Node,
    pub(super) life: u64,
}

impl Door {
    /// Whether the process lives.
    pub fn lives(&self) -> bool {
        self.net.lock().nodes[self.node].life == Some(self.life)
    }

    /// Connects to whoever listens at a node.
    pub fn connect(&self, to: Node) -> Connecting {
        let door = self.clone();
        if !self.lives() {
            return Connecting { door, id: None };
        }
        let id = self.net.change(|state, now| {
            let id = state.number();
            let made = state.made.entry((door.node, to)).or_default();
            *made += 1;
            let key = [door.node as u64, to as u64, *made]
                .into_iter()
                .fold(state.seed, |key, part| {
                    (key ^ part).wrapping_mul(0x0100_0000_01B3)
                });
            let mut chance = Chance::of(key);
            let pipes = [Pipe::new(chance.number()), Pipe::new(chance.number())];
            state.conns.insert(
                id,
                Conn {
                    ends: [door.node, to],
                    pipes,
                    held: [true, false],
                    opening: Opening::Sent,
                    connector: None,
                },
            );
            state.push(id, 1, Segment::Syn, now);
            id
        });
        Connecting { door, id: Some(id) }
    }

    /// Listens; what comes in are connections.
    pub fn listen(&self) -> Listener {
        if self.lives() {
            self.net
                .change(|state, _| state.nodes[self.node].listening = true);
        }
        Listener { door: self.clone() }
    }
}

/// A connection that is being made.
#[derive(Debug)]
pub struct Connecting {
    door: Door,
    id: Option<u64>,
}

impl Future for Connecting {
    type Output = io::Result<Wire>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(id) = self.id.filter(|_| self.door.lives()) else {
            return Poll::Pending;
        };
        let mut state = self.door.net.lock();
        let Some(conn) = state.conns.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()));
        };
        match conn.opening {
            Opening::Sent => {
                conn.connector = Some(cx.waker().clone());
                Poll::Pending
            }
            Opening::Refused => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            Opening::Open => {
                drop(state);
                self.id = None;
                let door = self.door.clone();
                Poll::Ready(Ok(Wire { door, id, end: 0 }))
            }
        }
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        if let (Some(id), true) = (self.id, self.door.lives()) {
            self.door.net.change(|state, now| {
                if let Some(conn) = state.conns.get_mut(&id) {
                    conn.held[0] = false;
                    conn.opening = Opening::Refused;
                    state.push(id, 1, Segment::Reset, now);
                }
            });
        }
    }
}

/// Connections that come in.
#[derive(Debug)]
pub struct Listener {
    door: Door,
}

impl Stream for Listener {
    type Item = io::Result<Wire>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.door.lives() {
            return Poll::Pending;
        }
        let mut state = self.door.net.lock();
        let node = &mut state.nodes[self.door.node];
        match node.backlog.pop_front() {
            Some(id) => {
                let door = self.door.clone();
                Poll::Ready(Some(Ok(Wire { door, id, end: 1 })))
            }
            None => {
                node.acceptor = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.door.lives() {
            self.door
                .net
                .change(|state, _| state.nodes[self.door.node].listening = false);
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Wire {
    door: Door,
    id: u64,
    end: usize,
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.door.lives() {
            return Poll::Pending;
        }
        let mut state = self.door.net.lock();
        let Some(conn) = state.conns.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let pipe = &mut conn.pipes[self.end];
        if pipe.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !pipe.ready.is_empty() {
            let count = pipe.ready.len().min(buf.remaining());
            buf.put_slice(&pipe.ready[..count]);
            pipe.ready.advance(count);
            return Poll::Ready(Ok(()));
        }
        if pipe.ended {
            return Poll::Ready(Ok(()));
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.door.lives() {
            return Poll::Pending;
        }
        self.door.net.change(|state, now| {
            match state.conns.get(&self.id) {
                Some(conn) if !conn.pipes[self.end].reset => {}
                _ => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
            let segment = Segment::Data(Bytes::copy_from_slice(bytes));
            state.push(self.id, 1 - self.end, segment, now);
            Poll::Ready(Ok(bytes.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.door.lives() {
            self.door
                .net
                .change(|state, now| state.push(self.id, 1 - self.end, Segment::Fin, now));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.door.lives() {
            let node = self.door.node;
            self.door
                .net
                .change(|state, now| state.let_go_of(self.id, node, now, false));
        }
    }
}

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
