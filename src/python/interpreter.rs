//! CPython in this process: start, end, and what exists once per interpreter.

use std::ffi::CStr;
use std::sync::Arc;

use pyo3_ffi as ffi;

use super::environ_dict::Environ;
use super::object::{
    self, Class, Owned, Raised, Releases, Result, as_str, import, none, raise, set_item, string, tuple,
};
use super::session::Session;
#[cfg(feature = "embed")]
use super::start;
use super::thread::{Detach, detached};
use super::types::{self, Method, method};
use super::{errors, input, start_response, traceback};
use crate::error::{Code, Report};
use crate::log::Level;
use crate::settings::InterpreterSettings;
use crate::startup;

/// What a host gives to the interpreter of its process. Called on any thread, detached; must not wait long.
pub trait Host: Send + Sync {
    /// Writes one record to the server's error log, outside any request. `text` may have several lines.
    fn log(&self, level: Level, text: &str);

    /// Python may have let a signal of the host's through on a thread of its own (while starting a child process): the
    /// host looks at its signal flags.
    fn wake(&self) {}

    /// The script of an application that is loaded has changed. Whether the host replaces this process: the application
    /// then stays as it is, else it is loaded again. `version` tells one change from the next. Attached, with no lock held.
    fn replaces(&self, _application: &str, _version: &str) -> bool {
        false
    }

    /// The application has forked, and this is the child, on its only thread: nothing of the host's may be used here.
    /// Attached.
    fn forked(&self) {}
}

/// Why an exception is raised in a thread that runs a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// Its process has to end.
    Retired,
    /// Its time is over.
    TimedOut,
}

/// One CPython interpreter. Lives as long as the process.
pub struct Interpreter {
    pub(super) state: *mut ffi::PyInterpreterState,
    pub(super) host: Arc<dyn Host>,
    pub(super) releases: Arc<Releases>,
    pub(super) types: Types,
    pub(super) boot: Boot,
    pub(super) environ: Environ,
}

// SAFETY: `state` is only given to PyThreadState_New, which any thread may call; the rest is Send and Sync.
unsafe impl Send for Interpreter {}
// SAFETY: as above.
unsafe impl Sync for Interpreter {}

/// The types of the objects given to applications.
pub(super) struct Types {
    pub(super) input: Owned,
    pub(super) errors: Owned,
    pub(super) start_response: Owned,
    pub(super) write: Owned,
}

/// What `boot.py` defines.
pub(super) struct Boot {
    pub(super) file_wrapper: Owned,
    pub(super) regular_file: Owned,
    pub(super) load_script: Owned,
    pub(super) load_module: Owned,
    pub(super) find_callable: Owned,
    pub(super) format_exception: Owned,
    pub(super) retired: Owned,
    pub(super) timed_out: Owned,
    pub(super) flush: Owned,
    pub(super) frames: Owned,
    pub(super) format_frames: Owned,
    pub(super) stacks: Owned,
    stop: Owned,
}

impl Interpreter {
    /// Starts Python on this thread, which becomes Python's main thread. Once per process. Takes some 10 to 40 ms.
    pub fn start(settings: &InterpreterSettings, host: Arc<dyn Host>) -> std::result::Result<Arc<Interpreter>, Report> {
        // An extension finds Python running already: it is the application's own.
        #[cfg(feature = "embed")]
        let started = start::start(settings).and_then(|()| Interpreter::set_up(settings, host));
        #[cfg(not(feature = "embed"))]
        let started = Interpreter::set_up(settings, host);
        if let Err(report) = &started {
            startup::tell(Err(report));
        }
        started
    }

    /// Attached since Python has just started; detaches.
    fn set_up(settings: &InterpreterSettings, host: Arc<dyn Host>) -> std::result::Result<Arc<Interpreter>, Report> {
        let _detach = Detach;
        Interpreter::make(settings, host).map_err(|Raised| {
            let message = traceback::take().map_or_else(String::new, |error| object::display(&error));
            Report::new(
                Code::PythonStart,
                format!("Python {} did not start: {message}", crate::settings::PYTHON_VERSION),
            )
            .remedy("check wsgi_python_home (WSGIPythonHome, --venv) and its standard library")
        })
    }

    fn make(settings: &InterpreterSettings, host: Arc<dyn Host>) -> Result<Arc<Interpreter>> {
        let boot = Boot::run(settings, host.clone())?;
        let types = Types {
            input: input::class()?,
            errors: errors::class()?,
            start_response: start_response::class()?,
            write: start_response::write_class()?,
        };
        let environ = Environ::new(settings, &boot.file_wrapper)?;
        // SAFETY: attached.
        let state = unsafe { ffi::PyInterpreterState_Get() };
        Ok(Arc::new(Interpreter { state, host, releases: Arc::default(), types, boot, environ }))
    }

    /// Runs Python's exit functions and flushes its streams; Python itself is left alone, as threads of the
    /// application may still run. Detached, once, when no request is running.
    pub fn stop(self: &Arc<Self>) {
        self.attach(|_| {
            if self.boot.stop.call(&[]).is_err() {
                let report = traceback::raised(self, "exit functions");
                detached(|| self.host.log(Level::Error, &report.to_string()));
            }
        });
    }

