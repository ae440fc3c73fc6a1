//! Unix sockets between processes of one host.
//!
//! A stream of the runtime asks the kernel to be told when there is something to read *and* when
//! there is room to write. On a unix socket every read of the other side makes room, so each
//! message would wake its sender once more, for nothing. The stream here asks for room only when
//! there was none.

use std::fs::{self, Permissions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use hyper_util::rt::TokioIo;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixListener;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};

/// What an address on the same host begins with.
pub const SCHEME: &str = "unix:";

/// The path of an address on the same host, `unix:/path` or `unix:///path` (gRPC's naming); None
/// for any other, and for one without an absolute path.
pub fn path_of(address: &str) -> Option<&Path> {
    let path = address.strip_prefix(SCHEME)?;
    let path = Path::new(path.strip_prefix("//").unwrap_or(path));
    path.is_absolute().then_some(path)
}

/// A connection that is made when it is needed. `endpoint` is that of the address.
pub fn connect_lazy(address: &str, endpoint: &Endpoint) -> Channel {
    let Some(path) = path_of(address) else {
        return endpoint.connect_lazy();
    };
    let path: Arc<Path> = path.into();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = Arc::clone(&path);
        async move { LocalStream::connect(&path).await.map(TokioIo::new) }
    }))
}

/// Has the runtime told of one thing only.
// It is deprecated because a type may lie about the descriptor that it owns. The one that does not
// ask for a promise of ours is right for the standard library's own socket.
#[allow(deprecated)]
fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

/// One end of a connection.
#[derive(Debug)]
pub struct LocalStream {
    /// Told of what there is to read.
    socket: AsyncFd<UnixStream>,
    /// Told of room to write, while a write waits for it.
    room: Option<AsyncFd<UnixStream>>,
}

impl LocalStream {
    /// Connects to a listener.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let stream = tokio::net::UnixStream::connect(path).await?;
        Self::of(stream.into_std()?)
    }

    fn of(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            socket: watch(stream, Interest::READABLE)?,
            room: None,
        })
    }

    /// Writes at once, or when there is room.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        mut send: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match send(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                sent => {
                    self.room = None;
                    return Poll::Ready(sent);
                }
            }
            let room = match &self.room {
                Some(room) => room,
                None => {
                    let again = self.socket.get_ref().try_clone()?;
                    let room = watch(again, Interest::WRITABLE)?;
                    self.room.insert(room)
                }
            };
            ready!(room.poll_write_ready(cx))?.clear_ready();
        }
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let mut ready = ready!(this.socket.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            let length = space.len();
            match ready.get_inner().read(space) {
                Ok(count) => {
                    // Less than there was space for is all that there was; what comes later is
                    // told anew.
                    if count > 0 && count < length {
                        ready.clear_ready();
                    }
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, |mut stream| stream.write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_send(cx, |mut stream| stream.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.socket.get_ref().shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}

impl Connected for LocalStream {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

/// Connections as they come in.
#[derive(Debug)]
pub struct LocalIncoming(UnixListener);

impl LocalIncoming {
    /// Binds a socket to which only processes of the same user can connect. One that a dead
    /// process left is replaced.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
                match tokio::net::UnixStream::connect(path).await {
                    Err(dead) if dead.kind() == io::ErrorKind::ConnectionRefused && is_socket => {}
                    Ok(_) | Err(_) => return Err(error),
                }
                fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            bound => bound?,
        };
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self(listener))
    }
}

impl Stream for LocalIncoming {
    type Item = io::Result<LocalStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (stream, _) = ready!(self.0.poll_accept(cx))?;
        Poll::Ready(Some(stream.into_std().and_then(LocalStream::of)))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_and_is_taken_from_the_dead_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("p.sock");
        let first = LocalIncoming::bind(&path).await.expect("it binds");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let taken = LocalIncoming::bind(&path).await.expect_err("it is taken");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        LocalIncoming::bind(&path).await.expect("the dead one's");
        let file = folder.path().join("file");
        fs::write(&file, "precious").expect("a file");
        assert!(LocalIncoming::bind(&file).await.is_err());
        assert_eq!(fs::read_to_string(&file).expect("a file"), "precious");
    }

    fn byte(at: usize) -> u8 {
        u8::try_from(at % 251).unwrap_or(0)
    }

    #[test]
    fn addresses() {
        assert_eq!(path_of("unix:/run/p.sock"), Some(Path::new("/run/p.sock")));
        assert_eq!(
            path_of("unix:///run/p.sock"),
            Some(Path::new("/run/p.sock"))
        );
        for other in [
            "unix:",
            "unix:p.sock",
            "unix://host/p.sock",
            "http://h:1",
            "/p.sock",
        ] {
            assert_eq!(path_of(other), None, "{other}");
        }
    }

    /// More than fits into the kernel's buffers, both ways at once, in pieces of many sizes; then
    /// the ends, each in its turn.
    #[tokio::test]
    async fn everything_arrives_and_then_the_end() {
        const BYTES: usize = 3 << 20;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("p.sock");
        let mut incoming = LocalIncoming::bind(&path).await.expect("it binds");
        let (one, other) = tokio::join!(LocalStream::connect(&path), incoming.next());
        let ends = [one, other.expect("a connection")];
        let talks = ends.map(|end| {
            let (mut reader, mut writer) = tokio::io::split(end.expect("a stream"));
            let send = tokio::spawn(async move {
                let all: Vec<u8> = (0..BYTES).map(byte).collect();
                let mut rest = all.as_slice();
                let mut size = 1;
                while !rest.is_empty() {
                    let (first, second) = rest.split_at(size.min(rest.len()));
                    let both = [
                        IoSlice::new(first),
                        IoSlice::new(&second[..second.len() / 9]),
                    ];
                    let sent = writer.write_vectored(&both).await.expect("it is sent");
                    rest = &rest[sent..];
                    size = size * 7 % 99_991;
                }
                writer.shutdown().await.expect("an end");
                writer
            });
            tokio::spawn(async move {
                let mut got = Vec::new();
                reader.read_to_end(&mut got).await.expect("it is read");
                assert_eq!(got.len(), BYTES);
                let wrong = got
                    .iter()
                    .enumerate()
                    .find(|(at, found)| **found != byte(*at));
                assert_eq!(wrong, None);
                drop(send.await.expect("a writer"));
            })
        });
        for talk in talks {
            talk.await.expect("all of it");
        }
    }
}
