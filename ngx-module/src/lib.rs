//! WSGI applications inside nginx: the module's tables. Everything they name lives in the files below.

mod arrange;
mod body;
mod choice;
mod directives;
mod event;
mod ffi;
mod flights;
mod group;
mod handler;
mod layout;
mod log;
mod mounts;
mod peer;
mod process;
mod request;
mod response;
mod signals;
mod starter;
mod stream;
mod wake;

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

use ffi::{ngx_http_module_t, ngx_module_t};

/// The module as nginx knows it.
fn module() -> *const ngx_module_t {
    &raw const ngx_http_highball_module
}

/// nginx numbers it, and otherwise only reads it.
#[unsafe(no_mangle)]
pub static mut ngx_http_highball_module: ngx_module_t = ngx_module_t {
    ctx_index: usize::MAX,
    index: usize::MAX,
    name: null_mut(),
    spare0: 0,
    spare1: 0,
    version: ffi::nginx_version as usize,
    signature: &raw const ffi::hb_signature as *const c_char,
    ctx: (&raw const CONTEXT.0).cast_mut().cast::<c_void>(),
    commands: directives::COMMANDS.as_ptr().cast_mut(),
    // NGX_HTTP_MODULE: "HTTP".
    type_: 0x5054_5448,
    init_master: None,
    init_module: Some(process::init_module),
    init_process: Some(process::init_process),
    init_thread: None,
    exit_thread: None,
    exit_process: Some(process::exit_process),
    exit_master: Some(process::exit_master),
    spare_hook0: 0,
    spare_hook1: 0,
    spare_hook2: 0,
    spare_hook3: 0,
    spare_hook4: 0,
    spare_hook5: 0,
    spare_hook6: 0,
    spare_hook7: 0,
};

struct Context(ngx_http_module_t);

// SAFETY: nginx only reads it.
unsafe impl Sync for Context {}

static CONTEXT: Context = Context(ngx_http_module_t {
    preconfiguration: None,
    postconfiguration: Some(directives::complete),
    create_main_conf: Some(directives::create_main),
    init_main_conf: None,
    create_srv_conf: None,
    merge_srv_conf: None,
    create_loc_conf: Some(directives::create_location),
    merge_loc_conf: Some(directives::merge_location),
});

/// What nginx looks for in a dynamic module: modules, their names, their order among filters (none here).
pub struct Table<T, const N: usize>([*const T; N]);

// SAFETY: nginx only reads it.
unsafe impl<T, const N: usize> Sync for Table<T, N> {}

#[unsafe(no_mangle)]
pub static ngx_modules: Table<ngx_module_t, 2> = Table([&raw const ngx_http_highball_module, null_mut()]);

#[unsafe(no_mangle)]
pub static ngx_module_names: Table<c_char, 2> = Table([c"ngx_http_highball_module".as_ptr(), null_mut()]);

#[unsafe(no_mangle)]
pub static ngx_module_order: Table<c_char, 1> = Table([null_mut()]);
