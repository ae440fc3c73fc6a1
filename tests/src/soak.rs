//! Chaos on real servers: three of them with their participants and a coordinator, under the
//! shipped supervisor, with clients at work, while processes are killed and stopped and links are
//! cut.
//!
//! A run is made of rounds. In each, faults come faster than they end; then everything heals, what
//! is in doubt is watched until it is gone, and everything that the servers hold is compared with
//! what the clients were told. A run that broke too little, or in which too little was committed,
//! fails, because it proves nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use concord_client::Outcome;
use concord_client::local::binary::ServerBinary;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

mod check;
pub mod client;
mod drain;
mod faults;
mod readers;
pub mod record;
mod report;
mod stage;

use drain::Drained;
use faults::Chaos;
use record::{Operations, Told};
pub use report::Report;
use stage::{SERVERS, Stage, names};

/// Faults of one round. A deck of them is dealt in two.
const ROUND: Duration = Duration::from_secs(15);
/// Work in peace before the last blow of a round.
const PEACE: Duration = Duration::from_millis(1_500);
/// How many times longer than asked a run is at most, so that each kind of fault comes.
const LONGER_MAX: u32 = 3;
/// No branch is in doubt longer than this after everything was up again.
const IN_DOUBT_MAX_MS: u64 = 10_000;
/// And of a hundred, one longer than this.
const IN_DOUBT_P99_MS: u64 = 2_000;
/// A branch that is in doubt for longer is told, so that somebody can look why.
const SLOW: Duration = Duration::from_millis(500);
/// Unknown outcomes of a round whose transaction is asked for afterwards.
const ASKED_MAX: usize = 200;
/// Violations of one check that are told.
const TOLD_MAX: usize = 20;

/// Lines of the daemons' logs that shout and may. Each needs a reason.
const ALLOWED: &[&str] = &[
    // The supervisor thinks ill of what is killed ten times in a row.
    "dies again and again",
];

/// What a minute must bring, or the run proves nothing.
#[derive(Clone, Copy, Debug)]
pub struct Least {
    /// Operations whose client was told that they are done.
    pub commits: f64,
    /// Kills of coordinator and participants.
    pub daemon_kills: f64,
    /// Kills of servers.
    pub server_kills: f64,
    /// Kills of clients.
    pub client_kills: f64,
    /// Faults of each kind.
    pub each_fault: f64,
    /// Cuts of each XA verb, wherever.
    pub each_verb: f64,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long faults come, checks and healing between them included; longer until each kind of
    /// them came.
    pub minutes: f64,
    /// Of all choices.
    pub seed: u64,
    /// What a minute must bring.
    pub least: Least,
    /// Say every fault on stderr.
    pub trace: bool,
}

/// Runs it on a fresh cluster of this server. An error is about the run and not about Concord.
pub async fn run(server: &ServerBinary, plan: &Plan) -> anyhow::Result<Report> {
    let began = Instant::now();
    let mut stage = Stage::start(server, plan.seed).await?;
    eprintln!(
        "{} {}: up after {:.1?}",
        server.kind(),
        server.version(),
        began.elapsed()
    );
    let mut soak = Soak {
        chaos: Chaos::new(StdRng::seed_from_u64(plan.seed), plan.trace),
        operations: Operations::new(),
        report: Report::new(server, plan),
    };
    let length = Duration::from_secs_f64(plan.minutes * 60.0);
    let first = Instant::now();
    let ran = loop {
        if let Err(error) = soak.round(&mut stage).await {
            break Err(error);
        }
        let over = first.elapsed() + ROUND >= length;
        // A slow machine deals fewer faults in a round. What did not come in this long will not.
        let dealt = soak.chaos.dealt_a_deck() || first.elapsed() >= length * LONGER_MAX;
        if !soak.report.violations.is_empty() || (over && dealt) {
            break Ok(());
        }
    };
    let end = soak.end(&stage, plan).await;
    let failed = ran.is_err() || end.is_err() || !soak.report.violations.is_empty();
    if failed {
        let kept = stage.cluster.keep();
        eprintln!(
            "its folder with all logs and records is kept: {}",
            kept.display()
        );
    }
    soak.report.seconds = began.elapsed().as_secs();
    if let Err(error) = ran.and(end) {
        soak.report.violations.push(format!("{error:#}"));
    }
    Ok(soak.report)
}

