//! What the command line prints on a real cluster, for people and for programs, and its exit codes.

mod lossy_gateway;

use std::fs::File;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};
use concord_client::local::binary::ServerKind;
use concord_tests::cluster::{Cluster, eventually, servers};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::bank::{SOON, World};

/// What a command did.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output) -> anyhow::Result<Self> {
        Ok(Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }

    /// It ended with this code, and these words are on stderr.
    fn is(self, code: i32, words: &[&str]) -> anyhow::Result<Self> {
        ensure!(self.code == Some(code), "not {code}: {self:?}");
        for word in words {
            ensure!(self.err.contains(word), "no {word:?}: {self:?}");
        }
        Ok(self)
    }

    fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {self:?}"))
    }
}

fn concord(world: &World, args: &[&str]) -> anyhow::Result<Said> {
    Said::of(world.cluster.concord(args).output()?)
}

pub async fn what_statements_return_is_shown(world: &World) -> anyhow::Result<()> {
    let work = [
        "p1: SELECT id, 'one' AS word FROM work.t WHERE id < ? ORDER BY id",
        "-p",
        "3",
        "p2: UPDATE work.t SET n = n WHERE id = 7",
    ];
    let said = concord(world, &[&["tx", "exec"], &work[..]].concat())?.is(0, &[])?;
    for part in [
        "p1: 2 rows",
        "│ id ┆ word │",
        "│ 2  ┆ one  │",
        "p2: 1 row\n",
        "committed in ",
    ] {
        ensure!(said.out.contains(part), "no {part:?}: {}", said.out);
    }
    let said = concord(world, &[&["--json", "tx", "exec"], &work[..]].concat())?.is(0, &[])?;
    let told = said.json()?;
    ensure!(
        told["outcome"] == "committed"
            && told["replayed"] == false
            && told["results_lost"] == false
            && told["results"][0]["columns"] == json!(["id", "word"])
            && told["results"][0]["result"] == json!([[1, "one"], [2, "one"]])
            && told["results"][1]["rows"] == 1,
        "{told:#}"
    );
    let gtrid = told["gtrid"].as_str().context("a gtrid")?;
    let found = concord(world, &["--json", "tx", "get", gtrid])?.is(0, &[])?;
    ensure!(found.json()?["state"] == "COMMITTED", "{found:?}");
    Ok(())
}

pub async fn a_write_that_returns_rows(world: &World) -> anyhow::Result<()> {
    let add = "p1: INSERT INTO work.t VALUES (60, 7) RETURNING n + 1 AS more";
    let said = concord(world, &["--json", "tx", "exec", add])?;
    if world.cluster.server.kind() == ServerKind::Mysql {
        let said = said.is(2, &["MySQL has no RETURNING", "nothing was changed"])?;
        let reason = &said.json()?["reason"]["code"];
        ensure!(reason == "STATEMENT_NOT_ALLOWED", "{said:?}");
        return Ok(());
    }
    let told = said.is(0, &[])?.json()?;
    let one = &told["results"][0];
    ensure!(
        one["columns"] == json!(["more"]) && one["result"] == json!([[8]]),
        "{told:#}"
    );
    let drop = "p1: DELETE FROM work.t WHERE id = 60 RETURNING id";
    let said = concord(world, &["tx", "exec", drop])?.is(0, &[])?;
    ensure!(said.out.contains("│ 60 │"), "{}", said.out);
    Ok(())
}

pub async fn each_end_has_its_exit_code(world: &World) -> anyhow::Result<()> {
    let nothing = "nothing was changed on any server";
    let empty = "p1: UPDATE work.t SET n = n WHERE id = 99";
    concord(world, &["tx", "exec", empty, "--expect", "1:NO_SUCH_ROW"])?
        .is(3, &["NO_SUCH_ROW", nothing])?;
    concord(world, &["tx", "exec", "p9: SELECT 1"])?
        .is(3, &["PARTICIPANT_NOT_FOUND", "concord status"])?;
    concord(world, &["tx", "exec", "p1: SELECT n FROM work.nowhere"])?.is(3, &[nothing])?;
    concord(world, &["tx", "exec", "p1: DROP TABLE work.t"])?.is(2, &["STATEMENT_NOT_ALLOWED"])?;
    concord(world, &["tx", "exec"])?.is(2, &["nothing to run"])?;
    concord(world, &["tx", "get", "--request-id", "nobody-sent-this"])?.is(3, &[])?;
    let nobody = ["--endpoint", "http://127.0.0.1:1", "--retry-for", "0s"];
    concord(world, &[&nobody[..], &["account", "list"]].concat())?.is(5, &["concord up"])?;
    concord(world, &["--json", "transfer", "nobody", "noone", "1.00EUR"])?
        .is(3, &["ACCOUNT_NOT_FOUND", "concord account open"])?;
    Ok(())
}

