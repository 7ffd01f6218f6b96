//! Process groups: what the parent arranges with its supervisor, and a server process's way to the workers.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use highball::group::client;
use highball::group::client::direct::Group;
use highball::group::control::LogLevel;
use highball::group::launch::{self, Supervisor};
use highball::group::state::{Application, DesiredState, Log, LogFormat};
use highball::group::wanted::{self, Wanted};
use highball::log::Level;
use highball::settings::{DEFAULT_CALLABLE, Target};

use crate::choice::Choice;
use crate::exchange::Direct;
use crate::ffi::rec::Rec;
use crate::ffi::{
    self, APR_SUCCESS, ap_get_server_banner, ap_server_root_relative, ap_unixd_config, apr_os_file_get,
    apr_pool_pre_cleanup_register, entry, server_rec, servers,
};
use crate::settings::{Alias, DirectorySettings, ServerSettings};
use crate::{log, process};

/// What server processes need: set by the parent, inherited by them.
static ARRANGED: Mutex<Vec<client::Settings>> = Mutex::new(Vec::new());

/// The longest time the supervisor may take to end.
static LONGEST_END: Mutex<Duration> = Mutex::new(Duration::ZERO);

/// The process that gives orders.
static MASTER: AtomicU32 = AtomicU32::new(0);

/// In a server process.
static GROUPS: OnceLock<Vec<Group>> = OnceLock::new();

/// Everything the configuration says of groups.
pub fn wanted(server: *mut server_rec) -> Wanted {
    let mut wanted = Wanted::default();
    for host in servers(server) {
        for declared in ServerSettings::of(host).map_or(&[][..], |settings| settings.groups.as_slice()) {
            // Two of a name are refused when the configuration is checked.
            wanted.declare("WSGIDaemonProcess", declared.clone()).ok();
        }
    }
    let names: Vec<String> = wanted.names().map(str::to_string).collect();
    // A section may send its requests to any group.
    let add_scripts = |wanted: &mut Wanted, place: &Path| {
        names.iter().for_each(|name| wanted.add_scripts(name, place));
    };
    for host in servers(server) {
        // What a handler maps lies there.
        if let Some(root) = ffi::document_root(host) {
            add_scripts(&mut wanted, process::path(root));
        }
        let sections = ServerSettings::of(host).map_or(&[][..], |settings| settings.grouped_sections.as_slice());
        sections.iter().for_each(|section| add_scripts(&mut wanted, section));
        let settings = DirectorySettings::of_server(host);
        let aliases = ServerSettings::of(host).map_or(&[][..], |settings| settings.aliases.as_slice());
        for alias in aliases {
            let path = process::path(&alias.target);
            if process::is_script(alias)
                && let Choice::Named(group) = Choice::of(Some(alias), &settings)
            {
                wanted.add_application(group, application(alias, &settings));
            }
            add_scripts(&mut wanted, &fixed_part(path));
        }
    }
    wanted
}

fn application(alias: &Alias, settings: &DirectorySettings) -> Application {
    let target = Target::script(process::path(&alias.target), process::callable(alias, settings));
    Application::new(&target, settings.script_reloading.unwrap_or(true))
}

/// The directory above the first part that a pattern fills in.
fn fixed_part(path: &Path) -> PathBuf {
    let text = path.as_os_str().as_encoded_bytes();
    match text.iter().position(|byte| *byte == b'$') {
        Some(end) => {
            let fixed = process::path(text.get(..end).unwrap_or_default());
            if fixed.as_os_str().as_encoded_bytes().ends_with(b"/") {
                fixed.into()
            } else {
                fixed.parent().unwrap_or(fixed).into()
            }
        }
        None => path.into(),
    }
}

/// In the parent, at each start and reload: the supervisor learns what is wanted. False: this configuration cannot run.
pub fn arrange(server: *mut server_rec) -> bool {
    MASTER.store(std::process::id(), Ordering::Relaxed);
    let wanted = wanted(server);
    *LONGEST_END.lock().unwrap_or_else(PoisonError::into_inner) = wanted.longest_end();
    if wanted.is_empty() && Supervisor::find().is_none() {
        ARRANGED.lock().unwrap_or_else(PoisonError::into_inner).clear();
        return true;
    }
    let arranged = arrange_wanted(server, &wanted);
    if let Err(why) = &arranged {
        log::server(server, Level::Crit, &format!("process groups cannot be started: {why}"));
        return false;
    }
    // SAFETY: the process's own pool, which is destroyed when the parent ends.
    unsafe {
        let pool = (*(*server).process).pool;
        ffi::apr_pool_cleanup_kill(pool, null_mut(), Some(say_bye));
        apr_pool_pre_cleanup_register(pool, null_mut(), Some(say_bye));
    }
    true
}

