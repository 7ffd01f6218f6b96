//! One application as mounted: its place, its callable once loaded, why it could not be.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3_ffi as ffi;

use super::interpreter::Interpreter;
use super::object::{self, Deferred, Owned, Raised, bytes, string, type_name};
use super::thread::{Attached, detached};
use super::{home, traceback};
use crate::error::{Code, Report};
use crate::log::Level;
use crate::settings::{ApplicationSettings, Place, Target};
use crate::startup;

pub struct Application {
    settings: ApplicationSettings,
    name: String,
    state: Mutex<State>,
    /// Signalled when a load has ended.
    loaded: Condvar,
}

#[derive(Default)]
struct State {
    callable: Option<Deferred>,
    failure: Option<Arc<Report>>,
    /// The script file that `callable` or `failure` came from.
    stamp: Option<Stamp>,
    /// When the script file was last looked at, and what was found.
    looked: Option<(Instant, Option<Stamp>)>,
    /// A thread is loading just now.
    loading: bool,
    ended: Option<Instant>,
}

/// Tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// How far an application is.
#[derive(Debug, Clone)]
pub enum Status {
    /// Not loaded yet; perhaps somebody is doing so.
    Loading,
    Ready,
    Failed(Arc<Report>),
}

impl Application {
    pub fn new(settings: ApplicationSettings) -> Arc<Application> {
        let name = settings.target.to_string();
        Arc::new(Application { settings, name, state: Mutex::default(), loaded: Condvar::new() })
    }

    /// As in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Any thread.
    pub fn status(&self) -> Status {
        let state = self.lock();
        match (&state.callable, &state.failure) {
            (Some(_), _) => Status::Ready,
            (None, Some(report)) => Status::Failed(report.clone()),
            (None, None) => Status::Loading,
        }
    }

    /// Imports the application, unless it is there already, and logs how it went. Any thread, detached.
    pub fn load(&self, interpreter: &Arc<Interpreter>) {
        interpreter.attach(|attached| drop(self.callable(attached)));
    }

