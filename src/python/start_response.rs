//! `start_response` and the `write` it returns: PEP 3333, "The start_response() Callable" and "The write() Callable".

use std::borrow::Cow;
use std::ffi::c_void;
use std::sync::Arc;

use pyo3_ffi as ffi;

use super::object::{self, Class, Owned, Raised, Result, as_bytes, as_str, none, raise};
use super::session::Session;
use super::thread::detached;
use super::types::{self, guarded};
use crate::error::Code;
use crate::response::Head;
use crate::run::{Lease, Response, StartError, WriteError};

pub(super) struct StartResponse(pub(super) Arc<Session>);
struct Write(Arc<Session>);

/// # Safety
/// Called by CPython on an instance, with a tuple and a dict or null.
unsafe extern "C" fn start_response(
    object: *mut ffi::PyObject,
    arguments: *mut ffi::PyObject,
    keywords: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    guarded(|| {
        // SAFETY: CPython calls the slot of this type on its instances only.
        let session = unsafe { &types::value::<StartResponse>(object).0 };
        let arguments = Owned::borrowed(arguments)?;
        let mut exc_info = item(&arguments, 2);
        if !keywords.is_null() {
            exc_info = exc_info.or(keyword_exc_info(&Owned::borrowed(keywords)?)?);
        }
        // SAFETY: attached; the tuple is alive. None is compared by identity.
        let count = unsafe { ffi::PyTuple_Size(arguments.as_ptr()) };
        let (Some(status), Some(headers), 2..=3) = (item(&arguments, 0), item(&arguments, 1), count) else {
            return Err(raise(
                Class::Type,
                "start_response() takes status, headers and optionally exc_info (PEP 3333)",
            ));
        };
        // SAFETY: attached; None is compared by identity.
        let exc_info = exc_info.filter(|value| value.as_ptr() != unsafe { ffi::Py_None() });
        if !exc_info.as_ref().is_none_or(is_exc_info) {
            return Err(raise(
                Class::Type,
                "exc_info is the tuple that sys.exc_info() gives in an except clause (PEP 3333)",
            ));
        }
        let head = head(&status, &headers)?;
        match on_response(&session.lease, |response| response.start(head, exc_info.is_some()))? {
            Ok(()) => types::instance(&session.interpreter.types.write, Write(session.clone())),
            Err(StartError::AlreadyCalled) => Err(raise(
                Class::Runtime,
                "start_response() was called a second time without exc_info (PEP 3333, \"The start_response() Callable\")",
            )),
            Err(StartError::HeadSent) => Err(raise_again(&exc_info)),
        }
    })
}

/// The response, at once where it is free: what is done here never waits.
fn on_response<R>(lease: &Lease, f: impl FnOnce(&mut Response) -> R) -> Result<R> {
    lease
        .with_soon(f, |wait| detached(wait))
        .map_err(|_| raise(Class::Runtime, "start_response() was called after the request was over"))
}

fn item(tuple: &Owned, index: ffi::Py_ssize_t) -> Option<Owned> {
    // SAFETY: attached; gives a borrowed reference, or null and an exception.
    let item = Owned::borrowed(unsafe { ffi::PyTuple_GetItem(tuple.as_ptr(), index) });
    if item.is_err() {
        object::clear();
    }
    item.ok()
}

fn keyword_exc_info(keywords: &Owned) -> Result<Option<Owned>> {
    // SAFETY: attached; gives a borrowed reference or null.
    let value = Owned::borrowed(unsafe { ffi::PyDict_GetItemString(keywords.as_ptr(), c"exc_info".as_ptr()) }).ok();
    // SAFETY: attached.
    let count = unsafe { ffi::PyDict_Size(keywords.as_ptr()) };
    if count != ffi::Py_ssize_t::from(value.is_some()) {
        return Err(raise(Class::Type, "start_response() takes no keyword but exc_info"));
    }
    Ok(value)
}

/// Whether it is what `sys.exc_info()` gives while an exception is handled: class, exception, traceback.
fn is_exc_info(value: &Owned) -> bool {
    // SAFETY: attached.
    if unsafe { ffi::PyTuple_Check(value.as_ptr()) == 0 || ffi::PyTuple_Size(value.as_ptr()) != 3 } {
        return false;
    }
    let (Some(class), Some(error), Some(traceback)) = (item(value, 0), item(value, 1), item(value, 2)) else {
        return false;
    };
    // SAFETY: attached; all three are alive. None is compared by identity.
    unsafe {
        ffi::PyExceptionInstance_Check(error.as_ptr()) != 0
            && ffi::Py_TYPE(error.as_ptr()).cast() == class.as_ptr()
            && (traceback.as_ptr() == ffi::Py_None() || ffi::PyTraceBack_Check(traceback.as_ptr()) != 0)
    }
}

/// PEP 3333: "if headers have already been sent, the error is raised again".
fn raise_again(exc_info: &Option<Owned>) -> Raised {
    let Some(exc_info) = exc_info else { return Raised };
    let parts = [item(exc_info, 0), item(exc_info, 1), item(exc_info, 2)];
    let [Some(class), Some(value), Some(traceback)] = parts else {
        return raise(Class::Type, "exc_info is the tuple of sys.exc_info() (PEP 3333)");
    };
    // SAFETY: attached. None is compared by identity.
    let traceback =
        if traceback.as_ptr() == unsafe { ffi::Py_None() } { std::ptr::null_mut() } else { traceback.into_ptr() };
    // SAFETY: attached; the function takes over the three references.
    #[allow(deprecated, reason = "the limited API of 3.10 has no other")]
    unsafe {
        ffi::PyErr_Restore(class.into_ptr(), value.into_ptr(), traceback);
    }
    Raised
}

