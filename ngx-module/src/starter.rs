//! The thread that starts Python and imports applications while the event loop already serves, and that afterwards does
//! what the loop must not: raise an exception in a thread, run exit functions.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use highball::error::{Code, Report};
use highball::log::Level;
use highball::python::{Application, Host, Interpreter, Interruption, serve};
use highball::settings::InterpreterSettings;
use highball::worker::mailbox::Mailbox;
use highball::worker::pool::{Pool, Turn, Work};
use highball::worker::relay::{Relay, WorkerEnd};

/// One request for a thread of the pool.
pub struct Job {
    pub application: Arc<Application>,
    pub end: Box<WorkerEnd>,
}

/// What the threads of the pool do.
pub struct Serve {
    interpreter: Arc<Interpreter>,
    mailbox: Arc<Mailbox>,
}

impl Work for Serve {
    type Job = Job;

    fn attached(&self, turn: Turn<'_, Self>) {
        self.interpreter.attach(|attached| {
            turn.run(|Job { application, end }| {
                end.enter();
                serve(attached, &application, end);
            });
        });
    }

    fn settle(&self) {
        self.mailbox.flush();
    }

    fn panicked(&self) {
        let report =
            Report::new(Code::Panic, "a fault in Highball itself while it ran a request").remedy("please report it");
        self.mailbox.log(Level::Crit, &report.to_string());
    }
}

pub struct Starter {
    orders: Sender<Order>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Whether Python runs, once that is known.
    started: OnceLock<bool>,
    /// The thread waits for orders.
    idle: AtomicBool,
}

enum Order {
    Load(Arc<Application>),
    Interrupt(Vec<Arc<Relay>>),
    Stop(Sender<()>),
}

impl Starter {
    /// The thread has the calling thread's signal mask. It tells the mailbox of each step.
    pub fn new(
        settings: InterpreterSettings,
        threads: usize,
        pool: Pool<Serve>,
        mailbox: Arc<Mailbox>,
    ) -> std::io::Result<Starter> {
        let (orders, inbox) = channel();
        let shared = Arc::new(Shared::default());
        let thread = Thread { shared: shared.clone(), mailbox, inbox };
        thread::Builder::new().name("wsgi-starter".into()).stack_size(STACK).spawn(move || {
            let mailbox = thread.mailbox.clone();
            if catch_unwind(AssertUnwindSafe(|| thread.run(&settings, threads, &pool))).is_err() {
                let report = Report::new(Code::Panic, "a fault in Highball itself while it started Python");
                mailbox.log(Level::Crit, &report.remedy("please report it").to_string());
            }
        })?;
        Ok(Starter { orders, shared })
    }

    /// Whether Python runs; `None` while it is being started.
    pub fn python_runs(&self) -> Option<bool> {
        self.shared.started.get().copied()
    }

    /// Loads an application, unless it is there.
    pub fn load(&self, application: Arc<Application>) {
        self.orders.send(Order::Load(application)).ok();
    }

    /// Raises an exception in the threads that run these.
    pub fn interrupt(&self, relays: Vec<Arc<Relay>>) {
        self.orders.send(Order::Interrupt(relays)).ok();
    }

    /// Runs Python's exit functions, unless this thread is busy, and waits for them no longer than `longest`.
    pub fn stop(&self, longest: Duration) {
        if self.python_runs() == Some(true) && self.shared.idle.load(Ordering::Acquire) {
            let (done, wait) = channel();
            if self.orders.send(Order::Stop(done)).is_ok() {
                wait.recv_timeout(longest).ok();
            }
        }
    }
}

struct Thread {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    inbox: Receiver<Order>,
}

impl Thread {
    fn run(&self, settings: &InterpreterSettings, threads: usize, pool: &Pool<Serve>) {
        /// However this ends, requests must not wait for it.
        struct Failed<'a>(&'a Thread);
        impl Drop for Failed<'_> {
            fn drop(&mut self) {
                self.0.started(false);
            }
        }
        let failed = Failed(self);
        let interpreter = match Interpreter::start(settings, self.mailbox.clone()) {
            Ok(interpreter) => interpreter,
            Err(report) => return self.mailbox.log(Level::Crit, &report.to_string()),
        };
        let work = Arc::new(Serve { interpreter: interpreter.clone(), mailbox: self.mailbox.clone() });
        match pool.start(threads, &work) {
            Ok(started) if started == threads => {}
            Ok(started) => {
                let text = format!("only {started} of {threads} threads (wsgi_threads) could be started");
                self.mailbox.log(Level::Warn, &text);
            }
            Err(error) => {
                let report =
                    Report::new(Code::PythonUnavailable, format!("no thread for Python could be started: {error}"));
                return self
                    .mailbox
                    .log(Level::Crit, &report.remedy("lower wsgi_threads or raise the limit").to_string());
            }
        }
        self.started(true);
        std::mem::forget(failed);
        self.obey(&interpreter);
    }

    fn started(&self, runs: bool) {
        self.shared.started.set(runs).ok();
        self.mailbox.changed();
    }

    fn obey(&self, interpreter: &Arc<Interpreter>) {
        loop {
            self.shared.idle.store(true, Ordering::Release);
            let Ok(order) = self.inbox.recv() else { return };
            self.shared.idle.store(false, Ordering::Release);
            match order {
                Order::Load(application) => {
                    application.load(interpreter);
                    self.mailbox.changed();
                }
                Order::Interrupt(relays) => {
                    for relay in relays {
                        let Some(thread) = relay.thread() else { continue };
                        interpreter.interrupt(thread, Interruption::Retired, || relay.thread() == Some(thread));
                    }
                }
                Order::Stop(done) => {
                    interpreter.stop();
                    done.send(()).ok();
                }
            }
        }
    }
}

/// As the main thread of most programs: imports recurse.
const STACK: usize = 8 * 1024 * 1024;
