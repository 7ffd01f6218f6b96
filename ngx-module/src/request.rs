//! From nginx's request to the core's: facts, headers and parameters, copied once. Event loop only.

use std::cell::RefCell;
use std::io::Write;

use highball::request::{BodyLength, Fact, Request, RequestBuilder};
use highball::uri::{below, rooted, split_authority, target};

use crate::directives::{Authorization, LocationConf};
use crate::ffi::{self, ngx_connection_t, ngx_http_core_loc_conf_t, ngx_http_request_t, ngx_str_t};

/// The path below the mount; nothing where the request is outside it.
pub fn path_below<'a>(uri: &'a [u8], conf: &LocationConf) -> Option<&'a [u8]> {
    below(uri, conf.mount.as_deref().unwrap_or_default())
}

/// # Safety
/// `r` must be alive.
pub unsafe fn build(r: *mut ngx_http_request_t, conf: &LocationConf, body: BodyLength) -> Request {
    // SAFETY: the caller's; nothing below changes these structures.
    let (request, connection) = unsafe { (&*r, &*(*r).connection) };
    // SAFETY: strings of a request live as long as it does.
    let text = |text: ngx_str_t| unsafe { ffi::bytes(text) };
    let uri = text(request.uri);
    let mut builder = Request::builder(1024, 24);
    let mount = conf.mount.as_deref().unwrap_or_default();
    builder
        .fact(Fact::Method, text(request.method_name))
        .fact(Fact::ScriptName, mount)
        .fact(Fact::PathInfo, path_below(uri, conf).unwrap_or(uri))
        .fact(Fact::QueryString, text(request.args))
        .fact(Fact::RequestUri, &rooted(text(request.unparsed_uri)))
        .fact(Fact::Protocol, protocol(text(request.http_protocol)))
        // SAFETY: alive.
        .fact(Fact::Scheme, if unsafe { ffi::hb_is_ssl(r) } != 0 { b"https" } else { b"http" })
        .fact(Fact::ServerName, server_name(r))
        .fact(Fact::RemoteAddr, text(connection.addr_text))
        .body(body);
    if let Some(script) = &conf.script {
        builder.fact(Fact::ScriptFilename, script);
    }
    // SAFETY: alive; what the core module keeps for a location.
    let core = unsafe { ffi::location_of::<ngx_http_core_loc_conf_t>(r, &raw const ffi::ngx_http_core_module) };
    if let Some(core) = core {
        document_root(r, core, &mut builder);
    }
    addresses(connection, &mut builder);
    let checked = password_checked(r);
    if checked && core.is_some_and(|core| core.satisfy != ffi::NGX_HTTP_SATISFY_ANY as usize) {
        let user = text(request.headers_in.user);
        if !user.is_empty() {
            builder.fact(Fact::RemoteUser, user).fact(Fact::AuthType, b"Basic");
        }
    }
    let withhold = match conf.authorization.unwrap_or(Authorization::Auto) {
        Authorization::Pass => false,
        Authorization::Withhold => true,
        Authorization::Auto => checked,
    };
    // A target with a host stands in for the Host header (RFC 9112 section 3.2.2).
    let (authority, _) = split_authority(target(text(request.request_line)));
    if let Some(authority) = authority {
        builder.header(b"Host", authority);
    }
    // SAFETY: a list of headers, as nginx's parser left it.
    unsafe {
        ffi::each::<ffi::ngx_table_elt_t>(&request.headers_in.headers, |header| {
            let name = text(header.key);
            let withheld = match name.len() {
                4 => authority.is_some() && name.eq_ignore_ascii_case(b"host"),
                13 => withhold && name.eq_ignore_ascii_case(b"authorization"),
                _ => false,
            };
            if header.hash != 0 && !withheld {
                builder.header(name, text(header.value));
            }
        });
    }
    for param in conf.params.iter().flat_map(|params| params.iter()) {
        let mut value = ngx_str_t { len: 0, data: std::ptr::null_mut() };
        // SAFETY: compiled when the configuration was read; evaluating it does not change it.
        if unsafe { ffi::ngx_http_complex_value(r, (&raw const param.value).cast_mut(), &raw mut value) } == ffi::OK {
            builder.param(&param.name, text(value));
        }
    }
    builder.build()
}

/// nginx leaves a space at the end, and names none of HTTP/0.9.
fn protocol(text: &[u8]) -> &[u8] {
    if text.is_empty() { b"HTTP/0.9" } else { text.trim_ascii_end() }
}

