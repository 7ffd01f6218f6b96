//! The threads that run requests.
//!
//! All wait in one set. Whoever wakes for a connection reads everything there is, queues it, and, if nobody waits for the
//! interpreter yet, attaches and drains the queue ([`queue`](crate::worker::queue)). What is answered is written when the
//! last request is taken that nobody else would go on from, and at the end of the stay.
//!
//! While all of them run something nobody would read what the server says meanwhile: credit, bodies, that a client has
//! left. So one more thread, the [`spare`], takes over the reading when that lasts longer than a moment, and writes what the
//! others have put off.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::connection::Job;
use super::descriptors;
use super::exchange::WireExchange;
use super::poller::Event;
use super::process::Worker;
use super::stream::Stream;
use super::wire::Wire;
use crate::error::{Code, Report};
use crate::exchange::Outcome;
use crate::group::message::Ending;
use crate::group::page::{Entry, Phase};
use crate::group::request::Answerer;
use crate::log::Level;
use crate::python::{Attached, ThreadId, current_thread, serve};
use crate::worker::queue;

/// How many threads wait in the set; one is woken through it.
pub struct Idle {
    count: usize,
    /// How often the last idle thread found something to do.
    exhausted: u64,
    /// The spare thread, while nothing but this wakes it.
    spare: Option<Thread>,
    wire: Arc<Wire>,
}

impl Idle {
    pub fn new(wire: Arc<Wire>) -> Idle {
        Idle { count: 0, exhausted: 0, spare: None, wire }
    }

    /// The spare thread, if it is to be woken.
    pub fn spare(&mut self) -> Option<Thread> {
        self.spare.take()
    }

    /// A thread has something to do.
    fn leave(&mut self) {
        self.count -= 1;
        if self.count == 0 {
            self.exhausted += 1;
            if let Some(spare) = self.spare.take() {
                spare.unpark();
            }
        }
    }
}

impl queue::Idle for Idle {
    type Seat = Call;

    /// Whoever wakes counts itself out.
    fn pop(&mut self) -> Option<Call> {
        (self.count > 0).then(|| Call(self.wire.clone()))
    }
}

/// A thread to be called, whichever it is.
pub struct Call(Arc<Wire>);

impl Call {
    fn call(self) {
        self.0.poller.call();
    }
}

/// What a thread runs.
#[derive(Default)]
pub struct Seat(Mutex<Option<Running>>);

pub struct Running {
    pub stream: Arc<Stream>,
    pub begun: Instant,
    pub thread: ThreadId,
    /// Its time is over, and the client has been told.
    pub timed_out: bool,
    /// An exception was raised in the thread.
    pub interrupted: bool,
}

