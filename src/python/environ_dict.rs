//! `environ` as a Python dictionary: a copy of a template with interned keys, then the values of the request.

use std::sync::Mutex;

use pyo3_ffi as ffi;

use super::object::{Owned, Raised, Result, boolean, integer, interned, latin1, set_item, string, tuple};
use crate::environ::{Key, KnownHeader, each_variable, header_key};
use crate::request::{Fact, Request};
use crate::settings::InterpreterSettings;

/// Keys that exist before any request arrives, and the template.
pub(super) struct Environ {
    template: Owned,
    facts: Vec<Owned>,
    headers: Vec<Owned>,
    content_length: Owned,
    https: Owned,
    pub(super) input: Owned,
    pub(super) errors: Owned,
    /// The last value of each fact, which is mostly that of the next request too.
    last: Mutex<Vec<Option<Last>>>,
}

/// A value as the host gave it, and as Python has it.
struct Last {
    bytes: Vec<u8>,
    string: Owned,
}

impl Environ {
    pub(super) fn new(settings: &InterpreterSettings, file_wrapper: &Owned) -> Result<Environ> {
        // SAFETY: attached.
        let template = Owned::new(unsafe { ffi::PyDict_New() })?;
        let facts = Fact::ALL.iter().map(|fact| interned(fact.key())).collect::<Result<Vec<_>>>()?;
        let empty = string("")?;
        for (fact, key) in Fact::ALL.iter().zip(&facts) {
            // What is not known of every request must not appear in every environ.
            if ALWAYS.contains(fact) {
                set_item(&template, key, &empty)?;
            }
        }
        let environ = Environ {
            facts,
            headers: KnownHeader::ALL.iter().map(|header| interned(header.key())).collect::<Result<_>>()?,
            content_length: interned("CONTENT_LENGTH")?,
            https: interned("HTTPS")?,
            input: interned("wsgi.input")?,
            errors: interned("wsgi.errors")?,
            last: Mutex::new(Fact::ALL.iter().map(|_| None).collect()),
            template,
        };
        let version = tuple(&[&integer(1)?, &integer(0)?])?;
        let (yes, no) = (boolean(true)?, boolean(false)?);
        let flag = |value: bool| if value { &yes } else { &no };
        for (key, value) in [
            ("wsgi.version", &version),
            ("wsgi.multithread", flag(settings.multithread)),
            ("wsgi.multiprocess", flag(settings.multiprocess)),
            ("wsgi.run_once", &no),
            ("wsgi.file_wrapper", file_wrapper),
            // Not in the PEP, and understood by frameworks: the input ends by itself, with or without CONTENT_LENGTH.
            ("wsgi.input_terminated", &yes),
            ("SERVER_SOFTWARE", &string(&settings.server_software)?),
        ] {
            set_item(&environ.template, &interned(key)?, value)?;
        }
        for key in [&environ.input, &environ.errors] {
            set_item(&environ.template, key, &empty)?;
        }
        environ.make_room()?;
        Ok(environ)
    }

    /// Lets the template's table grow, so that its copies take a request's own keys without growing: more than a few
    /// deleted keys would make copying slow.
    fn make_room(&self) -> Result<()> {
        let spare = (0..SPARE_KEYS).map(integer).collect::<Result<Vec<_>>>()?;
        for key in &spare {
            set_item(&self.template, key, key)?;
        }
        for key in &spare {
            // SAFETY: attached; both are alive.
            if unsafe { ffi::PyDict_DelItem(self.template.as_ptr(), key.as_ptr()) } < 0 {
                return Err(Raised);
            }
        }
        Ok(())
    }

    /// The environ of one request; `wsgi.input` and `wsgi.errors` are the caller's to set.
    pub(super) fn dict(&self, request: &Request) -> Result<Owned> {
        // SAFETY: attached.
        let dict = Owned::new(unsafe { ffi::PyDict_Copy(self.template.as_ptr()) })?;
        let mut result = Ok(());
        let mut name = Vec::new();
        each_variable(request, |key, value| {
            if result.is_ok() {
                result = self.set(&dict, key, value, &mut name);
            }
        });
        result.map(|()| dict)
    }

    fn set(&self, dict: &Owned, key: Key<'_>, value: &[u8], name: &mut Vec<u8>) -> Result<()> {
        let made;
        let key = match key {
            Key::Fact(fact) => return self.set_fact(dict, fact, value),
            Key::Header(header) => self.headers.get(header as usize).ok_or(Raised)?,
            Key::ContentLength => &self.content_length,
            Key::Https => &self.https,
            Key::OtherHeader(header) => {
                header_key(header, name);
                made = latin1(name)?;
                &made
            }
            Key::Named(key) => {
                made = latin1(key)?;
                &made
            }
        };
        set_item(dict, key, &latin1(value)?)
    }

    /// A value that is often the same from request to request: made once. Paths and queries are not kept.
    fn set_fact(&self, dict: &Owned, fact: Fact, value: &[u8]) -> Result<()> {
        let key = self.facts.get(fact as usize).ok_or(Raised)?;
        // Another thread that is just here makes a value of its own.
        let mut last = if CHANGING.contains(&fact) { None } else { self.last.try_lock().ok() };
        let Some(slot) = last.as_mut().and_then(|last| last.get_mut(fact as usize)) else {
            return set_item(dict, key, &latin1(value)?);
        };
        match slot {
            Some(last) if last.bytes == value => set_item(dict, key, &last.string),
            _ => {
                let string = latin1(value)?;
                set_item(dict, key, &string)?;
                *slot = Some(Last { bytes: value.to_vec(), string });
                Ok(())
            }
        }
    }
}

/// Enough to let the table of CPython's dictionaries grow by one step.
const SPARE_KEYS: i64 = 3;

/// Facts that differ from request to request.
const CHANGING: [Fact; 5] = [Fact::PathInfo, Fact::QueryString, Fact::RequestUri, Fact::RemotePort, Fact::RemoteUser];

/// Facts that PEP 3333 demands of every request, and those every host knows: they stand in the template, so that the
/// copied dictionary has room for them already.
const ALWAYS: [Fact; 10] = [
    Fact::Method,
    Fact::ScriptName,
    Fact::PathInfo,
    Fact::QueryString,
    Fact::RequestUri,
    Fact::Protocol,
    Fact::Scheme,
    Fact::ServerName,
    Fact::ServerPort,
    Fact::RemoteAddr,
];
