//! Owned references and the few conversions we need, over CPython's C interface.
//!
//! Rules of this file, named once: every function here is called attached, as is the drop of an [`Owned`]; a pointer
//! taken from an `Owned` is used no longer than it lives. A C function that fails leaves an exception set on this
//! thread, which [`Raised`] stands for.

use std::ffi::CStr;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3_ffi as ffi;

use crate::exchange::Block;

/// A strong reference. Dropped attached only.
pub(super) struct Owned(NonNull<ffi::PyObject>);

// SAFETY: CPython allows a reference to be used on any thread that is attached, which the rule above demands.
unsafe impl Send for Owned {}
// SAFETY: as above; the pointer itself never changes.
unsafe impl Sync for Owned {}

/// An exception is set on this thread.
#[derive(Debug)]
pub(super) struct Raised;

pub(super) type Result<T> = std::result::Result<T, Raised>;

impl Owned {
    /// Takes over a new reference, as C functions return it; null means an exception is set.
    pub(super) fn new(pointer: *mut ffi::PyObject) -> Result<Owned> {
        NonNull::new(pointer).map(Owned).ok_or(Raised)
    }

    /// A further reference to a borrowed object.
    pub(super) fn borrowed(pointer: *mut ffi::PyObject) -> Result<Owned> {
        let pointer = NonNull::new(pointer).ok_or(Raised)?;
        // SAFETY: attached; the caller's pointer is alive.
        unsafe { ffi::Py_INCREF(pointer.as_ptr()) };
        Ok(Owned(pointer))
    }

    pub(super) fn clone_ref(&self) -> Owned {
        // SAFETY: attached; we hold a reference.
        unsafe { ffi::Py_INCREF(self.as_ptr()) };
        Owned(self.0)
    }

    pub(super) fn as_ptr(&self) -> *mut ffi::PyObject {
        self.0.as_ptr()
    }

    /// Gives the reference away, as C functions expect of a return value.
    pub(super) fn into_ptr(self) -> *mut ffi::PyObject {
        let pointer = self.as_ptr();
        std::mem::forget(self);
        pointer
    }

    pub(super) fn attribute(&self, name: &CStr) -> Result<Owned> {
        // SAFETY: attached; both pointers are alive.
        Owned::new(unsafe { ffi::PyObject_GetAttrString(self.as_ptr(), name.as_ptr()) })
    }

    /// Calls with positional arguments.
    pub(super) fn call(&self, arguments: &[&Owned]) -> Result<Owned> {
        let tuple = tuple(arguments)?;
        // SAFETY: attached; the tuple is ours.
        Owned::new(unsafe { ffi::PyObject_CallObject(self.as_ptr(), tuple.as_ptr()) })
    }

    /// Calls a method with positional arguments.
    pub(super) fn call_method(&self, name: &CStr, arguments: &[&Owned]) -> Result<Owned> {
        self.attribute(name)?.call(arguments)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: attached, by the rule of this file; the reference is ours.
        unsafe { ffi::Py_DECREF(self.0.as_ptr()) }
    }
}

pub(super) fn none() -> Owned {
    // SAFETY: None lives as long as the interpreter.
    let none = unsafe { ffi::Py_None() };
    // SAFETY: attached.
    unsafe { ffi::Py_INCREF(none) };
    // SAFETY: None is never null.
    Owned(unsafe { NonNull::new_unchecked(none) })
}

pub(super) fn boolean(value: bool) -> Result<Owned> {
    // SAFETY: attached.
    Owned::new(unsafe { ffi::PyBool_FromLong(value.into()) })
}

pub(super) fn integer(value: i64) -> Result<Owned> {
    // SAFETY: attached.
    Owned::new(unsafe { ffi::PyLong_FromLongLong(value) })
}

pub(super) fn import(name: &CStr) -> Result<Owned> {
    // SAFETY: attached.
    Owned::new(unsafe { ffi::PyImport_ImportModule(name.as_ptr()) })
}

pub(super) fn tuple(items: &[&Owned]) -> Result<Owned> {
    // SAFETY: attached.
    let tuple = Owned::new(unsafe { ffi::PyTuple_New(items.len() as ffi::Py_ssize_t) })?;
    for (index, item) in items.iter().enumerate() {
        // SAFETY: attached; the tuple is new and large enough; it takes over the reference.
        unsafe { ffi::PyTuple_SetItem(tuple.as_ptr(), index as ffi::Py_ssize_t, item.clone_ref().into_ptr()) };
    }
    Ok(tuple)
}

