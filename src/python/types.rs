//! Heap types, made once per interpreter, whose instances carry a Rust value.
//!
//! Applications cannot make instances of them, nor subclass them. Each function that Python calls goes through
//! [`guarded`], which turns a panic into an exception.

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use pyo3_ffi as ffi;

use super::object::{Class, Owned, Raised, Result, raise};
use crate::error::Code;

#[repr(C)]
struct Instance<T> {
    base: ffi::PyObject,
    value: T,
}

/// A method of a type: its name, and a C function made by [`method!`](method).
pub(super) struct Method(pub &'static CStr, pub ffi::PyCFunctionFast);

/// The arguments of one call.
pub(super) struct Arguments<'a>(&'a [*mut ffi::PyObject]);

impl Arguments<'_> {
    pub(super) fn get(&self, index: usize) -> Option<Owned> {
        Owned::borrowed(*self.0.get(index)?).ok()
    }

    /// The only argument of a function that takes just one.
    pub(super) fn only(&self, function: &str) -> Result<Owned> {
        match self.0 {
            [argument] => Owned::borrowed(*argument),
            _ => Err(raise(Class::Type, &format!("{function}() takes one argument ({} given)", self.0.len()))),
        }
    }

    /// An optional size: absent, `None` and negative all mean "no limit".
    pub(super) fn size(&self, function: &str) -> Result<Option<usize>> {
        let Some(size) = self.get(0) else { return Ok(None) };
        if self.0.len() > 1 {
            return Err(raise(
                Class::Type,
                &format!("{function}() takes at most one argument ({} given)", self.0.len()),
            ));
        }
        // SAFETY: attached; None is compared by identity.
        if size.as_ptr() == unsafe { ffi::Py_None() } {
            return Ok(None);
        }
        // SAFETY: attached; too large a number becomes the largest, as the null exception says.
        let number = unsafe { ffi::PyNumber_AsSsize_t(size.as_ptr(), null_mut()) };
        // SAFETY: attached.
        if number == -1 && !unsafe { ffi::PyErr_Occurred() }.is_null() {
            return Err(Raised);
        }
        Ok(usize::try_from(number).ok())
    }
}

/// Makes the type `highball.<name>` with values of `T`.
pub(super) fn make<T>(name: &'static CStr, methods: &[Method], slots: &[(c_int, *mut c_void)]) -> Result<Owned> {
    let mut definitions: Vec<ffi::PyMethodDef> = methods
        .iter()
        .map(|Method(name, function)| ffi::PyMethodDef {
            ml_name: name.as_ptr(),
            ml_meth: ffi::PyMethodDefPointer { PyCFunctionFast: *function },
            ml_flags: ffi::METH_FASTCALL,
            ml_doc: std::ptr::null(),
        })
        .collect();
    definitions.push(ffi::PyMethodDef::zeroed());
    let dealloc: ffi::destructor = dealloc::<T>;
    let mut slots: Vec<ffi::PyType_Slot> =
        slots.iter().map(|(slot, function)| ffi::PyType_Slot { slot: *slot, pfunc: *function }).collect();
    slots.push(ffi::PyType_Slot { slot: ffi::Py_tp_dealloc, pfunc: dealloc as *mut c_void });
    if !methods.is_empty() {
        // The definitions live as long as the interpreter, and so does this type.
        slots.push(ffi::PyType_Slot {
            slot: ffi::Py_tp_methods,
            pfunc: Box::leak(definitions.into_boxed_slice()).as_mut_ptr().cast(),
        });
    }
    slots.push(ffi::PyType_Slot::default());
    let mut spec = ffi::PyType_Spec {
        name: name.as_ptr(),
        basicsize: size_of::<Instance<T>>() as c_int,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION) as c_uint,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: attached; the specification is complete, and CPython copies it but for names and methods, which are static.
    Owned::new(unsafe { ffi::PyType_FromSpec(&mut spec) })
}

/// Makes an instance.
pub(super) fn instance<T>(class: &Owned, value: T) -> Result<Owned> {
    // SAFETY: attached; the class was made by `make`.
    let object = Owned::new(unsafe { ffi::PyType_GenericAlloc(class.as_ptr().cast(), 0) })?;
    // SAFETY: the object is new, of `size_of::<Instance<T>>()` bytes, and its value is not initialised yet.
    unsafe { std::ptr::write(&raw mut (*object.as_ptr().cast::<Instance<T>>()).value, value) };
    Ok(object)
}

/// The value of an instance.
///
/// # Safety
/// `object` is alive for `'a` and an instance of a class made by `make::<T>`.
pub(super) unsafe fn value<'a, T>(object: *mut ffi::PyObject) -> &'a T {
    // SAFETY: the caller's promise.
    unsafe { &(*object.cast::<Instance<T>>()).value }
}

/// # Safety
/// Called by CPython with the last reference to an instance of a class made by `make::<T>`.
unsafe extern "C" fn dealloc<T>(object: *mut ffi::PyObject) {
    // SAFETY: attached; the instance is complete, and nobody else has it any more.
    unsafe {
        let class = ffi::Py_TYPE(object);
        guarded(|| {
            std::ptr::drop_in_place(&raw mut (*object.cast::<Instance<T>>()).value);
            Err(Raised)
        });
        let free = ffi::PyType_GetSlot(class, ffi::Py_tp_free);
        if !free.is_null() {
            let free = std::mem::transmute::<*mut c_void, ffi::freefunc>(free);
            free(object.cast());
        }
        // An instance of a heap type owns a reference to its type.
        ffi::Py_DECREF(class.cast());
    }
}

/// Runs the body of a function that Python calls; null means an exception is set. A panic becomes one.
pub(super) fn guarded(body: impl FnOnce() -> Result<Owned>) -> *mut ffi::PyObject {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(object)) => object.into_ptr(),
        Ok(Err(Raised)) => null_mut(),
        Err(_) => {
            raise(Class::Runtime, &format!("{} a fault in Highball itself; please report it", Code::Panic));
            null_mut()
        }
    }
}

/// Runs a method on the value of `object`.
///
/// # Safety
/// Called by CPython with an instance of a class made by `make::<T>` and `count` arguments.
pub(super) unsafe fn run_method<T>(
    object: *mut ffi::PyObject,
    arguments: *mut *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    body: fn(&T, Arguments<'_>) -> Result<Owned>,
) -> *mut ffi::PyObject {
    guarded(|| {
        let arguments = if count == 0 {
            &[]
        } else {
            // SAFETY: CPython passes `count` borrowed references that live during the call.
            unsafe { std::slice::from_raw_parts(arguments, count as usize) }
        };
        // SAFETY: the caller's promise; CPython holds the object during the call.
        body(unsafe { value::<T>(object) }, Arguments(arguments))
    })
}

/// The C function for a method written as `fn(&T, Arguments) -> Result<Owned>`.
macro_rules! method {
    ($name:literal, $type:ty, $body:expr) => {{
        unsafe extern "C" fn method(
            object: *mut pyo3_ffi::PyObject,
            arguments: *mut *mut pyo3_ffi::PyObject,
            count: pyo3_ffi::Py_ssize_t,
        ) -> *mut pyo3_ffi::PyObject {
            // SAFETY: CPython calls a method only on instances of the type it belongs to.
            unsafe { $crate::python::types::run_method::<$type>(object, arguments, count, $body) }
        }
        $crate::python::types::Method($name, method)
    }};
}
pub(super) use method;