struct Soak {
    chaos: Chaos,
    operations: Operations,
    report: Report,
}

impl Soak {
    async fn round(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        self.report.rounds += 1;
        stage.start_clients()?;
        let stop = CancellationToken::new();
        let kills = self.chaos.server_kills();
        let reads = readers::run(stage.client()?, stage.money, kills, stop.clone());
        let reads = tokio::spawn(reads);
        let broken = self.break_things(stage).await;
        self.chaos.heal(stage).await;
        stop.cancel();
        stage.dismiss_clients();
        broken?;
        let seen = reads.await?;
        self.report.reads += seen.sound;
        self.report.reads_left_out += seen.left_out;
        self.report.reads_refused += seen.refused;
        self.report.violations.extend(seen.violations);
        let drained = drain::watch(stage).await?;
        self.check(stage).await?;
        self.tell(&drained);
        self.report.drained(drained);
        Ok(())
    }

    /// Faults, a moment of peace so that all are at work, and a blow.
    async fn break_things(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        self.chaos.deal(stage, Instant::now() + ROUND).await?;
        self.chaos.heal(stage).await;
        drain::up(stage).await?;
        tokio::time::sleep(PEACE).await;
        self.chaos.blow(stage).await
    }

    async fn check(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        let mut fresh = Operations::new();
        for path in stage.take_records() {
            record::read(&path, &mut fresh, &mut self.report.reasons)?;
        }
        for operation in fresh.values() {
            match operation.told {
                Told::Committed => self.report.commits += 1,
                Told::Aborted => self.report.aborts += 1,
                Told::Unknown => self.report.unknowns += 1,
            }
        }
        let gtrids = unknown(&fresh);
        self.operations.append(&mut fresh);
        let asked = ask(stage, &gtrids).await?;
        let mut violations = check::all(stage, &self.operations).await?;
        violations.extend(contradicted(&self.operations, &asked, stage).await?);
        violations.extend(damage(stage).await?);
        violations.extend(shouts(stage)?);
        if let Some(more) = violations
            .len()
            .checked_sub(TOLD_MAX)
            .filter(|more| *more > 0)
        {
            violations.truncate(TOLD_MAX);
            violations.push(format!("and {more} more"));
        }
        self.report.violations.extend(violations);
        Ok(())
    }

    fn tell(&self, drained: &Drained) {
        let mut still = drained.after_up.clone();
        eprintln!(
            "round {}: {} commits, {} kills of daemons, {} of servers, {} of clients; up after \
             {:.1?}, {} branches in doubt since, the last for {} ms; all over after {:.1?}",
            self.report.rounds,
            self.report.commits,
            self.chaos.daemon_kills(),
            self.chaos.servers_killed(),
            self.chaos.client_kills(),
            drained.up_after,
            still.len(),
            drain::percentile(&mut still, 1.0),
            drained.settled_after,
        );
        if drained.settled_after > SLOW {
            let (clients, open) = (drained.clients_after, &drained.open);
            eprintln!("the last client ended after {clients:.1?}; still open was {open:?}");
        }
        if let Some((took, n, branch)) = drained.slowest.filter(|slow| slow.0 > SLOW) {
            eprintln!("the slowest was {branch} on server {n}: {took:.1?}");
        }
    }

    /// What the whole run comes to.
    async fn end(&mut self, stage: &Stage, plan: &Plan) -> anyhow::Result<()> {
        let report = &mut self.report;
        report.faults = self.chaos.counts();
        report.overlaps = self.chaos.overlaps;
        report.daemon_kills = self.chaos.daemon_kills();
        report.server_kills = self.chaos.servers_killed();
        report.client_kills = self.chaos.client_kills();
        report.violations.extend(report.doubts());
        if report.violations.is_empty() {
            report.violations.extend(report.too_little(plan));
        }
        foreign_is_untouched(stage).await
    }
}