    /// `sys.prefix`, for messages. Attached.
    pub(super) fn prefix(&self) -> String {
        import(c"sys")
            .and_then(|sys| sys.attribute(c"prefix"))
            .map_or_else(|Raised| cleared(), |value| object::display(&value))
    }

    /// `sys.path`, for messages. Attached.
    pub(super) fn search_path(&self) -> String {
        import(c"sys")
            .and_then(|sys| sys.attribute(c"path"))
            .map_or_else(|Raised| cleared(), |value| object::display(&value))
    }
}

fn cleared() -> String {
    object::clear();
    "unknown".into()
}

impl Boot {
    fn run(settings: &InterpreterSettings, host: Arc<dyn Host>) -> Result<Boot> {
        let native = native_class()?;
        let native = types::instance(&native, Native(host))?;
        // SAFETY: attached.
        let namespace = Owned::new(unsafe { ffi::PyDict_New() })?;
        let signals: Vec<Owned> =
            settings.host_signals.iter().map(|signal| object::integer((*signal).into())).collect::<Result<_>>()?;
        let path: Vec<Owned> =
            settings.path.iter().map(|directory| string(&directory.to_string_lossy())).collect::<Result<_>>()?;
        for (name, value) in [
            ("__name__", string("highball")?),
            ("__file__", string(BOOT_FILE)?),
            ("log", native.attribute(c"log")?),
            ("note", native.attribute(c"note")?),
            ("unfinished", native.attribute(c"unfinished")?),
            ("wake", native.attribute(c"wake")?),
            ("record", native.attribute(c"record")?),
            ("forked", native.attribute(c"forked")?),
            ("host_signals", tuple(&signals.iter().collect::<Vec<_>>())?),
            ("own_process", object::boolean(settings.own_process)?),
            ("path", tuple(&path.iter().collect::<Vec<_>>())?),
        ] {
            set_item(&namespace, &string(name)?, &value)?;
        }
        let builtins = import(c"builtins")?;
        let code = builtins
            .call_method(c"compile", &[&string(include_str!("boot.py"))?, &string(BOOT_FILE)?, &string("exec")?])?;
        builtins.call_method(c"exec", &[&code, &namespace])?;
        let get = |name: &CStr| {
            // SAFETY: attached; gives a borrowed reference or null.
            let found = Owned::borrowed(unsafe { ffi::PyDict_GetItemString(namespace.as_ptr(), name.as_ptr()) });
            found.map_err(|Raised| raise(Class::Runtime, "boot.py is incomplete"))
        };
        Ok(Boot {
            file_wrapper: get(c"FileWrapper")?,
            regular_file: get(c"regular_file")?,
            load_script: get(c"load_script")?,
            load_module: get(c"load_module")?,
            find_callable: get(c"find_callable")?,
            format_exception: get(c"format_exception")?,
            retired: get(c"Retired")?,
            timed_out: get(c"RequestTimeout")?,
            flush: get(c"flush")?,
            frames: get(c"frames")?,
            format_frames: get(c"format_frames")?,
            stacks: get(c"stacks")?,
            stop: get(c"stop")?,
        })
    }
}

/// The host, as `boot.py` sees it.
struct Native(Arc<dyn Host>);

fn native_class() -> Result<Owned> {
    let methods: [Method; 6] = [
        method!(c"log", Native, log),
        method!(c"note", Native, note),
        method!(c"unfinished", Native, unfinished),
        method!(c"wake", Native, wake),
        method!(c"record", Native, logged),
        method!(c"forked", Native, forked),
    ];
    types::make::<Native>(c"highball.Native", &methods, &[])
}

/// What is printed goes to the log of the request this thread is running, if any.
fn log(native: &Native, arguments: types::Arguments<'_>) -> Result<Owned> {
    record(native, Level::Error, &arguments.only("log")?)
}

fn note(native: &Native, arguments: types::Arguments<'_>) -> Result<Owned> {
    record(native, Level::Info, &arguments.only("note")?)
}

fn record(native: &Native, level: Level, text: &Owned) -> Result<Owned> {
    let text = as_str(text)?;
    let session = Session::current();
    detached(|| match &session {
        Some(session) => session.log(level, text),
        None => native.0.log(level, text),
    });
    Ok(none())
}

fn unfinished(_: &Native, _: types::Arguments<'_>) -> Result<Owned> {
    Session::has_printed();
    Ok(none())
}

fn wake(native: &Native, _: types::Arguments<'_>) -> Result<Owned> {
    detached(|| native.0.wake());
    Ok(none())
}

/// A record of Python's logging: its number of severity, and its text.
fn logged(native: &Native, arguments: types::Arguments<'_>) -> Result<Owned> {
    let (Some(number), Some(text)) = (arguments.get(0), arguments.get(1)) else {
        return Err(raise(Class::Type, "record() takes two arguments"));
    };
    // SAFETY: attached; -1 with an exception for what is no integer.
    let number = unsafe { ffi::PyLong_AsLong(number.as_ptr()) };
    // The numbers of Python's logging levels.
    let level = match number {
        -1 => return Err(Raised),
        50.. => Level::Crit,
        40.. => Level::Error,
        30.. => Level::Warn,
        20.. => Level::Info,
        _ => Level::Debug,
    };
    record(native, level, &text)
}

fn forked(native: &Native, _: types::Arguments<'_>) -> Result<Owned> {
    native.0.forked();
    Ok(none())
}

const BOOT_FILE: &str = "<highball>";
