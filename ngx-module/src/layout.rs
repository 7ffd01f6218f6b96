//! Whether the nginx that runs is the one whose headers this module was built with.
//!
//! nginx compares versions and flags, not structures; distributions have moved fields in an update that changed neither,
//! and every module built before crashed at its first request. So what can be read off the running nginx without
//! trusting a structure of ours is compared with what was compiled in: offsets that nginx keeps in tables of its own, and
//! distances between things it allocates together. Bit fields, and structures that no table describes, stay unseen.
//! Event loop only.

use std::fmt::Display;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, Ordering};

use highball::error::{Code, Report};
use highball::log::Level;

use crate::ffi::{
    self, ngx_conf_t, ngx_connection_t, ngx_cycle_t, ngx_event_t, ngx_hash_key_t, ngx_http_core_loc_conf_t,
    ngx_http_core_main_conf_t, ngx_http_core_srv_conf_t, ngx_http_header_out_t, ngx_http_header_t, ngx_http_request_t,
    ngx_http_variable_t, ngx_table_elt_t,
};
use crate::{log, module};

/// What was compared so far.
#[derive(Default)]
struct Findings {
    compared: usize,
    /// What is not where the headers have it.
    different: Vec<String>,
}

impl Findings {
    fn compare(&mut self, what: impl Display, found: usize, expected: usize) {
        self.compared += 1;
        if found != expected {
            self.different.push(format!("{what} is at {found}, in the headers at {expected}"));
        }
    }

    fn compare_pointers<T, U>(&mut self, what: &str, found: *const T, expected: *const U) {
        self.compared += 1;
        if found.addr() != expected.addr() {
            self.different.push(format!("{what} is not where the headers have it"));
        }
    }

    /// Distances within one allocation. Where the two are not neighbours at all, nothing is known.
    fn compare_distance(&mut self, what: &str, found: usize, expected: usize) {
        if found.abs_diff(expected) <= FARTHEST {
            self.compare(what, found, expected);
        }
    }

    fn report(self, fewest: usize) -> Result<(), Report> {
        let cause = match self.different.split_first() {
            None if self.compared >= fewest => return Ok(()),
            None => format!("only {} of at least {fewest} places could be compared", self.compared),
            Some((first, [])) => first.clone(),
            Some((first, others)) => format!("{first}, and {} more", others.len()),
        };
        let version = String::from_utf8_lossy(ffi::NGINX_VER);
        let version = version.trim_end_matches('\0');
        let cause = format!("this {version} was built from other headers than the module: {cause}");
        Err(Report::new(Code::LayoutDiffers, cause).remedy(
            "build the module again with the headers of the installed nginx (nginx-dev of the same package version, then \
             make clean build)",
        ))
    }
}

/// Compares what nginx knows at the end of the `http` block.
pub fn check_configuration(cf: *mut ngx_conf_t) -> Result<(), Report> {
    let mut findings = Findings::default();
    // The cycle first: the others are reached through it.
    // SAFETY: nginx passes its configuration context. Only pointers are compared here, and none but the cycle's own
    // fields is followed before they were found where they should be.
    unsafe {
        let cycle = (*cf).cycle;
        findings.compare_pointers("ngx_cycle_t.pool", (*cycle).pool, (*cf).pool);
        findings.compare_pointers("ngx_cycle_t.log", (*cycle).log, (*cf).log);
        let after = (*cycle).conf_prefix.data.addr().wrapping_sub(cycle.addr());
        findings.compare_distance("the end of ngx_cycle_t", after, size_of::<ngx_cycle_t>());
        if findings.different.is_empty() {
            let own = *(*cycle).modules.add((*module()).index);
            findings.compare_pointers("ngx_cycle_t.modules", own, module());
        }
    }
    if findings.different.is_empty() {
        compare_headers(&mut findings);
        compare_directives(&mut findings);
        compare_variables(cf, &mut findings);
    }
    findings.report(FEWEST)
}

