//! A connection to the server that is cut at each place of each XA verb.
//!
//! One transaction runs through the cut. Whatever its client is told must be so on both servers,
//! nothing may stay in doubt, and nobody may call it damage.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use concord_client::local::server::ServerKind;
use concord_client::{Outcome, Statement, v1};
use concord_tests::cases::server_of;
use concord_tests::cluster::eventually;
use concord_tests::proxy::packet::Verb;
use concord_tests::proxy::{Address, Cut, Kind, Link, Point, Proxy};
use concord_tests::rig::{DRAINED_IN, Rig};

/// How a transaction comes to a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// All statements at once, on two servers.
    OneShot,
    /// The same, and the second server refuses.
    Refused,
    /// All statements at once, on the server behind the proxy alone.
    OneServer,
    /// Statement by statement, on two servers.
    Interactive,
    /// The same, and the client rolls back.
    RolledBack,
}

const CASES: &[(Verb, &[Form])] = &[
    (
        Verb::Start,
        &[Form::OneShot, Form::Interactive, Form::OneServer],
    ),
    (
        Verb::End,
        &[
            Form::OneShot,
            Form::Interactive,
            Form::OneServer,
            Form::RolledBack,
        ],
    ),
    (Verb::Prepare, &[Form::OneShot, Form::Interactive]),
    (Verb::Commit, &[Form::OneShot, Form::Interactive]),
    (Verb::CommitOnePhase, &[Form::OneServer]),
    (Verb::Rollback, &[Form::Refused, Form::RolledBack]),
];

/// Time-out of a transaction.
const TIMEOUT: Duration = Duration::from_secs(25);
/// A cut needs neither that nor the time-out of a verb.
const BOUND: Duration = Duration::from_secs(12);
const ROW: i32 = 1;
const PLUS: &str = "UPDATE shop.t SET n = n + 1 WHERE id = 1";

#[test]
fn cuts_at_each_packet_on_mysql() -> anyhow::Result<()> {
    on(ServerKind::Mysql)
}

#[test]
fn cuts_at_each_packet_on_mariadb() -> anyhow::Result<()> {
    on(ServerKind::Mariadb)
}

fn on(kind: ServerKind) -> anyhow::Result<()> {
    let Some(server) = server_of(kind)? else {
        return Ok(());
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut rig = Rig::servers_only(&server, 2).await?;
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("s1.sock");
        let target = Address::Unix(rig.servers[0].socket().to_owned());
        let proxy = Proxy::on_socket(socket.clone(), target, Kind::Sql)?;
        rig.configure("p1", |own| {
            let behind = own["server"].as_table_mut().expect("a table");
            behind.insert("socket".into(), socket.display().to_string().into());
        });
        rig.up().await?;
        for (verb, forms) in CASES {
            for form in *forms {
                for point in Point::ALL {
                    let cut = Cut { verb: *verb, point };
                    if let Err(error) = case(&rig, proxy.link(), cut, *form).await {
                        // As a panic, so that the rig shows its logs.
                        panic!("{kind:?}, cut {cut}, {form:?}: {error:?}");
                    }
                }
            }
        }
        for n in 1..=2 {
            let damage = rig.status(n).await?.damage;
            ensure!(damage.is_empty(), "p{n} reports {damage:?}");
            let log = rig.log(&format!("p{n}"))?;
            let loud = log.lines().find(|line| line.contains("ERROR"));
            ensure!(loud.is_none(), "p{n} says {loud:?}");
        }
        Ok(())
    })
}

async fn case(rig: &Rig, link: &Link, cut: Cut, form: Form) -> anyhow::Result<()> {
    let before = [rig.n(1, ROW).await?, rig.n(2, ROW).await?];
    let fired = link.fired().get(&cut).copied().unwrap_or_default();
    link.arm(cut);
    let began = Instant::now();
    let outcome = run(rig, form).await?;
    let took = began.elapsed();
    ensure!(took < BOUND, "{outcome:?} took {took:?}");
    // The client may hear of the outcome before the second phase has come to the cut.
    eventually("the cut", DRAINED_IN, async || {
        let now = link.fired().get(&cut).copied().unwrap_or_default();
        Ok((now > fired).then_some(()))
    })
    .await
    .with_context(|| format!("{outcome:?}"))?;
    rig.drained().await?;
    let after = [rig.n(1, ROW).await?, rig.n(2, ROW).await?];
    let plus = [after[0] - before[0], after[1] - before[1]];
    let all = if form == Form::OneServer {
        [1, 0]
    } else {
        [1, 1]
    };
    let never = matches!(form, Form::Refused | Form::RolledBack);
    let legal: &[[i64; 2]] = match &outcome {
        Outcome::Committed { .. } if never => &[],
        Outcome::Committed { .. } => &[all],
        Outcome::Unknown { .. } if !never => &[[0, 0], all],
        Outcome::Unknown { .. } | Outcome::Aborted { .. } => &[[0, 0]],
    };
    ensure!(
        legal.contains(&plus),
        "{outcome:?}, and the rows grew by {plus:?}"
    );
    // Everybody is well again: the next transaction commits.
    rig.linked().await
}

async fn run(rig: &Rig, form: Form) -> anyhow::Result<Outcome> {
    let client = rig.client()?;
    let one_shot = client.one_shot().timeout(TIMEOUT).on("p1", PLUS);
    Ok(match form {
        Form::OneShot => one_shot.on("p2", PLUS).send().await,
        Form::OneServer => one_shot.send().await,
        Form::Refused => {
            let nobody = "UPDATE shop.t SET n = n + 1 WHERE id = 0";
            let refused = Statement::new(nobody).expect_rows(1, None, "NOBODY");
            one_shot.on("p2", refused).send().await
        }
        Form::Interactive | Form::RolledBack => {
            let mut tx = client
                .begin_with(v1::Isolation::Unspecified, Some(TIMEOUT))
                .await?;
            let mut failed = None;
            for participant in ["p1", "p2"] {
                failed = tx.execute(participant, PLUS).await.err();
                if failed.is_some() {
                    break;
                }
            }
            if form == Form::Interactive && failed.is_none() {
                return Ok(tx.commit().await);
            }
            let gtrid = Some(tx.gtrid().to_owned());
            tx.rollback().await?;
            let why = failed.map_or_else(String::new, |error| error.to_string());
            let reason = concord_core::reason::Reason::new("ROLLED_BACK", why);
            Outcome::Aborted { reason, gtrid }
        }
    })
}
