//! The server process's end of the wire: a connection to a worker, and the choice among the workers of a group.
#![forbid(unsafe_code)]

pub mod direct;
mod link;

pub use link::{Link, LinkError, Said};

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::message::Key;
use super::state::Application;

/// What a server process knows of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub name: String,
    pub processes: u32,
    pub threads: u32,
    pub queue_size: usize,
    pub queue_timeout: Duration,
    /// Where the sockets are.
    pub directory: PathBuf,
    pub key: Key,
    /// The applications that requests name by a number.
    pub listed: HashMap<Application, u64>,
}

/// Where the socket of a group's worker is.
pub fn socket_path(directory: &Path, group: &str, slot: u32) -> PathBuf {
    directory.join(format!("{group}.{slot}.sock"))
}

/// Requests that may be at one worker at a time: those its threads run, and as many that wait for them.
pub fn most_outstanding(threads: u32) -> usize {
    threads as usize * 2
}

/// The next worker to ask: the one with the fewest requests of this process, among those that `may` take one. Ties go
/// round, from `turn` on.
pub fn choose(
    outstanding: impl Iterator<Item = usize> + Clone,
    most: usize,
    turn: usize,
    may: impl Fn(usize) -> bool,
) -> Option<usize> {
    let count = outstanding.clone().count().max(1);
    let distance = |slot: usize| (slot + count - turn % count) % count;
    outstanding
        .enumerate()
        .filter(|(slot, outstanding)| *outstanding < most && may(*slot))
        .min_by_key(|(slot, outstanding)| (*outstanding, distance(*slot)))
        .map(|(slot, _)| slot)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_least_busy_worker_is_asked_and_ties_go_round() {
        let choose = |counts: &[usize], turn| super::choose(counts.iter().copied(), 4, turn, |_| true);
        assert_eq!(choose(&[2, 1, 3], 0), Some(1));
        assert_eq!(choose(&[1, 1, 1], 0), Some(0));
        assert_eq!(choose(&[1, 1, 1], 1), Some(1));
        assert_eq!(choose(&[1, 1, 1], 5), Some(2));
        assert_eq!(choose(&[4, 4], 0), None);
        assert_eq!(choose(&[], 0), None);
        assert_eq!(super::choose([0, 0].into_iter(), 4, 0, |slot| slot == 1), Some(1));
    }
}
