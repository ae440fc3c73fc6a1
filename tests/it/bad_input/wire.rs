//! What is no gRPC at all, on the ports of the daemons.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use concord_client::local::state::ProcessState;
use concord_tests::cluster::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{SETTLE_TIMEOUT, World};

/// The start of every HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Time for a daemon to say no to garbage.
const NO_TIMEOUT: Duration = Duration::from_secs(15);
/// Connections that are opened and left.
const MANY: usize = 1_000;
/// Descriptors that a daemon may have more than before: links and pools come and go.
const SLACK: usize = 40;

/// The daemons whose ports are open to strangers.
fn daemons(world: &World) -> anyhow::Result<Vec<ProcessState>> {
    ["coordinator", "p1", "p2"]
        .into_iter()
        .map(|name| world.cluster.process(name))
        .collect()
}

/// Open descriptors of a daemon.
fn descriptors(daemon: &ProcessState) -> anyhow::Result<usize> {
    let pid = daemon.process.context("it runs")?.pid;
    Ok(std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))?.count())
}

/// A frame of HTTP/2 that claims this length, kind and stream.
fn frame(length: u32, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let with_preface = |rest: Vec<u8>| [PREFACE, &frame(0, 4, 0, 0, b""), &rest].concat();
    let noise: Vec<u8> = (0..4_096_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let ping_flood = frame(8, 6, 0, 0, b"12345678").repeat(100);
    let bad_headers = frame(5, 1, 5, 1, b"\xff\xff\xff\xff\xff");
    let reset_flood: Vec<u8> = (0..200_u32)
        .flat_map(|n| {
            let headers = frame(3, 1, 5, 2 * n + 1, b"\x83\x86\x84");
            [headers, frame(4, 3, 0, 2 * n + 1, b"\0\0\0\x08")].concat()
        })
        .collect();
    vec![
        ("noise", noise),
        ("zeroes", vec![0; 100_000]),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: bank\r\n\r\n".to_vec()),
        (
            "HTTP/1.1 upgrade",
            b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".to_vec(),
        ),
        (
            "a long request line",
            [b"GET /".as_slice(), &[b'a'; 200_000]].concat(),
        ),
        (
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                .to_vec(),
        ),
        (
            "MySQL",
            b"\x20\x00\x00\x01\x85\xa6\xff\x01\x00\x00\x00\x01\x21\x00root\x00\x00".to_vec(),
        ),
        (
            "half a preface, then noise",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
        ),
        (
            "a frame of 16 MiB",
            with_preface(frame(0x00ff_ffff, 0, 0, 1, b"")),
        ),
        (
            "data on no stream",
            with_preface(frame(4, 0, 0, 0, b"data")),
        ),
        ("headers that are none", with_preface(bad_headers)),
        (
            "an even stream",
            with_preface(frame(3, 1, 5, 2, b"\x83\x86\x84")),
        ),
        (
            "settings of a wrong size",
            with_preface(frame(5, 4, 0, 0, b"12345")),
        ),
        (
            "a window of nothing",
            with_preface(frame(4, 8, 0, 0, b"\0\0\0\0")),
        ),
        ("pings", with_preface(ping_flood)),
        ("rapid resets", with_preface(reset_flood)),
    ]
}

/// Sends bytes and reads until the daemon closes, or has nothing more to say.
async fn send(address: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let (mut read, mut write) = stream.split();
    // The daemon may close before it has read all: both ends of that are fine.
    let _ = timeout(NO_TIMEOUT, write.write_all(bytes))
        .await
        .context("it takes no bytes")?;
    let _ = write.shutdown().await;
    let mut answer = Vec::new();
    let ended = timeout(
        NO_TIMEOUT,
        (&mut read).take(1 << 20).read_to_end(&mut answer),
    )
    .await;
    ended.map(|_| ()).context("the connection is still open")
}

pub async fn garbage_on_the_ports(world: &World) -> anyhow::Result<()> {
    let daemons = daemons(world)?;
    for daemon in &daemons {
        for (what, bytes) in garbage() {
            let sent = send(&daemon.address, &bytes).await;
            sent.with_context(|| format!("{what} to {}", daemon.name))?;
        }
    }
    world.left_nothing().await?;
    the_same_processes(world, &daemons)
}

fn the_same_processes(world: &World, before: &[ProcessState]) -> anyhow::Result<()> {
    for daemon in before {
        let now = world.cluster.process(&daemon.name)?;
        ensure!(
            now.restarts == daemon.restarts,
            "{} was restarted",
            daemon.name
        );
    }
    Ok(())
}

/// Connections that begin something and say no more do not keep others from working.
pub async fn half_open_connections(world: &World) -> anyhow::Result<()> {
    let daemons = daemons(world)?;
    let request = frame(3, 1, 4, 1, b"\x83\x86\x84");
    let starts = [
        Vec::new(),
        b"PRI * HT".to_vec(),
        PREFACE.to_vec(),
        [PREFACE, &frame(0, 4, 0, 0, b"")].concat(),
        [PREFACE, &frame(0, 4, 0, 0, b""), &request].concat(),
        [
            PREFACE,
            &frame(0, 4, 0, 0, b""),
            &frame(1_000, 0, 0, 1, b"part"),
        ]
        .concat(),
    ];
    let mut held = Vec::new();
    for daemon in &daemons {
        for start in &starts {
            for _ in 0..5 {
                let mut stream = TcpStream::connect(&daemon.address).await?;
                stream.write_all(start).await?;
                held.push(stream);
            }
        }
    }
    world.left_nothing().await.context("while they are held")?;
    drop(held);
    world.left_nothing().await?;
    the_same_processes(world, &daemons)
}

/// A thousand connections are opened to each daemon, some say hello, and all are left.
pub async fn a_thousand_connections(world: &World) -> anyhow::Result<()> {
    let daemons = daemons(world)?;
    for daemon in &daemons {
        let before = descriptors(daemon)?;
        let mut held = Vec::with_capacity(MANY);
        for n in 0..MANY {
            let mut stream = TcpStream::connect(&daemon.address).await?;
            if n % 2 == 0 {
                stream.write_all(PREFACE).await?;
            }
            held.push(stream);
        }
        world
            .left_nothing()
            .await
            .with_context(|| format!("while {} has them", daemon.name))?;
        drop(held);
        eventually("the descriptors are closed", SETTLE_TIMEOUT, async || {
            let now = descriptors(daemon)?;
            ensure!(
                now <= before + SLACK,
                "{} has {now}, and had {before}",
                daemon.name
            );
            Ok(Some(()))
        })
        .await?;
    }
    world.left_nothing().await?;
    the_same_processes(world, &daemons)
}
