//! Steps: what a machine asks of its driver, in the only legal order.

/// What must be durable, and what may leave only after that.
///
/// A machine counts the forced records that it has ever appended; the n-th has position n. The
/// driver appends `append`, and lets `release` leave as soon as every forced record up to position
/// `after` is durable. Steps of one transaction have growing `after`, so its effects keep their
/// order; a step of another transaction need not wait for them. That is all the ordering there is,
/// and draining many steps into one append is group commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step<R, E> {
    /// Records to make durable, in this order.
    pub append: Vec<R>,
    /// Position of the forced record that `release` must wait for; 0 for none.
    pub after: u64,
    /// Messages, replies and commands.
    pub release: Vec<E>,
}

impl<R, E> Default for Step<R, E> {
    fn default() -> Self {
        Self {
            append: Vec::new(),
            after: 0,
            release: Vec::new(),
        }
    }
}
