//! Threads that run requests, handing the interpreter on with as few wake-ups as possible: the [`queue`](super::queue)'s
//! protocol, with idle threads in a stack, the last one first.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use super::queue::{Idle, Queue};

/// How a thread attaches and what it does then.
pub trait Work: Send + Sync + 'static {
    type Job: Send;

    /// Attaches the calling thread and, attached, calls `run` of [`Turn`] until there is nothing left to do.
    fn attached(&self, turn: Turn<'_, Self>)
    where
        Self: Sized;

    /// A thread that was waited for is attached, or the queue is empty: what was put off until then is done. Attached.
    fn settle(&self);

    /// A job panicked. The job itself was dropped.
    fn panicked(&self);
}

pub struct Pool<W: Work> {
    shared: Arc<Shared<W>>,
}

struct Shared<W: Work> {
    queue: Queue<W::Job, Vec<Arc<Seat>>>,
    alive: Mutex<usize>,
    /// Signalled when a thread has ended.
    ended: Condvar,
}

/// A thread's place in the stack of idle ones.
struct Seat {
    thread: Mutex<Option<Thread>>,
    called: AtomicBool,
}

impl Idle for Vec<Arc<Seat>> {
    type Seat = Arc<Seat>;

    fn pop(&mut self) -> Option<Arc<Seat>> {
        Vec::pop(self)
    }
}

/// One stay of a thread at the interpreter.
pub struct Turn<'a, W: Work> {
    shared: &'a Shared<W>,
    seat: &'a Arc<Seat>,
    work: &'a W,
    first: bool,
}

impl<W: Work> Pool<W> {
    /// A pool without threads; work may be submitted already.
    pub fn new() -> Pool<W> {
        Pool { shared: Arc::new(Shared { queue: Queue::new(Vec::new()), alive: Mutex::new(0), ended: Condvar::new() }) }
    }

    /// Starts `threads` threads, with the calling thread's signal mask. Returns how many there are.
    pub fn start(&self, threads: usize, work: &Arc<W>) -> std::io::Result<usize> {
        for number in 0..threads {
            let shared = self.shared.clone();
            let work = work.clone();
            *self.shared.alive() += 1;
            let started = thread::Builder::new()
                .name(format!("wsgi-{number}"))
                .stack_size(STACK)
                .spawn(move || run(&shared, &*work));
            if let Err(error) = started {
                *self.shared.alive() -= 1;
                return if number == 0 { Err(error) } else { Ok(number) };
            }
        }
        Ok(threads)
    }

    /// Whether a thread is about to attach and settle.
    pub fn waiting(&self) -> Arc<AtomicBool> {
        self.shared.queue.waiting()
    }

    /// Queues the jobs of `batch`, which is left empty, and wakes one thread if none is about to take them.
    pub fn submit(&self, batch: &mut Vec<W::Job>) {
        call(self.shared.queue.submit(batch));
    }

    /// Lets the threads end once the queue is empty, and waits for them no longer than `longest`. Returns how many
    /// are left.
    pub fn stop(&self, longest: Duration) -> usize {
        let mut state = self.shared.queue.lock();
        state.stopping = true;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        idle.into_iter().for_each(|seat| call(Some(seat)));
        let alive = self.shared.ended.wait_timeout_while(self.shared.alive(), longest, |alive| *alive > 0);
        alive.map_or_else(|poisoned| *poisoned.into_inner().0, |(alive, _)| *alive)
    }

    /// Drops what is queued and not begun.
    pub fn clear(&self) {
        let queue = std::mem::take(&mut self.shared.queue.lock().jobs);
        drop(queue);
    }
}

impl<W: Work> Default for Pool<W> {
    fn default() -> Self {
        Pool::new()
    }
}

impl<W: Work> Clone for Pool<W> {
    fn clone(&self) -> Self {
        Pool { shared: self.shared.clone() }
    }
}

impl<W: Work> Shared<W> {
    fn alive(&self) -> MutexGuard<'_, usize> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn call(seat: Option<Arc<Seat>>) {
    let Some(seat) = seat else { return };
    seat.called.store(true, Ordering::Release);
    if let Some(thread) = &*seat.thread.lock().unwrap_or_else(PoisonError::into_inner) {
        thread.unpark();
    }
}

/// A thread's life.
fn run<W: Work>(shared: &Shared<W>, work: &W) {
    let _alive = Alive(shared);
    let seat = Arc::new(Seat { thread: Mutex::new(Some(thread::current())), called: AtomicBool::new(false) });
    let mut state = shared.queue.lock();
    if !state.stopping {
        state.idle.push(seat.clone());
    }
    let next = shared.queue.next(&mut state);
    drop(state);
    call(next);
    loop {
        while !seat.called.swap(false, Ordering::Acquire) {
            if shared.queue.over() {
                return;
            }
            thread::park();
        }
        if shared.queue.over() {
            return;
        }
        work.attached(Turn { shared, seat: &seat, work, first: true });
        if shared.queue.over() {
            return;
        }
    }
}

impl<W: Work> Turn<'_, W> {
    /// Takes jobs and runs them with `f`, until the queue is empty; the thread is idle then. Attached.
    pub fn run(mut self, mut f: impl FnMut(W::Job)) {
        while let Some(job) = self.next() {
            if catch_unwind(AssertUnwindSafe(|| f(job))).is_err() {
                self.work.panicked();
            }
        }
    }

    fn next(&mut self) -> Option<W::Job> {
        let arrived = std::mem::replace(&mut self.first, false);
        let taken = self.shared.queue.take(arrived, |idle| idle.push(self.seat.clone()));
        call(taken.next);
        if arrived || taken.job.is_none() {
            self.work.settle();
        }
        taken.job
    }
}

/// Counts a thread as ended, however it ends.
struct Alive<'a, W: Work>(&'a Shared<W>);

impl<W: Work> Drop for Alive<'_, W> {
    fn drop(&mut self) {
        *self.0.alive() -= 1;
        self.0.ended.notify_all();
    }
}

/// As the main thread of most programs: applications recurse.
const STACK: usize = 8 * 1024 * 1024;

#[cfg(test)]
#[path = "pool/tests.rs"]
mod tests;
