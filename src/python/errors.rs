//! `wsgi.errors`: a text stream into the server's error log, in the context of the request. Any thread, any time.

use std::sync::Arc;

use super::object::{Class, Owned, Raised, Result, as_str, display, none, raise};
use super::session::Session;
use super::thread::detached;
use super::types::{self, Arguments, method};
use pyo3_ffi as ffi;

pub(super) struct Errors(pub(super) Arc<Session>);

/// Text mode, no line is lost: lone surrogates are escaped.
fn write(errors: &Errors, arguments: Arguments<'_>) -> Result<Owned> {
    let text = arguments.only("write")?;
    write_text(errors, &text)?;
    // SAFETY: attached.
    Owned::new(unsafe { ffi::PyLong_FromSsize_t(ffi::PyUnicode_GetLength(text.as_ptr())) })
}

fn write_text(errors: &Errors, text: &Owned) -> Result<()> {
    // SAFETY: attached.
    if unsafe { ffi::PyUnicode_Check(text.as_ptr()) } == 0 {
        return Err(raise(Class::Type, "wsgi.errors is a text stream: write() takes a str (PEP 3333)"));
    }
    match as_str(text) {
        Ok(text) => detached(|| errors.0.write_errors(text)),
        Err(Raised) => {
            super::object::clear();
            let text = display(text);
            detached(|| errors.0.write_errors(&text));
        }
    }
    Ok(())
}

fn writelines(errors: &Errors, arguments: Arguments<'_>) -> Result<Owned> {
    let lines = arguments.only("writelines")?;
    // SAFETY: attached.
    let iterator = Owned::new(unsafe { ffi::PyObject_GetIter(lines.as_ptr()) })?;
    loop {
        // SAFETY: attached.
        match Owned::new(unsafe { ffi::PyIter_Next(iterator.as_ptr()) }) {
            Ok(line) => write_text(errors, &line)?,
            // SAFETY: attached.
            Err(Raised) if unsafe { ffi::PyErr_Occurred() }.is_null() => return Ok(none()),
            Err(Raised) => return Err(Raised),
        }
    }
}

fn flush(errors: &Errors, _: Arguments<'_>) -> Result<Owned> {
    if errors.0.has_unfinished_line() {
        detached(|| errors.0.flush_errors());
    }
    Ok(none())
}

pub(super) fn class() -> Result<Owned> {
    types::make::<Errors>(
        c"highball.Errors",
        &[
            method!(c"write", Errors, write),
            method!(c"writelines", Errors, writelines),
            method!(c"flush", Errors, flush),
        ],
        &[],
    )
}
