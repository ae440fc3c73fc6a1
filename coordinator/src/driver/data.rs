//! Whose data is behind a participant, and whether it is all there.
//!
//! A link is only for the data that the cluster knows: of the same identity, and with everything
//! that it acknowledged. Anything else an operator has to accept, in the configuration.

use concord_core::id::{BranchId, Gtrid, ParticipantName};
use concord_core::limits::WITNESSES_MAX;
use concord_core::planted::{self, Bug};
use concord_core::reason::{Reason, code};
use concord_core::record::Record;
use concord_core::transaction::{Branch, BranchState};

use super::Driver;

/// The data behind a participant.
#[derive(Clone, Debug)]
pub struct Data {
    /// Its identity.
    pub incarnation: String,
    /// The newest witness that is not there.
    pub missing: Option<BranchId>,
}

/// What the configuration accepts of a participant's data, by an operator's hand.
#[derive(Clone, Debug, Default)]
pub struct Accepted {
    /// This data, instead of the known one.
    pub incarnation: Option<String>,
    /// Data that lacks this transaction, and those before it.
    pub without: Option<Gtrid>,
}

impl Driver {
    /// The branches that a participant's data must hold: the last ones that ended, and those that
    /// are committed in transactions whose other branches are not.
    pub(super) fn witnesses_of(&self, participant: &ParticipantName) -> Vec<BranchId> {
        let mut witnesses = self.witnesses.of(participant);
        let unfinished = self.machine.transactions().filter(|tx| !tx.one_phase);
        let committed = unfinished.flat_map(|tx| {
            let is = |branch: &&Branch| {
                branch.state == BranchState::Committed && branch.participant == *participant
            };
            let gtrid = tx.gtrid;
            let branches = tx.branches.iter().filter(is);
            branches.map(move |branch| BranchId {
                gtrid,
                bqual: branch.bqual,
            })
        });
        witnesses.extend(committed.filter(|branch| self.witnesses.is_after(participant, *branch)));
        let surplus = witnesses.len().saturating_sub(WITNESSES_MAX);
        witnesses.drain(..surplus);
        witnesses
    }

    /// Whether the data behind a participant is what the cluster knows, or what an operator
    /// accepted instead; notes what is new about it.
    pub(super) fn recognize(
        &mut self,
        participant: &ParticipantName,
        data: Data,
    ) -> Result<(), Reason> {
        let Data {
            incarnation,
            missing,
        } = data;
        let known = self.incarnations.get(participant);
        let accepted = self.accepted.get(participant).cloned().unwrap_or_default();
        let is_new = known != Some(&incarnation);
        if let Some(known) = known.filter(|known| **known != incarnation)
            && accepted.incarnation.as_ref() != Some(&incarnation)
        {
            return Err(other_data(participant, &incarnation, known));
        }
        if let Some(missing) = missing.filter(|_| !is_new)
            && accepted.without.is_none_or(|gtrid| gtrid < missing.gtrid)
            && !planted::is(Bug::OlderDataTaken)
        {
            return Err(older_data(participant, missing));
        }
        if !is_new && missing.is_none() {
            return Ok(());
        }
        let first_contact = known.is_none();
        // What was committed so far is not expected of data that somebody else made.
        let after = if first_contact {
            Gtrid::MIN
        } else {
            tracing::warn!(%participant, incarnation, ?missing, "an operator accepted this data");
            self.machine.highest_gtrid()
        };
        // Beside the machine's own records: nothing waits for it.
        let record = Record::Incarnation {
            participant: participant.clone(),
            incarnation: incarnation.clone(),
            after,
        };
        self.witnesses.note(&record);
        self.pending.push(record);
        self.incarnations.insert(participant.clone(), incarnation);
        Ok(())
    }
}

fn other_data(participant: &ParticipantName, incarnation: &str, known: &str) -> Reason {
    let text = format!(
        "participant {participant} has other data than before ({incarnation}, was {known}): a \
         restored backup, another server or a new ledger schema. If that is on purpose, set \
         incarnation = \"{incarnation}\" for it in the coordinator's configuration"
    );
    Reason::new(code::INCARNATION_CHANGED, text)
}

fn older_data(participant: &ParticipantName, missing: BranchId) -> Reason {
    let gtrid = missing.gtrid;
    let text = format!(
        "participant {participant} has older data than before: it lacks branch {missing}, whose \
         commit it had acknowledged. A snapshot or a copy of the data folder was brought back, or \
         the server lost commits in a crash, and what is lost there is not lost on the other \
         servers. If that is on purpose, set accept_without = \"{gtrid}\" for it in the \
         coordinator's configuration"
    );
    Reason::new(code::DATA_LOST, text)
}
