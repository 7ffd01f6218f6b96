//! Work, and which thread takes it: the same wherever threads wait while there is none.
//!
//! At most one thread that was called waits for the interpreter. A thread takes work only once it is attached, drains the
//! queue before it lets go, and on taking a job calls the next thread if work is left and nobody waits already: while it
//! runs the application detached (waiting for a database), that one goes on.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The threads that have nothing to do.
pub trait Idle {
    /// One of them, to be called.
    type Seat;

    fn pop(&mut self) -> Option<Self::Seat>;
}

pub struct Queue<J, I: Idle> {
    state: Mutex<State<J, I>>,
    /// A called thread is not attached yet: it will be. Changed under the lock.
    waiting: Arc<AtomicBool>,
}

pub struct State<J, I> {
    pub jobs: VecDeque<J>,
    pub idle: I,
    pub stopping: bool,
}

/// What a thread found that came for work.
pub struct Taken<J, S> {
    pub job: Option<J>,
    /// To be called by the thread that took the job.
    pub next: Option<S>,
    /// Nothing is left in the queue.
    pub last: bool,
    /// Nobody waits for the interpreter who would go on when this thread waits for something else.
    pub alone: bool,
}

impl<J, I: Idle> Queue<J, I> {
    pub fn new(idle: I) -> Queue<J, I> {
        let state = State { jobs: VecDeque::new(), idle, stopping: false };
        Queue { state: Mutex::new(state), waiting: Arc::default() }
    }

    /// Held for moments only.
    pub fn lock(&self) -> MutexGuard<'_, State<J, I>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a thread is about to attach.
    pub fn waiting(&self) -> Arc<AtomicBool> {
        self.waiting.clone()
    }

    /// Queues the jobs of `batch`, which is left empty. Returns a thread to call if none is about to take them.
    pub fn submit(&self, batch: &mut Vec<J>) -> Option<I::Seat> {
        let mut state = self.lock();
        state.jobs.extend(batch.drain(..));
        self.next(&mut state)
    }

    /// The calling thread attaches if work is there and nobody waits already; otherwise `idle` says that it has
    /// nothing to do.
    pub fn claim(&self, idle: impl FnOnce(&mut I)) -> bool {
        let mut state = self.lock();
        let claimed = !state.jobs.is_empty() && !self.waiting.load(Ordering::Relaxed);
        if claimed {
            self.waiting.store(true, Ordering::Release);
        } else {
            idle(&mut state.idle);
        }
        claimed
    }

    /// Takes a job, or says with `idle` that the thread has nothing to do. Attached. `arrived`: the thread was called, or
    /// had claimed, and has just attached.
    pub fn take(&self, arrived: bool, idle: impl FnOnce(&mut I)) -> Taken<J, I::Seat> {
        let mut state = self.lock();
        if arrived {
            self.waiting.store(false, Ordering::Release);
        }
        let job = state.jobs.pop_front();
        if job.is_none() && !state.stopping {
            idle(&mut state.idle);
        }
        let next = self.next(&mut state);
        Taken { job, next, last: state.jobs.is_empty(), alone: !self.waiting.load(Ordering::Relaxed) }
    }

    /// The queue is empty and no more will come.
    pub fn over(&self) -> bool {
        let state = self.lock();
        state.stopping && state.jobs.is_empty()
    }

    /// The thread to call for what is queued, if one is to be called.
    pub fn next(&self, state: &mut State<J, I>) -> Option<I::Seat> {
        if state.jobs.is_empty() || self.waiting.load(Ordering::Relaxed) {
            return None;
        }
        let next = state.idle.pop();
        self.waiting.store(next.is_some(), Ordering::Release);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Idle for Vec<u8> {
        type Seat = u8;

        fn pop(&mut self) -> Option<u8> {
            Vec::pop(self)
        }
    }

    #[test]
    fn one_thread_at_a_time_waits_for_the_interpreter() {
        let queue = Queue::new(vec![1_u8, 2]);
        assert_eq!(queue.submit(&mut vec!["a", "b", "c"]), Some(2));
        assert_eq!(queue.submit(&mut vec!["d"]), None, "one was called and is not there yet");
        let taken = queue.take(true, |_| ());
        assert_eq!((taken.job, taken.next, taken.last, taken.alone), (Some("a"), Some(1), false, false));
        let taken = queue.take(false, |_| ());
        assert_eq!((taken.job, taken.next, taken.alone), (Some("b"), None, false), "the other one still waits");
        let taken = queue.take(true, |_| ());
        assert_eq!((taken.job, taken.next, taken.last, taken.alone), (Some("c"), None, false, true), "nobody is idle");
        let taken = queue.take(false, |_| ());
        assert_eq!((taken.job, taken.last), (Some("d"), true));
        assert_eq!(queue.take(false, |idle| idle.push(9)).job, None);
        assert_eq!(queue.submit(&mut vec!["e"]), Some(9));
    }

    #[test]
    fn who_finds_work_that_nobody_waits_for_takes_it() {
        let queue = Queue::new(Vec::<u8>::new());
        assert!(!queue.claim(|idle| idle.push(1)));
        queue.lock().jobs.push_back("a");
        assert!(queue.claim(|_| ()));
        assert!(!queue.claim(|idle| idle.push(2)), "another one is about to");
        assert_eq!(queue.take(true, |_| ()).job, Some("a"));
    }

    #[test]
    fn nothing_is_idle_in_a_queue_that_stops() {
        let queue = Queue::<&str, Vec<u8>>::new(Vec::new());
        queue.lock().stopping = true;
        assert!(queue.take(false, |idle| idle.push(1)).job.is_none() && queue.lock().idle.is_empty());
        assert!(queue.over());
    }
}
