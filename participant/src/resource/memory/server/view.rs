//! What whoever judges a run sees of a server, and what may be done to one behind everybody's back.
//!
//! Nothing here is part of what a participant can ask for.

use std::collections::BTreeMap;

use concord_core::id::BranchId;
use concord_proto::v1;

use super::{Server, State, Xid};
use crate::resource::LedgerEntry;
use crate::resource::memory::shape::{Cell, Row};

/// A copy of a server's data folder.
#[derive(Clone, Debug)]
pub struct Backup(State);

/// Everything that a judge wants to know of a server.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Branches of the cluster that are prepared.
    pub prepared: Vec<BranchId>,
    /// Branches of strangers that are prepared.
    pub foreign: Vec<String>,
    /// How branches ended that were prepared or committed: true is committed.
    pub past: BTreeMap<BranchId, bool>,
    /// Reports of damage, oldest first.
    pub damage: Vec<v1::Damage>,
}

impl Server {
    /// Writes a committed row, as whoever sets a table up does.
    pub fn put(&self, table: &str, key: &str, cell: Cell) {
        self.change(|state| {
            state.rows.insert((table.to_owned(), key.to_owned()), cell);
        });
    }

    /// The committed rows of a table.
    pub fn table(&self, table: &str) -> Vec<(String, Cell)> {
        let of =
            |((of, key), cell): (&Row, &Cell)| (of == table).then(|| (key.clone(), cell.clone()));
        self.change(|state| state.rows.iter().filter_map(of).collect())
    }

    /// How a branch stands in the ledger.
    pub fn entry(&self, branch: BranchId) -> LedgerEntry {
        self.change(|state| state.ledger(branch))
    }

    /// What there is to see.
    pub fn view(&self) -> View {
        self.change(|state| {
            let mut view = View {
                past: state.past.clone(),
                damage: state.damage.clone(),
                ..View::default()
            };
            for (xid, branch) in &state.branches {
                match xid {
                    Xid::Ours(id) if branch.prepared => view.prepared.push(*id),
                    Xid::Foreign(name) if branch.prepared => view.foreign.push(name.clone()),
                    Xid::Ours(_) | Xid::Foreign(_) => {}
                }
            }
            view
        })
    }

    /// Branches of the cluster that are prepared.
    pub fn prepared(&self) -> Vec<BranchId> {
        self.change(|state| state.recover().ours)
    }

    /// A copy of the data folder, as a backup takes it.
    pub fn back_up(&self) -> Backup {
        self.change(|state| Backup(state.clone()))
    }

    /// Brings a backup back, under a new identity as tools that restore do, or under its own, as
    /// a snapshot of the folder has it. The server must be down, and is started by
    /// [`Server::restart`]; what is prepared in the backup is prepared.
    pub fn restore(&self, backup: &Backup, incarnation: Option<&str>) {
        self.change(|state| {
            let (next, kills, crashes) = (state.next, state.kills, state.crashes);
            let (past, dead) = (state.past.clone(), state.dead.clone());
            *state = backup.0.clone();
            state.up = false;
            // What a running server is set to is not in its files.
            (state.backup, state.read_only, state.unsafe_settings) = (false, false, false);
            state.cuts.clear();
            if let Some(incarnation) = incarnation {
                incarnation.clone_into(&mut state.incarnation);
            }
            (state.next, state.kills, state.crashes) = (next, kills, crashes);
            (state.past, state.dead) = (past, dead);
            state.close_process(None);
            state.lose_what_is_not_logged();
        });
    }

    /// A participant process died: its connections are closed, and nothing that it still asks for
    /// has an effect.
    pub fn kill_process(&self, process: u64) {
        self.change(|state| {
            state.close_process(Some(process));
            state.dead.insert(process);
        });
    }
}