    /// The callable, loaded first where that has not happened or the script has changed.
    pub(super) fn callable(&self, attached: &mut Attached<'_>) -> Result<Owned, Arc<Report>> {
        let stamp = self.stamp(attached);
        let mut deadline = None;
        // The host does not replace the process for a changed script.
        let mut refused = false;
        loop {
            let mut state = self.lock();
            let current = state.stamp == stamp || !self.settings.script_reloading;
            match &*state {
                // While a changed script is loaded again, the others go on with what there is.
                State { callable: Some(callable), loading, .. } if current || *loading => {
                    return Ok(callable.get());
                }
                State { callable: Some(callable), .. } if !refused => {
                    let callable = callable.get();
                    drop(state);
                    if attached.interpreter.host.replaces(&self.name, &format!("{stamp:?}")) {
                        return Ok(callable);
                    }
                    refused = true;
                }
                State { failure: Some(report), loading: true, .. } => return Err(report.clone()),
                State { failure: Some(report), ended: Some(ended), .. } if current && ended.elapsed() < RETRY => {
                    return Err(report.clone());
                }
                State { loading: true, .. } => {
                    drop(state);
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + LONGEST_WAIT);
                    if !attached.detached(|| self.wait(deadline)) {
                        let cause = format!("application \"{}\" is still being loaded", self.name);
                        return Err(Arc::new(
                            Report::new(Code::LoadTimeout, cause).remedy("see what its import waits for"),
                        ));
                    }
                }
                _ => {
                    state.loading = true;
                    drop(state);
                    self.load_once(attached, stamp);
                }
            }
        }
    }

    /// The script file as it is now, or was a moment ago.
    fn stamp(&self, attached: &mut Attached<'_>) -> Option<Stamp> {
        let Place::Script(path) = &self.settings.target.place else { return None };
        if !self.settings.script_reloading {
            return None;
        }
        let now = Instant::now();
        // Not that of what is loaded: a first load, or the next one, may be under way.
        let looked = self.lock().looked;
        if let Some((at, stamp)) = looked
            && now.duration_since(at) < FRESH
        {
            return stamp;
        }
        let stamp = attached.detached(|| Stamp::of(path));
        self.lock().looked = Some((now, stamp));
        stamp
    }

    /// Loads and keeps the result. `loading` was set by the caller.
    fn load_once(&self, attached: &mut Attached<'_>, stamp: Option<Stamp>) {
        /// Ends the load in every case, so that nobody waits for it in vain.
        struct Loading<'a>(&'a Application);
        impl Drop for Loading<'_> {
            fn drop(&mut self) {
                let mut state = self.0.lock();
                state.loading = false;
                state.ended = Some(Instant::now());
                self.0.loaded.notify_all();
            }
        }
        let loading = Loading(self);
        let begun = Instant::now();
        let result = self.import(attached.interpreter);
        let host = &attached.interpreter.host;
        let mut state = self.lock();
        state.stamp = stamp;
        let old = state.callable.take();
        match result {
            Ok(callable) => {
                state.callable = Some(Deferred::new(callable, &attached.interpreter.releases));
                state.failure = None;
                drop(state);
                let text = format!("application \"{}\" loaded in {} ms", self.name, begun.elapsed().as_millis());
                detached(|| {
                    host.log(Level::Notice, &text);
                    startup::tell(Ok(()));
                });
            }
            Err(report) => {
                let report = Arc::new(report);
                state.failure = Some(report.clone());
                drop(state);
                detached(|| {
                    host.log(Level::Error, &report.to_string());
                    startup::tell(Err(&report));
                });
            }
        }
        drop(loading);
        // Last, as it may run code of the application.
        drop(old);
    }

    fn import(&self, interpreter: &Interpreter) -> Result<Owned, Report> {
        let target = &self.settings.target;
        let raised = |Raised| traceback::load_failure(interpreter, target);
        let module = match &target.place {
            Place::Module(name) => {
                string(name).and_then(|name| interpreter.boot.load_module.call(&[&name])).map_err(raised)?
            }
            Place::Script(path) => {
                let source = detached(|| std::fs::read(path)).map_err(|error| unreadable(target, path, &error))?;
                string(&path.to_string_lossy())
                    .and_then(|path| interpreter.boot.load_script.call(&[&path, &bytes(&source)?]))
                    .map_err(raised)?
            }
        };
        let callable = string(&target.callable)
            .and_then(|name| interpreter.boot.find_callable.call(&[&module, &name]))
            .map_err(|Raised| missing_callable(target))?;
        // SAFETY: attached.
        let is_callable = |object: &Owned| unsafe { ffi::PyCallable_Check(object.as_ptr()) } != 0;
        let not_callable = |object: &Owned, what: &str| {
            Report::new(
                Code::CallableWrong,
                format!(
                    "application \"{target}\" cannot be loaded: {what} is a {}, which cannot be called",
                    type_name(object)
                ),
            )
            .remedy("name a WSGI application: a callable of environ and start_response (PEP 3333)")
        };
        if !is_callable(&callable) {
            return Err(not_callable(&callable, &format!("\"{}\"", target.callable)));
        }
        if !target.factory {
            return Ok(callable);
        }
        let made = callable.call(&[]).map_err(raised)?;
        if is_callable(&made) {
            Ok(made)
        } else {
            Err(not_callable(&made, &format!("what \"{}()\" returned", target.callable)))
        }
    }

    /// Waits for a load to end; `false` when the time is over.
    fn wait(&self, deadline: Instant) -> bool {
        let state = self.lock();
        let rest = deadline.saturating_duration_since(Instant::now());
        let result = self.loaded.wait_timeout_while(state, rest, |state| state.loading);
        result.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    /// Held for moments only, never while Python runs.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stamp {
    /// A file as it is now; nothing for a missing one.
    fn of(path: &Path) -> Option<Stamp> {
        let file = std::fs::metadata(path).ok()?;
        Some(Stamp { inode: file.ino(), size: file.size(), modified: (file.mtime(), file.mtime_nsec()) })
    }
}

fn unreadable(target: &Target, path: &Path, error: &std::io::Error) -> Report {
    let shown = path.display();
    let because = |cause: String| format!("application \"{target}\" cannot be loaded: {cause}");
    if error.kind() == ErrorKind::PermissionDenied {
        // SAFETY: geteuid() always succeeds.
        let user = unsafe { libc::geteuid() };
        let closed = path.parent().and_then(home::first_closed_directory);
        let remedy = match &closed {
            Some(directory) => format!("allow it with chmod o+x {}", directory.display()),
            None => format!("allow it with chmod o+r {shown}"),
        };
        let place = closed.as_deref().unwrap_or(path).display();
        let cause = because(format!("the server's user (uid {user}) may not read \"{shown}\" (closed: \"{place}\")"));
        return Report::new(Code::ScriptUnreadable, cause).remedy(remedy);
    }
    let code = if error.kind() == ErrorKind::NotFound { Code::ScriptMissing } else { Code::ScriptUnreadable };
    Report::new(code, because(format!("open() \"{shown}\" failed: {error}")))
        .remedy("correct the path in the configuration")
}

fn missing_callable(target: &Target) -> Report {
    let there = traceback::take().map_or_else(String::new, |error| object::display(&error));
    let place = match &target.place {
        Place::Module(module) => format!("module \"{module}\""),
        Place::Script(path) => format!("script \"{}\"", path.display()),
    };
    let cause = format!("application \"{target}\" cannot be loaded: {place} has no \"{}\"", target.callable);
    let remedy = if there.is_empty() { "correct the name".into() } else { format!("correct the name; it has {there}") };
    Report::new(Code::CallableMissing, cause).remedy(remedy)
}

/// A script file is looked at no more often than this: a system call, and the interpreter handed on round it, would be
/// much of what a small request costs.
const FRESH: Duration = Duration::from_secs(1);

/// How long a request waits for the first load of its application.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A failed load is tried again by a request, no more often than this.
const RETRY: Duration = Duration::from_secs(1);
