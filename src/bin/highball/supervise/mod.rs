//! `highball supervise`: starts, watches and replaces the workers of process groups. The contract is
//! `docs/process-groups-protocol.md`; `keep` and `minder` are the second process that outlives a killed supervisor.
//!
//! One thread and one loop: `supervisor` waits for orders, workers, output and clocks, `group` decides, `worker` is one
//! process, `spawn` starts it, `output` and `log` write records, `control` answers `highball status` and the like.

mod control;
mod death;
mod directory;
mod group;
mod keep;
mod limits;
mod log;
mod minder;
mod output;
mod spawn;
mod status;
mod supervisor;
mod worker;

pub use control::{Answer, Command, Question};
pub use directory::base;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use highball::group::launch::{LIFE, ORDERS};

use crate::failure::Failure;
use crate::signals::Signals;

/// Where a supervisor finds its minder's socket, and a minder that of the supervisor it is to mind.
const MINDER: RawFd = 5;

/// In which role this process was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// By the server's master: starts a supervisor and minds it.
    Minder,
    /// By a supervisor whose minder has died.
    NextMinder,
    Supervisor,
}

pub fn run(role: Role) -> Result<(), Failure> {
    let wrong =
        |error: io::Error| Failure::new(format!("supervise: {error}"), "it is started by a server, not by hand");
    let (orders, life) = (inherited(ORDERS).map_err(wrong)?, inherited(LIFE).map_err(wrong)?);
    // The servers' secret is in its memory, and applications may run as the same user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| wrong(error.into()))?;
    // Whoever signals all processes of a service has the server end, and that is what these wait for.
    let signals = Signals::take()?;
    minder::adopt().map_err(wrong)?;
    match role {
        Role::Minder => minder::start(orders, life, &signals).map_err(wrong),
        Role::NextMinder => minder::mind(orders, life, inherited(MINDER).map_err(wrong)?, &signals).map_err(wrong),
        Role::Supervisor => supervisor::run(orders, life, inherited(MINDER).map_err(wrong)?, signals).map_err(wrong),
    }
}

/// A descriptor that whoever started this process has put there.
fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: called once for each number, at the start; a closed one fails below and is not closed again.
    let file = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::fcntl_setfd(&*file, rustix::io::FdFlags::CLOEXEC)?;
    Ok(std::mem::ManuallyDrop::into_inner(file))
}

/// Waits for one of these, at most so long.
fn wait(files: &mut [PollFd<'_>], longest: Option<Duration>) -> io::Result<()> {
    let longest = longest.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
    match rustix::event::poll(files, longest.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a moment that may be set has come.
fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

/// A time of the state, in milliseconds; 0 is none.
fn time(milliseconds: u64) -> Option<Duration> {
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
}
