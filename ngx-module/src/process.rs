//! One nginx worker process: its requests in flight, the pool and the starter behind them, its graceful end. Event loop
//! only, except where a hook says otherwise.

use std::cell::{Cell, OnceCell, RefCell};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use highball::error::{Code, Report};
use highball::exchange::{Exchange, Outcome};
use highball::group::message::Ending;
use highball::log::Level;
use highball::python::{Application, Status};
use highball::request::{Fact, Request};
use highball::settings::InterpreterSettings;
use highball::worker::mailbox::{Mailbox, Posted};
use highball::worker::pool::Pool;
use highball::worker::relay::{Message, Relay};

use crate::arrange;
use crate::event::Event;
use crate::ffi::{self, called_by_nginx, ngx_cycle_t, ngx_event_t, ngx_http_request_t, ngx_int_t};
use crate::flights::{Flight, Flights};
use crate::group::Groups;
use crate::log::{self, Source};
use crate::mounts::MainConf;
use crate::peer::Peer;
use crate::response::{End, LoopEnd};
use crate::signals::{HOST_SIGNALS, masked, repair_child_signal};
use crate::starter::{Job, Serve, Starter};
use crate::wake::Wake;
use crate::{layout, module};

pub struct Process {
    pub mailbox: Arc<Mailbox>,
    pub groups: Groups,
    /// Memory for what links read.
    pub scratch: RefCell<Vec<u8>>,
    pool: Pool<Serve>,
    /// Where an application runs in this process.
    starter: OnceCell<Starter>,
    wake: Wake,
    flights: RefCell<Flights>,
    /// For the pool, at the end of this turn of the loop.
    batch: RefCell<Vec<Job>>,
    /// Requests of applications that are still being loaded.
    held: RefCell<Vec<Job>>,
    /// Applications that the starter was told to load.
    wanted: RefCell<Vec<Arc<Application>>>,
    submit: Event,
    guard: Event,
    posted: RefCell<Posted>,
    messages: RefCell<Vec<Message>>,
    /// Since an application was wanted that had not been before.
    wanted_since: Cell<Instant>,
    late: Cell<bool>,
    exiting: Cell<Option<Instant>>,
    given_up: Cell<bool>,
}

thread_local! {
    /// Set once, in a process that serves applications. Lives as long as the process.
    static CURRENT: Cell<Option<&'static Process>> = const { Cell::new(None) };
}

called_by_nginx! {
    /// Of the master, before it starts processes: at the start and at each reload. After this nginx does not come back
    /// from an error, it ends.
    pub fn init_module(cycle: *mut ngx_cycle_t) -> ngx_int_t, ffi::OK; {
        let conf = ffi::cycle_main::<MainConf>(cycle, module());
        // SAFETY: plain numbers.
        let is_test = unsafe { ffi::ngx_test_config != 0 };
        if is_test || arrange::arrange(cycle, conf) { ffi::OK } else { ffi::ERROR }
    }

    pub fn exit_master(_cycle: *mut ngx_cycle_t) -> (), (); {
        arrange::say_bye();
    }

    /// An error here would leave a server that accepts and never answers, so there is none.
    pub fn init_process(cycle: *mut ngx_cycle_t) -> ngx_int_t, ffi::OK; {
        // SAFETY: a plain number. Cache manager and loader run this hook too.
        let serves = matches!(unsafe { ffi::ngx_process } as i32, ffi::NGX_PROCESS_WORKER | ffi::NGX_PROCESS_SINGLE);
        arrange::begin_process();
        if serves
            && let Some(conf) = ffi::cycle_main::<MainConf>(cycle, module())
            && layout::check_process(cycle)
        {
            Process::start(conf);
        }
        ffi::OK
    }

    pub fn exit_process(_cycle: *mut ngx_cycle_t) -> (), (); {
        if let Some(process) = Process::current() {
            process.end();
        }
    }

    fn on_wake(_event: *mut ngx_event_t) -> (), (); {
        if let Some(process) = Process::current() {
            process.wake.clear();
            process.read_mailbox();
        }
    }

    fn on_submit(_event: *mut ngx_event_t) -> (), (); {
        if let Some(process) = Process::current() {
            process.pool.submit(&mut process.batch.borrow_mut());
            // What has come meanwhile needs no wake-up of its own.
            process.read_mailbox();
        }
    }

    fn on_guard(_event: *mut ngx_event_t) -> (), (); {
        if let Some(process) = Process::current() {
            process.watch();
        }
    }
}

