//! Every crash point alone, with kill -9, on real processes over real servers.
//!
//! Two servers and their daemons live through all points in turn: a point is armed, [`drive`] makes
//! something come there while clients work, the process dies of SIGKILL at that very point and is
//! started again. Then what clients were told is compared with what the servers hold. A point that
//! nothing reaches fails the test, and so does one that has no drive: that does not compile.
//!
//! `CONCORD_CRASH_POINTS` names the points to go through instead of all, separated by commas.

mod drive;
mod load;
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use concord_client::local::server::ServerKind;
use concord_daemon::crash::CrashPoint;

use self::drive::Drive;
use self::world::World;

/// The source files below a folder.
fn sources(folder: &Path, found: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// All source files below some folders.
pub fn texts(root: &Path, folders: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for folder in folders {
        sources(&root.join(folder), &mut texts)?;
    }
    Ok(texts)
}

/// How often each point is named in the daemons' code.
fn placed() -> anyhow::Result<BTreeMap<String, usize>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let texts = texts(&root, &["coordinator/src", "participant/src"])?;
    let mut placed = BTreeMap::new();
    for text in texts {
        for rest in text.split("CrashPoint::").skip(1) {
            let end = rest.find(|c: char| !c.is_alphanumeric());
            let name = rest[..end.unwrap_or(rest.len())].to_owned();
            *placed.entry(name).or_default() += 1;
        }
    }
    Ok(placed)
}

#[test]
fn every_point_is_placed_exactly_once_and_what_is_placed_is_listed() -> anyhow::Result<()> {
    let placed = placed()?;
    let listed: BTreeMap<String, usize> = CrashPoint::ALL
        .iter()
        .map(|point| (point.variant().to_owned(), 1))
        .collect();
    ensure!(
        placed == listed,
        "placed otherwise than once: {:?}; not placed: {:?}",
        placed
            .iter()
            .filter(|(name, count)| listed.get(*name) != Some(count))
            .collect::<Vec<_>>(),
        listed
            .keys()
            .filter(|name| !placed.contains_key(*name))
            .collect::<Vec<_>>(),
    );
    ensure!(listed.len() >= 40, "only {} points", listed.len());
    Ok(())
}

/// The points to go through, in an order that changes the daemons' settings as seldom as possible.
fn chosen() -> anyhow::Result<Vec<CrashPoint>> {
    let mut points = match std::env::var("CONCORD_CRASH_POINTS") {
        Ok(names) => names
            .split(',')
            .map(|name| CrashPoint::of_name(name).with_context(|| format!("no point {name}")))
            .collect::<anyhow::Result<_>>()?,
        Err(_) => CrashPoint::ALL.to_vec(),
    };
    points.sort_by_key(|point| Drive::of(*point));
    Ok(points)
}

fn every_point(kind: ServerKind) -> anyhow::Result<()> {
    let servers = concord_tests::cluster::servers()?;
    let Some(binary) = servers.into_iter().find(|server| server.kind() == kind) else {
        eprintln!("skipped: there is no {kind} to test on");
        return Ok(());
    };
    let points = chosen()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let began = Instant::now();
        let mut world = World::start(&binary).await?;
        for point in &points {
            let started = Instant::now();
            if let Err(error) = world.crash_at(*point).await {
                let name = point.name();
                // As a panic, so that the rig shows its logs.
                panic!(
                    "{name} on {kind}: {error:?}\nagain: CONCORD_CRASH_POINTS={name} cargo test \
                     -p concord-tests --test it crash_points"
                );
            }
            let ms = started.elapsed().as_millis();
            println!("{:<40} {ms:>6} ms", point.name());
        }
        let counts = world.end().await?;
        println!(
            "{kind}: {} points, {counts}, {:?}",
            points.len(),
            began.elapsed()
        );
        if points.len() == CrashPoint::ALL.len() {
            ensure!(counts.kills >= points.len(), "{counts}");
            ensure!(
                counts.committed > 100 && counts.aborted > 20 && counts.unknown > 10,
                "hardly any work was done: {counts}"
            );
        }
        Ok(())
    })
}

#[test]
fn every_point_alone_over_mysql() -> anyhow::Result<()> {
    every_point(ServerKind::Mysql)
}

#[test]
fn every_point_alone_over_mariadb() -> anyhow::Result<()> {
    every_point(ServerKind::Mariadb)
}
