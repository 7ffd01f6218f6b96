//! httpd and APR: the bindings, and small wrappers that the rest of the module reads as safe code.
//!
//! Rules said once: strings of httpd are C strings that live in a pool, at least as long as the request or
//! configuration they belong to; a `*mut request_rec` handed to a hook is valid until the hook returns; none of these
//! structures is touched by two threads at once.

pub mod brigade;
pub mod pattern;
pub mod rec;
pub mod table;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use bindings::*;

#[allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unnecessary_transmutes,
    clippy::all,
    clippy::indexing_slicing,
    clippy::undocumented_unsafe_blocks,
    reason = "generated"
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

/// Makes functions that httpd calls. A panic ends there: it becomes the value after `else`.
macro_rules! entry {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty, else $failed:expr, $body:block)*) => {
        $($(#[$meta])*
        /// # Safety
        /// For httpd alone, which gives what the type of this hook says.
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            $crate::ffi::walled(|| $body, || $failed)
        })*
    };
}
pub(crate) use entry;

pub fn walled<R>(run: impl FnOnce() -> R, failed: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| failed())
}

/// The bytes of a C string; empty for null.
pub fn text<'a>(string: *const c_char) -> &'a [u8] {
    if string.is_null() {
        return b"";
    }
    // SAFETY: a C string of httpd's; see the module's head for how long it lives.
    unsafe { CStr::from_ptr(string) }.to_bytes()
}

/// As [`text`], `None` for null.
pub fn some_text<'a>(string: *const c_char) -> Option<&'a [u8]> {
    (!string.is_null()).then(|| text(string))
}

/// Memory that is freed together.
#[derive(Clone, Copy)]
pub struct Pool(*mut apr_pool_t);

impl Pool {
    /// `pool` outlives the use of the value: it is the pool of the request or configuration at hand.
    pub fn new(pool: *mut apr_pool_t) -> Pool {
        Pool(pool)
    }

    pub fn as_ptr(self) -> *mut apr_pool_t {
        self.0
    }

    /// A C string in the pool; cut at a NUL, which nothing here contains.
    pub fn string(self, bytes: &[u8]) -> *mut c_char {
        // SAFETY: copies `len` bytes and adds the NUL; the pool is alive.
        unsafe { apr_pstrmemdup(self.0, bytes.as_ptr().cast(), bytes.len()) }
    }

    /// Two texts as one C string in the pool.
    pub fn concat(self, first: &[u8], second: &[u8]) -> *mut c_char {
        self.string(&[first, second].concat())
    }

    /// Puts a value into the pool; it is dropped with the pool.
    pub fn keep<T>(self, value: T) -> *mut T {
        unsafe extern "C" fn release<T>(value: *mut c_void) -> apr_status_t {
            // SAFETY: made by Box::into_raw below; a pool runs a cleanup once.
            walled(|| drop(unsafe { Box::from_raw(value.cast::<T>()) }), || ());
            APR_SUCCESS
        }
        let value = Box::into_raw(Box::new(value));
        // SAFETY: the pool is alive; httpd's own no-op serves for exec.
        unsafe { apr_pool_cleanup_register(self.0, value.cast(), Some(release::<T>), Some(apr_pool_cleanup_null)) };
        value
    }

    /// Puts plain data into the pool.
    pub fn plain<T: Copy>(self, value: T) -> *mut T {
        // SAFETY: APR's memory is aligned for any scalar and large enough; `T` needs no drop.
        unsafe {
            let place = apr_palloc(self.0, size_of::<T>()).cast::<T>();
            place.write(value);
            place
        }
    }
}

/// The message of an APR status.
pub fn status_text(status: apr_status_t) -> String {
    let mut buffer = [0_u8; 256];
    // SAFETY: writes at most the buffer's length, with a NUL.
    let message = unsafe { apr_strerror(status, buffer.as_mut_ptr().cast(), buffer.len()) };
    String::from_utf8_lossy(text(message)).into_owned()
}

/// A fact about the MPM.
pub fn mpm_query(code: c_int) -> Option<c_int> {
    let mut value = 0;
    // SAFETY: writes one int. Any thread.
    (unsafe { ap_mpm_query(code, &mut value) } == APR_SUCCESS).then_some(value)
}

/// A list of C strings with a null at its end, for hook orders: httpd keeps the pointer and sorts later.
#[repr(transparent)]
pub struct Names<const N: usize>(pub [*const c_char; N]);

// SAFETY: pointers to string literals.
unsafe impl<const N: usize> Sync for Names<N> {}

/// For messages that httpd wants as C strings: a NUL cannot stand in one.
pub fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\\0")).unwrap_or_default()
}

/// The directory of the files that no alias maps.
pub fn document_root<'a>(server: *mut server_rec) -> Option<&'a [u8]> {
    // SAFETY: every server has a configuration of the core's.
    let core = unsafe { ap_get_core_module_config((*server).module_config).cast::<core_server_config>().as_ref() };
    some_text(core?.ap_document_root)
}

/// The virtual hosts' configurations, main server first.
pub fn servers(first: *mut server_rec) -> impl Iterator<Item = *mut server_rec> {
    std::iter::successors((!first.is_null()).then_some(first), |server| {
        // SAFETY: a list of httpd's configuration, which outlives the iteration.
        let next = unsafe { (**server).next };
        (!next.is_null()).then_some(next)
    })
}
