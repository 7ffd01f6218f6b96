//! Why a worker has died.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use rustix::process::{WaitId, WaitIdOptions, waitid};

use highball::group::page::{Page, Phase};

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Signal(i32),
    Exit(i32),
    /// Whose child it was has died as well.
    Unseen,
}

impl Ended {
    /// Of a child of this process; `None`: it is none, or has not ended.
    pub fn of_child(process: BorrowedFd<'_>) -> Option<Ended> {
        let status = waitid(WaitId::PidFd(process), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok().flatten()?;
        let signal = status.terminating_signal().map(Ended::Signal);
        signal.or(status.exit_status().map(Ended::Exit))
    }

    /// Of a status as of wait().
    pub fn of_status(status: i32) -> Ended {
        match (libc::WIFSIGNALED(status), libc::WIFEXITED(status)) {
            (true, _) => Ended::Signal(libc::WTERMSIG(status)),
            (_, true) => Ended::Exit(libc::WEXITSTATUS(status)),
            _ => Ended::Unseen,
        }
    }

    pub fn in_words(self, out_of_memory: bool) -> String {
        match self {
            Ended::Signal(libc::SIGKILL) if out_of_memory => {
                "was killed by the kernel for want of memory (SIGKILL)".into()
            }
            Ended::Signal(signal) => format!("was killed by {}", signal_name(signal)),
            Ended::Exit(code) => format!("ended with exit status {code}"),
            Ended::Unseen => "has ended (who could say how is gone as well)".into(),
        }
    }
}

/// What its threads were running.
pub fn running(page: &Page) -> Vec<String> {
    let entries = (0..page.threads()).filter_map(|thread| page.entry(thread));
    let busy = entries.filter(|entry| entry.phase != Phase::Idle);
    busy.map(|entry| String::from_utf8_lossy(&entry.text).into_owned()).collect()
}

/// How often the kernel has killed something for want of memory, on the whole machine.
pub fn out_of_memory_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

fn signal_name(number: i32) -> String {
    let names = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (5, "SIGTRAP"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (10, "SIGUSR1"),
        (11, "SIGSEGV"),
        (12, "SIGUSR2"),
        (13, "SIGPIPE"),
        (14, "SIGALRM"),
        (15, "SIGTERM"),
        (24, "SIGXCPU"),
        (25, "SIGXFSZ"),
        (31, "SIGSYS"),
    ];
    let name = names.iter().find(|(known, _)| *known == number).map(|(_, name)| *name);
    name.map_or_else(|| format!("signal {number}"), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_put_into_words() {
        assert_eq!(Ended::of_status(11).in_words(false), "was killed by SIGSEGV");
        assert_eq!(Ended::of_status(9).in_words(false), "was killed by SIGKILL");
        assert!(Ended::of_status(9).in_words(true).contains("memory"));
        assert_eq!(Ended::of_status(3 << 8).in_words(true), "ended with exit status 3");
        assert_eq!(Ended::of_status(11 | 128), Ended::Signal(11), "with a core dump");
    }
}
