//! Starts CPython inside a server's process. Not part of the limited API, and not needed by an extension.

use std::ffi::{CStr, CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pyo3_ffi as ffi;

use super::home;
use crate::error::{Code, Report};
use crate::settings::InterpreterSettings;

/// Starts CPython isolated from the environment of the server: a virtual environment is named by its `python`, text is
/// UTF-8 whatever the locale, signals stay the server's.
pub(super) fn start(settings: &InterpreterSettings) -> std::result::Result<(), Report> {
    let executable = match &settings.home {
        Some(directory) => Some(home::executable(directory)?),
        None => option_env!("HIGHBALL_PYTHON").map(Into::into),
    };
    let failed = |status: ffi::PyStatus| {
        let message = if status.err_msg.is_null() {
            "no reason given".into()
        } else {
            // SAFETY: CPython's messages are static strings.
            unsafe { CStr::from_ptr(status.err_msg) }.to_string_lossy().into_owned()
        };
        let place =
            settings.home.as_deref().map_or_else(String::new, |home| format!(" with the home \"{}\"", home.display()));
        Report::new(Code::PythonStart, format!("Python did not start{place}: {message}")).remedy(
            "check wsgi_python_home (WSGIPythonHome, --venv): it must be complete and readable by the server's user",
        )
    };
    // SAFETY: plain C structures, set up by CPython's own functions before use and cleared after.
    unsafe {
        let mut pre = std::mem::zeroed();
        ffi::PyPreConfig_InitIsolatedConfig(&mut pre);
        pre.utf8_mode = 1;
        if std::env::var_os(MALLOC_VARIABLE).is_some() {
            pre.allocator = ALLOCATOR_MALLOC;
        }
        let status = ffi::Py_PreInitialize(&pre);
        if ffi::PyStatus_Exception(status) != 0 {
            return Err(failed(status));
        }
        let mut config = std::mem::zeroed();
        ffi::PyConfig_InitIsolatedConfig(&mut config);
        config.install_signal_handlers = 0;
        config.parse_argv = 0;
        let mut status = ffi::PyStatus_Ok();
        if let Some(path) = executable.as_deref().and_then(c_path) {
            status = ffi::PyConfig_SetBytesString(&mut config, &raw mut config.executable, path.as_ptr());
            if ffi::PyStatus_Exception(status) == 0 {
                status = ffi::PyConfig_SetBytesString(&mut config, &raw mut config.program_name, path.as_ptr());
            }
        }
        if ffi::PyStatus_Exception(status) == 0 {
            status = ffi::Py_InitializeFromConfig(&config);
        }
        ffi::PyConfig_Clear(&mut config);
        if ffi::PyStatus_Exception(status) != 0 { Err(failed(status)) } else { Ok(()) }
    }
}

fn c_path(path: &Path) -> Option<CString> {
    CString::new(path.as_os_str().as_bytes()).ok()
}

/// Set by tests that look for memory errors: Python's own allocator hides them. Not for anybody else.
const MALLOC_VARIABLE: &str = "HIGHBALL_TEST_MALLOC";

/// `PYMEM_ALLOCATOR_MALLOC` of CPython's `cpython/pymem.h`.
const ALLOCATOR_MALLOC: c_int = 3;