/// The name the client asked for, where it is a valid one, else the first of `server_name`.
fn server_name<'a>(r: *mut ngx_http_request_t) -> &'a [u8] {
    // SAFETY: alive, by the caller of `build`.
    unsafe {
        if (*r).headers_in.server.len > 0 {
            return ffi::bytes((*r).headers_in.server);
        }
        let server = ffi::server_of::<ffi::ngx_http_core_srv_conf_t>(r, &raw const ffi::ngx_http_core_module);
        server.map_or(&b""[..], |server| ffi::bytes(server.server_name))
    }
}

fn document_root(r: *mut ngx_http_request_t, core: &ngx_http_core_loc_conf_t, builder: &mut RequestBuilder) {
    // SAFETY: both live as long as the configuration.
    let root = unsafe { ffi::bytes(core.root) };
    if core.root_lengths.is_null() {
        builder.fact(Fact::DocumentRoot, root);
        return;
    }
    let mut name = ffi::string(b"document_root");
    // SAFETY: alive; the key is the hash of the lower-case name.
    unsafe {
        let key = ffi::ngx_hash_key(name.data, name.len);
        if let Some(value) = ffi::ngx_http_get_variable(r, &raw mut name, key).as_ref()
            && value.not_found() == 0
        {
            builder.fact(Fact::DocumentRoot, ffi::bytes(ngx_str_t { len: value.len() as usize, data: value.data }));
        }
    }
}

/// Whether `auth_basic` is on in this location: then the Authorization header is for nginx, and the user is checked.
fn password_checked(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: alive. The first field of that module's configuration is the realm, in every version since 1.3.10.
    unsafe {
        let conf = ffi::hb_auth_basic_conf(r).cast::<*mut ffi::ngx_http_complex_value_t>();
        let Some(realm) = conf.as_ref().filter(|realm| !realm.is_null()) else { return false };
        let mut value = ngx_str_t { len: 0, data: std::ptr::null_mut() };
        ffi::ngx_http_complex_value(r, *realm, &raw mut value) != ffi::OK || ffi::bytes(value) != b"off"
    }
}

/// The local address as text, of the last connection: mostly the same as this one's.
struct Local {
    raw: Vec<u8>,
    address: Vec<u8>,
    port: Vec<u8>,
}

thread_local! {
    static LOCAL: RefCell<Local> = const { RefCell::new(Local { raw: Vec::new(), address: Vec::new(), port: Vec::new() }) };
}

fn addresses(connection: &ngx_connection_t, builder: &mut RequestBuilder) {
    // SAFETY: the address of a live connection.
    let remote = unsafe { ffi::ngx_inet_get_port(connection.sockaddr.cast()) };
    if remote != 0 {
        decimal(remote, |text| {
            builder.fact(Fact::RemotePort, text);
        });
    }
    let raw_connection = std::ptr::from_ref(connection).cast_mut();
    // SAFETY: a live connection; it looks the address up where the socket listens on a wildcard.
    if unsafe { ffi::ngx_connection_local_sockaddr(raw_connection, std::ptr::null_mut(), 0) } != ffi::OK {
        return;
    }
    // SAFETY: filled by the call above; the pointer may have changed, so it is read anew.
    let (address, length) = unsafe { ((*raw_connection).local_sockaddr, (*raw_connection).local_socklen) };
    // SAFETY: a socket address is `length` bytes.
    let raw = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), length as usize) };
    LOCAL.with_borrow_mut(|local| {
        if local.raw != raw {
            let mut text = [0_u8; 128];
            // SAFETY: as above; writes within `text`.
            let used = unsafe { ffi::ngx_sock_ntop(address.cast(), length, text.as_mut_ptr(), text.len(), 0) };
            local.address = text.get(..used).unwrap_or_default().to_vec();
            // SAFETY: as above.
            let port = unsafe { ffi::ngx_inet_get_port(address.cast()) };
            local.port.clear();
            decimal(port, |text| local.port.extend_from_slice(text));
            local.raw = raw.to_vec();
        }
        builder.fact(Fact::ServerAddr, &local.address).fact(Fact::ServerPort, &local.port);
    });
}

fn decimal(number: u16, f: impl FnOnce(&[u8])) {
    let mut text = [0_u8; 8];
    let mut rest = &mut text[..];
    if write!(rest, "{number}").is_ok() {
        let length = 8 - rest.len();
        f(text.get(..length).unwrap_or_default());
    }
}
