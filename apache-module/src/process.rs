//! The life of a server process: the checks of the parent, Python in a child, the applications loaded there.

use std::ffi::{OsStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use highball::error::{Code, Report};
use highball::group::wanted::Wanted;
use highball::log::Level;
use highball::python::{Application, Interpreter, home};
use highball::settings::{ApplicationSettings, DEFAULT_CALLABLE, InterpreterSettings, Target};

use crate::choice::{self, Choice, Reach};
use crate::ffi::{
    self, AP_MPMQ_MAX_DAEMONS, AP_MPMQ_MAX_THREADS, AP_SQ_MAIN_STATE, AP_SQ_MS_CREATE_PRE_CONFIG, AP_SQ_RM_CONFIG_TEST,
    AP_SQ_RUN_MODE, APR_SUCCESS, HTTP_INTERNAL_SERVER_ERROR, OK, ap_get_server_banner, ap_state_query,
    apr_pool_pre_cleanup_register, apr_pool_t, apr_status_t, entry, mpm_query, server_rec, servers,
};
use crate::settings::{Alias, DirectorySettings, ServerSettings};
use crate::{group, log};

/// The main server of this process, for records outside any request.
static SERVER: AtomicPtr<server_rec> = AtomicPtr::new(null_mut());

/// Python, once something needed it: what failed to start is not started again.
static PYTHON: OnceLock<Option<Arc<Interpreter>>> = OnceLock::new();

static APPLICATIONS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// Requests inside Python or on their way there.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// An application of this process.
struct Entry {
    path: Vec<u8>,
    callable: String,
    reloading: bool,
    global: bool,
    application: Arc<Application>,
}

entry! {
    /// The library stays mapped over restarts: what the last configuration left is forgotten.
    fn pre_config(_pool: *mut apr_pool_t, _log: *mut apr_pool_t, _temporary: *mut apr_pool_t) -> i32, else OK, {
        SERVER.store(null_mut(), Ordering::Relaxed);
        OK
    }

    /// Refuses what is wrong in the text; also for `configtest`.
    fn check_config(
        _pool: *mut apr_pool_t, _log: *mut apr_pool_t, _temporary: *mut apr_pool_t, server: *mut server_rec,
    ) -> i32, else HTTP_INTERNAL_SERVER_ERROR, {
        if let Err(report) = check_groups(server).and_then(|()| check_process_groups(server)) {
            log::server(server, Level::Crit, &report.to_string());
            return HTTP_INTERNAL_SERVER_ERROR;
        }
        // SAFETY: a plain query.
        if unsafe { ap_state_query(AP_SQ_RUN_MODE) } == AP_SQ_RM_CONFIG_TEST {
            // A running server says it where it matters, when Python does not start.
            warn_of_home(server);
            warn_of_files(server);
        }
        OK
    }

    /// Runs twice when the server starts; only the second time counts.
    fn post_config(
        _pool: *mut apr_pool_t, _log: *mut apr_pool_t, _temporary: *mut apr_pool_t, server: *mut server_rec,
    ) -> i32, else HTTP_INTERNAL_SERVER_ERROR, {
        // SAFETY: a plain query.
        if unsafe { ap_state_query(AP_SQ_MAIN_STATE) } != AP_SQ_MS_CREATE_PRE_CONFIG {
            warn_of_files(server);
            if !group::arrange(server) {
                return HTTP_INTERNAL_SERVER_ERROR;
            }
        }
        OK
    }

    /// In a process that serves requests, after privileges were dropped.
    fn child_init(pool: *mut apr_pool_t, server: *mut server_rec) -> (), else (), {
        SERVER.store(server, Ordering::Relaxed);
        applications().clear();
        choice::begin();
        // SAFETY: the pool is destroyed when the process ends.
        unsafe { apr_pool_pre_cleanup_register(pool, null_mut(), Some(child_exit)) };
        group::begin();
        if has_embedded(server) && !is_restricted() && let Some(interpreter) = interpreter() {
            load_early(server, interpreter);
        }
    }

    /// Python's exit functions, in bounded time: an application may hold the interpreter for ever.
    fn child_exit(_data: *mut c_void) -> apr_status_t, else APR_SUCCESS, {
        if let Some(Some(interpreter)) = PYTHON.get() {
            // prefork ends its processes from a signal handler: the request it interrupted is on this very thread.
            let interrupted = RUNNING.load(Ordering::Relaxed) > 0 && mpm_query(AP_MPMQ_MAX_THREADS) == Some(1);
            if !interrupted {
                let (done, ended) = mpsc::channel();
                let stop = move || {
                    interpreter.stop();
                    done.send(()).ok();
                };
                if thread::Builder::new().name("highball-stop".into()).spawn(stop).is_ok() {
                    ended.recv_timeout(LONGEST_STOP).ok();
                }
            }
        }
        APR_SUCCESS
    }
}

pub fn main_server() -> *mut server_rec {
    SERVER.load(Ordering::Relaxed)
}

/// `WSGIRestrictEmbedded On`.
pub fn is_restricted() -> bool {
    ServerSettings::of(main_server()).is_some_and(|settings| settings.restrict_embedded)
}

/// The interpreter of this process, started by whoever needs it first. `None` if it could not be: that is in the log.
pub fn interpreter() -> Option<&'static Arc<Interpreter>> {
    PYTHON.get_or_init(start).as_ref()
}