/// Transactions of operations whose clients do not know what came of them.
fn unknown(operations: &Operations) -> Vec<(String, String)> {
    let open = operations
        .iter()
        .filter(|(_, operation)| operation.told == Told::Unknown);
    open.filter_map(|(id, operation)| Some((id.clone(), operation.gtrid.clone()?)))
        .take(ASKED_MAX)
        .collect()
}

/// Asks the coordinator what became of these, as their clients would.
async fn ask(
    stage: &Stage,
    gtrids: &[(String, String)],
) -> anyhow::Result<Vec<(String, Outcome<()>)>> {
    let client = stage.client()?;
    let mut answers = Vec::new();
    for (id, gtrid) in gtrids {
        answers.push((id.clone(), client.outcome_of(gtrid).await));
    }
    Ok(answers)
}

/// What the coordinator says of a transaction must be what the servers hold: the same check again,
/// as if its client had been told so.
async fn contradicted(
    operations: &Operations,
    asked: &[(String, Outcome<()>)],
    stage: &Stage,
) -> anyhow::Result<Vec<String>> {
    let mut told = Operations::new();
    let mut open = Vec::new();
    for (id, outcome) in asked {
        let Some(operation) = operations.get(id) else {
            continue;
        };
        let mut operation = operation.clone();
        operation.told = match outcome {
            Outcome::Committed { .. } => Told::Committed,
            Outcome::Aborted { .. } => Told::Aborted,
            Outcome::Unknown { message, .. } => {
                open.push(format!(
                    "{id}: the coordinator itself does not know: {message}"
                ));
                continue;
            }
        };
        told.insert(id.clone(), operation);
    }
    open.extend(check::told(stage, &told).await?);
    Ok(open)
}

/// Damage that a participant reports, which nothing here can have made.
async fn damage(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for n in 1..=SERVERS {
        let status = stage.cluster.status(n).await?;
        let damage = status.damage.iter();
        found.extend(damage.map(|damage| format!("p{n} reports damage: {damage:?}")));
    }
    Ok(found)
}

/// Lines of the logs that a person would have to act on.
fn shouts(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let daemons = names().into_iter().filter(|name| !name.starts_with('s'));
    let mut logs: Vec<_> = daemons
        .map(|name| stage.cluster.process(&name).map(|process| process.log))
        .collect::<anyhow::Result<_>>()?;
    logs.push(stage.cluster.dir().join("up.log"));
    let mut found = Vec::new();
    for path in logs {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let loud = text
            .lines()
            .filter(|line| line.contains(" ERROR ") || line.contains("panicked"));
        let loud = loud.filter(|line| !ALLOWED.iter().any(|allowed| line.contains(allowed)));
        found.extend(loud.map(|line| format!("{}: {line}", path.display())));
    }
    Ok(found)
}

/// The branch of somebody else is still prepared, and its row as it was.
async fn foreign_is_untouched(stage: &Stage) -> anyhow::Result<()> {
    for n in 1..=SERVERS {
        let mut root = stage.cluster.root(n.into()).await?;
        let sql = "SELECT n FROM soak.theirs WHERE id = 1";
        let n_now: i32 = sqlx::query_scalar(sql).fetch_one(&mut root).await?;
        anyhow::ensure!(n_now == 1, "a foreign branch on server {n} was committed");
        crate::rig::run(&mut root, &format!("XA COMMIT {}", stage::FOREIGN_XID))
            .await
            .with_context(|| format!("the foreign branch on server {n} is gone"))?;
        let n_now: i32 = sqlx::query_scalar(sql).fetch_one(&mut root).await?;
        anyhow::ensure!(n_now == 2, "the foreign branch on server {n} lost its work");
    }
    Ok(())
}

/// Counts by name, for people.
fn counted(counts: &BTreeMap<String, u64>) -> String {
    let all: Vec<String> = counts
        .iter()
        .map(|(name, n)| format!("{name} {n}"))
        .collect();
    all.join(", ")
}