impl Process {
    pub fn current() -> Option<&'static Process> {
        CURRENT.get()
    }

    /// Starts what serves the applications of this configuration, if it has any.
    pub fn start(conf: &MainConf) -> Option<&'static Process> {
        let groups = arrange::groups();
        if groups.is_empty() && conf.applications().next().is_none() {
            return None;
        }
        // SAFETY: nginx's cycle and its log exist as long as the process.
        let log = unsafe { (*ffi::cycle()).log };
        let complain = |why: &str| log::process(Level::Crit, &format!("{} {why}", Code::PythonUnavailable));
        let wake = Wake::new(log, Some(on_wake)).map_err(|why| complain(&why)).ok()?;
        let pool = Pool::new();
        let mailbox = Mailbox::new(wake.waker(), pool.waiting());
        let process = Box::leak(Box::new(Process {
            mailbox,
            groups: Groups::new(&groups, &wake, log),
            scratch: RefCell::default(),
            pool,
            starter: OnceCell::new(),
            submit: Event::new(&wake, log, on_submit),
            guard: Event::new(&wake, log, on_guard),
            wake,
            flights: RefCell::default(),
            batch: RefCell::default(),
            held: RefCell::default(),
            wanted: RefCell::default(),
            posted: RefCell::default(),
            messages: RefCell::default(),
            wanted_since: Cell::new(Instant::now()),
            late: Cell::new(false),
            exiting: Cell::new(None),
            given_up: Cell::new(false),
        }));
        CURRENT.set(Some(process));
        process.begin_python(conf)?;
        Some(process)
    }

    /// Starts Python, if an application runs in this process, and has all of them loaded.
    fn begin_python(&self, conf: &MainConf) -> Option<()> {
        if conf.applications().next().is_some() {
            self.need_python(conf)?;
        }
        conf.applications().for_each(|application| self.want(application));
        Some(())
    }

    /// Starts Python, unless it was started.
    pub fn need_python(&self, conf: &MainConf) -> Option<()> {
        if self.starter.get().is_none() {
            let started = Starter::new(settings(conf), conf.threads(), self.pool.clone(), self.mailbox.clone());
            let complain = |error| {
                let text = format!("{} no thread for Python could be started: {error}", Code::PythonUnavailable);
                log::process(Level::Crit, &text);
            };
            let starter = masked(|| started).map_err(complain).ok()?;
            self.starter.set(starter).ok();
            repair_child_signal();
        }
        Some(())
    }

    /// A process without a master lives through reloads: the new configuration counts.
    pub fn renew(&self, conf: &MainConf) {
        self.groups.update(&arrange::groups());
        self.begin_python(conf);
    }

    /// Takes a new request's number.
    pub fn reserve(&self) -> usize {
        self.flights.borrow_mut().reserve()
    }

    /// A request is on its way to the pool, or to a group. While any is, the process does not end.
    pub fn launch(&self, end: NonNull<LoopEnd>, peer: Peer, connection: u64, job: Option<Job>) {
        let stream = if let Peer::Group(stream) = &peer { Some(stream.clone()) } else { None };
        let first = self.flights.borrow_mut().fill(Flight { peer, end: Some(end), connection });
        if first {
            self.guard.set_cancelable(false);
            self.guard.arm(GUARD);
        }
        job.into_iter().for_each(|job| self.submit(job));
        if let Some(stream) = stream {
            self.groups.submit(self, &stream);
        }
    }

    /// nginx has given the request up, or ended it. `broken`: because this process must end.
    pub fn request_over(&self, key: usize, broken: bool) {
        if broken {
            self.retire(key);
        }
        if let Some(flight) = self.flights.borrow_mut().at(key) {
            flight.end = None;
        }
        self.forget_if_queued(key);
    }

    /// A request that was given up before any worker had it needs nobody any more.
    fn forget_if_queued(&self, key: usize) {
        let queued = self.flights.borrow_mut().at(key).is_some_and(|flight| flight.peer.is_queued());
        if queued {
            self.land(key);
        }
    }

    fn submit(&self, mut job: Job) {
        let Some(starter) = self.starter.get() else { return };
        if starter.python_runs() == Some(false) {
            let text = format!(
                "{} Python is not running in this process, for the reason logged when it started; the client got status 500",
                Code::PythonUnavailable
            );
            job.end.log(Level::Error, &text);
            return job.end.finish(Outcome::Failed);
        }
        let loading = matches!(job.application.status(), Status::Loading);
        if !loading && starter.python_runs().is_some() {
            let mut batch = self.batch.borrow_mut();
            batch.push(job);
            if batch.len() == 1 {
                self.submit.post();
            }
            return;
        }
        self.want(&job.application);
        if self.is_late() {
            self.refuse_late(job);
        } else {
            self.held.borrow_mut().push(job);
        }
    }

    fn want(&self, application: &Arc<Application>) {
        let mut wanted = self.wanted.borrow_mut();
        if !wanted.iter().any(|known| Arc::ptr_eq(known, application)) {
            wanted.push(application.clone());
            self.wanted_since.set(Instant::now());
            self.late.set(false);
            self.starter.get().into_iter().for_each(|starter| starter.load(application.clone()));
        }
    }

    fn is_late(&self) -> bool {
        self.wanted_since.get().elapsed() > STARTUP
    }

    /// Answers a request whose application takes too long to load.
    fn refuse_late(&self, job: Job) {
        if !self.late.replace(true) {
            let cause = format!(
                "application \"{}\" is still being loaded after {} seconds",
                job.application.name(),
                STARTUP.as_secs()
            );
            let report = Report::new(Code::LoadTimeout, cause)
                .remedy("its requests get status 503 until it is there; see what its import waits for");
            log::process(Level::Error, &report.to_string());
        }
        self.end_from_afar(job.end.relay().key(), End::Finalize(ffi::NGX_HTTP_SERVICE_UNAVAILABLE as ngx_int_t));
    }

    fn read_mailbox(&self) {
        let mut posted = self.posted.take();
        self.mailbox.take(&mut posted);
        for (level, text) in posted.records.drain(..) {
            log::process(level, &text);
        }
        for relay in posted.relays.drain(..) {
            self.deliver(&relay);
        }
        if std::mem::take(&mut posted.changed) {
            let held = self.held.take();
            held.into_iter().for_each(|job| self.submit(job));
        }
        self.posted.replace(posted);
    }

    /// Passes on what a worker has said.
    fn deliver(&self, relay: &Arc<Relay>) {
        let key = relay.key();
        // A record may come after the end, when the place is free again or another's.
        let (end, source) = match self.flights.borrow_mut().at(key) {
            Some(flight) if flight.peer.is(relay) => (flight.end, flight.source()),
            _ => (None, Source { log: log::of_process(), connection: 0 }),
        };
        let mut messages = self.messages.take();
        let taken = relay.take(&mut messages);
        if taken.wants_body
            && let Some(mut end) = end
        {
            // SAFETY: alive until the request is over, which takes it out of the flight.
            unsafe { end.as_mut() }.feed();
        }
        if self.pass_on(key, end, source, relay.request(), &mut messages) {
            self.land(key);
        }
        messages.clear();
        self.messages.replace(messages);
    }

    /// Passes on what a worker of a group has said of a request.
    pub fn deliver_of_group(&self, key: usize, request: &Request, messages: &mut Vec<Message>, ending: Option<Ending>) {
        let (end, source) = match self.flights.borrow_mut().at(key) {
            Some(flight) => (flight.end, flight.source()),
            None => (None, Source { log: log::of_process(), connection: 0 }),
        };
        self.pass_on(key, end, source, request, messages);
        match ending {
            Some(Ending::TimedOut) => self.refuse(key, ffi::NGX_HTTP_GATEWAY_TIME_OUT as u16),
            Some(Ending::Outcome(_)) => self.land(key),
            Some(Ending::NotHere) | None => {}
        }
    }

    /// True: the worker is done.
    fn pass_on(
        &self,
        key: usize,
        end: Option<NonNull<LoopEnd>>,
        source: Source,
        request: &Request,
        messages: &mut Vec<Message>,
    ) -> bool {
        let mut finished = false;
        for message in &*messages {
            match message {
                Message::Log(level, text) => log::request(source, *level, text, request),
                Message::Finish(_) => finished = true,
                _ => {}
            }
        }
        if let Some(mut end) = end {
            // SAFETY: alive until the request is over, which takes it out of the flight.
            let end = unsafe { end.as_mut() };
            let r = end.request();
            let next = end.deliver(messages);
            if let Some(r) = r {
                // SAFETY: alive up to here; nginx keeps connections, if only as unused ones.
                let connection = unsafe { (*r.as_ptr()).connection };
                if let Some(next) = next {
                    self.end_request(key, next);
                }
                // SAFETY: as above; it does nothing for a connection that has been given back.
                unsafe { ffi::ngx_http_run_posted_requests(connection) };
            }
        }
        finished
    }

    /// Sends what there is of the body to a worker of a group.
    pub fn pump(&self, key: usize) {
        if let Some(mut end) = self.flights.borrow_mut().at(key).and_then(|flight| flight.end) {
            // SAFETY: in the flight, so the request is alive.
            unsafe { end.as_mut() }.feed();
        }
    }

    /// Whether something of the response has left.
    pub fn has_begun(&self, key: usize) -> bool {
        let end = self.flights.borrow_mut().at(key).and_then(|flight| flight.end);
        // SAFETY: in the flight, so the request is alive.
        end.is_some_and(|end| unsafe { end.as_ref() }.has_begun())
    }

    /// The body begins again, for another worker; false where that cannot be.
    pub fn rewind(&self, key: usize) -> bool {
        let end = self.flights.borrow_mut().at(key).and_then(|flight| flight.end);
        // SAFETY: in the flight, so the request is alive.
        end.is_some_and(|mut end| unsafe { end.as_mut() }.rewind())
    }

    /// Ends a request with a status of nginx's own, or visibly if some of the response has left already.
    pub fn refuse(&self, key: usize, status: u16) {
        let end = self.flights.borrow_mut().at(key).and_then(|flight| flight.end);
        if let Some(mut end) = end {
            // SAFETY: in the flight, so the request is alive.
            let end = unsafe { end.as_mut() };
            if status == ffi::NGX_HTTP_SERVICE_UNAVAILABLE as u16 {
                end.retry_after();
            }
            let how = if end.has_begun() { End::Break } else { End::Finalize(status as ngx_int_t) };
            self.end_from_afar(key, how);
        }
        self.land(key);
    }

    /// A record of a request.
    pub fn log_of(&self, key: usize, level: Level, text: &str, request: &Request) {
        let source = self.flights.borrow_mut().at(key).map(|flight| flight.source());
        log::request(source.unwrap_or(Source { log: log::of_process(), connection: 0 }), level, text, request);
    }

    /// Ends a request on nginx's side, where that has not happened yet.
    pub fn end_request(&self, key: usize, how: End) {
        let end = self.flights.borrow_mut().at(key).and_then(|flight| flight.end.take());
        let Some(mut end) = end else { return };
        // SAFETY: it was in the flight, so the request is alive.
        let end = unsafe { end.as_mut() };
        if how != End::Break {
            end.discard_body();
        }
        let r = end.request();
        end.detach();
        if let Some(r) = r {
            // SAFETY: alive; the end is not used any more.
            unsafe { how.perform(r.as_ptr()) };
        }
        self.forget_if_queued(key);
    }

    /// As [`end_request`](Self::end_request), outside any event of the request's own.
    fn end_from_afar(&self, key: usize, how: End) {
        let end = self.flights.borrow_mut().at(key).and_then(|flight| flight.end);
        // SAFETY: in the flight, so the request is alive.
        let Some(r) = end.and_then(|end| unsafe { end.as_ref() }.request()) else { return };
        // SAFETY: as above; nginx keeps connections, if only as unused ones.
        let connection = unsafe { (*r.as_ptr()).connection };
        self.end_request(key, how);
        // SAFETY: as above; it does nothing for a connection that has been given back.
        unsafe { ffi::ngx_http_run_posted_requests(connection) };
    }

    /// The worker is done with a request.
    pub fn land(&self, key: usize) {
        // A request that nginx still has at this point would wait for nobody.
        self.end_from_afar(key, End::Break);
        if self.flights.borrow_mut().clear(key) {
            self.guard.set_cancelable(true);
        }
    }

    /// Once a second while requests are in flight.
    fn watch(&self) {
        if self.is_late() && !self.held.borrow().is_empty() {
            let held = self.held.take();
            held.into_iter().for_each(|job| self.submit(job));
        }
        if ffi::is_exiting() && !self.given_up.get() {
            let since = self.exiting.get().unwrap_or_else(Instant::now);
            self.exiting.set(Some(since));
            if since.elapsed() + Duration::from_millis(500) >= limit() {
                self.give_up();
            }
        }
        if self.flights.borrow().count > 0 {
            self.guard.arm(GUARD);
        }
    }

    /// The graceful limit is over.
    fn give_up(&self) {
        self.given_up.set(true);
        let keys: Vec<(usize, Option<NonNull<LoopEnd>>)> = self.flights.borrow().iter().collect();
        for (key, end) in keys {
            self.retire(key);
            // SAFETY: alive, as it is in the flight.
            let begun = end.is_some_and(|end| unsafe { end.as_ref() }.has_begun());
            let unavailable = End::Finalize(ffi::NGX_HTTP_SERVICE_UNAVAILABLE as ngx_int_t);
            self.end_from_afar(key, if begun { End::Break } else { unavailable });
        }
        self.guard.set_cancelable(true);
    }

    fn retire(&self, key: usize) {
        let Some((peer, source)) =
            self.flights.borrow_mut().at(key).map(|flight| (flight.peer.clone(), flight.source()))
        else {
            return;
        };
        let fact = |fact| peer.request().fact(fact).map(String::from_utf8_lossy).unwrap_or_default();
        let uri = fact(Fact::RequestUri);
        let path = uri.split('?').next().unwrap_or_default();
        let cause = format!(
            "the request \"{} {path}\" was given up: its worker process had to end, and it was not done in time",
            fact(Fact::Method)
        );
        let report = Report::new(Code::Retired, cause).remedy(
            "raise worker_shutdown_timeout, or end long responses sooner; an exception was raised in its thread",
        );
        log::request(source, Level::Error, &report.to_string(), peer.request());
        peer.close();
        if let (Peer::Pool(relay), Some(starter)) = (peer, self.starter.get()) {
            starter.interrupt(vec![relay]);
        }
    }

    /// The process ends: threads are waited for, but not for ever.
    fn end(&self) {
        let longest = if ffi::is_terminating() { SHORT_END } else { LONG_END };
        self.batch.take();
        self.held.take();
        self.pool.clear();
        let flying: Vec<Peer> =
            self.flights.borrow().slots.iter().flatten().map(|flight| flight.peer.clone()).collect();
        flying.iter().for_each(Peer::close);
        if let Some(starter) = self.starter.get() {
            let running: Vec<Arc<Relay>> = flying.into_iter().filter_map(Peer::relay).collect();
            if !running.is_empty() && !self.given_up.get() {
                starter.interrupt(running);
            }
            if self.pool.stop(longest) == 0 {
                starter.stop(longest);
            }
        }
        self.groups.end();
        self.flights.borrow_mut().slots.iter_mut().flatten().for_each(|flight| flight.end = None);
        self.read_mailbox();
        // Threads of ours or of the application may still run Python: nothing is taken apart under them.
        // SAFETY: the handler is a plain function of a library that stays loaded.
        unsafe { libc::atexit(leave) };
    }
}