/// nginx's tables of headers: a name, and the offset of its field.
fn compare_headers(findings: &mut Findings) {
    macro_rules! fields {
        ($structure:ident: $($name:literal $field:ident)*) => {
            [$((&$name[..], offset_of!(ffi::$structure, $field)),)*]
        };
    }
    let expected = fields!(ngx_http_headers_in_t: b"Host" host b"Connection" connection b"User-Agent" user_agent
        b"Referer" referer b"Content-Length" content_length b"Content-Type" content_type b"Range" range
        b"If-Range" if_range b"Transfer-Encoding" transfer_encoding b"Expect" expect b"Upgrade" upgrade
        b"Authorization" authorization b"Keep-Alive" keep_alive b"If-Modified-Since" if_modified_since
        b"If-None-Match" if_none_match);
    // SAFETY: a table that ends with an empty name.
    let table = unsafe { entries((&raw const ffi::ngx_http_headers_in).cast::<ngx_http_header_t>(), |e| e.name) };
    for entry in table {
        // SAFETY: the names are literals of nginx's.
        let name = unsafe { ffi::bytes(entry.name) };
        if let Some((_, offset)) = expected.iter().find(|(known, _)| *known == name) {
            findings.compare(format!("the request header {}", String::from_utf8_lossy(name)), entry.offset, *offset);
        }
    }
    let expected = fields!(ngx_http_headers_out_t: b"Server" server b"Date" date b"Content-Length" content_length
        b"Content-Encoding" content_encoding b"Location" location b"Last-Modified" last_modified
        b"Accept-Ranges" accept_ranges b"Expires" expires b"Cache-Control" cache_control b"ETag" etag);
    // SAFETY: as above.
    let table = unsafe { entries((&raw const ffi::ngx_http_headers_out).cast::<ngx_http_header_out_t>(), |e| e.name) };
    for entry in table {
        // SAFETY: as above.
        let name = unsafe { ffi::bytes(entry.name) };
        if let Some((_, offset)) = expected.iter().find(|(known, _)| *known == name) {
            findings.compare(format!("the response header {}", String::from_utf8_lossy(name)), entry.offset, *offset);
        }
    }
}

/// nginx's own directives: a name, and the offset of what they set.
fn compare_directives(findings: &mut Findings) {
    macro_rules! fields {
        ($($structure:ident: $($field:ident)*;)*) => {
            [$($((stringify!($field), offset_of!($structure, $field)),)*)*]
        };
    }
    let expected = fields! {
        ngx_http_core_loc_conf_t: client_max_body_size client_body_buffer_size client_body_timeout sendfile send_timeout
            postpone_output tcp_nopush tcp_nodelay lingering_time server_name_in_redirect port_in_redirect
            chunked_transfer_encoding etag;
        ngx_http_core_srv_conf_t: client_header_timeout client_header_buffer_size connection_pool_size request_pool_size
            ignore_invalid_headers merge_slashes underscores_in_headers;
        ngx_http_core_main_conf_t: server_names_hash_max_size server_names_hash_bucket_size variables_hash_max_size
            variables_hash_bucket_size;
    };
    // SAFETY: nginx's module and its table of directives are statics, and the table ends with an empty name.
    let table = unsafe { entries((&raw const ffi::ngx_http_core_module).read().commands, |command| command.name) };
    for command in table {
        // SAFETY: the names are literals of nginx's.
        let name = unsafe { ffi::bytes(command.name) };
        if let Some((known, offset)) = expected.iter().find(|(known, _)| known.as_bytes() == name) {
            findings.compare(format!("the value of the directive {known}"), command.offset, *offset);
        }
    }
}

/// nginx's variables: a name, and the offset in the request of what they read.
fn compare_variables(cf: *mut ngx_conf_t, findings: &mut Findings) {
    let expected: [(&[u8], usize); 9] = [
        (b"http_host", offset_of!(ngx_http_request_t, headers_in.host)),
        (b"http_user_agent", offset_of!(ngx_http_request_t, headers_in.user_agent)),
        (b"http_referer", offset_of!(ngx_http_request_t, headers_in.referer)),
        (b"content_type", offset_of!(ngx_http_request_t, headers_in.content_type)),
        (b"request_uri", offset_of!(ngx_http_request_t, unparsed_uri)),
        (b"uri", offset_of!(ngx_http_request_t, uri)),
        (b"args", offset_of!(ngx_http_request_t, args)),
        (b"server_protocol", offset_of!(ngx_http_request_t, http_protocol)),
        (b"limit_rate", offset_of!(ngx_http_request_t, limit_rate)),
    ];
    // SAFETY: within the `http` block; the core module's main configuration is of this type. Its directives were found
    // where they should be before.
    let core = unsafe { ffi::conf_of::<ngx_http_core_main_conf_t>(cf, &raw const ffi::ngx_http_core_module, true) };
    // SAFETY: nginx frees it after this hook; null then.
    let Some(keys) = core.and_then(|core| unsafe { core.variables_keys.as_ref() }) else { return };
    // SAFETY: an array of this type.
    let keys = unsafe { std::slice::from_raw_parts(keys.keys.elts.cast::<ngx_hash_key_t>(), keys.keys.nelts) };
    for key in keys {
        // SAFETY: names in the configuration's memory.
        let name = unsafe { ffi::bytes(key.key) };
        let Some((known, offset)) = expected.iter().find(|(known, _)| *known == name) else { continue };
        // SAFETY: what the variables' table holds.
        if let Some(variable) = unsafe { key.value.cast::<ngx_http_variable_t>().as_ref() } {
            findings.compare(format!("what ${} reads", String::from_utf8_lossy(known)), variable.data, *offset);
        }
    }
}

