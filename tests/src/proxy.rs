//! A proxy on one link: it cuts, stalls, slows and refuses on demand.
//!
//! It passes bytes between whoever connects and one target, on TCP or on unix sockets. What happens
//! to them is a [`Fault`] that is held: several may be held at once, each ends by itself. A proxy
//! of the kind [`Kind::Sql`] reads MySQL's packets too ([`sql`]), and can cut a connection at an
//! exact place of an XA verb. It never changes a byte, and it decides nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub mod packet;
mod sql;

use packet::Verb;

/// What each chunk waits while [`Fault::Slow`] is held.
const SLOWNESS: Duration = Duration::from_millis(30);
/// Largest chunk.
const CHUNK_BYTES: usize = 16 << 10;

/// Where a side of the link is.
#[derive(Clone, Debug)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any bytes.
    Bytes,
    /// The MySQL protocol without TLS; what goes over TLS is passed unread.
    Sql,
}

/// What can happen to a link while it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Nothing passes in either direction; nobody is told.
    Stall,
    /// Nothing passes from who connected to the target.
    StallRequests,
    /// Nothing passes from the target to who connected.
    StallAnswers,
    /// Connections are closed, and new ones at once.
    Refuse,
    /// Everything comes late.
    Slow,
}

/// Where a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// The packet with the verb has come and is not passed on.
    BeforeRequest,
    /// It was passed on; the answer finds nobody.
    AfterRequest,
    /// The answer has come and is not passed on.
    BeforeAnswer,
    /// Half of the packet with the answer was passed on.
    PartialAnswer,
}

impl Point {
    /// All.
    pub const ALL: [Self; 4] = [
        Self::BeforeRequest,
        Self::AfterRequest,
        Self::BeforeAnswer,
        Self::PartialAnswer,
    ];
}

/// A cut: at which verb and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cut {
    /// The verb, wherever it stands in a text of several statements.
    pub verb: Verb,
    /// The place.
    pub point: Point,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let point = match self.point {
            Point::BeforeRequest => "before the request",
            Point::AfterRequest => "after the request",
            Point::BeforeAnswer => "before the answer",
            Point::PartialAnswer => "within the answer",
        };
        write!(f, "{} {point}", self.verb)
    }
}

/// How many of each fault are held, and how often everything was cut.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    no_requests: u32,
    no_answers: u32,
    refusing: u32,
    slow: u32,
    cuts: u64,
}

impl Weather {
    fn count(&mut self, fault: Fault, change: impl Fn(&mut u32)) {
        match fault {
            Fault::Stall => {
                change(&mut self.no_requests);
                change(&mut self.no_answers);
            }
            Fault::StallRequests => change(&mut self.no_requests),
            Fault::StallAnswers => change(&mut self.no_answers),
            Fault::Refuse => change(&mut self.refusing),
            Fault::Slow => change(&mut self.slow),
        }
    }
}

/// A direction.
#[derive(Clone, Copy, Debug)]
enum Way {
    Requests,
    Answers,
}

/// The handle on a link.
#[derive(Debug)]
pub struct Link {
    weather: watch::Sender<Weather>,
    armed: Mutex<Vec<Cut>>,
    calm: AtomicBool,
    fired: Mutex<BTreeMap<Cut, u64>>,
    connections: AtomicUsize,
}

/// A fault that lasts until this is dropped.
#[derive(Debug)]
pub struct Held {
    link: Arc<Link>,
    fault: Fault,
}

impl Drop for Held {
    fn drop(&mut self) {
        let fault = self.fault;
        self.link
            .weather
            .send_modify(|weather| weather.count(fault, |count| *count -= 1));
    }
}