/// Rows of its own on both servers, and a transaction that adds one to each.
async fn work(world: &World, id: i64) -> anyhow::Result<[String; 2]> {
    for n in 1..=2 {
        let mut root = world.cluster.root(n).await?;
        let insert = sqlx::query("INSERT INTO work.t VALUES (?, 0)").bind(id);
        insert.execute(&mut root).await?;
    }
    let add = |p: &str| format!("{p}: UPDATE work.t SET n = n + 1 WHERE id = {id}");
    Ok(["p1", "p2"].map(add))
}

/// What both rows hold.
fn held(world: &World, id: i64) -> anyhow::Result<Value> {
    let read = ["p1", "p2"].map(|p| format!("{p}: SELECT n FROM work.t WHERE id = {id}"));
    let said = concord(world, &["--json", "tx", "exec", &read[0], &read[1]])?.is(0, &[])?;
    let results = &said.json()?["results"];
    let both = json!([results[0]["result"][0][0], results[1]["result"][0][0]]);
    Ok(both)
}

/// It is not known meanwhile, and the command says how to find out; found out that way, it took
/// effect once.
pub async fn an_outcome_that_nobody_knows(world: &World) -> anyhow::Result<()> {
    let [first, second] = work(world, 70).await?;
    let add = ["tx", "exec", &first, &second, "--request-id", "asked-twice"];
    world.cluster.signal("coordinator", Signal::SIGSTOP)?;
    let hurry = ["--json", "--timeout", "1s", "--retry-for", "0s"];
    let said = concord(world, &[&hurry[..], &add].concat());
    world.cluster.signal("coordinator", Signal::SIGCONT)?;
    let said = said?.is(4, &["it is not known whether", "--request-id asked-twice"])?;
    let told = said.json()?;
    ensure!(
        told["outcome"] == "unknown" && told["request_id"] == "asked-twice",
        "{told:#}"
    );
    for _ in 0..2 {
        concord(world, &add)?.is(0, &[])?;
    }
    ensure!(held(world, 70)? == json!([1, 1]), "{}", held(world, 70)?);
    Ok(())
}

/// Whoever lost an answer looks what became of the call, but not under an id that a user chose:
/// what is on record there may be something else.
pub async fn a_lost_answer_is_looked_up_only_under_an_id_of_its_own(
    world: &World,
) -> anyhow::Result<()> {
    let gateway = lossy_gateway::loses_answers_of("/Execute", world.cluster.endpoint()).await?;
    let losing = async |args: &[&str]| {
        let mut command = world.cluster.concord(&["--json", "--retry-for", "0s"]);
        command.env("CONCORD_ENDPOINT", &gateway).args(args);
        Said::of(tokio::task::spawn_blocking(move || command.output()).await??)
    };
    let [first, second] = work(world, 73).await?;
    let add = ["tx", "exec", first.as_str(), second.as_str()];
    let told = losing(&add).await?.is(0, &[])?.json()?;
    ensure!(
        told["outcome"] == "committed" && told["results_lost"] == true,
        "{told:#}"
    );
    ensure!(held(world, 73)? == json!([1, 1]), "{}", held(world, 73)?);

    concord(world, &[&add[..], &["--request-id", "taken"]].concat())?.is(0, &[])?;
    let other = "p1: UPDATE work.t SET n = n + 10 WHERE id = 73";
    let other = ["tx", "exec", other, "--request-id", "taken"];
    let words = ["it is not known whether", "--request-id taken"];
    let told = losing(&other).await?.is(4, &words)?.json()?;
    ensure!(told["outcome"] == "unknown", "{told:#}");
    concord(world, &other)?.is(2, &["REQUEST_ID_REUSED"])?;
    ensure!(held(world, 73)? == json!([2, 2]), "{}", held(world, 73)?);
    Ok(())
}

/// Whoever ends a command that waits for its answer learns under which id to ask for it.
pub async fn an_interruption_loses_no_request_id(world: &World) -> anyhow::Result<()> {
    let [first, second] = work(world, 71).await?;
    let add = ["--json", "tx", "exec", &first, &second];
    world.cluster.signal("coordinator", Signal::SIGSTOP)?;
    let said = interrupted(world, &add).await;
    world.cluster.signal("coordinator", Signal::SIGCONT)?;
    let said = said?.is(130, &["it is not known whether", "--request-id cli-"])?;
    let told = said.json()?;
    ensure!(told["outcome"] == "unknown", "{told:#}");
    let id = told["request_id"].as_str().context("a request id")?;
    concord(world, &[&add[..], &["--request-id", id]].concat())?.is(0, &[])?;
    ensure!(held(world, 71)? == json!([1, 1]), "{}", held(world, 71)?);
    Ok(())
}

