//! SIGTERM, SIGINT, SIGHUP and SIGCHLD as something to poll.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::failure::Failure;

pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals, for this process; [`unblock`] is for its children.
    pub fn take() -> Result<Signals, Failure> {
        let mut set = empty_set();
        // SAFETY: `set` is initialised; signalfd() makes a descriptor that nobody else owns.
        let descriptor = unsafe {
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD] {
                libc::sigaddset(&mut set, signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if descriptor < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Failure::new(format!("signalfd() failed: {error}"), "close some files or programs"));
        }
        // SAFETY: made above, owned by nobody else.
        Ok(Signals(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// The next signal that has arrived.
    pub fn next(&self) -> Option<libc::c_int> {
        // SAFETY: signalfd_siginfo is plain data, all zeros are a value of it.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` has room for `size` bytes.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size) };
        if read == size as isize { libc::c_int::try_from(info.ssi_signo).ok() } else { None }
    }

    pub fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Unblocks every signal. For a child between fork and exec.
pub fn unblock() {
    let set = empty_set();
    // SAFETY: `set` is initialised; sigprocmask() may be called between fork and exec.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) };
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, and sigemptyset() initialises it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        set
    }
}
