//! The whole of a worker: what it is told, what it has, and how it ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::SocketFlags;

use super::applications::Applications;
use super::connection::{Connection, Job};
use super::poller::Poller;
use super::supervisor::{Supervisor, listen};
use super::threads::{Idle, Seat};
use super::watch::Watch;
use super::wire::{Slots, Wire};
use super::{CONTROL, LIFE, LISTENER, PAGE, descriptors, threads, title};
use crate::error::{Code, Report};
use crate::group::control::{FromWorker, WorkerState};
use crate::group::frame::VERSION;
use crate::group::page::{Entry, Page, Phase};
use crate::group::state::{Group, WorkerSettings};
use crate::log::Level;
use crate::python::{Host, Interpreter};
use crate::settings::InterpreterSettings;
use crate::worker::queue::Queue;

pub struct Worker {
    pub settings: WorkerSettings,
    pub wire: Arc<Wire>,
    pub queue: Queue<Job, Idle>,
    pub supervisor: Arc<Supervisor>,
    pub watch: Watch,
    pub seats: Vec<Seat>,
    pub applications: Applications,
    pub interpreter: OnceLock<Arc<Interpreter>>,
    /// Requests that came and are not over.
    pub open: AtomicUsize,
    pub begun: AtomicU64,
    /// The spare thread writes within a moment what is put off.
    pub spare_is_awake: AtomicBool,
    listener: Mutex<Option<OwnedFd>>,
    state: Mutex<WorkerState>,
    python: (String, String),
    /// A byte written here wakes the main thread.
    wake: AtomicI32,
    over: AtomicBool,
    alive: Mutex<usize>,
    /// Signalled when a thread has ended.
    ended: Condvar,
    life: Mutex<Option<OwnedFd>>,
}

/// What the boot script knows.
pub struct Boot {
    pub python: String,
    pub prefix: String,
    pub wake: RawFd,
}

impl Worker {
    /// Takes over the descriptors. Once per process.
    pub fn new(settings: WorkerSettings, boot: Boot) -> io::Result<Arc<Worker>> {
        let control = inherited(CONTROL)?;
        let supervisor = Arc::new(Supervisor::new(control));
        let listener = inherited(LISTENER)?;
        let page_file = inherited(PAGE)?;
        let page = Page::map(page_file.as_fd(), true)?;
        page.begin();
        let threads = settings.group.threads.clamp(1, page.threads().max(1));
        let said = supervisor.clone();
        let wire = Wire::new(
            Poller::new()?,
            settings.group.response_buffer.into(),
            settings.key_hash.clone(),
            settings.incarnation,
            (page, page_file),
            Slots::new(threads),
            Box::new(move |level, text| said.log(level, text)),
        );
        let (applications, wrong) = Applications::new(&settings.group);
        for (_, report) in wrong {
            supervisor.log(Level::Error, &report);
        }
        let title = title::of(settings.group.display_name.as_deref(), &settings.name, &applications.names());
        title::set(&title);
        Ok(Arc::new(Worker {
            queue: Queue::new(Idle::new(wire.clone())),
            wire,
            supervisor,
            watch: Watch::new(),
            seats: (0..threads).map(|_| Seat::default()).collect(),
            applications,
            interpreter: OnceLock::new(),
            open: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            spare_is_awake: AtomicBool::new(false),
            listener: Mutex::new(Some(listener)),
            state: Mutex::new(WorkerState::Starting),
            python: (boot.python, boot.prefix),
            wake: AtomicI32::new(boot.wake),
            over: AtomicBool::new(false),
            alive: Mutex::new(0),
            ended: Condvar::new(),
            life: Mutex::new(Some(inherited(LIFE)?)),
            settings,
        }))
    }

    pub fn group(&self) -> &Group {
        &self.settings.group
    }

    pub fn interpreter_settings(&self) -> InterpreterSettings {
        let group = self.group();
        InterpreterSettings {
            home: None,
            path: group.python_path.clone(),
            server_software: self.settings.server_software.clone(),
            multithread: self.seats.len() > 1,
            multiprocess: group.processes_given || group.processes > 1,
            host_signals: Vec::new(),
            own_process: true,
        }
    }