/// Compares what a worker process has allocated at its start. Nothing can be refused here any more: requests get 500.
pub fn check_process(cycle: *mut ngx_cycle_t) -> bool {
    let mut findings = Findings::default();
    // SAFETY: the cycle was compared at configuration; nginx keeps an array of `connection_n` connections, of which the
    // last ones are free, each with a pointer to the next and to its part of another array.
    unsafe {
        let (connections, count) = ((*cycle).connections, (*cycle).connection_n);
        if !connections.is_null() && count >= 4 {
            let before: *mut ngx_connection_t = connections.add(count - 2);
            let last = connections.add(count - 1);
            findings.compare_pointers("ngx_connection_t.data", (*before).data, last);
            if findings.different.is_empty() {
                let distance = (*last).read.addr().wrapping_sub((*before).read.addr());
                findings.compare("the next ngx_event_t", distance, size_of::<ngx_event_t>());
            }
        }
    }
    conclude(findings, SEEN_NOTHING);
    STATE.load(Ordering::Relaxed) != DIFFERS
}

/// Whether requests of this process can be read. Looks at the first one, before any header of it.
pub fn fits(r: *mut ngx_http_request_t) -> bool {
    match STATE.load(Ordering::Relaxed) {
        FITS => true,
        DIFFERS => false,
        _ => {
            check_request(r);
            STATE.load(Ordering::Relaxed) != DIFFERS
        }
    }
}

fn check_request(r: *mut ngx_http_request_t) {
    // SAFETY: alive; the core module's configuration of a server is of this type, and was compared.
    let server = unsafe { ffi::server_of::<ngx_http_core_srv_conf_t>(r, &raw const ffi::ngx_http_core_module) };
    // SAFETY: alive.
    let is_main = unsafe { std::ptr::eq((*r).main, r) };
    if !is_main || server.is_none_or(|server| server.request_pool_size < ONE_BLOCK) {
        return;
    }
    let mut findings = Findings::default();
    // SAFETY: alive; addresses are compared, of what nginx has just made in one block of memory.
    unsafe {
        findings.compare("ngx_http_request_t.signature", (*r).signature as usize, HTTP);
        let headers = (*r).headers_out.headers.part.elts.addr();
        let after = headers.wrapping_sub(r.addr());
        findings.compare_distance("the end of ngx_http_request_t", after, size_of::<ngx_http_request_t>());
        let trailers = (*r).headers_out.trailers.part.elts.addr();
        let list = HEADERS_OUT * size_of::<ngx_table_elt_t>();
        findings.compare_distance("the end of twenty ngx_table_elt_t", trailers.wrapping_sub(headers), list);
    }
    conclude(findings, FITS);
}

fn conclude(findings: Findings, otherwise: u8) {
    match findings.report(0) {
        Ok(()) => STATE.store(otherwise, Ordering::Relaxed),
        Err(report) => {
            STATE.store(DIFFERS, Ordering::Relaxed);
            log::process(Level::Crit, &format!("{report}; until then requests for applications get status 500"));
        }
    }
}

/// The entries of a table of nginx's that ends with an empty name.
///
/// # Safety
/// `table` must point to one, and stay.
unsafe fn entries<'a, T: 'a>(table: *const T, name: impl Fn(&T) -> ffi::ngx_str_t) -> impl Iterator<Item = &'a T> {
    // SAFETY: the caller's promise; no table of nginx's is longer than this.
    let all = (0..LONGEST_TABLE).map(move |index| unsafe { &*table.add(index) });
    all.take_while(move |entry| name(entry).len != 0)
}

/// Places that can be compared in the versions of nginx known so far: 50 and more.
const FEWEST: usize = 30;
/// A structure that has grown by more than this in bytes is another structure.
const FARTHEST: usize = 512;
const LONGEST_TABLE: usize = 200;
/// nginx makes a list of so many response headers with each request.
const HEADERS_OUT: usize = 20;
/// A request and its lists are in one block of memory then.
const ONE_BLOCK: usize = 4096;
/// "HTTP", in every request.
const HTTP: usize = 0x5054_5448;

/// What this process knows of requests.
static STATE: AtomicU8 = AtomicU8::new(SEEN_NOTHING);
const SEEN_NOTHING: u8 = 0;
const FITS: u8 = 1;
const DIFFERS: u8 = 2;
