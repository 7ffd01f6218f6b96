//! nginx: its bindings, and the small wrappers through which the rest of the module touches its structures.
//!
//! Rules that hold throughout this crate, and that SAFETY comments shorten to "event loop": nginx calls its modules from
//! one thread per process; what it passes is alive during the call; memory of a pool lives until the pool is destroyed.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{NonNull, null_mut};
use std::slice;

pub use sys::*;

#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction, reason = "generated")]
mod sys {
    include!(concat!(env!("OUT_DIR"), "/nginx.rs"));
}

pub const OK: ngx_int_t = NGX_OK as ngx_int_t;
pub const ERROR: ngx_int_t = NGX_ERROR as ngx_int_t;
pub const DONE: ngx_int_t = NGX_DONE as ngx_int_t;
pub const CONF_OK: *mut c_char = null_mut();
pub const CONF_ERROR: *mut c_char = usize::MAX as *mut c_char;

/// Defines functions that nginx calls: a panic ends in the log and in the error value, not in nginx.
macro_rules! called_by_nginx {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty, $failed:expr; $body:block)*) => {$(
        $(#[$meta])*
        $vis unsafe extern "C" fn $name($($arg: $type),*) -> $ret {
            $crate::ffi::guard($failed, || $body)
        }
    )*};
}
pub(crate) use called_by_nginx;

pub fn guard<R>(failed: R, f: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        crate::log::fault();
        failed
    })
}

/// The bytes of a string of nginx's.
///
/// # Safety
/// The string's memory must live for `'a`.
pub unsafe fn bytes<'a>(text: ngx_str_t) -> &'a [u8] {
    if text.data.is_null() || text.len == 0 {
        return &[];
    }
    // SAFETY: nginx's strings are pointer and length of initialised memory; the caller sees to the lifetime.
    unsafe { slice::from_raw_parts(text.data, text.len) }
}

/// A string that nginx only reads, over memory that lives long enough (the caller's to see to).
pub fn string(text: &[u8]) -> ngx_str_t {
    ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() }
}

/// Memory that is freed with a request, a connection or a configuration.
#[derive(Clone, Copy)]
pub struct Pool(NonNull<ngx_pool_t>);

impl Pool {
    /// # Safety
    /// The pool must not be destroyed while this handle is in use.
    pub unsafe fn new(pool: *mut ngx_pool_t) -> Option<Pool> {
        NonNull::new(pool).map(Pool)
    }

    /// A zeroed structure of nginx's.
    pub fn zeroed<T: Copy>(self) -> Option<NonNull<T>> {
        // SAFETY: the pool is alive; nginx's structures are valid when zeroed.
        NonNull::new(unsafe { ngx_pcalloc(self.0.as_ptr(), size_of::<T>()) }.cast())
    }

    /// A link of a chain, to be filled.
    pub fn link(self) -> Option<NonNull<ngx_chain_t>> {
        // SAFETY: the pool is alive.
        NonNull::new(unsafe { ngx_alloc_chain_link(self.0.as_ptr()) })
    }

    /// Keeps the links of a chain for others, as nginx's own `ngx_free_chain` does.
    ///
    /// # Safety
    /// `first` to `last` are one chain of this pool's links, to which nobody refers any more.
    pub unsafe fn give_back(self, first: *mut ngx_chain_t, mut last: NonNull<ngx_chain_t>) {
        // SAFETY: the caller's; the pool is alive.
        unsafe {
            last.as_mut().next = (*self.0.as_ptr()).chain;
            (*self.0.as_ptr()).chain = first;
        }
    }

