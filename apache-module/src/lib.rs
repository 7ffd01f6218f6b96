//! WSGI applications inside Apache httpd: a module that answers for mod_wsgi's name and directives.
//!
//! Here: what httpd loads. `ffi` speaks C, `commands`, `directives` and `settings` read the configuration, `process` is
//! the life of a server process, `handler` takes a request, `choice` says which process group answers it, `request` copies
//! it for the core, `exchange` carries the body and the response. Nothing here names a symbol of CPython.

mod choice;
mod commands;
mod directives;
mod exchange;
mod ffi;
mod group;
mod handler;
mod log;
mod process;
mod request;
mod settings;

use std::ffi::{c_char, c_int, c_ulong};
use std::ptr::{null, null_mut};

use ffi::{
    APR_HOOK_MIDDLE, MODULE_MAGIC_COOKIE, MODULE_MAGIC_NUMBER_MAJOR, MODULE_MAGIC_NUMBER_MINOR, Names,
    ap_hook_check_config, ap_hook_child_init, ap_hook_handler, ap_hook_post_config, ap_hook_pre_config,
    ap_hook_translate_name, apr_pool_t, entry,
};

/// The symbol and the name are mod_wsgi's: only the file in LoadModule differs, and `<IfModule mod_wsgi.c>` holds.
#[unsafe(no_mangle)]
pub static mut wsgi_module: ffi::module = ffi::module {
    version: MODULE_MAGIC_NUMBER_MAJOR,
    minor_version: MODULE_MAGIC_NUMBER_MINOR,
    module_index: -1,
    name: c"mod_wsgi.c".as_ptr(),
    dynamic_load_handle: null_mut(),
    next: null_mut(),
    magic: MODULE_MAGIC_COOKIE as c_ulong,
    rewrite_args: None,
    create_dir_config: Some(settings::create_directory),
    merge_dir_config: Some(settings::merge_directory),
    create_server_config: Some(settings::create_server),
    merge_server_config: Some(settings::merge_server),
    cmds: commands::COMMANDS.as_ptr(),
    register_hooks: Some(register_hooks),
    flags: 0,
};

fn module() -> *const ffi::module {
    &raw const wsgi_module
}

fn module_index() -> c_int {
    // SAFETY: httpd sets it when it loads the module, before anything else of ours runs.
    unsafe { (*module()).module_index }
}

/// mod_alias goes first, so that static files below a mount stay Apache's.
static BEFORE_TRANSLATE: Names<2> = Names([c"mod_alias.c".as_ptr(), null()]);
static AFTER_TRANSLATE: Names<3> = Names([c"mod_userdir.c".as_ptr(), c"mod_vhost_alias.c".as_ptr(), null()]);
const ANY: *const *const c_char = null();

entry! {
    fn register_hooks(_pool: *mut apr_pool_t) -> (), else (), {
        // SAFETY: the functions and the static lists stay where they are: the library is never unmapped.
        unsafe {
            ap_hook_pre_config(Some(process::pre_config), ANY, ANY, APR_HOOK_MIDDLE);
            ap_hook_check_config(Some(process::check_config), ANY, ANY, APR_HOOK_MIDDLE);
            ap_hook_post_config(Some(process::post_config), ANY, ANY, APR_HOOK_MIDDLE);
            ap_hook_child_init(Some(process::child_init), ANY, ANY, APR_HOOK_MIDDLE);
            let (before, after) = (BEFORE_TRANSLATE.0.as_ptr(), AFTER_TRANSLATE.0.as_ptr());
            ap_hook_translate_name(Some(handler::translate_name), before, after, APR_HOOK_MIDDLE);
            ap_hook_handler(Some(handler::handler), ANY, ANY, APR_HOOK_MIDDLE);
        }
    }
}
