//! Which descriptors are the worker's own: a process that the application forks must not keep them, or the server would
//! not see the worker end, nor use them.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A bit for each of the first 4096; no server process keeps more connections to one worker.
static OURS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
static FORKED: AtomicBool = AtomicBool::new(false);

pub fn note(descriptor: RawFd) {
    if let Some((word, bit)) = place(descriptor) {
        word.fetch_or(bit, Ordering::Relaxed);
    }
}

/// Before it is closed.
pub fn forget(descriptor: RawFd) {
    if let Some((word, bit)) = place(descriptor) {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// In a forked child, on its only thread: closes them.
pub fn leave() {
    FORKED.store(true, Ordering::SeqCst);
    for (index, word) in OURS.iter().enumerate() {
        let bits = word.swap(0, Ordering::Relaxed);
        for bit in (0..64).filter(|bit| bits & (1 << bit) != 0) {
            // SAFETY: nobody uses it any more: whoever might asks `is_fork` first, and this process has no other thread.
            unsafe { libc::close((index * 64 + bit) as RawFd) };
        }
    }
}

/// Ends such a child, without anything that is the worker's to do.
pub fn end_fork() -> ! {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(0) }
}

/// This process is a child that the application forked.
pub fn is_fork() -> bool {
    FORKED.load(Ordering::Relaxed)
}

fn place(descriptor: RawFd) -> Option<(&'static AtomicU64, u64)> {
    let number = usize::try_from(descriptor).ok()?;
    OURS.get(number / 64).map(|word| (word, 1 << (number % 64)))
}