/// A `str` of one character a byte: PEP 3333, "Unicode Issues".
pub(super) fn latin1(bytes: &[u8]) -> Result<Owned> {
    // SAFETY: attached; pointer and length belong together.
    Owned::new(unsafe {
        ffi::PyUnicode_DecodeLatin1(bytes.as_ptr().cast(), bytes.len() as ffi::Py_ssize_t, null_mut::<i8>().cast())
    })
}

pub(super) fn string(text: &str) -> Result<Owned> {
    // SAFETY: attached; pointer and length belong together.
    Owned::new(unsafe { ffi::PyUnicode_FromStringAndSize(text.as_ptr().cast(), text.len() as ffi::Py_ssize_t) })
}

/// A `str` that dictionaries find by identity.
pub(super) fn interned(text: &str) -> Result<Owned> {
    let mut pointer = string(text)?.into_ptr();
    // SAFETY: attached; the function exchanges our reference for one to the interned string.
    unsafe { ffi::PyUnicode_InternInPlace(&mut pointer) };
    Owned::new(pointer)
}

pub(super) fn bytes(bytes: &[u8]) -> Result<Owned> {
    // SAFETY: attached; pointer and length belong together.
    Owned::new(unsafe { ffi::PyBytes_FromStringAndSize(bytes.as_ptr().cast(), bytes.len() as ffi::Py_ssize_t) })
}

pub(super) fn set_item(dict: &Owned, key: &Owned, value: &Owned) -> Result<()> {
    // SAFETY: attached; all three are alive.
    let result = unsafe { ffi::PyDict_SetItem(dict.as_ptr(), key.as_ptr(), value.as_ptr()) };
    if result < 0 { Err(Raised) } else { Ok(()) }
}

/// The memory of a `bytes` object, as long as the object lives; `None` if it is something else.
pub(super) fn as_bytes(object: &Owned) -> Option<&[u8]> {
    // SAFETY: attached.
    if unsafe { ffi::PyBytes_Check(object.as_ptr()) } == 0 {
        return None;
    }
    // SAFETY: attached, and it is a bytes object, whose memory never moves nor changes.
    unsafe {
        let start = ffi::PyBytes_AsString(object.as_ptr()).cast::<u8>();
        let length = ffi::PyBytes_Size(object.as_ptr());
        (!start.is_null()).then(|| std::slice::from_raw_parts(start, length as usize))
    }
}

/// The text of a `str`, as long as it lives. Fails for lone surrogates and for other types.
pub(super) fn as_str(object: &Owned) -> Result<&str> {
    let mut length = 0;
    // SAFETY: attached; the text is cached in the object and lives as long.
    let start = unsafe { ffi::PyUnicode_AsUTF8AndSize(object.as_ptr(), &mut length) };
    if start.is_null() {
        return Err(Raised);
    }
    // SAFETY: CPython gave pointer and length of valid UTF-8.
    unsafe { Ok(std::str::from_utf8_unchecked(std::slice::from_raw_parts(start.cast(), length as usize))) }
}

/// `str(object)` for messages; never fails.
pub(super) fn display(object: &Owned) -> String {
    // SAFETY: attached.
    let text = Owned::new(unsafe { ffi::PyObject_Str(object.as_ptr()) });
    let Ok(text) = text else {
        clear();
        return "?".into();
    };
    if let Ok(text) = as_str(&text) {
        return text.into();
    }
    clear();
    // SAFETY: attached; lone surrogates become escapes.
    let escaped =
        unsafe { ffi::PyUnicode_AsEncodedString(text.as_ptr(), c"utf-8".as_ptr(), c"backslashreplace".as_ptr()) };
    match Owned::new(escaped) {
        Ok(bytes) => String::from_utf8_lossy(as_bytes(&bytes).unwrap_or_default()).into_owned(),
        Err(Raised) => {
            clear();
            "?".into()
        }
    }
}

