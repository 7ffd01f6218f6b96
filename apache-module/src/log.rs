//! Records in Apache's error log, under this module's name and level.

use std::ffi::{CString, c_int};
use std::ptr::null;
use std::sync::{Mutex, PoisonError};

use highball::log::{Level, record};
use highball::python::Host;

use crate::ffi::rec::Rec;
use crate::ffi::{
    self, APLOG_CRIT, APLOG_DEBUG, APLOG_ERR, APLOG_INFO, APLOG_NOTICE, APLOG_WARNING, APR_SUCCESS,
    ap_get_request_module_loglevel, ap_get_server_module_loglevel, ap_log_error_, ap_log_rerror_, server_rec,
};
use crate::{module_index, process};

/// Writes a record in the context of a request.
pub fn request(request: Rec, level: Level, text: &str) {
    let level = apache_level(level);
    // SAFETY: the request is alive.
    if level > unsafe { ap_get_request_module_loglevel(request.as_ptr(), module_index()) } {
        return;
    }
    each_line(text, |line| {
        // SAFETY: the format takes one C string; the request is alive.
        unsafe {
            let (format, text) = (c"%s".as_ptr(), line.as_ptr());
            ap_log_rerror_(null(), 0, module_index(), level, APR_SUCCESS, request.as_ptr(), format, text);
        }
    });
}

/// Whether a record of this level would be written.
pub fn is_written(server: *mut server_rec, level: Level) -> bool {
    // SAFETY: the configuration outlives the process that asks.
    apache_level(level) <= unsafe { ap_get_server_module_loglevel(server, module_index()) }
}

/// Writes a record in the context of a server.
pub fn server(server: *mut server_rec, level: Level, text: &str) {
    let level = apache_level(level);
    // SAFETY: the configuration outlives the process that logs.
    if level > unsafe { ap_get_server_module_loglevel(server, module_index()) } {
        return;
    }
    each_line(text, |line| {
        // SAFETY: the format takes one C string; as above.
        unsafe {
            let (format, text) = (c"%s".as_ptr(), line.as_ptr());
            ap_log_error_(null(), 0, module_index(), level, APR_SUCCESS, server, format, text);
        }
    });
}

/// The log of this process, for Python outside any request.
pub struct ProcessLog;

impl Host for ProcessLog {
    fn log(&self, level: Level, text: &str) {
        let main = process::main_server();
        if !main.is_null() {
            server(main, level, text);
        }
    }
}

fn apache_level(level: Level) -> c_int {
    match level {
        Level::Crit => APLOG_CRIT,
        Level::Error => APLOG_ERR,
        Level::Warn => APLOG_WARNING,
        Level::Notice => APLOG_NOTICE,
        Level::Info => APLOG_INFO,
        Level::Debug => APLOG_DEBUG,
    }
}

/// Apache writes lines of at most 8 KiB, each with its own prefix: the lines of a record leave one after another, with
/// nothing of ours between.
fn each_line(text: &str, write: impl Fn(CString)) {
    static RECORD: Mutex<()> = Mutex::new(());
    let record = record(text);
    let _guard = RECORD.lock().unwrap_or_else(PoisonError::into_inner);
    for line in record.split('\n') {
        for piece in pieces(line) {
            write(ffi::c_string(piece));
        }
    }
}

/// Cuts a line where its escaped form would exceed what Apache writes.
fn pieces(mut line: &str) -> impl Iterator<Item = &str> {
    let mut first = true;
    std::iter::from_fn(move || {
        if line.is_empty() && !std::mem::take(&mut first) {
            return None;
        }
        first = false;
        let mut length = 0;
        let fits = |character: &char| {
            // What is no printable ASCII becomes \xHH, byte for byte.
            length += if (' '..='~').contains(character) { 1 } else { 4 * character.len_utf8() };
            length <= LONGEST_LINE
        };
        let end = line.chars().take_while(fits).map(char::len_utf8).sum();
        let (piece, rest) = line.split_at_checked(end).unwrap_or((line, ""));
        line = rest;
        Some(piece)
    })
}

/// Below httpd's MAX_STRING_LEN, with room for its prefix.
const LONGEST_LINE: usize = 7800;

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn long_lines_are_cut_and_nothing_is_lost() {
        for line in ["", "short", &"x".repeat(20_000), &"é".repeat(9_000)] {
            let cut: Vec<&str> = pieces(line).collect();
            assert_eq!(cut.concat(), line);
            assert!(!cut.is_empty());
        }
        assert_eq!(pieces(&"x".repeat(20_000)).count(), 3);
    }
}