fn arrange_wanted(server: *mut server_rec, wanted: &Wanted) -> Result<(), String> {
    let command = launch::beside_module("highball").map_err(|error| format!("the module's directory: {error}"))?;
    if is_root() {
        launch::is_roots_own(&command)?;
    }
    let secret = launch::secret().map_err(|error| error.to_string())?;
    let state = state(server, wanted, secret)?;
    let error_log = error_log(server);
    let error_log = error_log.as_ref().map_or_else(standard_error, AsFd::as_fd);
    let directory = launch::arrange(&command, &state, error_log).map_err(|error| error.to_string())?;
    let arranged = directory.map_or_else(Vec::new, |directory| wanted.clients(&directory, secret));
    *ARRANGED.lock().unwrap_or_else(PoisonError::into_inner) = arranged;
    Ok(())
}

fn state(server: *mut server_rec, wanted: &Wanted, secret: &str) -> Result<DesiredState, String> {
    // SAFETY: constants and plain numbers of httpd's, set when the configuration was read.
    let (banner, identity) = unsafe { (ffi::text(ap_get_server_banner()), ap_unixd_config) };
    let (uid, gid) = if is_root() { (identity.user_id, identity.group_id) } else { process::ids() };
    let server = wanted::Server {
        software: String::from_utf8_lossy(banner).into_owned(),
        log: Log { format: LogFormat::Apache, level: level(server), path: error_log_path(server) },
        uid,
        gid,
        socket_prefix: ServerSettings::of(server).and_then(|settings| settings.socket_prefix.clone()),
        extension: launch::beside_module("libhighball_worker.so").map_err(|error| error.to_string())?,
    };
    Ok(wanted.state(server, secret))
}

fn level(server: *mut server_rec) -> LogLevel {
    let written = |level| log::is_written(server, level);
    match () {
        () if written(Level::Debug) => LogLevel::Debug,
        () if written(Level::Info) => LogLevel::Info,
        () if written(Level::Notice) => LogLevel::Notice,
        () if written(Level::Warn) => LogLevel::Warn,
        () if written(Level::Error) => LogLevel::Error,
        () => LogLevel::Crit,
    }
}

/// The descriptor of the error log, as our own.
fn error_log(server: *mut server_rec) -> Option<File> {
    let mut descriptor = -1;
    // SAFETY: the log is open as long as the configuration lives; the copy is ours.
    unsafe {
        let file = (*server).error_log;
        if file.is_null() || apr_os_file_get(&mut descriptor, file) != APR_SUCCESS {
            return None;
        }
        let copy = libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3);
        (copy >= 0).then(|| File::from_raw_fd(copy))
    }
}

fn standard_error<'a>() -> BorrowedFd<'a> {
    // SAFETY: a server's standard error is open as long as it runs.
    unsafe { BorrowedFd::borrow_raw(2) }
}

/// Where the log is a file, so that it can be opened again when it was rotated.
fn error_log_path(server: *mut server_rec) -> Option<PathBuf> {
    // SAFETY: the configuration's own strings and pool.
    let path = unsafe {
        let name = ffi::some_text((*server).error_fname)?;
        if name.starts_with(b"|") || name.starts_with(b"syslog") {
            return None;
        }
        ffi::some_text(ap_server_root_relative((*(*server).process).pool, (*server).error_fname))?
    };
    Some(process::path(path).into())
}

fn is_root() -> bool {
    process::ids().0 == 0
}

entry! {
    /// The parent ends: the groups end, with their exit functions, before a service manager kills what is left.
    fn say_bye(_data: *mut std::ffi::c_void) -> ffi::apr_status_t, else APR_SUCCESS, {
        if let Some(supervisor) = Supervisor::find() {
            let longest = *LONGEST_END.lock().unwrap_or_else(PoisonError::into_inner);
            supervisor.bye(longest).ok();
        }
        APR_SUCCESS
    }
}

/// A server process begins: it gives no orders.
pub fn begin() {
    // With -X one process is both.
    if MASTER.load(Ordering::Relaxed) != std::process::id() {
        launch::forget();
    }
    let arranged = ARRANGED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if arranged.is_empty() || GROUPS.set(arranged.into_iter().map(Group::new).collect()).is_err() {
        return;
    }
    let mind = || {
        let groups = GROUPS.get().map_or(&[][..], Vec::as_slice);
        loop {
            groups.iter().for_each(|group| group.mind(MOMENT / groups.len().max(1) as u32));
        }
    };
    let spawned = process::with_signals_blocked(|| thread::Builder::new().name("highball-mind".into()).spawn(mind));
    if let Err(error) = spawned {
        log::server(process::main_server(), Level::Error, &format!("no thread to watch process groups: {error}"));
    }
}

pub fn find(name: &str) -> Option<&'static Group> {
    GROUPS.get()?.iter().find(|group| group.settings().name == name)
}

/// Of all groups.
pub fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.get().map_or(&[][..], Vec::as_slice).iter().map(|group| group.settings().name.as_str())
}

/// Has the group answer.
pub fn serve(group: &Group, rec: Rec, callable: Option<&str>, reloading: bool, exchange: &mut Direct) {
    let target = Target::script(process::path(rec.filename()), callable.unwrap_or(DEFAULT_CALLABLE));
    let answerer = wanted::answerer(&group.settings().listed, target, reloading);
    group.serve(exchange, &answerer);
}

/// How often links to workers are looked at.
const MOMENT: Duration = Duration::from_millis(200);
