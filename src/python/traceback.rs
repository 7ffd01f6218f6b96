//! Turns the exception that is set on a thread into a [`Report`]: cause, remedy, traceback.

use std::ptr::null_mut;

use pyo3_ffi as ffi;

use super::interpreter::Interpreter;
use super::object::{self, Owned, Raised, as_str, display, type_name};
use crate::error::{Code, Report};
use crate::settings::{PYTHON_VERSION, Target};

/// The exception that is set on this thread, which is cleared.
pub(super) fn take() -> Option<Owned> {
    let (mut class, mut value, mut traceback) = (null_mut(), null_mut(), null_mut());
    // SAFETY: attached; each pointer is null or a new reference afterwards.
    #[allow(deprecated, reason = "the limited API of 3.10 has no other")]
    unsafe {
        ffi::PyErr_Fetch(&mut class, &mut value, &mut traceback);
        ffi::PyErr_NormalizeException(&mut class, &mut value, &mut traceback);
    }
    drop(Owned::new(class).ok()?);
    let value = Owned::new(value).ok()?;
    if let Ok(traceback) = Owned::new(traceback) {
        // SAFETY: attached; a traceback belongs to its exception.
        unsafe { ffi::PyException_SetTraceback(value.as_ptr(), traceback.as_ptr()) };
    }
    Some(value)
}

/// What an application raised while it handled a request.
pub(super) fn raised(interpreter: &Interpreter, application: &str) -> Report {
    let Some(error) = take() else {
        return Report::new(Code::Raised, format!("application \"{application}\" failed without an exception"));
    };
    let message = message(&error);
    let class = type_name(&error);
    // SAFETY: attached; both are alive.
    let is = |class: &Owned| unsafe { ffi::PyErr_GivenExceptionMatches(error.as_ptr(), class.as_ptr()) != 0 };
    let mut report = if is(&interpreter.boot.timed_out) {
        Report::new(Code::TimedOut, format!("application \"{application}\" was interrupted: its time was over"))
    } else if is(&interpreter.boot.retired) {
        Report::new(
            Code::Retired,
            format!("application \"{application}\" was interrupted: its server process had to end"),
        )
        .remedy("a request longer than the graceful limit is given up when the server reloads")
    } else if is_instance(&error, Kind::Exit) {
        Report::new(
            Code::Exit,
            format!("application \"{application}\" raised {class}({message}), which does not end a web server"),
        )
        .remedy("return a response instead")
    } else if let Some((code, cause)) = own_code(&message) {
        Report::new(code, format!("application \"{application}\": {cause}"))
    } else {
        Report::new(Code::Raised, format!("application \"{application}\" raised {class}: {message}"))
    };
    report.traceback = formatted(interpreter, &error);
    report
}

/// What kept an application from being loaded.
pub(super) fn load_failure(interpreter: &Interpreter, target: &Target) -> Report {
    let Some(error) = take() else {
        return Report::new(Code::ImportRaised, format!("application \"{target}\" cannot be loaded"));
    };
    let message = message(&error);
    let class = type_name(&error);
    let because = |cause: String| format!("application \"{target}\" cannot be loaded: {cause}");
    let mut report = if is_instance(&error, Kind::ModuleNotFound) {
        let missing = attribute(&error, c"name").unwrap_or_else(|| "?".into());
        let own = matches!(&target.place, crate::settings::Place::Module(module)
            if *module == missing || module.starts_with(&format!("{missing}.")));
        let remedy = if own {
            format!(
                "put the directory that contains {missing} on the path (wsgi_python_path, WSGIPythonPath, --chdir); now {}",
                interpreter.search_path()
            )
        } else {
            format!(
                "install it for the Python in use ({}), or name the virtual environment that has it (wsgi_python_home, \
                 WSGIPythonHome, --venv)",
                interpreter.prefix()
            )
        };
        Report::new(Code::ImportMissing, because(format!("there is no module \"{missing}\""))).remedy(remedy)
    } else if is_instance(&error, Kind::Syntax) {
        let file = attribute(&error, c"filename").unwrap_or_else(|| "?".into());
        let line = attribute(&error, c"lineno").unwrap_or_else(|| "?".into());
        Report::new(Code::ImportSyntax, because(format!("{class} in \"{file}\", line {line}: {message}")))
            .remedy(format!("correct the file; it is read by Python {PYTHON_VERSION}"))
    } else if is_instance(&error, Kind::Permission) {
        let file = attribute(&error, c"filename").unwrap_or_else(|| "?".into());
        // SAFETY: geteuid() always succeeds.
        let user = unsafe { libc::geteuid() };
        Report::new(Code::ScriptUnreadable, because(format!("the server's user (uid {user}) may not read \"{file}\"")))
            .remedy("allow it with chmod or chown")
    } else {
        Report::new(Code::ImportRaised, because(format!("{class}: {message}")))
            .remedy("correct what the traceback shows")
    };
    report.traceback = formatted(interpreter, &error);
    report
}

/// What an exception says, cut to a length a log line can have.
fn message(error: &Owned) -> String {
    let message = display(error);
    match message.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}[...]", message.get(..end).unwrap_or_default()),
        None => message,
    }
}

/// In characters.
const LONGEST_MESSAGE: usize = 2000;

/// Our own exceptions carry their code in front: `HB0405 the header name …`.
fn own_code(message: &str) -> Option<(Code, &str)> {
    let (code, cause) = message.split_at_checked(6)?;
    let cause = cause.strip_prefix(' ')?;
    Code::ALL.iter().find(|known| known.to_string() == code).map(|known| (*known, cause))
}

fn formatted(interpreter: &Interpreter, error: &Owned) -> Option<String> {
    match interpreter.boot.format_exception.call(&[error]) {
        Ok(text) => Some(display(&text)),
        Err(Raised) => {
            object::clear();
            None
        }
    }
}

fn attribute(error: &Owned, name: &std::ffi::CStr) -> Option<String> {
    match error.attribute(name) {
        Ok(value) => {
            let text = as_str(&value).map(str::to_owned);
            if text.is_err() {
                object::clear();
            }
            Some(text.unwrap_or_else(|_| display(&value)))
        }
        Err(Raised) => {
            object::clear();
            None
        }
    }
}

enum Kind {
    /// `SystemExit` and `KeyboardInterrupt`.
    Exit,
    ModuleNotFound,
    Syntax,
    Permission,
}

fn is_instance(error: &Owned, kind: Kind) -> bool {
    let matches = |class: *mut ffi::PyObject| {
        // SAFETY: attached; the exception classes live as long as the interpreter.
        unsafe { ffi::PyErr_GivenExceptionMatches(error.as_ptr(), class) != 0 }
    };
    // SAFETY: attached; the exception classes are set while Python runs.
    unsafe {
        match kind {
            Kind::Exit => matches(ffi::PyExc_SystemExit) || matches(ffi::PyExc_KeyboardInterrupt),
            Kind::ModuleNotFound => matches(ffi::PyExc_ModuleNotFoundError),
            Kind::Syntax => matches(ffi::PyExc_SyntaxError),
            Kind::Permission => matches(ffi::PyExc_PermissionError),
        }
    }
}
