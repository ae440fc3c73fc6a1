//! Every crash point alone, with kill -9, on real processes over real servers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::ensure;
use concord_daemon::crash::CrashPoint;

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

/// How often each point is named in the daemons' code.
fn placed() -> anyhow::Result<BTreeMap<String, usize>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut texts = Vec::new();
    for folder in ["coordinator/src", "participant/src"] {
        sources(&root.join(folder), &mut texts)?;
    }
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