/// The application of a script, made the first time.
pub fn application(path: &[u8], callable: &str, reloading: bool, global: bool) -> Result<Arc<Application>, Report> {
    let mut applications = applications();
    let same = |entry: &Entry| entry.path == path && entry.callable == callable;
    if let Some(entry) = applications.iter().find(|entry| same(entry) && entry.reloading == reloading) {
        return Ok(entry.application.clone());
    }
    let shares = |entry: &Entry| same(entry) || (entry.global && global);
    if let Some(other) = applications.iter().find(|entry| !shares(entry)) {
        return Err(second(&other.path, path));
    }
    let target = Target::script(OsStr::from_bytes(path), callable);
    let application = Application::new(ApplicationSettings { target, script_reloading: reloading });
    let entry =
        Entry { path: path.into(), callable: callable.into(), reloading, global, application: application.clone() };
    applications.push(entry);
    Ok(application)
}

/// Counts a request while the value lives.
pub struct Running(());

impl Running {
    pub fn begin() -> Running {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Running(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn applications() -> MutexGuard<'static, Vec<Entry>> {
    APPLICATIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start() -> Option<Arc<Interpreter>> {
    let main = main_server();
    let settings = ServerSettings::of(main)?;
    let settings = InterpreterSettings {
        home: settings.home.clone(),
        path: settings.path.clone(),
        // SAFETY: a constant of httpd's.
        server_software: String::from_utf8_lossy(ffi::text(unsafe { ap_get_server_banner() })).into_owned(),
        multithread: mpm_query(AP_MPMQ_MAX_THREADS) != Some(1),
        multiprocess: mpm_query(AP_MPMQ_MAX_DAEMONS) != Some(1),
        host_signals: HOST_SIGNALS.into(),
        own_process: false,
    };
    stop_ignoring_interrupts();
    match Interpreter::start(&settings, Arc::new(log::ProcessLog)) {
        Ok(interpreter) => Some(interpreter),
        Err(report) => {
            log::server(main, Level::Crit, &report.to_string());
            None
        }
    }
}

/// prefork's processes ignore SIGINT, and what is ignored stays so in every program the application starts: it could not
/// be interrupted. A handler that does nothing has the same effect here and ends with exec.
fn stop_ignoring_interrupts() {
    extern "C" fn nothing(_signal: i32) {}
    // SAFETY: a plain query and a handler without effects; system calls go on after it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGINT, null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN {
            action.sa_sigaction = nothing as extern "C" fn(i32) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(libc::SIGINT, &action, null_mut());
        }
    }
}

/// Loads the scripts whose groups are both fixed, on a thread of its own: an import delays nothing.
fn load_early(server: *mut server_rec, interpreter: &'static Arc<Interpreter>) {
    let mut loads: Vec<Arc<Application>> = Vec::new();
    for server in servers(server) {
        let settings = DirectorySettings::of_server(server);
        let embedded = |alias: &&Alias| alias.process_group.as_deref() == Some("");
        for alias in aliases(server).filter(|alias| alias.global_application).filter(embedded) {
            let reloading = settings.script_reloading.unwrap_or(true);
            let Ok(application) = application(&alias.target, callable(alias, &settings), reloading, true) else {
                continue;
            };
            if !loads.iter().any(|known| Arc::ptr_eq(known, &application)) {
                loads.push(application);
            }
        }
    }
    if loads.is_empty() {
        return;
    }
    let load = move || loads.iter().for_each(|application| application.load(interpreter));
    let spawned = with_signals_blocked(|| thread::Builder::new().name("highball-load".into()).spawn(load));
    if let Err(error) = spawned {
        let text = format!("no thread to load applications early: {error}; they are loaded with the first request");
        log::server(server, Level::Warn, &text);
    }
}

/// Signals are for the MPM's own thread, which waits for them: a new thread must not take them.
pub fn with_signals_blocked<R>(run: impl FnOnce() -> R) -> R {
    // SAFETY: plain masks of this thread, set back at once.
    unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&mut all);
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSYS, libc::SIGABRT] {
            libc::sigdelset(&mut all, fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = run();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, null_mut());
        result
    }
}

