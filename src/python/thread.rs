//! One thread state per OS thread, made once and kept: making one per request costs more than a whole request.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::Arc;

use pyo3_ffi as ffi;

use super::interpreter::Interpreter;

/// A thread as CPython names it: `threading.get_ident()`.
pub type ThreadId = libc::pthread_t;

thread_local! {
    /// This thread's state while it is detached. Plain memory without a destructor: the library may be unmapped before
    /// the thread ends.
    static STATE: Cell<*mut ffi::PyThreadState> = const { Cell::new(null_mut()) };
}

/// Proof that this thread is attached to the interpreter and may touch Python objects.
pub struct Attached<'a> {
    pub(super) interpreter: &'a Arc<Interpreter>,
    not_send: PhantomData<*mut ()>,
}

impl Interpreter {
    /// Runs `f` attached. Waits for the interpreter. Not to be called by a thread that is attached already.
    pub fn attach<R>(self: &Arc<Self>, f: impl FnOnce(&mut Attached<'_>) -> R) -> R {
        let state = STATE.get();
        let state = if state.is_null() {
            // SAFETY: the interpreter lives as long as the process.
            unsafe { ffi::PyThreadState_New(self.state) }
        } else {
            state
        };
        // SAFETY: the state belongs to this thread, which is detached.
        unsafe { ffi::PyEval_RestoreThread(state) };
        let _detach = Detach;
        self.releases.drain();
        f(&mut Attached { interpreter: self, not_send: PhantomData })
    }
}

impl Attached<'_> {
    /// Runs `wait` detached.
    pub fn detached<R>(&mut self, wait: impl FnOnce() -> R) -> R {
        detached(wait)
    }
}

/// The calling thread, which need not be attached.
pub fn current() -> ThreadId {
    // SAFETY: always succeeds.
    unsafe { libc::pthread_self() }
}

/// Attaches a thread that [`Detach`] has detached, for good: back to the Python that called.
#[cfg(not(feature = "embed"))]
pub(super) fn resume() {
    let state = STATE.replace(null_mut());
    if !state.is_null() {
        // SAFETY: the state of this thread, which is detached since it was kept.
        unsafe { ffi::PyEval_RestoreThread(state) };
    }
}

/// Runs `wait` detached, on a thread that is attached (whoever attached it).
pub(super) fn detached<R>(wait: impl FnOnce() -> R) -> R {
    /// Attaches again, also when `wait` panics.
    struct Attach(*mut ffi::PyThreadState);
    impl Drop for Attach {
        fn drop(&mut self) {
            // SAFETY: the state this thread had before.
            unsafe { ffi::PyEval_RestoreThread(self.0) };
        }
    }
    // SAFETY: attached, as the caller promises.
    let _attach = Attach(unsafe { ffi::PyEval_SaveThread() });
    wait()
}

/// Detaches when dropped and keeps the thread's state for the next time.
pub(super) struct Detach;

impl Drop for Detach {
    fn drop(&mut self) {
        // SAFETY: attached since this value was made.
        STATE.set(unsafe { ffi::PyEval_SaveThread() });
    }
}