fn head(status: &Owned, headers: &Owned) -> Result<Head> {
    // SAFETY: attached.
    if unsafe { ffi::PyList_Check(headers.as_ptr()) } == 0 {
        let what = object::type_name(headers);
        return Err(invalid(Class::Type, &format!("the headers are a {what}, not a list of (name, value) tuples")));
    }
    // SAFETY: attached; it is a list.
    let count = unsafe { ffi::PyList_Size(headers.as_ptr()) };
    let status = latin1(status, |fault| format!("the status {:?} {fault}", object::display(status)))?;
    let mut head = Head::new(&status).map_err(|error| invalid(Class::Value, &error.to_string()))?;
    for index in 0..count {
        // SAFETY: attached; gives a borrowed reference, or null and an exception if the list has shrunk meanwhile.
        let pair = Owned::borrowed(unsafe { ffi::PyList_GetItem(headers.as_ptr(), index) })?;
        // SAFETY: attached.
        let pair_of_two = unsafe { ffi::PyTuple_Check(pair.as_ptr()) != 0 && ffi::PyTuple_Size(pair.as_ptr()) == 2 };
        let (Some(name), Some(value), true) = (item(&pair, 0), item(&pair, 1), pair_of_two) else {
            let what = object::type_name(&pair);
            return Err(invalid(Class::Type, &format!("header {} is a {what}, not a (name, value) tuple", index + 1)));
        };
        let name = latin1(&name, |fault| format!("the header name {:?} {fault}", object::display(&name)))?;
        let value =
            latin1(&value, |fault| format!("the value of header {:?} {fault}", String::from_utf8_lossy(&name)))?;
        head.push(&name, &value).map_err(|error| invalid(Class::Value, &error.to_string()))?;
    }
    Ok(head)
}

/// PEP 3333, "A Note on String Types": native strings that hold latin-1. `sentence` says of what the fault is told; it may
/// show names, not values.
fn latin1(text: &Owned, sentence: impl Fn(&str) -> String) -> Result<Cow<'_, [u8]>> {
    // SAFETY: attached.
    if unsafe { ffi::PyUnicode_Check(text.as_ptr()) } == 0 {
        let fault = format!("is a {}, not a str", object::type_name(text));
        return Err(invalid(Class::Type, &sentence(&fault)));
    }
    match as_str(text) {
        Ok(text) if text.is_ascii() => return Ok(Cow::Borrowed(text.as_bytes())),
        Ok(_) => {}
        Err(Raised) => object::clear(),
    }
    // SAFETY: attached; it is a str.
    match Owned::new(unsafe { ffi::PyUnicode_AsLatin1String(text.as_ptr()) }) {
        Ok(encoded) => Ok(Cow::Owned(as_bytes(&encoded).unwrap_or_default().to_vec())),
        Err(Raised) => {
            object::clear();
            Err(invalid(Class::Value, &sentence("has characters beyond latin-1 (PEP 3333)")))
        }
    }
}

fn invalid(class: Class, message: &str) -> Raised {
    raise(class, &format!("{} {message}", Code::HeadInvalid))
}

/// # Safety
/// Called by CPython on an instance, with a tuple and a dict or null.
unsafe extern "C" fn write(
    object: *mut ffi::PyObject,
    arguments: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    guarded(|| {
        // SAFETY: CPython calls the slot of this type on its instances only.
        let session = unsafe { &types::value::<Write>(object).0 };
        let arguments = Owned::borrowed(arguments)?;
        // SAFETY: attached; the tuple is alive.
        let count = unsafe { ffi::PyTuple_Size(arguments.as_ptr()) };
        let (Some(data), 1) = (item(&arguments, 0), count) else {
            return Err(raise(Class::Type, &format!("write() takes one argument ({count} given)")));
        };
        let class = if object::as_bytes(&data).is_some() { String::new() } else { object::type_name(&data) };
        let Some(block) = object::block(data, &session.interpreter.releases) else {
            return Err(raise(
                Class::Type,
                &format!("{} write() takes bytes, not {class} (PEP 3333)", Code::BlockType),
            ));
        };
        // PEP 3333: write() returns when the data is sent or queued for transmission while the application goes on.
        match detached(|| session.lease.with(|response| response.write(block))) {
            Ok(Ok(_)) => Ok(none()),
            Ok(Err(WriteError::ClientGone)) => Err(raise(Class::Connection, "the client closed the connection")),
            Ok(Err(WriteError::NotStarted)) | Err(_) => {
                Err(raise(Class::Runtime, "write() was called after the request was over"))
            }
        }
    })
}

pub(super) fn class() -> Result<Owned> {
    let call: ffi::ternaryfunc = start_response;
    types::make::<StartResponse>(c"highball.StartResponse", &[], &[(ffi::Py_tp_call, call as *mut c_void)])
}

pub(super) fn write_class() -> Result<Owned> {
    let call: ffi::ternaryfunc = write;
    types::make::<Write>(c"highball.Write", &[], &[(ffi::Py_tp_call, call as *mut c_void)])
}