/// Two different applications in one interpreter: only where both say so.
fn check_groups(server: *mut server_rec) -> Result<(), Report> {
    let any = |is: fn(&ServerSettings) -> bool| servers(server).filter_map(ServerSettings::of).any(is);
    // Which mounts a section covers shows with their requests only; what an alias says itself, no section changes.
    if any(|settings| settings.application_group_in_section) {
        return Ok(());
    }
    let sections_decide = any(|settings| settings.process_group_in_section);
    let is_sure = |alias: &&Alias| !sections_decide || alias.process_group.is_some();
    struct Mounted<'a> {
        script: &'a [u8],
        callable: &'a str,
        reach: Reach<'a>,
        global: bool,
    }
    let embedded = !ServerSettings::of(server).is_some_and(|settings| settings.restrict_embedded);
    let mut mounted: Vec<Mounted<'_>> = Vec::new();
    for server in servers(server) {
        let settings = DirectorySettings::of_server(server);
        mounted.extend(aliases(server).filter(is_sure).map(|alias| Mounted {
            script: &alias.target,
            callable: callable(alias, &settings),
            reach: Reach { choice: Choice::of(Some(alias), &settings), allowed: allowed_groups(server), embedded },
            global: alias.global_application || settings.global,
        }));
    }
    let different =
        |a: &Mounted<'_>, b: &Mounted<'_>| (a.script, a.callable) != (b.script, b.callable) && a.reach.meets(&b.reach);
    let alone = mounted.iter().find(|one| !one.global && mounted.iter().any(|other| different(one, other)));
    let Some(alone) = alone else { return Ok(()) };
    let Some(other) = mounted.iter().find(|other| different(alone, other)) else { return Ok(()) };
    let mut report = second(alone.script, other.script);
    if [alone, other].iter().any(|one| matches!(one.reach.choice, Choice::Variable(_))) {
        report.remedy += "; or name with WSGIRestrictProcess, outside sections, the groups that each may be sent to, and no \
                          others in sections";
    }
    Err(report)
}

