//! What the configuration says, per server and per directory, and how httpd makes and merges it.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::ptr::null;

use highball::group::options::Declared;

use crate::ffi::pattern::Pattern;
use crate::ffi::{self, Pool, ap_conf_vector_t, ap_get_module_config, apr_pool_t, entry, rec::Rec, server_rec};
use crate::module;

/// Of one server. In the configuration's pool.
#[derive(Debug, Clone, Default)]
pub struct ServerSettings {
    /// In the order of the search: this server's, then the main server's.
    pub aliases: Vec<Alias>,
    /// A section somewhere names a group of applications, or of processes: what it covers shows only with a request.
    pub application_group_in_section: bool,
    pub process_group_in_section: bool,
    pub home: Option<PathBuf>,
    pub path: Vec<PathBuf>,
    pub restrict_embedded: bool,
    /// The groups declared in this server, or in any where it is the main one.
    pub groups: Vec<Declared>,
    /// Groups that directives of this server name, with their names.
    pub named_groups: Vec<(String, String)>,
    /// Directories whose sections name a group.
    pub grouped_sections: Vec<PathBuf>,
    /// Groups that `WSGIRestrictProcess` allows in sections; empty for the server's own processes.
    pub allowed_in_sections: Vec<String>,
    pub socket_prefix: Option<PathBuf>,
}

/// One `WSGIScriptAlias` or `WSGIScriptAliasMatch`.
#[derive(Debug, Clone, Default)]
pub struct Alias {
    pub location: Vec<u8>,
    /// Set where `location` is an expression.
    pub pattern: Option<Pattern>,
    pub target: Vec<u8>,
    pub callable: Option<String>,
    /// `application-group=%{GLOBAL}`.
    pub global_application: bool,
    /// `process-group=` as written; empty for `%{GLOBAL}`.
    pub process_group: Option<String>,
    pub pass_authorization: Option<bool>,
}

/// Of one directory, location or file pattern. Merged for each request: plain data.
#[derive(Debug, Clone, Copy)]
pub struct DirectorySettings {
    /// `WSGIApplicationGroup %{GLOBAL}`.
    pub global: bool,
    pub script_reloading: Option<bool>,
    pub pass_authorization: Option<bool>,
    pub chunked_request: Option<bool>,
    pub error_override: Option<bool>,
    /// Names in the configuration's pool, or null.
    pub callable: *const c_char,
    pub process_group: *const c_char,
    /// `WSGIRestrictProcess`; null allows all.
    pub allowed_groups: *const Vec<String>,
}

impl Default for DirectorySettings {
    fn default() -> DirectorySettings {
        DirectorySettings {
            global: false,
            script_reloading: None,
            pass_authorization: None,
            chunked_request: None,
            error_override: None,
            callable: null(),
            process_group: null(),
            allowed_groups: null(),
        }
    }
}

impl ServerSettings {
    pub fn of<'a>(server: *mut server_rec) -> Option<&'a ServerSettings> {
        // SAFETY: made by `create_server` and alive as long as the configuration; nobody changes it once it is read.
        unsafe { at::<ServerSettings>((*server).module_config).as_ref() }
    }

    /// While the configuration is read.
    pub fn of_mut<'a>(server: *mut server_rec) -> Option<&'a mut ServerSettings> {
        // SAFETY: as above; the configuration is read by one thread, one directive at a time.
        unsafe { at::<ServerSettings>((*server).module_config).as_mut() }
    }
}

impl DirectorySettings {
    pub fn of(request: Rec) -> DirectorySettings {
        // SAFETY: made by `create_directory` or `merge_directory`.
        unsafe { at::<DirectorySettings>(request.settings()).as_ref() }.copied().unwrap_or_default()
    }

    /// What holds outside any section of a server.
    pub fn of_server(server: *mut server_rec) -> DirectorySettings {
        // SAFETY: as above; a server has this vector.
        unsafe { at::<DirectorySettings>((*server).lookup_defaults).as_ref() }.copied().unwrap_or_default()
    }

    /// As written, but empty for the server's own processes. Lives as long as the configuration.
    pub fn process_group<'a>(&self) -> Option<&'a str> {
        ffi::some_text(self.process_group).and_then(|name| std::str::from_utf8(name).ok())
    }

    /// The groups that may be chosen, the empty name for the server's own processes; lives as long as the configuration.
    pub fn allowed_groups<'a>(&self) -> Option<&'a [String]> {
        // SAFETY: null, or kept in the pool of the configuration, as its directive may not stand in `.htaccess`.
        unsafe { self.allowed_groups.as_ref() }.map(Vec::as_slice)
    }

    /// The name lives as long as the configuration.
    pub fn callable<'a>(&self) -> Option<&'a str> {
        ffi::some_text(self.callable).and_then(|name| std::str::from_utf8(name).ok())
    }
}

fn at<T>(vector: *mut ap_conf_vector_t) -> *mut T {
    // SAFETY: a configuration vector of httpd's; this module's slot holds null or what the functions below made.
    unsafe { ap_get_module_config(vector, module()).cast() }
}

entry! {
    fn create_server(pool: *mut apr_pool_t, _server: *mut server_rec) -> *mut c_void, else std::ptr::null_mut(), {
        Pool::new(pool).keep(ServerSettings::default()).cast()
    }

    /// A virtual host has its own aliases first, then the main server's; the rest is the main server's alone.
    fn merge_server(pool: *mut apr_pool_t, base: *mut c_void, added: *mut c_void) -> *mut c_void, else base, {
        // SAFETY: both were made by `create_server`.
        let (base, added) = unsafe { (&*base.cast::<ServerSettings>(), &*added.cast::<ServerSettings>()) };
        let mut merged = base.clone();
        merged.aliases = [added.aliases.as_slice(), base.aliases.as_slice()].concat();
        merged.application_group_in_section |= added.application_group_in_section;
        merged.process_group_in_section |= added.process_group_in_section;
        merged.grouped_sections.extend_from_slice(&added.grouped_sections);
        merged.allowed_in_sections.extend_from_slice(&added.allowed_in_sections);
        merged.groups.clone_from(&added.groups);
        merged.named_groups.clone_from(&added.named_groups);
        Pool::new(pool).keep(merged).cast()
    }

    fn create_directory(pool: *mut apr_pool_t, _directory: *mut c_char) -> *mut c_void, else std::ptr::null_mut(), {
        Pool::new(pool).plain(DirectorySettings::default()).cast()
    }

    fn merge_directory(pool: *mut apr_pool_t, base: *mut c_void, added: *mut c_void) -> *mut c_void, else base, {
        // SAFETY: both were made by `create_directory` or by this function.
        let (base, added) = unsafe { (*base.cast::<DirectorySettings>(), *added.cast::<DirectorySettings>()) };
        Pool::new(pool).plain(DirectorySettings {
            global: base.global || added.global,
            script_reloading: added.script_reloading.or(base.script_reloading),
            pass_authorization: added.pass_authorization.or(base.pass_authorization),
            chunked_request: added.chunked_request.or(base.chunked_request),
            error_override: added.error_override.or(base.error_override),
            callable: if added.callable.is_null() { base.callable } else { added.callable },
            process_group: if added.process_group.is_null() { base.process_group } else { added.process_group },
            allowed_groups: if added.allowed_groups.is_null() { base.allowed_groups } else { added.allowed_groups },
        }).cast()
    }
}