impl Seat {
    pub fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's life.
pub fn run(worker: &Arc<Worker>, number: usize) {
    let mut scratch = vec![0; SCRATCH];
    let mut jobs = Vec::new();
    loop {
        if worker.queue.claim(|idle| idle.count += 1) {
            stay(worker, number);
            continue;
        }
        let event = worker.wire.poller.wait(None);
        worker.queue.lock().idle.leave();
        match event {
            Event::Stop => return,
            Event::Called => stay(worker, number),
            event => {
                handle(worker, event, &mut scratch, &mut jobs);
                if !jobs.is_empty() {
                    // Taken by this thread, at the head of the loop, or by one that waits already.
                    worker.queue.lock().jobs.extend(jobs.drain(..));
                }
            }
        }
    }
}

/// The life of the thread that reads while all others run something. Never attached.
pub fn spare(worker: &Arc<Worker>) {
    let mut scratch = vec![0; SCRATCH];
    let mut jobs = Vec::new();
    let mut begun = 0;
    loop {
        worker.spare_is_awake.store(true, Ordering::SeqCst);
        let before = worker.queue.lock().idle.exhausted;
        thread::park_timeout(Duration::from_millis(MOMENT.into()));
        worker.wire.unwritten.flush();
        let mut queue = worker.queue.lock();
        if queue.stopping {
            return;
        }
        if queue.idle.exhausted != before {
            continue;
        }
        if queue.idle.count > 0 {
            queue.idle.spare = Some(thread::current());
            drop(queue);
            asleep(worker);
            loop {
                let queue = worker.queue.lock();
                if queue.idle.spare.is_none() || queue.stopping {
                    break;
                }
                drop(queue);
                thread::park();
            }
            continue;
        }
        drop(queue);
        // Where nothing begins either, there is nothing to be written in time.
        let before = std::mem::replace(&mut begun, worker.begun.load(Ordering::SeqCst));
        if before == begun {
            asleep(worker);
        }
        match worker.wire.poller.wait((before != begun).then_some(MOMENT)) {
            Event::Stop => return,
            Event::Nothing => {}
            // Not for this thread.
            Event::Called => worker.wire.poller.call(),
            event => handle(worker, event, &mut scratch, &mut jobs),
        }
        if !jobs.is_empty()
            && let Some(next) = worker.queue.submit(&mut jobs)
        {
            next.call();
        }
    }
}

/// The spare thread does not look at what is unwritten any more: what was left to it until now, it still writes.
fn asleep(worker: &Worker) {
    worker.spare_is_awake.store(false, Ordering::SeqCst);
    worker.wire.unwritten.flush();
}

fn handle(worker: &Worker, event: Event, scratch: &mut [u8], jobs: &mut Vec<Job>) {
    match event {
        Event::Stop | Event::Called | Event::Nothing => {}
        Event::Listener => drop(worker.accept()),
        Event::Room(connection) => {
            if let Some(connection) = worker.wire.connections.find(connection) {
                connection.resume();
            }
        }
        Event::Readable(connection) => {
            let Some(connection) = worker.wire.connections.find(connection) else { return };
            let open = connection.read(scratch, jobs);
            // Before the end of the connection is seen: what it sent last is still to be run, or to be dropped.
            worker.open.fetch_add(jobs.len(), Ordering::SeqCst);
            if !open {
                worker.end_if_drained();
            }
        }
    }
}

/// One stay at the interpreter: until the queue is empty.
fn stay(worker: &Arc<Worker>, number: usize) {
    let Some(interpreter) = worker.interpreter.get() else { return };
    interpreter.attach(|attached| {
        let mut arrived = true;
        loop {
            let taken = worker.queue.take(arrived, |_| ());
            arrived = false;
            if let Some(next) = taken.next {
                next.call();
            }
            let Some(job) = taken.job else { break };
            if taken.last || (taken.alone && !worker.spare_is_awake.load(Ordering::SeqCst)) {
                worker.wire.unwritten.flush();
            }
            if catch_unwind(AssertUnwindSafe(|| answer(worker, number, attached, job))).is_err() {
                worker.seats.get(number).map(|seat| seat.lock().take());
                let report = Report::new(Code::Panic, "a fault in Highball itself while it ran a request");
                attached
                    .detached(|| worker.supervisor.log(Level::Crit, &report.remedy("please report it").to_string()));
            }
            worker.open.fetch_sub(1, Ordering::SeqCst);
        }
    });
    worker.wire.unwritten.flush();
    worker.end_if_drained();
}

fn answer(worker: &Worker, number: usize, attached: &mut Attached<'_>, job: Job) {
    let Job { stream, answerer, received } = job;
    if stream.is_gone() {
        return stream.finish(Ending::Outcome(Outcome::ClientGone));
    }
    let now = Instant::now();
    let limit = worker.group().queue_timeout;
    if limit > 0 && now.duration_since(received) >= Duration::from_millis(limit) {
        return late(&stream, now.duration_since(received));
    }
    let Some(application) = worker.applications.find(&answerer) else {
        if let Answerer::Listed(_) = answerer {
            return stream.finish(Ending::NotHere);
        }
        let report = Report::new(
            Code::NotOfGroup,
            format!(
                "process group \"{}\" does not have the application that the server asks for",
                worker.settings.name
            ),
        );
        stream.log(Level::Error, &report.remedy("reload the server's configuration").to_string());
        return stream.finish(Ending::Outcome(Outcome::Failed));
    };
    let thread = number as u32;
    let page = &worker.wire.page;
    let clock = worker.wire.clock(now);
    page.set(thread, &Entry { phase: Phase::Application, since: clock, begun: clock, text: stream.title() });
    page.set_begun(stream.page_slot, stream.number());
    page.count(false);
    let begun = worker.begun.fetch_add(1, Ordering::Relaxed) + 1;
    let most = worker.group().maximum_requests;
    if most > 0 && begun >= most {
        worker.supervisor.retire("maximum-requests", "");
    }
    let seat = worker.seats.get(number);
    stream.set_thread(thread);
    if let Some(seat) = seat {
        let running = Running {
            stream: stream.clone(),
            begun: now,
            thread: current_thread(),
            timed_out: false,
            interrupted: false,
        };
        *seat.lock() = Some(running);
    }
    serve(attached, &application, WireExchange::new(stream));
    if descriptors::is_fork() {
        // The application forked and returned in the child: there is nobody to answer.
        descriptors::end_fork();
    }
    let running = seat.and_then(|seat| seat.lock().take());
    if running.is_some_and(|running| running.interrupted) {
        // It may have ended just before the exception came through; the next request has nothing to do with it.
        attached.forgive();
    }
    worker.wire.set_phase(thread, Phase::Idle);
    page.count(true);
}

/// A request that has waited too long for a thread.
pub fn late(stream: &Stream, waited: Duration) {
    let cause = format!("the request waited {} ms for a thread, longer than queue-timeout", waited.as_millis());
    let report = Report::new(Code::TimedOut, cause).remedy("raise threads= or processes=");
    stream.log(Level::Error, &report.to_string());
    stream.finish(Ending::TimedOut);
}

/// How long all threads are busy before another one reads, in milliseconds.
const MOMENT: u16 = 1;

/// What is read of a connection at once.
const SCRATCH: usize = 128 * 1024;