/// User and group of this process.
pub fn ids() -> (u32, u32) {
    // SAFETY: plain queries.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

extern "C" fn leave() {
    // SAFETY: both may be called at any time in a process that is ending.
    unsafe {
        libc::fflush(std::ptr::null_mut());
        libc::_exit(0);
    }
}

fn settings(conf: &MainConf) -> InterpreterSettings {
    let core = ffi::core_conf(ffi::cycle());
    let version = ffi::NGINX_VER.strip_suffix(b"\0").unwrap_or(ffi::NGINX_VER);
    InterpreterSettings {
        home: conf.home.clone(),
        path: conf.path.clone(),
        server_software: format!("{} Highball/{}", String::from_utf8_lossy(version), env!("CARGO_PKG_VERSION")),
        multithread: conf.threads() > 1,
        multiprocess: core.is_some_and(|core| core.master != 0 && core.worker_processes > 1),
        host_signals: HOST_SIGNALS.to_vec(),
        own_process: false,
    }
}

/// How long requests may go on in a process that is told to end.
fn limit() -> Duration {
    let configured = ffi::core_conf(ffi::cycle()).map_or(0, |core| core.shutdown_timeout);
    if configured > 0 { Duration::from_millis(configured as u64) } else { GRACEFUL }
}

/// How often requests in flight are looked at.
const GUARD: Duration = Duration::from_secs(1);

/// Until then requests wait for their application to be loaded.
const STARTUP: Duration = Duration::from_secs(60);

/// Where `worker_shutdown_timeout` is not set.
const GRACEFUL: Duration = Duration::from_secs(60);

/// How long threads and exit functions are waited for. After SIGTERM the master kills what is left within about a second.
const LONG_END: Duration = Duration::from_secs(5);
const SHORT_END: Duration = Duration::from_millis(400);

/// Whether nginx gives a request up because its own time for a graceful end is over.
pub fn is_broken_by_shutdown(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: nginx is just giving this request up, and has not freed it yet.
    ffi::is_exiting() && unsafe { (*(*r).connection).close() } != 0
}
