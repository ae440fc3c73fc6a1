//! The threads that a daemon works with.
//!
//! Its work is short and mostly waits: more threads than it needs only hand it to and fro. It
//! refuses to take all processors, for the servers and clients of a machine need them more.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};

/// Threads of a daemon that is not told how many: half of the processors, at least this...
const THREADS_MIN: usize = 1;
/// ...and at most that: the one task that owns the protocol's state is busy by then.
const THREADS_MAX: usize = 8;

/// A runtime with `threads` threads; 0 takes as many as suit the machine.
pub fn runtime(threads: usize) -> std::io::Result<Runtime> {
    let threads = match threads {
        0 => suitable(available_parallelism().map_or(1, NonZeroUsize::get)),
        given => given,
    };
    if threads == 1 {
        return Builder::new_current_thread().enable_all().build();
    }
    Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
}

fn suitable(processors: usize) -> usize {
    (processors / 2).clamp(THREADS_MIN, THREADS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_processors() {
        let suited = [1, 2, 3, 4, 16, 128].map(suitable);
        assert_eq!(suited, [1, 1, 1, 2, 8, 8]);
    }
}
