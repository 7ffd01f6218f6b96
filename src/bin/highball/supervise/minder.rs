//! The minder: keeps what a supervisor would lose with its life, and starts another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::WaitOptions;

use highball::group::launch::{self, LIFE, ORDERS};
use highball::group::socket;

use super::keep::{self, Kept, Said};
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
    // Processes that ended while no supervisor could be told.
    let mut untold = Vec::new();
    loop {
        let supervisors = PollFd::new(&supervisor, PollFlags::IN);
        wait(&mut [supervisors, PollFd::from_borrowed_fd(signals.file(), PollFlags::IN)], None)?;
        while signals.next().is_some() {}
        untold.extend(reap());
        untold.retain(|(pid, status)| keep::ended(&supervisor, *pid, *status).is_err());
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
                    break;
                }
            }
        }
    }
}

fn start_supervisor(orders: &OwnedFd, life: &OwnedFd, kept: &[Kept]) -> io::Result<OwnedFd> {
    let (ours, theirs) = socket::packets()?;
    spawn("--supervisor", &[(orders.as_fd(), ORDERS), (life.as_fd(), LIFE), (theirs.as_fd(), MINDER)])?;
    drop(theirs);
    for one in kept {
        let files: Vec<BorrowedFd<'_>> = one.files.iter().map(AsFd::as_fd).collect();
        keep::keep(&ours, &one.name, &one.text, &files)?;
    }
    keep::all(&ours)?;
    Ok(ours)
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
pub fn adopt() {
    // SAFETY: a plain setting of this process.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Children that have ended, with their status.
fn reap() -> Vec<(u32, i32)> {
    let mut ended = Vec::new();
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        ended.push((pid.as_raw_nonzero().get() as u32, status.as_raw()));
    }
    ended
}

/// The same in a supervisor, which asks itself how its workers have ended.
pub fn reap_others(workers: &[u32]) {
    let children =
        std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap_or_default();
    for pid in children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()) {
        if !workers.contains(&pid) {
            // SAFETY: a null status is allowed.
            unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), libc::WNOHANG) };
        }
    }
}

/// Before a supervisor is started again that could not be.
const RETRY: Duration = Duration::from_secs(1);

/// Supervisors are not started more often.
const CALM: Duration = Duration::from_millis(300);
