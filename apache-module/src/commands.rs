//! The commands this module registers, made from the core's table of directives when the module is compiled.

#![allow(clippy::indexing_slicing, reason = "evaluated by the compiler, which refuses an index out of range")]

use std::ffi::{c_char, c_int};
use std::ptr::null_mut;

use highball::directives::{Context, DIRECTIVES, Directive, NOT_BUILT};

use crate::directives;
use crate::ffi::{ACCESS_CONF, OR_FILEINFO, RSRC_CONF, cmd_func, cmd_how, cmd_how_RAW_ARGS, command_rec};

/// httpd reads the commands until a row without a name.
#[repr(transparent)]
pub struct Commands([command_rec; COUNT + 1]);

// SAFETY: constant; its pointers are to constant strings.
unsafe impl Sync for Commands {}

impl Commands {
    pub const fn as_ptr(&'static self) -> *const command_rec {
        self.0.as_ptr()
    }
}

pub static COMMANDS: Commands = Commands(commands());

const COUNT: usize = {
    let mut count = NOT_BUILT.len();
    let mut index = 0;
    while index < DIRECTIVES.len() {
        count += DIRECTIVES[index].apache.is_some() as usize;
        index += 1;
    }
    count
};

/// Names and texts as C strings, one after another, in the order of [`commands`].
static STRINGS: [u8; strings_length()] = strings();

const NOT_BUILT_TEXT: &str = "a directive of mod_wsgi that is not supported yet";

const fn commands() -> [command_rec; COUNT + 1] {
    let end = command_rec {
        name: std::ptr::null(),
        func: cmd_func { raw_args: None },
        cmd_data: null_mut(),
        req_override: 0,
        args_how: 0 as cmd_how,
        errmsg: std::ptr::null(),
    };
    let mut rows = [end; COUNT + 1];
    let mut row = 0;
    let mut start = 0;
    let mut index = 0;
    while index < DIRECTIVES.len() + NOT_BUILT.len() {
        if let Some((name, text)) = strings_of(index) {
            rows[row] = command_rec {
                name: c_string_at(start),
                func: cmd_func { raw_args: Some(directives::set) },
                errmsg: c_string_at(start + name.len() + 1),
                cmd_data: null_mut(),
                req_override: if index < DIRECTIVES.len() {
                    places(&DIRECTIVES[index])
                } else {
                    RSRC_CONF | ACCESS_CONF | OR_FILEINFO
                },
                args_how: cmd_how_RAW_ARGS,
            };
            start += name.len() + text.len() + 2;
            row += 1;
        }
        index += 1;
    }
    rows
}

/// Name and text of a row of the core's tables, laid end to end; `None` where Apache does not have the directive.
const fn strings_of(index: usize) -> Option<(&'static str, &'static str)> {
    if index >= DIRECTIVES.len() {
        return Some((NOT_BUILT[index - DIRECTIVES.len()], NOT_BUILT_TEXT));
    }
    match DIRECTIVES[index].apache {
        Some(name) => Some((name, DIRECTIVES[index].text)),
        None => None,
    }
}

/// Where httpd lets a directive stand. What may stand only in the main server is checked when it is set.
const fn places(directive: &Directive) -> c_int {
    let mut places = 0;
    let mut index = 0;
    while index < directive.contexts.len() {
        places |= match directive.contexts[index] {
            Context::Main | Context::Server => RSRC_CONF,
            Context::Location | Context::If => RSRC_CONF | ACCESS_CONF,
            Context::Htaccess => OR_FILEINFO,
        };
        index += 1;
    }
    places
}

const fn c_string_at(start: usize) -> *const c_char {
    // SAFETY: within STRINGS: the compiler evaluates this and refuses what is not.
    unsafe { STRINGS.as_ptr().add(start).cast() }
}

const fn strings_length() -> usize {
    let mut length = 0;
    let mut index = 0;
    while index < DIRECTIVES.len() + NOT_BUILT.len() {
        if let Some((name, text)) = strings_of(index) {
            length += name.len() + text.len() + 2;
        }
        index += 1;
    }
    length
}

const fn strings() -> [u8; strings_length()] {
    let mut bytes = [0; strings_length()];
    let mut start = 0;
    let mut index = 0;
    while index < DIRECTIVES.len() + NOT_BUILT.len() {
        if let Some((name, text)) = strings_of(index) {
            copy(&mut bytes, start, name);
            copy(&mut bytes, start + name.len() + 1, text);
            start += name.len() + text.len() + 2;
        }
        index += 1;
    }
    bytes
}

const fn copy(bytes: &mut [u8], start: usize, text: &str) {
    let mut index = 0;
    while index < text.len() {
        bytes[start + index] = text.as_bytes()[index];
        index += 1;
    }
}
