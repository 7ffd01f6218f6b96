//! What the master arranges with the supervisor of process groups, at the start and at each reload.

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use highball::group::client::Settings;
use highball::group::control::LogLevel;
use highball::group::launch::{self, Supervisor};
use highball::group::state::{Log, LogFormat};
use highball::group::wanted::{Server, Wanted};
use highball::log::Level;

use crate::ffi::{self, ngx_cycle_t};
use crate::mounts::MainConf;
use crate::{log, process};

/// What server processes need; they inherit it.
static ARRANGED: Mutex<Vec<Settings>> = Mutex::new(Vec::new());

static LONGEST_END: Mutex<Duration> = Mutex::new(Duration::ZERO);

/// Since [`has_changed`] was asked last.
static CHANGED: AtomicBool = AtomicBool::new(false);

/// The process that gives orders; 0 before there is one.
static MASTER: AtomicU32 = AtomicU32::new(0);

/// False: nginx cannot run with this configuration.
pub fn arrange(cycle: *mut ngx_cycle_t, conf: Option<&MainConf>) -> bool {
    let none = Wanted::default();
    let wanted = conf.map_or(&none, |conf| &conf.groups);
    let is_start = MASTER.swap(std::process::id(), Ordering::Relaxed) == 0;
    *locked(&LONGEST_END) = wanted.longest_end();
    if wanted.is_empty() && Supervisor::find().is_none() {
        locked(&ARRANGED).clear();
        CHANGED.store(true, Ordering::Relaxed);
        return true;
    }
    match arrange_wanted(cycle, conf, wanted) {
        Ok(arranged) => {
            *locked(&ARRANGED) = arranged;
            CHANGED.store(true, Ordering::Relaxed);
            true
        }
        Err(why) => {
            // A master that reloads must not end over it.
            log::of(cycle, Level::Crit, &format!("process groups cannot be started: {why}"));
            !is_start
        }
    }
}

fn arrange_wanted(cycle: *mut ngx_cycle_t, conf: Option<&MainConf>, wanted: &Wanted) -> Result<Vec<Settings>, String> {
    let beside = |name| launch::beside_module(name).map_err(|error| format!("the module's directory: {error}"));
    let command = beside("highball")?;
    let (uid, gid) = process::ids();
    if uid == 0 {
        launch::is_roots_own(&command)?;
    }
    let user = ffi::core_conf(cycle).filter(|_| uid == 0).map(|core| (core.user, core.group));
    let (uid, gid) = user.filter(|(user, _)| *user != u32::MAX).unwrap_or((uid, gid));
    let secret = launch::secret().map_err(|error| error.to_string())?;
    // SAFETY: the new cycle and its log.
    let (level, file) = unsafe { ((*(*cycle).log).log_level, (*(*cycle).log).file.as_ref()) };
    // SAFETY: a name lives as long as the cycle.
    let path = file.map(|file| unsafe { ffi::bytes(file.name) }).filter(|name| !name.is_empty());
    let version = ffi::NGINX_VER.strip_suffix(b"\0").unwrap_or(ffi::NGINX_VER);
    let server = Server {
        software: format!("{} Highball/{}", String::from_utf8_lossy(version), env!("CARGO_PKG_VERSION")),
        log: Log {
            format: LogFormat::Nginx,
            level: log_level(level),
            path: path.map(|path| PathBuf::from(Path::new(std::ffi::OsStr::from_bytes(path)))),
        },
        uid,
        gid,
        socket_prefix: conf.and_then(|conf| conf.socket_prefix.clone()),
        extension: beside("libhighball_worker.so")?,
    };
    let state = wanted.state(server, secret);
    // SAFETY: the log is open as long as the cycle, and standard error meanwhile.
    let error_log = unsafe { BorrowedFd::borrow_raw(file.map_or(2, |file| file.fd)) };
    let directory = launch::arrange(&command, &state, error_log).map_err(|error| error.to_string())?;
    Ok(directory.map_or_else(Vec::new, |directory| wanted.clients(&directory, secret)))
}

fn log_level(level: usize) -> LogLevel {
    match level as i32 {
        0..=ffi::NGX_LOG_CRIT => LogLevel::Crit,
        ffi::NGX_LOG_ERR => LogLevel::Error,
        ffi::NGX_LOG_WARN => LogLevel::Warn,
        ffi::NGX_LOG_NOTICE => LogLevel::Notice,
        ffi::NGX_LOG_INFO => LogLevel::Info,
        _ => LogLevel::Debug,
    }
}

/// The master ends, and its processes are gone: the groups end, with their exit functions.
pub fn say_bye() {
    if let Some(supervisor) = Supervisor::find() {
        supervisor.bye(*locked(&LONGEST_END)).ok();
    }
}

/// A server process begins: it gives no orders.
pub fn begin_process() {
    // SAFETY: set before any process begins.
    let is_master = unsafe { ffi::ngx_process } as i32 == ffi::NGX_PROCESS_SINGLE;
    if !is_master {
        launch::forget();
    }
}

/// How this process reaches the groups.
pub fn groups() -> Vec<Settings> {
    locked(&ARRANGED).clone()
}

/// Whether another configuration was taken over since this was asked last.
pub fn has_changed() -> bool {
    CHANGED.load(Ordering::Relaxed) && CHANGED.swap(false, Ordering::Relaxed)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
