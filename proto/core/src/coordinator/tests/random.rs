//! Random runs with a crash at their end. What was told before the crash must be what a fresh
//! coordinator makes of the durable part of the log.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::message::Decision;

/// Runs of this test; each takes about a tenth of a millisecond.
const RUNS: u64 = 2_000;
const INPUTS: u64 = 120;

/// SplitMix64: as good as needed here, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn small(&mut self, n: u32) -> u32 {
        u32::try_from(self.below(u64::from(n))).unwrap()
    }
}

/// One incarnation: the machine, its log, and what it told, each with the position it waited for.
struct Run {
    random: Random,
    machine: Coordinator,
    log: Vec<Record>,
    told: Vec<(u64, Effect)>,
    begun: Vec<Gtrid>,
    one_phase: BTreeSet<Gtrid>,
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            machine: coordinator(),
            log: Vec::new(),
            told: Vec::new(),
            begun: Vec::new(),
            one_phase: BTreeSet::new(),
        }
    }

    fn reason(&mut self) -> Reason {
        if self.random.below(2) == 0 {
            refused()
        } else {
            transient()
        }
    }

    fn message(&mut self, branch: BranchId) -> FromParticipant {
        let reason = self.reason();
        let vote = |vote| FromParticipant::Voted {
            branch,
            epoch: EPOCH,
            vote,
        };
        let finish = |finish| FromParticipant::Finished {
            branch,
            epoch: EPOCH,
            finish,
        };
        match self.random.below(24) {
            0..=10 => vote(Vote::Commit),
            11 => vote(Vote::ReadOnly),
            12 => vote(Vote::Abort(reason)),
            13..=19 => finish(Finish::Committed),
            20..=21 => finish(Finish::Aborted(Some(reason))),
            22 => finish(Finish::Retry(reason)),
            _ => finish(Finish::Damaged(reason)),
        }
    }

    fn known(&mut self) -> Gtrid {
        let count = self.begun.len() as u64;
        if count == 0 {
            return g(200);
        }
        let back = self.random.below(count.min(3)) + 1;
        self.begun[usize::try_from(count - back).unwrap()]
    }

    fn fresh(&mut self) -> Gtrid {
        let gtrid = g(u8::try_from(self.begun.len() + 1).unwrap());
        self.begun.push(gtrid);
        gtrid
    }

    fn input(&mut self) -> Input {
        let gtrid = self.known();
        let n = 1 + self.random.small(3);
        let participant = p(n);
        match self.random.below(60) {
            0 => Input::Begin {
                gtrid: self.fresh(),
            },
            1 => Input::Enlist { gtrid, participant },
            2 => Input::Commit {
                gtrid,
                ack: Ack::Decided,
            },
            3..=5 => {
                let gtrid = self.fresh();
                let request = (self.random.below(2) == 0)
                    .then(|| request(["r", "s", "t"][n as usize - 1], 1));
                let ack = if self.random.below(2) == 0 {
                    Ack::Applied
                } else {
                    Ack::Decided
                };
                let branches = 1 + self.random.small(3);
                run_of(gtrid, branches, request, ack)
            }
            6 => Input::Abort {
                gtrid,
                reason: self.reason(),
            },
            7 => Input::Deadline { gtrid },
            8 => Input::LinkUp { participant },
            9 => Input::LinkDown { participant },
            10 => Input::Sweep,
            11 => Input::Forget { below: gtrid },
            12 => Input::Resolve(Resolve {
                branch: branch(gtrid, n),
                participant,
                commit: self.random.below(2) == 0,
                sibling: None,
                force: self.random.below(2) == 0,
                reason: Reason::new(code::OPERATOR, "by hand"),
                token: 0,
            }),
            _ => {
                let message = self.message(branch(gtrid, n));
                Input::Received {
                    from: participant,
                    message,
                }
            }
        }
    }

    fn go(&mut self) {
        let input = self.input();
        for step in self
            .machine
            .step(input)
            .expect("the machine refused its own record")
        {
            for record in step.append {
                if let Record::OnePhase { gtrid, .. } = record {
                    self.one_phase.insert(gtrid);
                }
                self.log.push(record);
            }
            let forced = self.log.iter().filter(|record| record.is_forced()).count();
            assert!(
                step.after <= forced as u64,
                "it waits for what nobody appended"
            );
            self.told
                .extend(step.release.into_iter().map(|effect| (step.after, effect)));
        }
    }

    /// The log up to a forced record, and perhaps some unforced ones that follow it.
    fn durable(&mut self) -> (u64, Vec<Record>) {
        let forced = self.log.iter().filter(|record| record.is_forced()).count() as u64;
        let position = self.random.below(forced + 1);
        let mut seen = 0;
        let mut lazy = self.random.below(3);
        let kept = self.log.iter().take_while(|record| {
            if record.is_forced() {
                seen += 1;
                return seen <= position;
            }
            if seen == position {
                lazy = lazy.saturating_sub(1);
            }
            seen < position || lazy > 0
        });
        (position, kept.cloned().collect())
    }
}

