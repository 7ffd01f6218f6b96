//! What the objects given to an application share: the lease on the exchange and the interpreter.

use std::cell::Cell;
use std::ptr::null;
use std::sync::{Arc, Mutex, PoisonError};

use super::interpreter::Interpreter;
use crate::exchange::Exchange;
use crate::log::Level;
use crate::run::Lease;

pub(super) struct Session {
    pub(super) lease: Lease,
    pub(super) interpreter: Arc<Interpreter>,
    /// What was written to `wsgi.errors` without a line end yet.
    errors: Mutex<String>,
}

thread_local! {
    /// The session this thread is running, for what is printed meanwhile; [`Entered`] keeps it alive. Plain memory
    /// without a destructor, as in `thread.rs`.
    static CURRENT: Cell<*const Session> = const { Cell::new(null()) };

    /// This thread has printed something without a line end.
    static PRINTED: Cell<bool> = const { Cell::new(false) };
}

impl Session {
    pub(super) fn new(interpreter: Arc<Interpreter>, exchange: Box<dyn Exchange>) -> Arc<Session> {
        Arc::new(Session { lease: Lease::new(exchange), interpreter, errors: Mutex::default() })
    }

    /// Writes a record in the context of the request, or of the process once the request is over. Detached.
    pub(super) fn log(&self, level: Level, text: &str) {
        if self.lease.log(level, text).is_err() {
            self.interpreter.host.log(level, text);
        }
    }

    /// Takes text for the error log; complete lines leave as one record. Detached.
    pub(super) fn write_errors(&self, text: &str) {
        let mut pending = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        pending.push_str(text);
        if let Some(end) = pending.rfind('\n') {
            let rest = pending.split_off(end + 1);
            let lines = std::mem::replace(&mut *pending, rest);
            drop(pending);
            self.log(Level::Error, &lines);
        } else if pending.len() > LONGEST_LINE {
            let lines = std::mem::take(&mut *pending);
            drop(pending);
            self.log(Level::Error, &lines);
        }
    }

    /// Sends an unfinished line to the log. Detached.
    pub(super) fn flush_errors(&self) {
        let rest = std::mem::take(&mut *self.errors.lock().unwrap_or_else(PoisonError::into_inner));
        if !rest.is_empty() {
            self.log(Level::Error, &rest);
        }
    }

    pub(super) fn has_unfinished_line(&self) -> bool {
        self.errors.try_lock().map_or(true, |pending| !pending.is_empty())
    }

    /// Remembers that `boot.py` holds an unfinished line of this thread.
    pub(super) fn has_printed() {
        PRINTED.set(true);
    }

    /// Whether `boot.py` may hold an unfinished line of this thread; asked once.
    pub(super) fn take_printed() -> bool {
        PRINTED.replace(false)
    }

    /// Makes this the session of the thread until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Entered {
        CURRENT.set(Arc::as_ptr(self));
        Entered(self.clone())
    }

    /// The session this thread is running, if any.
    pub(super) fn current() -> Option<Arc<Session>> {
        let current = CURRENT.get();
        if current.is_null() {
            return None;
        }
        // SAFETY: the pointer came from `Arc::as_ptr`, and the `Entered` of this thread still holds a reference.
        unsafe {
            Arc::increment_strong_count(current);
            Some(Arc::from_raw(current))
        }
    }
}

/// Stays on the thread that entered.
pub(super) struct Entered(#[allow(dead_code, reason = "keeps the session alive")] Arc<Session>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(null());
    }
}

/// Text without a line end is kept no longer than this, in bytes.
const LONGEST_LINE: usize = 64 * 1024;
