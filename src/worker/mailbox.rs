//! The way back from threads to the event loop: one list, and one wake-up when it goes from empty to non-empty.
//!
//! Answers of short requests would still wake the loop one by one. So while a thread of the pool waits for the
//! interpreter anyway, the wake-up for an answer is put off: until that thread attaches (which it does as soon as the
//! one that answered waits for anything, and within Python's switch interval otherwise), until the queue is empty, or
//! until there are [`MANY`] answers or [`OLD`] ones, whichever is first.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::relay::Relay;
use crate::log::Level;
use crate::python::Host;

pub struct Mailbox {
    posted: Mutex<Posted>,
    wake: Box<dyn Fn() + Send + Sync>,
    /// Somebody will call [`flush`](Self::flush) soon.
    waited_for: Arc<AtomicBool>,
}

/// What threads left for the loop.
#[derive(Default)]
pub struct Posted {
    /// Relays with messages; each stands here once.
    pub relays: Vec<Arc<Relay>>,
    /// Records of the log outside any request.
    pub records: Vec<(Level, String)>,
    /// Something else has changed: the interpreter has started, an application was loaded.
    pub changed: bool,
    /// Since when the wake-up for this is put off.
    put_off: Option<Instant>,
}

impl Mailbox {
    /// `wake` makes the loop call [`take`](Self::take) soon. Any thread; must not wait. `waited_for`: see
    /// [`Pool::waiting`](super::pool::Pool::waiting).
    pub fn new(wake: impl Fn() + Send + Sync + 'static, waited_for: Arc<AtomicBool>) -> Arc<Mailbox> {
        Arc::new(Mailbox { posted: Mutex::default(), wake: Box::new(wake), waited_for })
    }

    /// Swaps what was posted into `into`, whose lists are empty and keep their memory. Event loop only.
    pub fn take(&self, into: &mut Posted) {
        std::mem::swap(&mut *self.lock(), into);
    }

    /// Says that something has changed that is not kept here.
    pub fn changed(&self) {
        self.post(|posted| posted.changed = true);
    }

    /// Wakes the loop if that was put off. Any thread.
    pub fn flush(&self) {
        if self.lock().put_off.take().is_some() {
            (self.wake)();
        }
    }

    pub(super) fn relay(&self, relay: Arc<Relay>) {
        self.post(|posted| posted.relays.push(relay));
    }

    /// As [`relay`](Self::relay), for an answer that is complete.
    pub(super) fn answer(&self, relay: Arc<Relay>) {
        let mut posted = self.lock();
        let was_empty = posted.is_empty();
        posted.relays.push(relay);
        // Read under the lock, as whoever waits lowers it before its flush takes the lock.
        let wakes = if self.waited_for.load(Ordering::Acquire) {
            match posted.put_off {
                None if was_empty => {
                    posted.put_off = Some(Instant::now());
                    false
                }
                None => false,
                Some(since) => posted.relays.len() >= MANY || since.elapsed() >= OLD,
            }
        } else {
            was_empty || posted.put_off.is_some()
        };
        if wakes {
            posted.put_off = None;
        }
        drop(posted);
        if wakes {
            (self.wake)();
        }
    }

    fn post(&self, add: impl FnOnce(&mut Posted)) {
        let mut posted = self.lock();
        let was_empty = posted.is_empty();
        add(&mut posted);
        let put_off = posted.put_off.take().is_some();
        drop(posted);
        if was_empty || put_off {
            (self.wake)();
        }
    }

    /// Held for moments only.
    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Posted {
    pub fn is_empty(&self) -> bool {
        self.relays.is_empty() && self.records.is_empty() && !self.changed
    }
}

impl Host for Mailbox {
    fn log(&self, level: Level, text: &str) {
        self.post(|posted| posted.records.push((level, text.to_string())));
    }

    fn wake(&self) {
        (self.wake)();
    }
}

/// So many answers wake the loop.
pub const MANY: usize = 16;

/// So old an answer does.
const OLD: Duration = Duration::from_micros(200);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::exchange::{Exchange, Outcome};
    use crate::request::Request;

    #[test]
    fn the_loop_is_woken_once_per_batch() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let mailbox = Mailbox::new(
            move || {
                counted.fetch_add(1, Ordering::Relaxed);
            },
            Arc::default(),
        );
        mailbox.log(Level::Info, "a");
        mailbox.log(Level::Info, "b");
        mailbox.changed();
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        let mut posted = Posted::default();
        mailbox.take(&mut posted);
        assert_eq!((posted.records.len(), posted.changed), (2, true));
        mailbox.changed();
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
    }
    #[test]
    fn answers_wait_for_the_thread_that_waits_but_not_for_long() {
        let (wakes, waited_for) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
        let counted = wakes.clone();
        let wake = move || {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let mailbox = Mailbox::new(wake, waited_for.clone());
        let answer = || {
            let (_, mut end) = Relay::new(Request::builder(0, 0).build(), Vec::new(), mailbox.clone(), 0, 1);
            end.finish(Outcome::Complete);
        };
        let woken = || wakes.swap(0, Ordering::Relaxed);
        answer();
        assert_eq!(woken(), 0);
        mailbox.flush();
        mailbox.flush();
        assert_eq!(woken(), 1);
        mailbox.take(&mut Posted::default());
        answer();
        std::thread::sleep(OLD);
        answer();
        assert_eq!(woken(), 1);
        mailbox.take(&mut Posted::default());
        answer();
        mailbox.changed();
        assert_eq!(woken(), 1);
        mailbox.take(&mut Posted::default());
        answer();
        waited_for.store(false, Ordering::Release);
        answer();
        answer();
        assert_eq!(woken(), 1);
    }
}
