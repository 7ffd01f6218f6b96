//! Looks at what threads execute, and interrupts them.

use std::ptr::null_mut;
use std::sync::Arc;

use pyo3_ffi as ffi;

use super::interpreter::{Interpreter, Interruption};
use super::object::{self, Owned, Raised, Result, display, integer, set_item, string};
use super::thread::{Attached, ThreadId};

impl Interpreter {
    /// Raises an exception in a thread, at its next bytecode, if `still` says that it is to be; asked attached, so that
    /// the thread cannot go on meanwhile. Returns the stack it had. Any thread, detached.
    pub fn interrupt(
        self: &Arc<Self>,
        thread: ThreadId,
        why: Interruption,
        still: impl FnOnce() -> bool,
    ) -> Option<String> {
        self.attach(|_| {
            let frames = integer(thread as i64).and_then(|thread| self.boot.frames.call(&[&thread]));
            if !still() {
                return None;
            }
            let class = match why {
                Interruption::Retired => &self.boot.retired,
                Interruption::TimedOut => &self.boot.timed_out,
            };
            // SAFETY: attached; CPython looks the thread up and ignores an unknown one. It takes a reference of its own.
            unsafe { ffi::PyThreadState_SetAsyncExc(thread as _, class.as_ptr()) };
            Some(text(frames.and_then(|frames| self.boot.format_frames.call(&[&frames]))))
        })
    }

    /// The stacks of all threads, with a note for those that `notes` names. Any thread, detached.
    pub fn stacks(self: &Arc<Self>, notes: &[(ThreadId, String)]) -> String {
        self.attach(|_| text(dictionary(notes).and_then(|notes| self.boot.stacks.call(&[&notes]))))
    }
}

impl Attached<'_> {
    /// Takes back an exception that another thread has raised in this one and that has not come through yet.
    pub fn forgive(&mut self) {
        // SAFETY: attached; null takes an exception back.
        unsafe { ffi::PyThreadState_SetAsyncExc(super::thread::current() as _, null_mut()) };
    }
}

fn dictionary(notes: &[(ThreadId, String)]) -> Result<Owned> {
    // SAFETY: attached.
    let dictionary = Owned::new(unsafe { ffi::PyDict_New() })?;
    for (thread, note) in notes {
        set_item(&dictionary, &integer(*thread as i64)?, &string(note)?)?;
    }
    Ok(dictionary)
}

fn text(result: Result<Owned>) -> String {
    match result {
        Ok(text) => display(&text),
        Err(Raised) => {
            object::clear();
            String::new()
        }
    }
}