impl Link {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            weather: watch::Sender::new(Weather::default()),
            armed: Mutex::default(),
            calm: AtomicBool::new(false),
            fired: Mutex::default(),
            connections: AtomicUsize::new(0),
        })
    }

    /// Begins a fault.
    pub fn hold(self: &Arc<Self>, fault: Fault) -> Held {
        self.weather.send_modify(|weather| {
            weather.count(fault, |count| *count += 1);
            if fault == Fault::Refuse {
                weather.cuts += 1;
            }
        });
        Held {
            link: Arc::clone(self),
            fault,
        }
    }

    /// Closes every connection; says how many there were.
    pub fn cut(&self) -> usize {
        let open = self.connections();
        self.weather.send_modify(|weather| weather.cuts += 1);
        open
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The next connection that comes to this place is cut there, once.
    pub fn arm(&self, cut: Cut) {
        self.calm.store(false, Ordering::Relaxed);
        lock(&self.armed).push(cut);
    }

    /// Takes back every cut, also those on whose place a connection is just waiting.
    pub fn calm(&self) {
        self.calm.store(true, Ordering::Relaxed);
        lock(&self.armed).clear();
    }

    fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// A connection did not come to the place that it had taken; another one may.
    fn give_back(&self, cut: Cut) {
        if !self.is_calm() {
            lock(&self.armed).push(cut);
        }
    }

    /// Takes one such cut back; false when none is waiting any more.
    pub fn disarm(&self, cut: Cut) -> bool {
        let mut armed = lock(&self.armed);
        let found = armed.iter().position(|armed| *armed == cut);
        found.map(|at| armed.remove(at)).is_some()
    }

    /// How often each cut was made.
    pub fn fired(&self) -> BTreeMap<Cut, u64> {
        lock(&self.fired).clone()
    }

    /// Takes the first armed cut that is about one of these verbs; where that verb stands.
    fn claim(&self, verbs: &[Option<Verb>]) -> Option<(Cut, usize)> {
        let mut armed = lock(&self.armed);
        let found = armed.iter().enumerate().find_map(|(at, cut)| {
            let statement = verbs.iter().position(|verb| *verb == Some(cut.verb))?;
            Some((at, statement))
        });
        let (at, statement) = found?;
        Some((armed.remove(at), statement))
    }

    fn has_fired(&self, cut: Cut) {
        *lock(&self.fired).entry(cut).or_default() += 1;
    }
}

