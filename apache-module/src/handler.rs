//! Takes a request: maps it by an alias, checks that it may run, gives it to its application.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};

use highball::error::{Code, Report};
use highball::log::Level;
use highball::refusal::refusal;
use highball::request::{BodyLength, Request};
use highball::settings::DEFAULT_CALLABLE;
use highball::uri::{covered, names_path, target};

use crate::exchange::Direct;
use crate::ffi::rec::Rec;
use crate::ffi::{
    AP_REQ_REJECT_PATH_INFO, DECLINED, HTTP_BAD_REQUEST, HTTP_FORBIDDEN, HTTP_INTERNAL_SERVER_ERROR,
    HTTP_LENGTH_REQUIRED, HTTP_METHOD_NOT_ALLOWED, HTTP_NOT_FOUND, HTTP_NOT_IMPLEMENTED, HTTP_REQUEST_ENTITY_TOO_LARGE,
    HTTP_REQUEST_URI_TOO_LARGE, HTTP_VERSION_NOT_SUPPORTED, OK, OPT_EXECCGI, apr_filetype_e_APR_DIR,
    apr_filetype_e_APR_NOFILE, entry, request_rec,
};
use crate::settings::{Alias, DirectorySettings, ServerSettings};
use crate::{choice, group, log, process, request};

entry! {
    /// Maps URLs below an alias to its script, as mod_wsgi does. httpd's walk over directories follows, with its access
    /// control, and finds where the file ends and PATH_INFO begins.
    fn translate_name(r: *mut request_rec) -> c_int, else HTTP_INTERNAL_SERVER_ERROR, {
        // SAFETY: the request of this hook.
        let mut request = unsafe { Rec::new(r) };
        let uri = request.uri();
        if !uri.starts_with(b"/") {
            return DECLINED;
        }
        let aliases = ServerSettings::of(request.server()).map_or(&[][..], |settings| settings.aliases.as_slice());
        let mut numbered = aliases.iter().enumerate();
        let found = numbered.find_map(|(number, alias)| Some((number, mapped(request, alias, uri)?)));
        let Some((number, filename)) = found else { return DECLINED };
        request.map(filename, HANDLER);
        request.set_note(ALIAS, number.to_string().as_bytes());
        OK
    }

    fn handler(r: *mut request_rec) -> c_int, else HTTP_INTERNAL_SERVER_ERROR, {
        // SAFETY: the request of this hook.
        let request = unsafe { Rec::new(r) };
        if request.handler() != HANDLER.to_bytes() {
            return DECLINED;
        }
        run(request).unwrap_or_else(|status| status)
    }
}

/// Gives the request to its application; the error is the status httpd answers with.
fn run(rec: Rec) -> Result<c_int, c_int> {
    let alias = alias(rec);
    check_line(rec)?;
    check_script(rec, alias.is_some())?;
    let settings = DirectorySettings::of(rec);
    let body = body_length(rec, settings.chunked_request.unwrap_or(false))?;
    let failed = |report: Report| {
        log::request(rec, Level::Error, &format!("{report}; the client got status 500"));
        HTTP_INTERNAL_SERVER_ERROR
    };
    let callable = alias.and_then(|alias| alias.callable.as_deref()).or(settings.callable());
    let pass_authorization = alias.and_then(|alias| alias.pass_authorization).or(settings.pass_authorization);
    let reloading = settings.script_reloading.unwrap_or(true);
    let status = Cell::new(HTTP_INTERNAL_SERVER_ERROR);
    let overrides = settings.error_override.unwrap_or(false);
    if let Some(group) = choice::group(rec, alias, &settings).map_err(failed)? {
        let request = request::copy(rec, body, pass_authorization.unwrap_or(false));
        check_headers(rec, &request)?;
        // SAFETY: the exchange is dropped before this function returns.
        let mut exchange = unsafe { Direct::new(rec, request, &status, overrides) };
        group::serve(group, rec, callable, reloading, &mut exchange);
        drop(exchange);
        return Ok(status.get());
    }
    if process::is_restricted() {
        let cause = "WSGIRestrictEmbedded is on: no application runs inside Apache's own processes";
        return Err(failed(Report::new(Code::PythonUnavailable, cause).remedy("write WSGIRestrictEmbedded Off")));
    }
    let running = process::Running::begin();
    let interpreter = process::interpreter().ok_or_else(|| {
        let cause = "Python is not running in this process, for the reason logged when it was started";
        failed(Report::new(Code::PythonUnavailable, cause))
    })?;
    let application = process::application(
        rec.filename(),
        callable.unwrap_or(DEFAULT_CALLABLE),
        reloading,
        settings.global || alias.is_some_and(|alias| alias.global_application),
    )
    .map_err(failed)?;
    let request = request::copy(rec, body, pass_authorization.unwrap_or(false));
    check_headers(rec, &request)?;
    // SAFETY: `serve` ends the exchange, and with it every use of `rec` and `status`, before it returns.
    let exchange = unsafe { Direct::new(rec, request, &status, overrides) };
    interpreter.serve(&application, Box::new(exchange));
    drop(running);
    Ok(status.get())
}

/// A request whose headers contradict each other is nobody's.
fn check_headers(rec: Rec, request: &Request) -> Result<(), c_int> {
    if let Some(refusal) = refusal(request) {
        log::request(rec, Level::Info, &refusal.to_string());
        return Err(HTTP_BAD_REQUEST);
    }
    Ok(())
}

