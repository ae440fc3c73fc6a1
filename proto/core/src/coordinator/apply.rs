//! `apply`: the one way in which a record changes the coordinator's state, live and in recovery.

use thiserror::Error;

use super::{Coordinator, Ended, order_bit};
use crate::id::{Bqual, BranchId, Epoch, Gtrid, ParticipantName, Request, RequestId};
use crate::message::Outcome;
use crate::planted::{self, Bug};
use crate::reason::Reason;
use crate::record::Record;
use crate::transaction::{Branch, BranchState, Transaction, TransactionState};

/// A record that cannot follow the state: the log, or the machine, is broken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ApplyError {
    /// The epoch does not grow.
    #[error("epoch {new} does not follow epoch {old}")]
    EpochNotHigher { old: Epoch, new: Epoch },
    /// A transaction is decided twice, or after it was aborted.
    #[error("transaction {gtrid} cannot be decided in state {state:?}")]
    NotDecidable {
        gtrid: Gtrid,
        state: TransactionState,
    },
    /// A transaction is decided or refused after it ended.
    #[error("transaction {0} has ended before")]
    AlreadyEnded(Gtrid),
    /// A decision lacks a branch's vote.
    #[error("transaction {gtrid} cannot commit: branch {bqual} has not voted COMMIT")]
    MissingVote { gtrid: Gtrid, bqual: Bqual },
    /// An end without a decision, or before the last acknowledgement.
    #[error("transaction {0} cannot end: it is not decided or not acknowledged everywhere")]
    NotEndable(Gtrid),
    /// The horizon moves backwards or over a transaction that is not over.
    #[error("the horizon cannot be moved to {0}")]
    BadHorizon(Gtrid),
}

impl Coordinator {
    /// Applies one record. In recovery the records of one transaction come in the order Decision
    /// or OnePhase or Refused, then Heuristic, then End.
    pub fn apply(&mut self, record: &Record) -> Result<(), ApplyError> {
        match record {
            Record::Epoch(epoch) => self.apply_epoch(*epoch),
            Record::Decision {
                gtrid,
                epoch,
                branches,
                request,
            } => self.apply_decision(*gtrid, *epoch, branches, request.as_ref()),
            Record::OnePhase {
                gtrid,
                epoch,
                bqual,
                participant,
                request,
            } => self.apply_one_phase(*gtrid, *epoch, (*bqual, participant), request.as_ref()),
            Record::Refused {
                gtrid,
                request,
                reason,
            } => self.apply_refused(*gtrid, request, reason),
            Record::End { gtrid, committed } => self.apply_end(*gtrid, *committed),
            Record::Heuristic {
                gtrid,
                bqual,
                committed,
                reason,
                request,
                ..
            } => {
                let id = BranchId {
                    gtrid: *gtrid,
                    bqual: *bqual,
                };
                self.apply_heuristic(id, *committed, reason, request.as_ref());
                Ok(())
            }
            Record::Horizon(horizon) => self.apply_horizon(*horizon),
            // Kept by the log for the driver; the machine needs neither.
            Record::Placement(_) | Record::Incarnation { .. } => Ok(()),
        }
    }

    fn apply_epoch(&mut self, epoch: Epoch) -> Result<(), ApplyError> {
        if epoch <= self.epoch {
            return Err(ApplyError::EpochNotHigher {
                old: self.epoch,
                new: epoch,
            });
        }
        self.epoch = epoch;
        Ok(())
    }

    fn apply_decision(
        &mut self,
        gtrid: Gtrid,
        epoch: Epoch,
        branches: &[(Bqual, ParticipantName)],
        request: Option<&Request>,
    ) -> Result<(), ApplyError> {
        if self.ended.contains_key(&gtrid) {
            return Err(ApplyError::AlreadyEnded(gtrid));
        }
        if let Some(tx) = self.transactions.get_mut(&gtrid) {
            if tx.state != TransactionState::Prepared || tx.one_phase {
                return Err(ApplyError::NotDecidable {
                    gtrid,
                    state: tx.state,
                });
            }
            for (bqual, _) in branches {
                match tx.branch_mut(*bqual) {
                    Some(branch)
                        if branch.state == BranchState::Prepared
                            || planted::is(Bug::MissingVoteIsYes) =>
                    {
                        branch.state = BranchState::Committing;
                    }
                    _ => {
                        return Err(ApplyError::MissingVote {
                            gtrid,
                            bqual: *bqual,
                        });
                    }
                }
            }
            let is_open =
                |b: &&Branch| !matches!(b.state, BranchState::Committing | BranchState::ReadOnly);
            if let Some(branch) = tx.branches.iter().find(is_open) {
                return Err(ApplyError::MissingVote {
                    gtrid,
                    bqual: branch.bqual,
                });
            }
            tx.state = TransactionState::Committing;
            return Ok(());
        }
        let mut tx = Transaction::new(gtrid, epoch);
        tx.state = TransactionState::Committing;
        tx.answered = true;
        tx.request = request.cloned();
        tx.branches = branches
            .iter()
            .map(|(bqual, name)| Branch::new(*bqual, name.clone(), BranchState::Committing))
            .collect();
        self.remember_request(gtrid, request);
        self.transactions.insert(gtrid, tx);
        Ok(())
    }

