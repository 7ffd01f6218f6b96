//! The minder: keeps what a supervisor would lose with its life, and starts another.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};

use highball::group::launch::{self, LIFE, ORDERS};

use super::keep::{self, Kept, Said, Thing};
use super::{MINDER, wait};
use crate::signals::Signals;

/// Starts a supervisor, and minds it.
pub fn start(orders: OwnedFd, life: OwnedFd, signals: &Signals) -> io::Result<()> {
    let supervisor = start_supervisor(&orders, &life, &[])?;
    mind(orders, life, supervisor, signals)
}

/// Minds a supervisor until it ends by itself.
pub fn mind(orders: OwnedFd, life: OwnedFd, supervisor: OwnedFd, signals: &Signals) -> io::Result<()> {
    let mut supervisor = supervisor;
    let mut kept: Vec<Kept> = Vec::new();
    let mut started = Instant::now();
    let mut ended = Ended::default();
    loop {
        ended.reap();
        ended.tell(&supervisor);
        let supervisors = PollFd::new(&supervisor, PollFlags::IN);
        wait(&mut [supervisors, PollFd::from_borrowed_fd(signals.file(), PollFlags::IN)], None)?;
        while signals.next().is_some() {}
        while let Some(said) = keep::receive(&supervisor).unwrap_or(Some(Said::End)) {
            match said {
                Said::Keep(new) => {
                    kept.retain(|old| old.name != new.name);
                    kept.push(new);
                }
                Said::Drop(name) => kept.retain(|old| old.name != name),
                Said::All | Said::Ended { .. } => {}
                Said::Over => return Ok(()),
                Said::End => {
                    // One that dies at once would only die again.
                    std::thread::sleep(CALM.saturating_sub(started.elapsed()));
                    supervisor = loop {
                        match start_supervisor(&orders, &life, &kept) {
                            Ok(supervisor) => break supervisor,
                            // There is nobody to tell; memory may come back.
                            Err(_) => std::thread::sleep(RETRY),
                        }
                    };
                    started = Instant::now();
                    ended.told = 0;
                    break;
                }
            }
        }
    }
}

/// Processes that have ended and were, or have become, this one's children: each supervisor is told of the latest, as the
/// one before may have died before it listened.
#[derive(Default)]
struct Ended {
    latest: Vec<(u32, i32)>,
    told: usize,
}

impl Ended {
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.latest.push((pid.as_raw_nonzero().get() as u32, status.as_raw()));
        }
        let old = self.latest.len().saturating_sub(MOST);
        self.latest.drain(..old);
        self.told = self.told.saturating_sub(old);
    }

    fn tell(&mut self, supervisor: &OwnedFd) {
        for (pid, status) in self.latest.iter().skip(self.told) {
            if keep::ended(supervisor, *pid, *status).is_err() {
                break;
            }
            self.told += 1;
        }
    }
}

fn start_supervisor(orders: &OwnedFd, life: &OwnedFd, kept: &[Kept]) -> io::Result<OwnedFd> {
    let things: Vec<Thing<'_>> = kept.iter().map(Kept::thing).collect();
    keep::hand_over(&things, |theirs| {
        spawn("--supervisor", &[(orders.as_fd(), ORDERS), (life.as_fd(), LIFE), (theirs.as_fd(), MINDER)])
    })
}

/// Starts this command once more, in another role.
pub fn spawn(role: &str, files: &[(BorrowedFd<'_>, i32)]) -> io::Result<()> {
    // By the process's own link: the file may have been replaced, and what is kept is this version's.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("highball").arg("supervise").arg(role).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    launch::give(&mut command, files);
    command.spawn().map(drop)
}

/// Processes whose parents have ended become this one's.
pub fn adopt() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// In a supervisor, which asks itself how its workers have ended: takes leave of all others.
pub fn reap_others(workers: &[u32]) {
    let children =
        std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap_or_default();
    let pids = children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
    for pid in pids.filter(|pid| !workers.contains(&pid.cast_unsigned())) {
        waitpid(Pid::from_raw(pid), WaitOptions::NOHANG).ok();
    }
}

/// How many processes that have ended are remembered.
const MOST: usize = 256;

/// Before a supervisor is started again that could not be.
const RETRY: Duration = Duration::from_secs(1);

/// Supervisors are not started more often.
const CALM: Duration = Duration::from_millis(300);
