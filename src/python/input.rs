//! `wsgi.input`: PEP 3333, "Input and Error Streams". Reads in any thread; raises once the exchange is over.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3_ffi as ffi;

use super::object::{Class, Owned, Raised, Result, as_bytes, bytes, none, raise};
use super::session::Session;
use super::thread::detached;
use super::types::{self, Arguments, guarded, method};
use crate::exchange::BodyError;
use crate::request::BodyLength;

pub(super) struct Input {
    session: Arc<Session>,
    length: BodyLength,
    state: Mutex<State>,
}

/// What was read from the server and not yet by the application.
#[derive(Default)]
struct State {
    ahead: Vec<u8>,
    start: usize,
    /// Bytes the server gave so far.
    received: u64,
    ended: bool,
}

enum InputError {
    Over,
    Body(BodyError),
}

impl Input {
    pub(super) fn new(session: Arc<Session>, length: BodyLength) -> Input {
        Input { session, length, state: Mutex::default() }
    }

    /// Runs `f` on the state, detached: it may wait for the client or for another reader.
    fn detached<R>(&self, f: impl FnOnce(&mut State, &Session) -> R) -> R {
        detached(|| f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), &self.session))
    }

    /// How many bytes a read of `size` will give at most, where that is known and not too much to set aside.
    fn expected(&self, size: Option<usize>) -> Option<usize> {
        let rest = match self.length {
            BodyLength::Absent => Some(0),
            BodyLength::Unknown => None,
            BodyLength::Known(length) => self.state.try_lock().ok().map(|state| {
                let unread = length.saturating_sub(state.received) + state.unread().len() as u64;
                usize::try_from(unread).unwrap_or(usize::MAX)
            }),
        };
        match (size, rest) {
            (Some(size), Some(rest)) => Some(size.min(rest)),
            (size, rest) => size.or(rest),
        }
        .filter(|expected| *expected <= SET_ASIDE)
    }
}

impl State {
    fn unread(&self) -> &[u8] {
        self.ahead.get(self.start..).unwrap_or_default()
    }

    /// Asks the server for more, straight into `buffer`; 0 is the end.
    fn receive(&mut self, session: &Session, buffer: &mut [u8]) -> std::result::Result<usize, InputError> {
        let read = session.lease.with(|response| if self.ended { Ok(0) } else { response.read_body(buffer) });
        match read {
            Err(_) => Err(InputError::Over),
            Ok(Err(error)) => Err(InputError::Body(error)),
            Ok(Ok(count)) => {
                self.ended |= count == 0;
                self.received += count as u64;
                Ok(count)
            }
        }
    }