    fn apply_one_phase(
        &mut self,
        gtrid: Gtrid,
        epoch: Epoch,
        (bqual, participant): (Bqual, &ParticipantName),
        request: Option<&Request>,
    ) -> Result<(), ApplyError> {
        if self.ended.contains_key(&gtrid) {
            return Err(ApplyError::AlreadyEnded(gtrid));
        }
        if let Some(tx) = self.transactions.get_mut(&gtrid) {
            if !matches!(tx.state, TransactionState::Init | TransactionState::Active) {
                return Err(ApplyError::NotDecidable {
                    gtrid,
                    state: tx.state,
                });
            }
            tx.one_phase = true;
            tx.state = TransactionState::Preparing;
            for branch in &mut tx.branches {
                branch.state = BranchState::Preparing;
            }
            return Ok(());
        }
        let mut tx = Transaction::new(gtrid, epoch);
        tx.state = TransactionState::Preparing;
        tx.one_phase = true;
        tx.answered = true;
        tx.request = request.cloned();
        // Whether the participant committed it is not known here: it is asked by an Abort, which
        // a commit that won before turns into "committed".
        tx.branches = vec![Branch::new(
            bqual,
            participant.clone(),
            BranchState::Aborting,
        )];
        self.remember_attempt(gtrid, request);
        self.transactions.insert(gtrid, tx);
        Ok(())
    }

    fn apply_refused(
        &mut self,
        gtrid: Gtrid,
        request: &Request,
        reason: &Reason,
    ) -> Result<(), ApplyError> {
        if self.ended.contains_key(&gtrid) {
            return Err(ApplyError::AlreadyEnded(gtrid));
        }
        match self.transactions.get(&gtrid) {
            Some(tx) if tx.one_phase => {
                self.transactions.remove(&gtrid);
            }
            Some(tx) if tx.state != TransactionState::Aborting => {
                return Err(ApplyError::NotDecidable {
                    gtrid,
                    state: tx.state,
                });
            }
            // Its branches are still being told; the refusal stands whatever they answer.
            Some(_) | None => {}
        }
        self.remember_request(gtrid, Some(request));
        let ended = Ended {
            outcome: Outcome::Aborted(reason.clone()),
            ordered: 0,
            request: Some(request.id.clone()),
            position: 0,
        };
        self.ended.insert(gtrid, ended);
        Ok(())
    }

    fn apply_end(&mut self, gtrid: Gtrid, committed: bool) -> Result<(), ApplyError> {
        let Some(tx) = self.transactions.remove(&gtrid) else {
            return Err(ApplyError::NotEndable(gtrid));
        };
        if !tx.one_phase && (tx.state != TransactionState::Committing || !committed) {
            self.transactions.insert(gtrid, tx);
            return Err(ApplyError::NotEndable(gtrid));
        }
        if committed {
            // Another attempt may have taken its place while its outcome was not known.
            self.remember_request(gtrid, tx.request.as_ref());
            let told = |branch: &&Branch| branch.state != BranchState::ReadOnly;
            let told = tx.branches.iter().filter(told);
            let ended = Ended {
                outcome: tx.damage().map_or(Outcome::Committed, Outcome::Damaged),
                ordered: told.fold(0, |all, branch| all | order_bit(branch.bqual)),
                request: tx.request.map(|request| request.id),
                position: tx.position,
            };
            self.ended.insert(gtrid, ended);
        } else {
            self.aborted.insert(gtrid);
            if let Some(reason) = tx.damage() {
                self.damage_ended(gtrid, &reason, tx.request.as_ref());
            } else if let Some(request) = tx.request {
                // Aborted for a reason that a retry may mend: the request is free again.
                self.free_request(&request.id, gtrid);
            }
        }
        Ok(())
    }