    /// Says who this is.
    pub fn hello(&self) {
        let (python, prefix) = self.python.clone();
        let state = *self.state();
        self.supervisor.say(&FromWorker::Hello { version: VERSION, pid: std::process::id(), python, prefix, state });
    }

    /// Starts the threads that listen and watch: an import that does not end can be looked at.
    pub fn attend(self: &Arc<Self>, interpreter: Arc<Interpreter>) -> io::Result<()> {
        self.interpreter.set(interpreter).ok();
        self.spawn("wsgi-watch".into(), |worker| worker.watch.run(worker))?;
        self.spawn("wsgi-python".into(), |worker| worker.watch.help(worker))?;
        if let Some(life) = self.life.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.spawn("wsgi-control".into(), move |worker| listen(worker, life, worker.wire.poller.stopped()))?;
        }
        Ok(())
    }

    /// Imports the applications; returns those that failed, with their reports. Main thread, detached.
    pub fn load(&self) -> Vec<(String, String)> {
        let Some(interpreter) = self.interpreter.get() else { return Vec::new() };
        let begun = self.wire.clock(Instant::now());
        let text = self.applications.names().join(" ").into_bytes();
        self.wire.page.set(0, &Entry { phase: Phase::Loading, since: begun, begun, text });
        let failed = self.applications.load(interpreter);
        self.wire.set_phase(0, Phase::Idle);
        failed
    }

    /// Starts the threads that run requests; the applications are loaded.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        for number in 0..self.seats.len() {
            self.spawn(format!("wsgi-{number}"), move |worker| threads::run(worker, number))?;
        }
        self.spawn("wsgi-spare".into(), threads::spare)
    }

    fn spawn(self: &Arc<Self>, name: String, run: impl FnOnce(&Arc<Worker>) + Send + 'static) -> io::Result<()> {
        /// Counts a thread as ended, however it ends.
        struct Alive(Arc<Worker>);
        impl Drop for Alive {
            fn drop(&mut self) {
                *self.0.alive() -= 1;
                self.0.ended.notify_all();
            }
        }
        *self.alive() += 1;
        let alive = Alive(self.clone());
        let run = move || {
            let run = std::panic::AssertUnwindSafe(|| run(&alive.0));
            if std::panic::catch_unwind(run).is_err() {
                let report = Report::new(Code::Panic, "a fault in Highball itself ended a thread of a worker");
                alive.0.supervisor.log(Level::Crit, &report.remedy("please report it").to_string());
                alive.0.supervisor.retire("a fault in Highball itself", "");
            }
        };
        std::thread::Builder::new().name(name).stack_size(STACK).spawn(run).map(drop)
    }

    /// The applications are loaded; `failed` are those that are not.
    pub fn ready(&self, failed: Vec<(String, String)>) {
        let mut state = self.state();
        if *state == WorkerState::Starting {
            *state = WorkerState::Ready;
        }
        drop(state);
        self.supervisor.say(&FromWorker::Ready { failed });
    }

    /// The slot is this worker's.
    pub fn accept_connections(&self) {
        let mut state = self.state();
        if matches!(*state, WorkerState::Starting | WorkerState::Ready) {
            *state = WorkerState::Serving;
            drop(state);
            if let Some(listener) = &*self.listener()
                && let Err(error) = self.wire.poller.add_listener(listener)
            {
                self.supervisor.log(Level::Crit, &format!("the worker cannot accept connections: {error}"));
            }
        }
    }

    /// Accepts what waits. Any thread.
    pub fn accept(&self) -> usize {
        let listener = self.listener();
        let Some(listener) = &*listener else { return 0 };
        let mut count = 0;
        loop {
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => {
                    count += 1;
                    let wire = &self.wire;
                    let connection = wire.connections.add(|number| Connection::new(number, socket, wire.clone()));
                    if connection.begin().is_err() {
                        wire.connections.remove(connection.number());
                    }
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => {
                    self.supervisor.log(Level::Crit, &format!("accept() failed: {error}"));
                    // Perhaps descriptors are closed meanwhile.
                    std::thread::sleep(Duration::from_millis(100));
                    break;
                }
            }
        }
        self.wire.poller.again_listener(listener);
        count
    }

    pub fn is_draining(&self) -> bool {
        self.wire.draining.load(Ordering::SeqCst)
    }

    /// Answers what is there, then ends; gives up what still runs after `within`. Does not wait. Any thread.
    pub fn drain(self: &Arc<Self>, within: Duration) {
        self.watch.drain_within(within);
        if self.wire.draining.swap(true, Ordering::SeqCst) {
            return;
        }
        *self.state() = WorkerState::Draining;
        // Who connected before this worker's socket was replaced is told where else to go.
        self.accept();
        for connection in self.wire.connections.all() {
            if connection.is_welcome() {
                connection.goaway();
            }
        }
        self.end_if_drained();
    }

    /// Ends when a drain is complete. Any thread.
    pub fn end_if_drained(&self) {
        if self.is_draining()
            && self.open.load(Ordering::SeqCst) == 0
            && self.wire.connections.is_empty()
            && self.accept() == 0
        {
            self.end();
        }
    }

    /// The process ends. Any thread.
    pub fn end(&self) {
        if self.over.swap(true, Ordering::SeqCst) {
            return;
        }
        self.supervisor.say(&FromWorker::Drained);
        let mut queue = self.queue.lock();
        queue.stopping = true;
        let spare = queue.idle.spare();
        drop(queue);
        if let Some(spare) = spare {
            spare.unpark();
        }
        self.wire.poller.stop();
        self.watch.stop();
        self.wake();
    }

    fn wake(&self) {
        let wake = self.wake.load(Ordering::SeqCst);
        // SAFETY: the boot script's pipe, which is open as long as the process.
        let wake = unsafe { std::os::fd::BorrowedFd::borrow_raw(wake) };
        rustix::io::write(wake, b"\0").ok();
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Waits for our threads, a moment. Whether all have ended.
    pub fn join(&self) -> bool {
        let waited = self.ended.wait_timeout_while(self.alive(), JOIN, |alive| *alive > 0);
        waited.is_ok_and(|(alive, _)| *alive == 0)
    }

    pub fn shutdown_timeout(&self) -> Duration {
        Duration::from_millis(self.group().shutdown_timeout)
    }

    pub fn socket_path(&self) -> &Path {
        &self.settings.socket
    }

    fn state(&self) -> MutexGuard<'_, WorkerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listener(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> MutexGuard<'_, usize> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker, as `src/python/` sees it.
pub struct WorkerHost(pub Arc<Worker>);

impl Host for WorkerHost {
    fn log(&self, level: Level, text: &str) {
        self.0.supervisor.log(level, text);
    }

    fn replaces(&self, application: &str, version: &str) -> bool {
        self.0.supervisor.retire(&format!("the script of application \"{application}\" has changed"), version);
        true
    }

    fn forked(&self) {
        descriptors::leave();
    }
}

/// A descriptor the supervisor has put there.
fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: called once for each number, which the supervisor gave for this use; a closed one fails below.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
    if number != PAGE {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags | rustix::fs::OFlags::NONBLOCK)?;
    }
    descriptors::note(file.as_raw_fd());
    Ok(file)
}

/// The settings that the boot script has received.
pub fn read_settings(text: &str) -> Result<WorkerSettings, Report> {
    let wrong = |why: String| {
        Report::new(Code::PythonStart, format!("the worker's settings cannot be read: {why}"))
            .remedy("the supervisor and the worker's extension are of different versions; restart the server")
    };
    let settings: WorkerSettings = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if settings.version == VERSION { Ok(settings) } else { Err(wrong(format!("version {}", settings.version))) }
}

/// As the main thread of most programs: applications recurse.
const STACK: usize = 8 * 1024 * 1024;

/// How long threads are waited for that have nothing to do any more.
const JOIN: Duration = Duration::from_secs(2);