/// The groups that lists of this server allow somewhere; `None` is any.
fn allowed_groups(server: *mut server_rec) -> Option<Vec<String>> {
    let in_sections = ServerSettings::of(server).map_or(&[][..], |settings| settings.allowed_in_sections.as_slice());
    DirectorySettings::of_server(server).allowed_groups().map(|names| [names, in_sections].concat())
}

/// Groups are declared once, and none is named that is not.
fn check_process_groups(server: *mut server_rec) -> Result<(), Report> {
    let mut wanted = Wanted::default();
    for settings in servers(server).filter_map(ServerSettings::of) {
        for declared in &settings.groups {
            wanted.declare("WSGIDaemonProcess", declared.clone())?;
        }
    }
    for settings in servers(server).filter_map(ServerSettings::of) {
        for (directive, name) in &settings.named_groups {
            wanted.check(directive, name)?;
        }
    }
    Ok(())
}

/// Whether some mount runs in the server's own processes.
fn has_embedded(server: *mut server_rec) -> bool {
    servers(server).any(|server| {
        let settings = DirectorySettings::of_server(server);
        let aliases = ServerSettings::of(server).map_or(&[][..], |settings| settings.aliases.as_slice());
        aliases.iter().any(|alias| Choice::of(Some(alias), &settings) == Choice::Here)
    })
}

/// Whether an alias leads to one script: what an alias to a directory, or with a group of an expression, maps shows only
/// with a request.
pub fn is_script(alias: &Alias) -> bool {
    let varies = alias.pattern.is_some() && alias.target.contains(&b'$');
    !varies && !alias.target.ends_with(b"/") && !path(&alias.target).is_dir()
}

/// User and group of this process.
pub fn ids() -> (u32, u32) {
    // SAFETY: plain queries.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Aliases that lead to one script.
fn aliases<'a>(server: *mut server_rec) -> impl Iterator<Item = &'a Alias> {
    let aliases = ServerSettings::of(server).map_or(&[][..], |settings| settings.aliases.as_slice());
    aliases.iter().filter(|alias| is_script(alias))
}

pub fn callable<'a>(alias: &'a Alias, settings: &DirectorySettings) -> &'a str {
    alias.callable.as_deref().or_else(|| settings.callable()).unwrap_or(DEFAULT_CALLABLE)
}

fn second(one: &[u8], other: &[u8]) -> Report {
    let (one, other) = (path(one).display(), path(other).display());
    let cause = format!("applications \"{one}\" and \"{other}\" would share the one interpreter of a process");
    Report::new(Code::SecondApplication, cause).remedy(
        "write application-group=%{GLOBAL} in the WSGIScriptAlias of both, or WSGIApplicationGroup %{GLOBAL}, if they \
         may (two Django projects may not)",
    )
}

/// What depends on files is no error of the configuration: a deployment may be under way.
fn warn_of_home(server: *mut server_rec) {
    if let Some(home) = ServerSettings::of(server).and_then(|settings| settings.home.as_deref())
        && let Err(report) = home::executable(home)
    {
        log::server(server, Level::Warn, &report.to_string());
    }
}

/// As above.
fn warn_of_files(server: *mut server_rec) {
    let mut seen: Vec<&[u8]> = Vec::new();
    for host in servers(server) {
        for alias in aliases(host) {
            if !seen.contains(&alias.target.as_slice()) && !path(&alias.target).exists() {
                log::server(server, Level::Warn, &script_missing(&alias.target).to_string());
                seen.push(&alias.target);
            }
        }
    }
}

pub fn script_missing(script: &[u8]) -> Report {
    Report::new(Code::ScriptMissing, format!("the script \"{}\" does not exist", path(script).display()))
        .remedy("correct WSGIScriptAlias or put the script there")
}

pub fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// How long Python's exit functions may take. Apache kills a process that takes about ten seconds.
const LONGEST_STOP: Duration = Duration::from_secs(5);

/// What the threads of httpd's MPMs block and its main thread handles.
const HOST_SIGNALS: [i32; 14] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCHLD,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGCONT,
    libc::SIGIO,
];
