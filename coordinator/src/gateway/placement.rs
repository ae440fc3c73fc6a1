//! Where accounts, products and orders live: hash slots, and the participant of each slot.
//!
//! It owns the way from an id to its participant. It refuses to move anything: the slot map is
//! fixed when the cluster is first started, and kept in the decision log. See
//! `coordinator/docs/adr/0003-placement.md`.

use concord_core::id::ParticipantName;
use concord_core::limits::SLOTS;

/// 2³² divided by the golden ratio, made odd (Knuth, The Art of Computer Programming, 6.4).
const FIBONACCI: u32 = 0x9E37_79B1;

/// The hash slot of an account's, product's or order's id: CRC-32 (IEEE) of its bytes, times
/// 2,654,435,761 modulo 2³², and of that the upper ten bits. It is a promise for ever: rows are
/// found again by it.
///
/// The multiplication mixes what the CRC leaves apart: ids that differ in their last digit only
/// differ in few bits of their CRC, and with two servers a single bit of the slot decides.
pub fn slot_of(id: &str) -> u16 {
    let mixed = crc32fast::hash(id.as_bytes()).wrapping_mul(FIBONACCI);
    let slot = (u64::from(mixed) * u64::from(SLOTS)) >> u32::BITS;
    u16::try_from(slot).unwrap_or_default() // SLOTS is a u16, and the slot below it
}

/// Why a slot map is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// It was written by a version with another number of slots, or is cut.
    #[error("the slot map has {0} entries instead of {SLOTS}")]
    Length(usize),
}

/// The slot map: a participant for each hash slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// By slot; [`SLOTS`] entries.
    slots: Vec<ParticipantName>,
    /// Those that have slots, by their first one.
    participants: Vec<ParticipantName>,
}

impl Placement {
    /// The map of a new cluster: contiguous ranges, in the order of the configuration, whose
    /// sizes differ by one at most. It is empty when there is no participant.
    pub fn initial(participants: &[ParticipantName]) -> Vec<ParticipantName> {
        let slots = if participants.is_empty() {
            0
        } else {
            usize::from(SLOTS)
        };
        (0..slots)
            .map(|slot| participants[slot * participants.len() / slots].clone())
            .collect()
    }

    /// The placement that a recorded map stands for.
    pub fn new(slots: Vec<ParticipantName>) -> Result<Self, PlacementError> {
        if slots.len() != usize::from(SLOTS) {
            return Err(PlacementError::Length(slots.len()));
        }
        let mut participants: Vec<ParticipantName> = Vec::new();
        for name in &slots {
            if !participants.contains(name) {
                participants.push(name.clone());
            }
        }
        Ok(Self {
            slots,
            participants,
        })
    }

    /// Who keeps what has this id.
    pub fn participant_of(&self, id: &str) -> &ParticipantName {
        &self.slots[usize::from(slot_of(id))]
    }

    /// Who keeps anything. A participant that joined later has no slots and is not among them.
    pub fn participants(&self) -> &[ParticipantName] {
        &self.participants
    }

    /// How many slots a participant has.
    pub fn slots_of(&self, participant: &ParticipantName) -> u32 {
        let slots = self
            .slots
            .iter()
            .filter(|name| *name == participant)
            .count();
        u32::try_from(slots).unwrap_or(u32::from(SLOTS)) // there are only SLOTS of them
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<ParticipantName> {
        (1..=n)
            .map(|i| ParticipantName::new(format!("p{i}")))
            .collect()
    }

    fn placement(n: usize) -> Placement {
        Placement::new(Placement::initial(&names(n))).unwrap()
    }

    /// A change of any of these numbers loses every account: they are the disk format.
    #[test]
    fn slots_are_the_same_for_ever() {
        let golden = [
            ("", 0),
            ("a", 1_001),
            ("alice", 87),
            ("123456789", 184),
            ("ACC-0001", 137),
            ("0", 538),
        ];
        for (id, slot) in golden {
            assert_eq!(slot_of(id), slot, "{id}");
        }
    }

    #[test]
    fn ranges_are_contiguous_and_even() {
        for n in [1, 2, 3, 5, 7, 64] {
            let slots = Placement::initial(&names(n));
            assert_eq!(slots.len(), usize::from(SLOTS));
            let changes = slots.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert_eq!(changes, n - 1);
            let placement = placement(n);
            assert_eq!(placement.participants(), names(n));
            let counts: Vec<u32> = names(n)
                .iter()
                .map(|name| placement.slots_of(name))
                .collect();
            assert_eq!(counts.iter().sum::<u32>(), u32::from(SLOTS));
            let (least, most) = (counts.iter().min(), counts.iter().max());
            assert!(
                most.zip(least)
                    .is_some_and(|(most, least)| most - least <= 1)
            );
        }
    }

    #[test]
    fn ids_that_people_use_spread_evenly() {
        let forms: [fn(usize) -> String; 4] = [
            |i| format!("acc-{i:06}"),
            |i| format!("account{i}"),
            |i| i.to_string(),
            |i| format!("DE{:020}", i * 97),
        ];
        for form in forms {
            for n in [2, 3, 7] {
                let placement = placement(n);
                let mut counts = vec![0_usize; n];
                for i in 0..20_000 {
                    let name = placement.participant_of(&form(i));
                    counts[names(n).iter().position(|other| other == name).unwrap()] += 1;
                }
                for count in &counts {
                    let share = 20_000 / n;
                    assert!(
                        count.abs_diff(share) * 10 < share,
                        "{}: {counts:?}",
                        form(1)
                    );
                }
            }
        }
    }

    #[test]
    fn neighbours_do_not_all_live_together() {
        let placement = placement(2);
        for ten in 0..100 {
            let homes: std::collections::BTreeSet<_> = (0..10)
                .map(|i| placement.participant_of(&format!("acc-{ten:04}{i}")))
                .collect();
            assert_eq!(homes.len(), 2, "acc-{ten:04}0 to 9");
        }
    }

    #[test]
    fn a_map_of_another_length_is_refused() {
        assert_eq!(
            Placement::new(names(1_023)),
            Err(PlacementError::Length(1_023))
        );
        assert_eq!(Placement::initial(&[]), []);
        assert_eq!(Placement::new(Vec::new()), Err(PlacementError::Length(0)));
    }

    #[test]
    fn a_participant_without_slots_has_none() {
        assert_eq!(placement(2).slots_of(&ParticipantName::new("p3")), 0);
    }
}