    fn apply_heuristic(
        &mut self,
        id: BranchId,
        committed: Option<bool>,
        reason: &Reason,
        request: Option<&Request>,
    ) {
        self.heuristics.insert(id, committed);
        let mut has_end = false;
        if let Some(tx) = self.transactions.get_mut(&id.gtrid) {
            has_end = tx.one_phase || tx.state == TransactionState::Committing;
            // The first damage is what is told, as it is of what has ended: a later order that
            // takes it back does not undo it.
            if tx.damage().is_none() {
                tx.reason = Some(reason.clone());
            }
            // One that left has no outcome that it could contradict.
            let open = |b: &&mut Branch| {
                !matches!(b.state, BranchState::ReadOnly | BranchState::Heuristic)
            };
            if let Some(branch) = tx.branch_mut(id.bqual).filter(open) {
                branch.state = BranchState::Heuristic;
                branch.reason = Some(reason.clone());
            }
        }
        // What is decided, or delegated, tells of its damage by its end. An abort has none, and
        // what ended before has had it. Of what is forgotten nobody knows what it contradicts.
        let contradicts = match self.ended.get(&id.gtrid) {
            Some(ended) if ended.ordered != 0 => ended.orders(id.bqual) && committed != Some(true),
            None if id.gtrid < self.horizon => true,
            Some(_) | None => committed != Some(false),
        };
        if !has_end && contradicts {
            self.damage_ended(id.gtrid, reason, request);
        }
    }

    /// What was aborted, or has ended, turns out damaged: whoever asks is told so from now on, and
    /// its request is never free again. Another attempt may have taken its place meanwhile.
    fn damage_ended(&mut self, gtrid: Gtrid, reason: &Reason, request: Option<&Request>) {
        self.remember_request(gtrid, request);
        let ended = self.ended.entry(gtrid).or_insert_with(|| Ended {
            outcome: Outcome::Damaged(reason.clone()),
            ordered: 0,
            request: request.map(|request| request.id.clone()),
            position: 0,
        });
        if !ended.is_damaged() {
            ended.outcome = Outcome::Damaged(reason.clone());
        }
    }

    fn apply_horizon(&mut self, horizon: Gtrid) -> Result<(), ApplyError> {
        let over_live = self
            .transactions
            .keys()
            .next()
            .is_some_and(|oldest| *oldest < horizon);
        if horizon < self.horizon || over_live {
            return Err(ApplyError::BadHorizon(horizon));
        }
        self.horizon = horizon;
        let mut kept = self.ended.split_off(&horizon);
        for (gtrid, ended) in std::mem::take(&mut self.ended) {
            if ended.is_damaged() {
                kept.insert(gtrid, ended);
            } else if let Some(request) = ended.request {
                self.free_request(&request, gtrid);
            }
        }
        self.ended = kept;
        self.aborted = self.aborted.split_off(&horizon);
        Ok(())
    }

    /// Forgets a request id, unless it stands for a later transaction by now.
    pub(super) fn free_request(&mut self, request: &RequestId, gtrid: Gtrid) {
        if self
            .requests
            .get(request)
            .is_some_and(|(_, known)| *known == gtrid)
        {
            self.requests.remove(request);
        }
    }

    /// Lets a request id stand for this transaction, unless it stands for a damaged one: that is
    /// what whoever repeats it must hear of, for ever.
    pub(super) fn remember_request(&mut self, gtrid: Gtrid, request: Option<&Request>) {
        let Some(request) = request else { return };
        let first = self.requests.get(&request.id).map(|(_, first)| first);
        let damaged = first.and_then(|first| self.ended.get(first));
        if !damaged.is_some_and(Ended::is_damaged) {
            self.requests
                .insert(request.id.clone(), (request.fingerprint, gtrid));
        }
    }

    /// The same, of a transaction whose outcome is not known. Replay goes by id and not by time:
    /// an attempt that came to nothing must not take the place of the one that settled the request.
    /// One that ended and is forgotten settles nothing any more: only its records are not deleted
    /// yet, and this attempt began because the request was free again.
    fn remember_attempt(&mut self, gtrid: Gtrid, request: Option<&Request>) {
        let settled = |first: &Gtrid| {
            let decided = |tx: &Transaction| !tx.one_phase && !tx.is_undecided();
            let kept = |ended: &Ended| *first >= self.horizon || ended.is_damaged();
            self.ended.get(first).is_some_and(kept)
                || self.transactions.get(first).is_some_and(decided)
        };
        let first = request.and_then(|request| self.requests.get(&request.id));
        if first.is_none_or(|(_, first)| !settled(first)) {
            self.remember_request(gtrid, request);
        }
    }
}
