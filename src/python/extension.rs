//! The functions that an extension gives to the Python which loads it.

use std::ffi::{CStr, c_char};
use std::ptr::null_mut;

use pyo3_ffi as ffi;

use super::object::{Class, Owned, Raised, as_str, boolean, display, none, raise};
use super::thread::{detached, resume};
use super::types::guarded;

/// What Python's main thread asks for.
pub trait Extension {
    /// Starts everything; called once. Attached when called, and detached for good by
    /// [`Interpreter::start`](super::Interpreter::start). `ready` is called when the applications are loaded.
    fn serve(start: Start) -> Result<(), String>;

    /// Answers what is there, then ends. Does not wait.
    fn drain();

    /// Whether the process is to end.
    fn is_over() -> bool;

    /// Waits for threads to end, a moment. Whether they all have. Detached.
    fn stop() -> bool;
}

/// What the boot script says.
pub struct Start {
    /// The settings as they were received.
    pub settings: String,
    /// Written to, a byte at a time, to wake the main thread.
    pub wake: i32,
    /// `sys.version` in short, and `sys.prefix`.
    pub python: String,
    pub prefix: String,
    ready: Owned,
}

impl Start {
    /// Tells the boot script that the applications are loaded. On the main thread, detached.
    pub fn ready(&self, interpreter: &std::sync::Arc<super::Interpreter>) {
        interpreter.attach(|_| {
            if self.ready.call(&[]).is_err() {
                super::object::clear();
            }
        });
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        // Attached again before the reference goes.
        resume();
    }
}

/// # Safety
/// Called by CPython with the arguments of a call, attached.
pub(crate) unsafe extern "C" fn serve<E: Extension>(
    _: *mut ffi::PyObject,
    arguments: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    guarded(|| {
        let argument = |index| {
            // SAFETY: attached; a tuple, as METH_VARARGS says; gives a borrowed reference, or null and an exception.
            Owned::borrowed(unsafe { ffi::PyTuple_GetItem(arguments, index) })
        };
        let settings = as_str(&argument(0)?)?.to_string();
        // SAFETY: attached.
        let wake = unsafe { ffi::PyLong_AsLong(argument(1)?.as_ptr()) };
        let (python, prefix) = (display(&argument(2)?), display(&argument(3)?));
        let start = Start { settings, wake: wake as i32, python, prefix, ready: argument(4)? };
        match E::serve(start) {
            Ok(()) => Ok(none()),
            Err(report) => Err(raise(Class::Runtime, &report)),
        }
    })
}

/// # Safety
/// Called by CPython, attached.
pub(crate) unsafe extern "C" fn drain<E: Extension>(
    _: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    guarded(|| {
        detached(E::drain);
        Ok(none())
    })
}

/// # Safety
/// Called by CPython, attached.
pub(crate) unsafe extern "C" fn is_over<E: Extension>(
    _: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    guarded(|| boolean(E::is_over()))
}

/// # Safety
/// Called by CPython, attached.
pub(crate) unsafe extern "C" fn stop<E: Extension>(_: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    guarded(|| boolean(detached(E::stop)))
}

/// The module, for the function that CPython calls when it loads the library.
pub(crate) fn module<E: Extension>() -> *mut ffi::PyObject {
    guarded(|| {
        let method = |name: &'static CStr, function, flags| ffi::PyMethodDef {
            ml_name: name.as_ptr(),
            ml_meth: ffi::PyMethodDefPointer { PyCFunction: function },
            ml_flags: flags,
            ml_doc: std::ptr::null(),
        };
        let methods = Box::new([
            method(c"serve", serve::<E>, ffi::METH_VARARGS),
            method(c"drain", drain::<E>, ffi::METH_NOARGS),
            method(c"is_over", is_over::<E>, ffi::METH_NOARGS),
            method(c"stop", stop::<E>, ffi::METH_NOARGS),
            ffi::PyMethodDef::zeroed(),
        ]);
        // Both live as long as the process.
        let definition = Box::leak(Box::new(ffi::PyModuleDef {
            m_base: ffi::PyModuleDef_HEAD_INIT,
            m_name: c"highball_worker".as_ptr().cast::<c_char>(),
            m_doc: std::ptr::null(),
            m_size: -1,
            m_methods: Box::leak(methods).as_mut_ptr(),
            m_slots: null_mut(),
            m_traverse: None,
            m_clear: None,
            m_free: None,
        }));
        // SAFETY: attached; the definition is complete and static.
        Owned::new(unsafe { ffi::PyModule_Create(definition) }).map_err(|Raised| Raised)
    })
}

/// Defines the function that CPython calls when it loads the library.
macro_rules! export {
    ($extension:ty) => {
        /// # Safety
        /// Called by CPython, attached.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn PyInit_highball_worker() -> *mut std::ffi::c_void {
            $crate::python::extension::module::<$extension>().cast()
        }
    };
}
pub(crate) use export;
