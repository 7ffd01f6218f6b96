//! The clock of a worker: deadlines of requests, of the queue, of a drain, and an interpreter that nobody gets.
//!
//! One thread decides and is never attached; another does what needs the interpreter, and may have to wait for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::process::Worker;
use super::stream::Stream;
use super::threads::late;
use crate::error::{Code, Report};
use crate::exchange::Outcome;
use crate::group::control::FromWorker;
use crate::group::message::Ending;
use crate::group::page::Phase;
use crate::log::Level;
use crate::python::{Interruption, ThreadId};

pub struct Watch {
    state: Mutex<State>,
    moved: Condvar,
    orders: Mutex<Option<Sender<Order>>>,
    inbox: Mutex<Option<Receiver<Order>>>,
    /// Since when the helper waits for the interpreter, in ms of the page's clock; 0: it does not.
    waits_since: AtomicU64,
    stacks_asked: Mutex<Option<Instant>>,
    reported_stuck: AtomicBool,
}

#[derive(Default)]
struct State {
    drain: Option<Instant>,
    given_up: bool,
    stopping: bool,
    /// When the helper was last asked to look whether the interpreter can be had.
    looked: Option<Instant>,
}

/// An exception for the thread of this seat, if it still runs this request.
struct Interrupt {
    seat: usize,
    stream: Arc<Stream>,
    why: Interruption,
    ran: Duration,
    not_before: Instant,
}

enum Order {
    Interrupt(Interrupt),
    Stacks,
    /// Attaches, and nothing else.
    Look,
}

impl Watch {
    pub fn new() -> Watch {
        let (orders, inbox) = channel();
        Watch {
            state: Mutex::default(),
            moved: Condvar::new(),
            orders: Mutex::new(Some(orders)),
            inbox: Mutex::new(Some(inbox)),
            waits_since: AtomicU64::new(0),
            stacks_asked: Mutex::default(),
            reported_stuck: AtomicBool::new(false),
        }
    }

    /// Requests that still run then are given up. The nearest such order counts.
    pub fn drain_within(&self, within: Duration) {
        let mut state = self.lock();
        let end = Instant::now() + within;
        state.drain = Some(state.drain.map_or(end, |before| before.min(end)));
        self.moved.notify_all();
    }

