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
use crate::error::{Code, Report};

/// What a server process knows of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub name: String,
    pub processes: u32,
    pub threads: u32,
    pub queue_size: usize,
    pub queue_timeout: Duration,
    /// How long a worker may take nothing of what is sent to it.
    pub socket_timeout: Duration,
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

/// The next of so many workers to ask: the one with the fewest requests of this process, among those that may take one
/// (`outstanding`: how many it has). Ties go round, from `turn` on.
pub fn choose(workers: usize, most: usize, turn: usize, outstanding: impl Fn(usize) -> Option<usize>) -> Option<usize> {
    let round = (0..workers).map(|distance| (turn % workers + distance) % workers);
    let free = round.filter_map(|slot| Some((slot, outstanding(slot).filter(|count| *count < most)?)));
    free.min_by_key(|(_, count)| *count).map(|(slot, _)| slot)
}

/// How soon a request that a worker does not have the application of is tried again.
pub const NOT_HERE: Duration = Duration::from_millis(100);

/// How many requests of a server process may wait for that, and how long at most.
pub const MOST_NOT_HERE: usize = 64;
pub const LONGEST_NOT_HERE: Duration = Duration::from_secs(60);

/// Why a group does not take a request.
#[derive(Debug, Clone, Copy)]
pub enum Refusal {
    QueueFull,
    TooLate,
    /// Its headers are longer than a worker takes.
    TooLong,
    /// No worker has had its application in time.
    NotHere,
}

impl Refusal {
    /// What the client gets.
    pub fn status(self) -> u16 {
        match self {
            Refusal::QueueFull => 503,
            Refusal::TooLate => 504,
            Refusal::TooLong => 431,
            Refusal::NotHere => 500,
        }
    }

    pub fn report(self, group: &Settings) -> Report {
        let refused = format!("the process group \"{}\" did not take the request: ", group.name);
        match self {
            Refusal::NotHere => {
                let cause = format!(
                    "{refused}none of its processes had the application within {:?} (queue-timeout); the client got \
                     status 500",
                    group.queue_timeout
                );
                Report::new(Code::NotOfGroup, cause)
                    .remedy("`highball status` shows why processes with the new configuration do not serve")
            }
            Refusal::TooLong => {
                let most = super::request::LONGEST / 1024;
                let cause = format!("{refused}its headers are longer than {most} KiB; the client got status 431");
                Report::new(Code::RequestTooLong, cause).remedy("let the server refuse such headers: lower the limits of nginx (large_client_header_buffers) or Apache (LimitRequestFieldSize)")
            }
            Refusal::QueueFull => {
                let cause =
                    format!("{refused}{} wait already (queue-size); the client got status 503", group.queue_size);
                Report::new(Code::GroupBusy, cause).remedy("give it more processes or threads, or a longer queue")
            }
            Refusal::TooLate => {
                let cause = format!(
                    "{refused}no process was free within {:?} (queue-timeout); the client got status 504",
                    group.queue_timeout
                );
                Report::new(Code::GroupUnavailable, cause)
                    .remedy("`highball status` shows what its processes do, and the records above why none has started")
            }
        }
    }
}

/// The record of a link that a server process has closed.
pub fn closed(group: &Settings, error: &LinkError) -> String {
    format!("the connection to a process of the group \"{}\" was closed: {error}", group.name)
}

/// A worker is gone, and with it a request that had begun.
pub fn ended(group: &Settings) -> Report {
    let cause = format!(
        "a process of the group \"{}\" ended while it had this request; the client got status 502 or a cut response",
        group.name
    );
    Report::new(Code::ProcessEnded, cause).remedy("a record of the group says how the process ended")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_least_busy_worker_is_asked_and_ties_go_round() {
        let choose = |counts: &[usize], turn| super::choose(counts.len(), 4, turn, |slot| counts.get(slot).copied());
        assert_eq!(choose(&[2, 1, 3], 0), Some(1));
        assert_eq!(choose(&[1, 1, 1], 0), Some(0));
        assert_eq!(choose(&[1, 1, 1], 1), Some(1));
        assert_eq!(choose(&[1, 1, 1], 5), Some(2));
        assert_eq!(choose(&[4, 4], 0), None);
        assert_eq!(choose(&[], 0), None);
        assert_eq!(super::choose(2, 4, 0, |slot| (slot == 1).then_some(0)), Some(1));
    }
}
