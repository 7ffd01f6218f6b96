//! Copies what httpd knows of a request for the core: the facts of `environ`, as mod_wsgi states them, without httpd's
//! own CGI tables.

use std::io::Write;

use highball::request::{BodyLength, Fact, Request, RequestBuilder};
use highball::uri::{rooted, split_authority, target, without_runs};

use crate::ffi::rec::Rec;

/// Everything of the request but its body.
pub fn copy(rec: Rec, body: BodyLength, pass_authorization: bool) -> Request {
    let mut builder = Request::builder(ROOM, rec.headers().len());
    builder.body(body);
    let secure = add_variables(&mut builder, rec);
    let scheme = rec.scheme();
    let secure = secure.unwrap_or(scheme == b"https");
    let uri = rec.uri();
    let (script_name, _) = uri.split_at_checked(rec.script_name_length()).unwrap_or((uri, b""));
    let mut digits = Digits::default();
    builder
        .fact(Fact::Method, rec.method())
        .fact(Fact::ScriptName, &without_runs(script_name))
        .fact(Fact::PathInfo, &without_runs(rec.path_info()))
        .fact(Fact::QueryString, rec.arguments())
        .fact(
            Fact::RequestUri,
            &if rec.wants_current_uri() { uri.into() } else { rooted(split_authority(target(rec.request_line())).1) },
        )
        .fact(Fact::Protocol, rec.protocol())
        .fact(Fact::Scheme, if secure { b"https" } else { b"http" })
        .fact(Fact::ServerName, rec.server_name())
        .fact(Fact::ServerPort, digits.of(rec.server_port()))
        .fact(Fact::ServerAddr, rec.local_address())
        .fact(Fact::RemoteAddr, rec.client_address())
        .fact(Fact::DocumentRoot, rec.document_root())
        .fact(Fact::ScriptFilename, rec.filename());
    if rec.client_port() != 0 {
        builder.fact(Fact::RemotePort, digits.of(rec.client_port()));
    }
    if let Some(user) = rec.user() {
        builder.fact(Fact::RemoteUser, user);
    }
    if let Some(auth_type) = rec.auth_type() {
        builder.fact(Fact::AuthType, auth_type);
    }
    builder
        .variable(b"REQUEST_SCHEME", scheme)
        .variable(b"CONTEXT_PREFIX", rec.context_prefix())
        .variable(b"CONTEXT_DOCUMENT_ROOT", rec.context_document_root());
    if let Some(admin) = rec.server_admin() {
        builder.variable(b"SERVER_ADMIN", admin);
    }
    if let Some(previous) = rec.previous() {
        add_redirect(&mut builder, rec, previous);
    }
    add_headers(&mut builder, rec, pass_authorization);
    builder.build()
}

/// What SetEnv, RewriteRule `[E=]`, mod_ssl and others have set. Gives what `HTTPS` says, which is consumed.
fn add_variables(builder: &mut RequestBuilder, rec: Rec) -> Option<bool> {
    let mut secure = None;
    for (name, value) in rec.variables().iter() {
        if name == b"HTTPS" {
            secure = Some(value.eq_ignore_ascii_case(b"on") || value == b"1");
        } else if !WITHHELD.contains(&name) {
            builder.variable(name, value);
        }
    }
    secure
}

/// RFC 3875 has nothing on redirects inside a server; the names are httpd's own.
fn add_redirect(builder: &mut RequestBuilder, rec: Rec, previous: Rec) {
    builder.variable(b"REDIRECT_URL", previous.uri());
    if !previous.arguments().is_empty() {
        builder.variable(b"REDIRECT_QUERY_STRING", previous.arguments());
    }
    if let (None, Some(user)) = (rec.user(), previous.user()) {
        builder.variable(b"REDIRECT_REMOTE_USER", user);
    }
}

fn add_headers(builder: &mut RequestBuilder, rec: Rec, pass_authorization: bool) {
    let pass_all = rec.passes_auth();
    for (name, value) in rec.headers().iter() {
        let passed = match name.len() {
            13 if name.eq_ignore_ascii_case(b"authorization") => pass_all || pass_authorization,
            19 if name.eq_ignore_ascii_case(b"proxy-authorization") => pass_all,
            // mod_http2's own word for a body of unknown length.
            17 if rec.is_stream() && name.eq_ignore_ascii_case(b"transfer-encoding") => false,
            _ => true,
        };
        if passed {
            builder.header(name, value);
        }
    }
}

/// Writes a small number without an allocation.
#[derive(Default)]
struct Digits([u8; 5]);

impl Digits {
    fn of(&mut self, number: u16) -> &[u8] {
        let mut rest = &mut self.0[..];
        let room = rest.len();
        let written = if write!(rest, "{number}").is_ok() { room - rest.len() } else { 0 };
        self.0.get(..written).unwrap_or_default()
    }
}

/// Enough for a browser's request.
const ROOM: usize = 2048;

/// What httpd's CGI tables hold of the server's own environment and of CGI, and an application is not told.
const WITHHELD: [&[u8]; 12] = [
    b"PATH",
    b"LD_LIBRARY_PATH",
    b"DYLD_LIBRARY_PATH",
    b"DYLD_FALLBACK_LIBRARY_PATH",
    b"SHLIB_PATH",
    b"LIBPATH",
    b"GATEWAY_INTERFACE",
    b"PATH_TRANSLATED",
    b"SERVER_SIGNATURE",
    b"REMOTE_HOST",
    b"REMOTE_IDENT",
    b"HTTP_PROXY",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_in_digits() {
        assert_eq!(Digits::default().of(65535), b"65535");
        assert_eq!(Digits::default().of(80), b"80");
    }
}
