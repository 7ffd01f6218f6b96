//! Signals: nginx's stay nginx's, and those of Python's children work.

/// Runs `f` with nginx's signals blocked; threads that it starts keep that mask.
pub fn masked<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: plain sets of signals on this thread's stack.
    unsafe {
        let (mut block, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&mut block);
        for signal in HOST_SIGNALS {
            libc::sigaddset(&mut block, *signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &block, &mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result
    }
}

/// nginx's worker processes reap every child, so that Python's `subprocess` would see each of them succeed.
pub fn repair_child_signal() {
    // SAFETY: no handler is passed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// What nginx handles, except for SIGCHLD and SIGPIPE.
pub const HOST_SIGNALS: &[i32] = &[
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGTERM,
    libc::SIGQUIT,
    libc::SIGINT,
    libc::SIGALRM,
    libc::SIGIO,
];