    /// Fills `buffer`; less than its length is the end of the body.
    fn fill(&mut self, session: &Session, buffer: &mut [u8]) -> std::result::Result<usize, InputError> {
        let ahead = self.unread().len().min(buffer.len());
        if let (Some(target), Some(source)) = (buffer.get_mut(..ahead), self.unread().get(..ahead)) {
            target.copy_from_slice(source);
        }
        self.start += ahead;
        let mut filled = ahead;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.receive(session, rest)? {
                0 => break,
                count => filled += count,
            }
        }
        if buffer.is_empty() {
            // Nothing is asked for; still an error once the exchange is over.
            session.lease.with(|_| ()).map_err(|_| InputError::Over)?;
        }
        Ok(filled)
    }

    /// Reads up to `size` bytes, or to the end.
    fn read(&mut self, session: &Session, size: Option<usize>) -> std::result::Result<Vec<u8>, InputError> {
        let mut out = Vec::new();
        loop {
            let wanted = size.map_or(CHUNK, |size| (size - out.len()).min(CHUNK));
            let before = out.len();
            out.resize(before + wanted, 0);
            let filled = self.fill(session, out.get_mut(before..).unwrap_or_default())?;
            out.truncate(before + filled);
            if filled < wanted || size == Some(out.len()) {
                return Ok(out);
            }
        }
    }

    /// Reads a line with its end, no longer than `size`; empty at the end of the body.
    fn readline(&mut self, session: &Session, size: Option<usize>) -> std::result::Result<Vec<u8>, InputError> {
        let mut searched = 0;
        loop {
            let unread = self.unread();
            let newline = unread.iter().skip(searched).position(|byte| *byte == b'\n').map(|at| searched + at + 1);
            let limit = size.filter(|size| *size <= unread.len());
            if let Some(end) = newline.into_iter().chain(limit).min() {
                return Ok(self.take(end));
            }
            searched = unread.len();
            self.ahead.drain(..std::mem::take(&mut self.start));
            self.ahead.resize(searched + LINE_CHUNK, 0);
            let mut ahead = std::mem::take(&mut self.ahead);
            let received = self.receive(session, ahead.get_mut(searched..).unwrap_or_default());
            ahead.truncate(searched + received.as_ref().map_or(0, |count| *count));
            self.ahead = ahead;
            if received? == 0 {
                return Ok(self.take(searched));
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let line = self.unread().iter().take(count).copied().collect();
        self.start += count;
        line
    }
}

fn read(input: &Input, arguments: Arguments<'_>) -> Result<Owned> {
    let size = arguments.size("read")?;
    let Some(expected) = input.expected(size) else {
        return bytes(&input.detached(|state, session| state.read(session, size)).map_err(InputError::raise)?);
    };
    // SAFETY: attached; a new bytes object of this size, not initialised.
    let object =
        Owned::new(unsafe { ffi::PyBytes_FromStringAndSize(null_mut::<i8>().cast(), expected as ffi::Py_ssize_t) })?;
    let filled = if expected == 0 {
        input.detached(|state, session| state.fill(session, &mut [])).map_err(InputError::raise)?
    } else {
        // SAFETY: attached; the memory is ours alone until the object is given to the application.
        let start = unsafe { ffi::PyBytes_AsString(object.as_ptr()) }.cast::<u8>();
        let filled = input.detached(|state, session| {
            // SAFETY: `expected` bytes, kept alive by `object`; bytes need no initialisation to be overwritten, and are
            // zeroed first because a slice must be.
            let buffer = unsafe {
                std::ptr::write_bytes(start, 0, expected);
                std::slice::from_raw_parts_mut(start, expected)
            };
            state.fill(session, buffer)
        });
        filled.map_err(InputError::raise)?
    };
    if filled < expected {
        return bytes(as_bytes(&object).and_then(|all| all.get(..filled)).unwrap_or_default());
    }
    // Content-Length is what the client said; a filter of the server's may have made more of it.
    let rest = size.map(|size| size - filled).filter(|rest| *rest > 0 || size == Some(0));
    if rest.is_none() && size.is_some() {
        return Ok(object);
    }
    let more = input.detached(|state, session| state.read(session, rest)).map_err(InputError::raise)?;
    if more.is_empty() { Ok(object) } else { bytes(&[as_bytes(&object).unwrap_or_default(), &more].concat()) }
}

fn readline(input: &Input, arguments: Arguments<'_>) -> Result<Owned> {
    let size = arguments.size("readline")?;
    line(input, size)
}

fn line(input: &Input, size: Option<usize>) -> Result<Owned> {
    bytes(&input.detached(|state, session| state.readline(session, size)).map_err(InputError::raise)?)
}

/// All lines, or the first ones of at least `hint` bytes together.
fn readlines(input: &Input, arguments: Arguments<'_>) -> Result<Owned> {
    let hint = arguments.size("readlines")?.filter(|hint| *hint > 0);
    // SAFETY: attached.
    let list = Owned::new(unsafe { ffi::PyList_New(0) })?;
    let mut total = 0;
    loop {
        let line = line(input, None)?;
        let length = as_bytes(&line).map_or(0, <[u8]>::len);
        if length == 0 {
            return Ok(list);
        }
        // SAFETY: attached; the list takes a reference of its own.
        if unsafe { ffi::PyList_Append(list.as_ptr(), line.as_ptr()) } < 0 {
            return Err(Raised);
        }
        total += length;
        if hint.is_some_and(|hint| total >= hint) {
            return Ok(list);
        }
    }
}

/// Closing is the server's business.
fn close(_: &Input, _: Arguments<'_>) -> Result<Owned> {
    Ok(none())
}

/// # Safety
/// Called by CPython on an instance.
unsafe extern "C" fn next(object: *mut ffi::PyObject) -> *mut ffi::PyObject {
    guarded(|| {
        // SAFETY: CPython calls the slot of this type on its instances only.
        let line = line(unsafe { types::value::<Input>(object) }, None)?;
        // Null without an exception is the end of the iteration.
        if as_bytes(&line).is_some_and(<[u8]>::is_empty) { Err(Raised) } else { Ok(line) }
    })
}

pub(super) fn class() -> Result<Owned> {
    let iter: ffi::getiterfunc = ffi::PyObject_SelfIter;
    let next: ffi::iternextfunc = next;
    types::make::<Input>(
        c"highball.Input",
        &[
            method!(c"read", Input, read),
            method!(c"readline", Input, readline),
            method!(c"readlines", Input, readlines),
            method!(c"close", Input, close),
        ],
        &[(ffi::Py_tp_iter, iter as *mut c_void), (ffi::Py_tp_iternext, next as *mut c_void)],
    )
}

impl InputError {
    /// An error is never mapped to "empty": what did not arrive raises `OSError`.
    fn raise(self) -> Raised {
        match self {
            InputError::Over => raise(Class::Runtime, "wsgi.input was used after the request was over"),
            InputError::Body(error @ (BodyError::Truncated | BodyError::TimedOut)) => {
                raise(Class::Connection, &error.to_string())
            }
            InputError::Body(error) => raise(Class::Os, &error.to_string()),
        }
    }
}

/// A read whose size is known is set aside at once up to here; larger ones grow as the body arrives.
const SET_ASIDE: usize = 16 * 1024 * 1024;
const CHUNK: usize = 64 * 1024;
const LINE_CHUNK: usize = 8 * 1024;