/// Runs a command and interrupts it once it can be.
async fn interrupted(world: &World, args: &[&str]) -> anyhow::Result<Said> {
    let command = world.cluster.concord(args);
    let variables = command.get_envs();
    // In the background of a script it is ignored, and stays so for whoever is started.
    let child = Command::new("env")
        .arg("--default-signal=INT")
        .arg(command.get_program())
        .args(command.get_args())
        .envs(variables.filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let caught = format!("/proc/{}/status", child.id());
    eventually("a process that waits for signals", SOON, async || {
        let status = std::fs::read_to_string(&caught)?;
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = u64::from_str_radix(mask.context("no mask")?.trim(), 16)?;
        Ok((mask & 1 << (Signal::SIGINT as u32 - 1) != 0).then_some(()))
    })
    .await?;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    Said::of(child.wait_with_output()?)
}

/// What was done is told, and what was refused stays refused, when stdout takes nothing.
pub async fn an_outcome_outweighs_a_full_disk(world: &World) -> anyhow::Result<()> {
    let [first, second] = work(world, 72).await?;
    let full = |args: &[&str]| {
        let mut command = world.cluster.concord(args);
        let output = command.stdout(File::create("/dev/full")?).output()?;
        Said::of(output)
    };
    full(&["tx", "exec", &first, &second, "--request-id", "unread"])?.is(
        1,
        &[
            "the transaction WAS committed in",
            "No space left",
            "--request-id unread",
        ],
    )?;
    concord(
        world,
        &["tx", "exec", &first, &second, "--request-id", "unread"],
    )?
    .is(0, &[])?;
    ensure!(held(world, 72)? == json!([1, 1]), "{}", held(world, 72)?);
    let none = "p1: UPDATE work.t SET n = 0 WHERE id = 99";
    full(&["--json", "tx", "exec", none, "--expect", "1:NO_SUCH_ROW"])?
        .is(3, &["NO_SUCH_ROW", "No space left"])?;
    Ok(())
}

/// What a command of a list prints for programs, and what it says on stderr.
fn listed(cluster: &Cluster, args: &[&str]) -> anyhow::Result<(Value, String)> {
    let output = cluster.concord(args).arg("--json").output()?;
    ensure!(output.status.success(), "{args:?}: {output:?}");
    let value = serde_json::from_slice(&output.stdout).with_context(|| format!("{args:?}"))?;
    Ok((value, String::from_utf8(output.stderr)?))
}

/// Each list has `entries`, of which some are cut off and then said to be there.
fn is_cut(cluster: &Cluster, list: &[&str], argument: &str, entries: usize) -> anyhow::Result<()> {
    for (limit, more) in [(entries - 1, true), (entries, false), (entries + 1, false)] {
        let limit = limit.to_string();
        let args = [list, &[argument, limit.as_str()]].concat();
        let (value, stderr) = listed(cluster, &args)?;
        let shown = value.as_array().or(value["journal"].as_array());
        let shown = shown.context("it is no array")?.len();
        ensure!(shown == entries - usize::from(more), "{args:?}: {shown}");
        let said = format!("({shown} shown; there are more: raise {argument})\n");
        ensure!(
            stderr == if more { &said } else { "" },
            "{args:?}: {stderr}"
        );
        let text = cluster.concord(&args).output()?;
        ensure!(text.stderr == stderr.as_bytes(), "{args:?}: {text:?}");
    }
    Ok(())
}

#[test]
fn a_list_that_is_cut_off_says_so_and_stays_a_list() -> anyhow::Result<()> {
    let server = servers()?.swap_remove(0);
    let cluster = Cluster::start_with(&server, 1, &["--no-seed"])?;
    for id in ["a", "b", "c"] {
        cluster.run(&["account", "open", id, "--currency", "EUR"])?;
        cluster.run(&["product", "create", id, "--price", "1EUR", "--stock", "9"])?;
        cluster.run(&["order", "place", id])?;
    }
    for list in ["account", "product", "order"] {
        is_cut(&cluster, &[list, "list"], "--limit", 3)?;
    }
    let (all, _) = listed(&cluster, &["tx", "list", "--limit", "1000"])?;
    let transactions = all.as_array().context("it is no array")?.len();
    ensure!(transactions >= 3, "{transactions} for three orders");
    is_cut(&cluster, &["tx", "list"], "--limit", transactions)?;
    cluster.run(&["account", "open", "rich", "--balance", "9EUR"])?;
    for _ in 0..3 {
        cluster.run(&["transfer", "rich", "a", "1EUR"])?;
    }
    let journal = ["account", "get", "rich"];
    let (all, _) = listed(&cluster, &[&journal[..], &["--journal", "1000"]].concat())?;
    let entries = all["journal"].as_array().context("it is no array")?.len();
    ensure!(entries >= 3, "{entries} for three transfers");
    is_cut(&cluster, &journal, "--journal", entries)?;
    let (nothing, stderr) = listed(&cluster, &["indoubt", "list", "--limit", "1"])?;
    ensure!(
        nothing["more"] == Value::Bool(false) && stderr.is_empty(),
        "{nothing} {stderr}"
    );
    Ok(())
}