/// A mutex, also of one who panicked: what is in it is whole between any two steps.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A proxy that runs until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    link: Arc<Link>,
    address: Address,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Listens on a unix socket.
    pub fn on_socket(path: PathBuf, target: Address, kind: Kind) -> io::Result<Self> {
        let listener = UnixListener::bind(&path)?;
        let address = Address::Unix(path);
        Ok(Self::run(Listener::Unix(listener), address, target, kind))
    }

    /// Listens on a free TCP port.
    pub async fn on_tcp(target: Address, kind: Kind) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = Address::Tcp(listener.local_addr()?);
        Ok(Self::run(Listener::Tcp(listener), address, target, kind))
    }

    fn run(listener: Listener, address: Address, target: Address, kind: Kind) -> Self {
        let link = Link::new();
        let task = tokio::spawn(accept(listener, target, kind, Arc::clone(&link)));
        Self {
            link,
            address,
            task,
        }
    }

    /// The handle on it.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Where it listens, as a URL; a socket's is its path.
    pub fn url(&self) -> String {
        match &self.address {
            Address::Unix(path) => path.display().to_string(),
            Address::Tcp(address) => format!("http://{address}"),
        }
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Either kind of stream.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => {
                let stream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}

async fn connect(target: &Address) -> io::Result<Box<dyn Stream>> {
    Ok(match target {
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    })
}

async fn accept(listener: Listener, target: Address, kind: Kind, link: Arc<Link>) {
    // Dropped with this task, and its connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An error is about one connection that has gone already, or about file handles
                // that will be free again.
                if let Ok(stream) = accepted {
                    connections.spawn(serve(stream, target.clone(), kind, Arc::clone(&link)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

struct Counted(Arc<Link>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(near: Box<dyn Stream>, target: Address, kind: Kind, link: Arc<Link>) {
    let mut weather = link.weather.subscribe();
    let Weather { cuts, refusing, .. } = *weather.borrow_and_update();
    if refusing > 0 {
        return;
    }
    link.connections.fetch_add(1, Ordering::Relaxed);
    let _counted = Counted(Arc::clone(&link));
    let passed = async {
        gate(&link, Way::Requests).await;
        let far = connect(&target).await?;
        match kind {
            Kind::Bytes => pass(near, far, &link).await,
            Kind::Sql => sql::Session::new(&link).pass(near, far).await,
        }
    };
    tokio::select! {
        // A connection that ends tells nobody but its two sides.
        _ = passed => {}
        _ = weather.wait_for(|weather| weather.cuts > cuts) => {}
    }
}

/// Waits until something may pass in this direction, and is as slow as the link is.
async fn gate(link: &Link, way: Way) {
    let mut weather = link.weather.subscribe();
    let open = |weather: &Weather| match way {
        Way::Requests => weather.no_requests == 0,
        Way::Answers => weather.no_answers == 0,
    };
    // The sender is part of the link, so that this fails only when nobody is left to wait.
    let slow = weather
        .wait_for(open)
        .await
        .is_ok_and(|weather| weather.slow > 0);
    if slow {
        tokio::time::sleep(SLOWNESS).await;
    }
}

/// Passes bytes both ways until both sides have ended.
async fn pass(near: Box<dyn Stream>, far: Box<dyn Stream>, link: &Link) -> io::Result<()> {
    let (near_in, near_out) = tokio::io::split(near);
    let (far_in, far_out) = tokio::io::split(far);
    tokio::try_join!(
        one_way(near_in, far_out, link, Way::Requests),
        one_way(far_in, near_out, link, Way::Answers),
    )?;
    Ok(())
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    link: &Link,
    way: Way,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut chunk).await?;
        gate(link, way).await;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&chunk[..count]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that gives everything back.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    async fn connected(proxy: &Proxy) -> TcpStream {
        let Address::Tcp(address) = proxy.address else {
            unreachable!()
        };
        TcpStream::connect(address).await.unwrap()
    }

    async fn round_trip(stream: &mut TcpStream) -> io::Result<u8> {
        stream.write_all(b"x").await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn what_is_held_stalls_and_what_is_let_go_passes() {
        let target = Address::Tcp(echo().await);
        let proxy = Proxy::on_tcp(target, Kind::Bytes).await.unwrap();
        let mut stream = connected(&proxy).await;
        assert_eq!(round_trip(&mut stream).await.unwrap(), b'x');
        for fault in [Fault::Stall, Fault::StallRequests, Fault::StallAnswers] {
            let first = proxy.link().hold(fault);
            let second = proxy.link().hold(fault);
            drop(first);
            let mut late = Box::pin(round_trip(&mut stream));
            let wait = tokio::time::timeout(Duration::from_millis(50), &mut late);
            assert!(wait.await.is_err(), "{fault:?} let something pass");
            drop(second);
            assert_eq!(late.await.unwrap(), b'x');
        }
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_open_and_a_refusal_what_comes() {
        let target = Address::Tcp(echo().await);
        let proxy = Proxy::on_tcp(target, Kind::Bytes).await.unwrap();
        let mut stream = connected(&proxy).await;
        round_trip(&mut stream).await.unwrap();
        assert_eq!(proxy.link().cut(), 1);
        assert!(round_trip(&mut stream).await.is_err());
        let mut next = connected(&proxy).await;
        round_trip(&mut next).await.unwrap();
        let refused = proxy.link().hold(Fault::Refuse);
        assert!(round_trip(&mut next).await.is_err());
        assert!(round_trip(&mut connected(&proxy).await).await.is_err());
        drop(refused);
        round_trip(&mut connected(&proxy).await).await.unwrap();
    }
}
