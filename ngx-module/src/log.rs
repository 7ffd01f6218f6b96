//! The error log: whole records, however long, in nginx's own format. Event loop only.

use highball::log::{Level, record};
use highball::request::{Fact, Request};

use crate::ffi::{self, ngx_log_t};

/// Which connection a record belongs to.
#[derive(Clone, Copy)]
pub struct Source {
    pub log: *mut ngx_log_t,
    pub connection: u64,
}

/// The log of the process.
pub fn of_process() -> *mut ngx_log_t {
    // SAFETY: nginx's cycle and its log exist as long as the process.
    unsafe { (*ffi::cycle()).log }
}

/// Writes a record to the log of a cycle that is being set up.
pub fn of(cycle: *mut ffi::ngx_cycle_t, level: Level, text: &str) {
    // SAFETY: nginx passes a complete cycle.
    write(Source { log: unsafe { (*cycle).log }, connection: 0 }, level, text, "");
}

/// Writes a record outside any request.
pub fn process(level: Level, text: &str) {
    write(Source { log: of_process(), connection: 0 }, level, text, "");
}

/// Writes a record of a request, which need not exist any more on nginx's side.
pub fn request(source: Source, level: Level, text: &str, request: &Request) {
    // SAFETY: as the log of a source is alive.
    if unsafe { (*source.log).log_level } < severity(level) {
        return;
    }
    write(source, level, text, &context(request));
}

/// A panic was caught at the border to nginx.
pub fn fault() {
    process(Level::Crit, &format!("{} a fault in Highball itself; please report it", highball::error::Code::Panic));
}

fn write(source: Source, level: Level, text: &str, context: &str) {
    let severity = severity(level);
    let text = record(text);
    let (first, rest) = text.split_once('\n').map_or((text.as_str(), ""), |(first, rest)| (first, rest));
    // SAFETY: nginx keeps the current time of its log in a string of its own.
    let time =
        String::from_utf8_lossy(unsafe { ffi::bytes((&raw const ffi::ngx_cached_err_log_time).read_volatile()) });
    // SAFETY: a plain number.
    let pid = unsafe { ffi::ngx_pid };
    // SAFETY: gettid() always succeeds.
    let thread = unsafe { libc::gettid() };
    let name = NAMES.get(severity).copied().unwrap_or("error");
    let mut line = format!("{time} [{name}] {pid}#{thread}: ");
    if source.connection != 0 {
        line.push_str(&format!("*{} ", source.connection));
    }
    line.push_str(first);
    line.push_str(context);
    line.push('\n');
    if !rest.is_empty() {
        line.push_str(rest);
        line.push('\n');
    }
    let mut log = source.log;
    // SAFETY: a list of logs that ends with null; the first is alive, as the source promises, and so are the others.
    while let Some(current) = unsafe { log.as_mut() } {
        // Sorted by level.
        if current.log_level < severity {
            break;
        }
        if let Some(writer) = current.writer {
            // nginx's writers (syslog, memory) take no more than this.
            let length = line.len().min(ffi::NGX_MAX_ERROR_STR as usize);
            // SAFETY: the writer reads `length` bytes of the line.
            unsafe { writer(current, severity, line.as_mut_ptr(), length) };
        // SAFETY: an open file has a descriptor, which nginx keeps; null is none.
        } else if let Some(file) = unsafe { current.file.as_ref() } {
            // SAFETY: plain write of our own memory.
            unsafe { libc::write(file.fd, line.as_ptr().cast(), line.len()) };
        }
        log = current.next;
    }
}

/// What nginx itself appends to records of a request.
fn context(request: &Request) -> String {
    let fact = |fact| request.fact(fact).map(String::from_utf8_lossy).unwrap_or_default();
    let uri = fact(Fact::RequestUri);
    let mut context = format!(
        ", client: {}, server: {}, request: \"{} {} {}\"",
        fact(Fact::RemoteAddr),
        fact(Fact::ServerName),
        fact(Fact::Method),
        uri,
        fact(Fact::Protocol),
    );
    let host = request.headers().find(|header| header.name.eq_ignore_ascii_case(b"host"));
    if let Some(host) = host {
        context.push_str(&format!(", host: \"{}\"", String::from_utf8_lossy(host.value)));
    }
    record(&context).replace('\n', " ")
}

/// nginx's number for a level.
pub fn severity(level: Level) -> usize {
    let number = match level {
        Level::Crit => ffi::NGX_LOG_CRIT,
        Level::Error => ffi::NGX_LOG_ERR,
        Level::Warn => ffi::NGX_LOG_WARN,
        Level::Notice => ffi::NGX_LOG_NOTICE,
        Level::Info => ffi::NGX_LOG_INFO,
        Level::Debug => ffi::NGX_LOG_DEBUG,
    };
    number as usize
}

const NAMES: [&str; 9] = ["", "emerg", "alert", "crit", "error", "warn", "notice", "info", "debug"];