    /// A copy of `parts`, one after the other.
    pub fn joined(self, parts: &[&[u8]]) -> Option<ngx_str_t> {
        let length = parts.iter().map(|part| part.len()).sum();
        // SAFETY: the pool is alive.
        let data = NonNull::new(unsafe { ngx_pnalloc(self.0.as_ptr(), length) })?.cast::<u8>().as_ptr();
        let mut at = 0;
        for part in parts {
            // SAFETY: `length` bytes were allocated, and this part ends within them.
            unsafe { data.add(at).copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            at += part.len();
        }
        Some(ngx_str_t { len: length, data })
    }

    /// Moves a value into the pool; it is dropped when the pool is destroyed.
    pub fn keep<T>(self, value: T) -> Option<NonNull<T>> {
        const { assert!(align_of::<T>() <= align_of::<usize>()) };
        // SAFETY: the pool is alive.
        let mut cleanup = NonNull::new(unsafe { ngx_pool_cleanup_add(self.0.as_ptr(), size_of::<T>().max(1)) })?;
        // SAFETY: freshly made by nginx; `data` has room for a T and nginx's alignment, which the assertion compares.
        unsafe {
            let place = NonNull::new(cleanup.as_ref().data)?.cast::<T>();
            place.write(value);
            cleanup.as_mut().handler = Some(drop_kept::<T>);
            Some(place)
        }
    }
}

unsafe extern "C" fn drop_kept<T>(value: *mut c_void) {
    // SAFETY: `keep` wrote a T there, and nginx runs a cleanup once.
    guard((), || unsafe { value.cast::<T>().drop_in_place() });
}

/// Calls `f` with each element of a list.
///
/// # Safety
/// The list must be one of `T`, and must not change meanwhile.
pub unsafe fn each<T>(list: &ngx_list_t, mut f: impl FnMut(&T)) {
    let mut part: *const ngx_list_part_t = &list.part;
    // SAFETY: parts form a list that ends with null; `nelts` elements of each are initialised.
    while let Some(current) = unsafe { part.as_ref() } {
        if current.nelts > 0 {
            // SAFETY: as above.
            unsafe { slice::from_raw_parts(current.elts.cast::<T>(), current.nelts) }.iter().for_each(&mut f);
        }
        part = current.next;
    }
}

/// Which module's configuration: its place in nginx's arrays of pointers.
fn context_index(module: *const ngx_module_t) -> usize {
    // SAFETY: modules are statics; nginx numbers them before it reads the configuration.
    unsafe { (*module).ctx_index }
}

/// A module's configuration for the location that a request is in.
///
/// # Safety
/// `r` must be alive, and `T` what that module keeps there.
pub unsafe fn location_of<'a, T>(r: *const ngx_http_request_t, module: *const ngx_module_t) -> Option<&'a T> {
    // SAFETY: nginx fills the array for every module; the caller vouches for the type.
    unsafe { (*(*r).loc_conf.add(context_index(module))).cast::<T>().as_ref() }
}

/// A module's configuration of the `http` block that a request is in.
///
/// # Safety
/// As [`location_of`].
pub unsafe fn main_of<'a, T>(r: *const ngx_http_request_t, module: *const ngx_module_t) -> Option<&'a T> {
    // SAFETY: as in `location_of`.
    unsafe { (*(*r).main_conf.add(context_index(module))).cast::<T>().as_ref() }
}

/// A module's configuration of the `server` block that a request is in.
///
/// # Safety
/// As [`location_of`].
pub unsafe fn server_of<'a, T>(r: *const ngx_http_request_t, module: *const ngx_module_t) -> Option<&'a T> {
    // SAFETY: as in `location_of`.
    unsafe { (*(*r).srv_conf.add(context_index(module))).cast::<T>().as_ref() }
}

/// A module's configuration for the block that is being read.
///
/// # Safety
/// `cf` must be within an `http` block, and `T` what that module keeps.
pub unsafe fn conf_of<'a, T>(cf: *const ngx_conf_t, module: *const ngx_module_t, main: bool) -> Option<&'a mut T> {
    // SAFETY: `ctx` of a directive within `http` is the HTTP context; the caller vouches for the rest.
    unsafe {
        let context = (*cf).ctx.cast::<ngx_http_conf_ctx_t>().as_ref()?;
        let confs = if main { context.main_conf } else { context.loc_conf };
        confs.as_ref()?;
        (*confs.add(context_index(module))).cast::<T>().as_mut()
    }
}

/// A module's configuration of the `http` block, if the cycle has one.
pub fn cycle_main<'a, T>(cycle: *const ngx_cycle_t, module: *const ngx_module_t) -> Option<&'a T> {
    // SAFETY: nginx passes a complete cycle; without an `http` block the HTTP module's context is null.
    unsafe {
        let context = *(*cycle).conf_ctx.add(ngx_http_module.index);
        let context = context.cast::<ngx_http_conf_ctx_t>().as_ref()?;
        (*context.main_conf.add(context_index(module))).cast::<T>().as_ref()
    }
}

/// The settings of nginx itself (`worker_processes` and so on).
pub fn core_conf<'a>(cycle: *const ngx_cycle_t) -> Option<&'a ngx_core_conf_t> {
    // SAFETY: the core module's configuration exists in every cycle.
    unsafe { (*(*cycle).conf_ctx.add(ngx_core_module.index)).cast::<ngx_core_conf_t>().as_ref() }
}

/// nginx's current cycle.
pub fn cycle() -> *mut ngx_cycle_t {
    // SAFETY: a plain pointer of nginx's, changed on this thread only.
    unsafe { ngx_cycle }
}

/// This process was told to answer what it has and end.
pub fn is_exiting() -> bool {
    // SAFETY: a plain number of nginx's, changed on this thread only.
    unsafe { ngx_exiting != 0 }
}

/// This process was told to end at once.
pub fn is_terminating() -> bool {
    // SAFETY: a number that nginx's signal handler sets; any value is a fact of some moment.
    unsafe { (&raw const ngx_terminate).read_volatile() != 0 }
}