/// The name of an object's type, for messages.
pub(super) fn type_name(object: &Owned) -> String {
    // SAFETY: attached; Py_TYPE gives a borrowed reference.
    let class = Owned::borrowed(unsafe { ffi::Py_TYPE(object.as_ptr()) }.cast());
    match class.and_then(|class| class.attribute(c"__name__")) {
        Ok(name) => display(&name),
        Err(Raised) => {
            clear();
            "?".into()
        }
    }
}

/// Forgets the exception that is set.
pub(super) fn clear() {
    // SAFETY: attached.
    unsafe { ffi::PyErr_Clear() }
}

/// The exception classes we raise.
#[derive(Clone, Copy)]
pub(super) enum Class {
    Type,
    Value,
    Runtime,
    Os,
    Connection,
}

/// Sets an exception on this thread.
pub(super) fn raise(class: Class, message: &str) -> Raised {
    // SAFETY: attached; the classes live as long as the interpreter.
    let class = unsafe {
        match class {
            Class::Type => ffi::PyExc_TypeError,
            Class::Value => ffi::PyExc_ValueError,
            Class::Runtime => ffi::PyExc_RuntimeError,
            Class::Os => ffi::PyExc_OSError,
            Class::Connection => ffi::PyExc_ConnectionError,
        }
    };
    if let Ok(message) = string(message) {
        // SAFETY: attached; both are alive.
        unsafe { ffi::PyErr_SetObject(class, message.as_ptr()) };
    }
    Raised
}

/// A reference that may be dropped on any thread: it is given back by the next thread that attaches.
pub(super) struct Deferred {
    object: NonNull<ffi::PyObject>,
    releases: Arc<Releases>,
}

// SAFETY: the object is not touched but attached, through `get`.
unsafe impl Send for Deferred {}
// SAFETY: as above.
unsafe impl Sync for Deferred {}

impl Deferred {
    pub(super) fn new(object: Owned, releases: &Arc<Releases>) -> Deferred {
        let deferred = Deferred { object: object.0, releases: releases.clone() };
        std::mem::forget(object);
        deferred
    }

    /// Attached.
    pub(super) fn get(&self) -> Owned {
        // SAFETY: attached; we hold a reference.
        unsafe { ffi::Py_INCREF(self.object.as_ptr()) };
        Owned(self.object)
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        self.releases.push(self.object);
    }
}

/// Memory of a `bytes` object, held while a server sends it.
struct Held {
    _object: Deferred,
    start: *const u8,
    length: usize,
}

// SAFETY: the memory of a bytes object never changes, and our reference keeps it; the object itself is not touched.
unsafe impl Send for Held {}
// SAFETY: as above.
unsafe impl Sync for Held {}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the reference we hold keeps this memory alive and unchanged.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

/// References to give back, collected by detached threads.
#[derive(Default)]
pub(super) struct Releases {
    any: AtomicBool,
    objects: Mutex<Vec<Reference>>,
}

struct Reference(NonNull<ffi::PyObject>);

// SAFETY: only carried from thread to thread; used attached, in `drain`.
unsafe impl Send for Reference {}

impl Releases {
    fn push(&self, object: NonNull<ffi::PyObject>) {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).push(Reference(object));
        self.any.store(true, Ordering::Release);
    }

    /// Gives collected references back. The lock is held for a moment only, by either side.
    pub(super) fn drain(&self) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        self.any.store(false, Ordering::Release);
        let objects = std::mem::take(&mut *self.objects.lock().unwrap_or_else(PoisonError::into_inner));
        for Reference(object) in objects {
            // SAFETY: attached; the reference was ours since `Held` was made.
            unsafe { ffi::Py_DECREF(object.as_ptr()) };
        }
    }
}

/// A block of the response: small ones are copied, large ones travel by reference.
pub(super) fn block(object: Owned, releases: &Arc<Releases>) -> Option<Block> {
    let bytes = as_bytes(&object)?;
    if bytes.len() <= COPY_LIMIT {
        return Some(Block::Copied(bytes.to_vec()));
    }
    let (start, length) = (bytes.as_ptr(), bytes.len());
    Some(Block::Held(Box::new(Held { _object: Deferred::new(object, releases), start, length })))
}

/// Below this a copy costs less than a reference that another thread has to give back.
const COPY_LIMIT: usize = 16 * 1024;