fn asked(machine: &mut Coordinator, gtrid: Gtrid, n: u32) -> Decision {
    let inquiry = Input::Inquire {
        from: p(n),
        branch: branch(gtrid, n),
        token: 0,
    };
    let steps = machine.step(inquiry).unwrap();
    let [Effect::Answer { decision, .. }] = steps[0].release[..] else {
        panic!("{steps:?}")
    };
    decision
}

/// What a released effect promises about a transaction; an operator's force breaks it for a branch.
fn check(run: &Run, effect: &Effect, machine: &mut Coordinator) {
    let forced: Vec<BranchId> = machine.heuristics().map(|(branch, _)| branch).collect();
    let said =
        |machine: &mut Coordinator, branch: BranchId| asked(machine, branch.gtrid, branch.bqual.0);
    match effect {
        Effect::Send {
            message:
                ToParticipant::Commit {
                    branch,
                    one_phase: false,
                    ..
                },
            ..
        } if !forced.contains(branch) => {
            let now = said(machine, *branch);
            assert!(
                matches!(now, Decision::Commit | Decision::Forgotten),
                "{branch}: {now:?}"
            );
        }
        Effect::Send {
            message: ToParticipant::Abort { branch, .. },
            ..
        } if !run.one_phase.contains(&branch.gtrid) && !forced.contains(branch) => {
            assert_ne!(
                said(machine, *branch),
                Decision::Commit,
                "{branch} was told to abort"
            );
        }
        Effect::Reply {
            gtrid,
            outcome: Outcome::Aborted(_),
        } => {
            for n in (1..=3).filter(|n| !forced.contains(&branch(*gtrid, *n))) {
                assert_ne!(
                    asked(machine, *gtrid, n),
                    Decision::Commit,
                    "{gtrid} was refused"
                );
            }
        }
        Effect::Reply {
            gtrid,
            outcome: Outcome::Committed,
        } => {
            let wrote = run.log.iter().any(|record| match record {
                Record::Decision { gtrid: decided, .. } => decided == gtrid,
                _ => false,
            });
            let commits = (1..=3).any(|n| {
                let is_forced = forced.contains(&branch(*gtrid, n));
                is_forced
                    || matches!(
                        asked(machine, *gtrid, n),
                        Decision::Commit | Decision::Forgotten
                    )
            });
            assert!(commits || !wrote, "{gtrid} was promised and is lost");
        }
        _ => {}
    }
}

#[test]
fn what_was_told_survives_a_crash() {
    let mut kinds = BTreeMap::new();
    for seed in 0..RUNS {
        let mut run = Run::new(seed);
        for _ in 0..INPUTS {
            run.go();
        }
        let (position, durable) = run.durable();
        let mut machine = recovered(&durable);
        for (after, effect) in &run.told {
            if *after <= position {
                check(&run, effect, &mut machine);
            }
        }
        for record in durable {
            let name = format!("{record:?}");
            let name = name
                .split([' ', '(', '{'])
                .next()
                .unwrap_or_default()
                .to_owned();
            *kinds.entry(name).or_insert(0_u64) += 1;
        }
    }
    for kind in [
        "Decision",
        "OnePhase",
        "Refused",
        "End",
        "Heuristic",
        "Horizon",
    ] {
        assert!(
            kinds.get(kind).copied().unwrap_or(0) > RUNS / 20,
            "{kind}: {kinds:?}"
        );
    }
}

#[test]
fn a_whole_log_answers_as_the_machine_that_wrote_it() {
    for seed in 0..RUNS {
        let mut run = Run::new(seed);
        for _ in 0..INPUTS {
            run.go();
        }
        let mut machine = recovered(&run.log);
        assert_eq!(machine.horizon(), run.machine.horizon());
        assert_eq!(
            machine.heuristics().collect::<Vec<_>>(),
            run.machine.heuristics().collect::<Vec<_>>()
        );
        for gtrid in run.begun.clone() {
            for n in 1..=3 {
                let live = asked(&mut run.machine, gtrid, n);
                let read = asked(&mut machine, gtrid, n);
                let presumed = matches!(
                    (live, read),
                    (Decision::Running | Decision::Forgotten, Decision::Abort)
                );
                assert!(
                    live == read || presumed,
                    "seed {seed} {gtrid}: {live:?}, {read:?}"
                );
            }
            let look = |machine: &mut Coordinator| {
                machine
                    .step(Input::Look { gtrid, token: 0 })
                    .unwrap()
                    .remove(0)
                    .release
            };
            let live = look(&mut run.machine);
            if let [
                Effect::Seen {
                    seen: Seen::Ended { .. },
                    ..
                },
            ] = &live[..]
            {
                assert_eq!(look(&mut machine), live, "seed {seed}");
            }
        }
    }
}