    pub fn stop(&self) {
        self.lock().stopping = true;
        self.moved.notify_all();
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub fn ask_stacks(&self, worker: &Worker) {
        *self.asked() = Some(Instant::now());
        if !self.order(Order::Stacks) {
            self.answer_stacks(worker, String::new());
        }
        self.moved.notify_all();
    }

    /// The thread that decides. Never attached.
    pub fn run(&self, worker: &Arc<Worker>) {
        let mut state = self.lock();
        loop {
            if state.stopping {
                drop(state);
                return self.last_resort(worker);
            }
            let looked_at = Instant::now();
            let mut next = looked_at + LONGEST_SLEEP;
            self.requests(worker, looked_at, &mut next);
            self.queue(worker, looked_at, &mut next);
            self.deadlock(worker, &mut state, looked_at, &mut next);
            self.stacks(worker, looked_at, &mut next);
            self.drain(worker, &mut state, looked_at, &mut next);
            if state.stopping {
                continue;
            }
            let sleep = next.saturating_duration_since(Instant::now());
            state = self
                .moved
                .wait_timeout(state, sleep)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    /// A request that begins after this look is found by the next one in time: it comes within the limit.
    fn requests(&self, worker: &Worker, looked_at: Instant, next: &mut Instant) {
        let limit = Duration::from_millis(worker.group().request_timeout);
        if limit.is_zero() {
            return;
        }
        *next = (*next).min(looked_at + limit);
        let patience = Duration::from_millis(worker.group().interrupt_timeout);
        for (number, seat) in worker.seats.iter().enumerate() {
            let mut seat = seat.lock();
            let Some(running) = &mut *seat else { continue };
            let deadline = running.begun + limit;
            if !running.timed_out && looked_at < deadline {
                *next = (*next).min(deadline);
                continue;
            }
            if !running.timed_out {
                running.timed_out = true;
                let stream = running.stream.clone();
                let elapsed = running.begun.elapsed();
                drop(seat);
                self.give_up(number, stream, Interruption::TimedOut, elapsed);
                *next = (*next).min(deadline + patience);
            } else if looked_at < deadline + patience {
                *next = (*next).min(deadline + patience);
            } else {
                let title = String::from_utf8_lossy(&running.stream.title()).into_owned();
                drop(seat);
                worker.supervisor.retire(&format!("a request did not end when it was interrupted: {title}"), "");
            }
        }
    }

    fn give_up(&self, seat: usize, stream: Arc<Stream>, why: Interruption, ran: Duration) {
        let waits = stream.give_up(match why {
            Interruption::TimedOut => Ending::TimedOut,
            Interruption::Retired => Ending::Outcome(Outcome::Failed),
        });
        // Who waits for the client finds it gone, and is not to be disturbed while it cleans up.
        let not_before = Instant::now() + if waits { NOTICE } else { Duration::ZERO };
        self.order(Order::Interrupt(Interrupt { seat, stream, why, ran, not_before }));
    }

    fn queue(&self, worker: &Worker, looked_at: Instant, next: &mut Instant) {
        let limit = Duration::from_millis(worker.group().queue_timeout);
        if limit.is_zero() {
            return;
        }
        *next = (*next).min(looked_at + limit);
        loop {
            let mut queue = worker.queue.lock();
            let Some(first) = queue.jobs.front() else { return };
            if looked_at < first.received + limit {
                *next = (*next).min(first.received + limit);
                return;
            }
            let job = queue.jobs.pop_front();
            drop(queue);
            if let Some(job) = job {
                late(&job.stream, job.received.elapsed());
                worker.wire.unwritten.flush();
                worker.open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// Says so when nobody gets the interpreter while requests run.
    fn deadlock(&self, worker: &Worker, state: &mut State, looked_at: Instant, next: &mut Instant) {
        let limit = Duration::from_millis(worker.group().deadlock_timeout);
        if limit.is_zero() {
            return;
        }
        let waits_since = self.waits_since.load(Ordering::SeqCst);
        if waits_since > 0 {
            let waited = Duration::from_millis(worker.wire.clock(looked_at).saturating_sub(waits_since));
            if waited < limit {
                *next = (*next).min(looked_at + (limit - waited));
            } else if !self.reported_stuck.swap(true, Ordering::SeqCst) {
                let cause = format!("no thread could get Python's interpreter for {} s", waited.as_secs_f32());
                let report =
                    Report::new(Code::Stuck, cause).remedy("the process is replaced; a thread holds the interpreter");
                worker.supervisor.log(Level::Crit, &format!("{report}\n{}", running(worker)));
                worker.supervisor.retire("deadlock-timeout", "");
            }
            return;
        }
        let pause = (limit / 4).min(LOOK);
        let due = state.looked.map_or(looked_at, |looked| looked + pause);
        if looked_at >= due && worker.open.load(Ordering::SeqCst) > 0 {
            state.looked = Some(looked_at);
            self.order(Order::Look);
        }
        *next = (*next).min(looked_at + pause);
    }

    /// Answers for the helper where it cannot.
    fn stacks(&self, worker: &Worker, looked_at: Instant, next: &mut Instant) {
        let asked = *self.asked();
        if let Some(asked) = asked {
            if looked_at >= asked + STACKS {
                self.answer_stacks(worker, "Python's interpreter is held by a thread; what the threads run:\n".into());
            } else {
                *next = (*next).min(asked + STACKS);
            }
        }
    }

    fn answer_stacks(&self, worker: &Worker, text: String) {
        if self.asked().take().is_some() {
            worker.supervisor.say(&FromWorker::Stacks { text: text + &running(worker) });
        }
    }

    /// Gives up what is left when the time of a drain is over; a little later the process ends whatever runs.
    fn drain(&self, worker: &Arc<Worker>, state: &mut State, looked_at: Instant, next: &mut Instant) {
        let Some(end) = state.drain else { return };
        if looked_at < end {
            *next = (*next).min(end);
        } else if !std::mem::replace(&mut state.given_up, true) {
            let waiting = std::mem::take(&mut worker.queue.lock().jobs);
            for job in waiting {
                job.stream.finish(Ending::Outcome(Outcome::Failed));
                worker.open.fetch_sub(1, Ordering::SeqCst);
            }
            worker.wire.unwritten.flush();
            for (number, seat) in worker.seats.iter().enumerate() {
                let found = seat.lock().as_ref().map(|running| (running.stream.clone(), running.begun.elapsed()));
                if let Some((stream, elapsed)) = found {
                    self.give_up(number, stream, Interruption::Retired, elapsed);
                }
            }
            *next = (*next).min(end + UNWIND);
        } else if looked_at < end + UNWIND {
            *next = (*next).min(end + UNWIND);
        } else {
            // As `end` stops this thread too.
            state.stopping = true;
        }
    }

    /// The process is to end. If its main thread does not get the interpreter for that, it ends here.
    fn last_resort(&self, worker: &Arc<Worker>) {
        worker.end();
        let begun = Instant::now();
        while self.waits_since.load(Ordering::SeqCst) > 0 {
            if begun.elapsed() >= LAST {
                worker
                    .supervisor
                    .log(Level::Error, "a thread holds Python's interpreter; the process ends without exit functions");
                // SAFETY: ends the process at once; what other threads do is of no interest any more.
                unsafe { libc::_exit(1) };
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The thread that attaches for the others.
    pub fn help(&self, worker: &Arc<Worker>) {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(inbox), Some(interpreter)) = (inbox, worker.interpreter.get()) else { return };
        while let Ok(order) = inbox.recv() {
            if let Order::Interrupt(Interrupt { not_before, .. }) = &order {
                std::thread::sleep(not_before.saturating_duration_since(Instant::now()));
            }
            self.waits_since.store(worker.wire.clock(Instant::now()).max(1), Ordering::SeqCst);
            match order {
                Order::Look => interpreter.attach(|_| ()),
                Order::Stacks => {
                    let text = interpreter.stacks(&notes(worker));
                    self.waits_since.store(0, Ordering::SeqCst);
                    if self.asked().take().is_some() {
                        worker.supervisor.say(&FromWorker::Stacks { text });
                    }
                }
                Order::Interrupt(interrupt) => self.interrupt(worker, interrupt),
            }
            self.waits_since.store(0, Ordering::SeqCst);
        }
    }

    fn interrupt(&self, worker: &Worker, interrupt: Interrupt) {
        let Interrupt { seat: number, stream, why, ran, .. } = interrupt;
        let (Some(interpreter), Some(seat)) = (worker.interpreter.get(), worker.seats.get(number)) else { return };
        let running =
            seat.lock().as_ref().filter(|running| Arc::ptr_eq(&running.stream, &stream)).map(|running| running.thread);
        let stack = running.and_then(|thread| {
            interpreter.interrupt(thread, why, || {
                let mut seat = seat.lock();
                let running = seat.as_mut().filter(|running| Arc::ptr_eq(&running.stream, &stream));
                running.map(|running| running.interrupted = true).is_some()
            })
        });
        self.waits_since.store(0, Ordering::SeqCst);
        let title = String::from_utf8_lossy(&stream.title()).into_owned();
        let ran = ran.as_secs_f32();
        let (code, why) = match why {
            Interruption::TimedOut => (Code::TimedOut, "request-timeout"),
            Interruption::Retired => (Code::Retired, "its process had to end"),
        };
        let report = Report {
            traceback: Some(match stack {
                Some(stack) => format!("thread {number} was here:\n{stack}"),
                None => format!("thread {number} has ended it"),
            }),
            ..Report::new(code, format!("{title} was given up after {ran:.1} s: {why}"))
        };
        worker.supervisor.log(Level::Error, &report.to_string());
    }

    fn order(&self, order: Order) -> bool {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.as_ref().is_some_and(|orders| orders.send(order).is_ok())
    }

    fn asked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.stacks_asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What each thread runs, from the page.
fn running(worker: &Worker) -> String {
    let mut text = String::new();
    for number in 0..worker.seats.len() as u32 {
        let Some(entry) = worker.wire.page.entry(number).filter(|entry| entry.phase != Phase::Idle) else { continue };
        let ran = worker.wire.clock(Instant::now()).saturating_sub(entry.begun) as f64 / 1000.0;
        text.push_str(&format!("thread {number}, {ran:.1} s: {}\n", String::from_utf8_lossy(&entry.text)));
    }
    text
}

fn notes(worker: &Worker) -> Vec<(ThreadId, String)> {
    let note = |(number, seat): (usize, &super::threads::Seat)| {
        let seat = seat.lock();
        let running = seat.as_ref()?;
        let title = String::from_utf8_lossy(&running.stream.title()).into_owned();
        let ran = running.begun.elapsed().as_secs_f32();
        Some((running.thread, format!("thread {number}, {ran:.1} s: {title}")))
    };
    worker.seats.iter().enumerate().filter_map(note).collect()
}

const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// How often the interpreter is looked for, at least.
const LOOK: Duration = Duration::from_secs(10);

/// How long the helper has for the stacks.
const STACKS: Duration = Duration::from_secs(2);

/// How long a request has that notices by itself.
const NOTICE: Duration = Duration::from_millis(200);

/// How long requests that are given up have to unwind.
const UNWIND: Duration = Duration::from_secs(1);

/// How long the main thread has for getting the interpreter at the end.
const LAST: Duration = Duration::from_secs(2);