/// The alias that mapped the request, unless something else did. Noted, as notes go along when httpd takes over what a
/// subrequest has found (DirectoryIndex, FallbackResource): its file, handler and settings of the place.
fn alias<'a>(rec: Rec) -> Option<&'a Alias> {
    let number: usize = std::str::from_utf8(rec.note(ALIAS)?).ok()?.parse().ok()?;
    ServerSettings::of(rec.server())?.aliases.get(number)
}

/// httpd hands on what others would read in another way, or refuse: a tunnel that no application can be, a target that is
/// no path, a version whose requests do not look like this.
fn check_line(mut rec: Rec) -> Result<(), c_int> {
    let (wrong, status) = match () {
        () if rec.method() == b"CONNECT" => ("method", HTTP_METHOD_NOT_ALLOWED),
        () if rec.is_stream() => return Ok(()),
        () if rec.protocol_number() >= 2000 => ("version", HTTP_VERSION_NOT_SUPPORTED),
        () if !names_path(target(rec.request_line())) => ("target", HTTP_BAD_REQUEST),
        () => return Ok(()),
    };
    log::request(
        rec,
        Level::Info,
        &format!("the {wrong} of the request line is refused; the client got status {status}"),
    );
    rec.close_connection();
    Err(status)
}

/// The script must exist, be a file, and be allowed to run here; an alias allows it.
fn check_script(rec: Rec, aliased: bool) -> Result<(), c_int> {
    let name = String::from_utf8_lossy(rec.filename());
    if !aliased && !rec.allows(OPT_EXECCGI) {
        let text = format!("Options ExecCGI is off for \"{name}\", so it is not run; the client got status 403");
        log::request(rec, Level::Error, &text);
        return Err(HTTP_FORBIDDEN);
    }
    #[allow(non_upper_case_globals, reason = "names of the bindings")]
    match rec.file_type() {
        // httpd looks for a whole path as for a file; PATH_INFO begins where it finds one.
        apr_filetype_e_APR_NOFILE if rec.filename().len() >= libc::PATH_MAX as usize => {
            let text =
                format!("the path is longer than a file's may be ({}); the client got status 414", libc::PATH_MAX);
            log::request(rec, Level::Info, &text);
            return Err(HTTP_REQUEST_URI_TOO_LARGE);
        }
        apr_filetype_e_APR_NOFILE => {
            let report = process::script_missing(rec.filename());
            log::request(rec, Level::Error, &format!("{report}; the client got status 404"));
            return Err(HTTP_NOT_FOUND);
        }
        apr_filetype_e_APR_DIR => {
            let text = format!("\"{name}\" is a directory, not a script; the client got status 403");
            log::request(rec, Level::Error, &text);
            return Err(HTTP_FORBIDDEN);
        }
        _ => {}
    }
    if rec.path_info_rule() == AP_REQ_REJECT_PATH_INFO && !rec.path_info().is_empty() {
        log::request(rec, Level::Info, &format!("AcceptPathInfo is off and the path goes on after \"{name}\""));
        return Err(HTTP_NOT_FOUND);
    }
    Ok(())
}

fn body_length(rec: Rec, chunked_allowed: bool) -> Result<BodyLength, c_int> {
    // httpd makes it a GET with the headers of the request that failed, whose body it may have dropped or not.
    if rec.is_error_page() {
        return Ok(BodyLength::Absent);
    }
    let headers = rec.headers();
    if let Some(coding) = headers.get(c"Transfer-Encoding") {
        // RFC 9112 section 6.1: its framing is faulty.
        if rec.protocol_number() < 1001 {
            log::request(rec, Level::Info, "a transfer coding in HTTP/1.0 was refused; the client got status 400");
            return Err(HTTP_BAD_REQUEST);
        }
        if !coding.eq_ignore_ascii_case(b"chunked") {
            log::request(
                rec,
                Level::Info,
                "the request body has an unknown transfer coding; the client got status 501",
            );
            return Err(HTTP_NOT_IMPLEMENTED);
        }
        if !chunked_allowed {
            let text = "a chunked request body was refused with status 411; WSGIChunkedRequest On accepts it";
            log::request(rec, Level::Error, text);
            return Err(HTTP_LENGTH_REQUIRED);
        }
        return Ok(BodyLength::Unknown);
    }
    let Some(length) = headers.get(c"Content-Length") else { return Ok(BodyLength::Absent) };
    let digits = std::str::from_utf8(length).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(length) = digits.and_then(|digits| digits.parse::<u64>().ok()) else {
        log::request(rec, Level::Info, "the request's Content-Length is no number; the client got status 400");
        return Err(HTTP_BAD_REQUEST);
    };
    if rec.body_limit().is_some_and(|limit| length > limit) {
        let text = format!("the request body of {length} bytes exceeds LimitRequestBody; the client got status 413");
        log::request(rec, Level::Info, &text);
        return Err(HTTP_REQUEST_ENTITY_TOO_LARGE);
    }
    Ok(BodyLength::Known(length))
}

/// The file an alias maps this URL to, if it matches.
fn mapped(request: Rec, alias: &Alias, uri: &[u8]) -> Option<*mut c_char> {
    let pool = request.pool();
    if let Some(pattern) = alias.pattern {
        let (target, end) = pattern.substitute(pool, uri, &alias.target)?;
        return Some(pool.concat(target, uri.get(end..).unwrap_or_default()));
    }
    let matched = covered(&alias.location, uri)?;
    let rest = if alias.location == b"/" { uri } else { uri.get(matched..).unwrap_or_default() };
    Some(pool.concat(&alias.target, rest))
}

const HANDLER: &CStr = c"wsgi-script";

/// The note with the number of an alias.
const ALIAS: &CStr = c"highball-alias";
