//! `environ` as a Python dictionary: a copy of a template with interned keys, then the values of the request.

use std::sync::{Mutex, MutexGuard};

use pyo3_ffi as ffi;

use super::object::{Owned, Raised, Result, boolean, integer, interned, latin1, set_item, string, tuple};
use crate::environ::{Key, KnownHeader, each_variable, header_key};
use crate::request::{Fact, Request};
use crate::settings::InterpreterSettings;

/// Keys that exist before any request arrives, and the template.
pub(super) struct Environ {
    /// Changed only by who holds `last`.
    template: Owned,
    facts: Vec<Owned>,
    headers: Vec<Owned>,
    content_length: Owned,
    https: Owned,
    empty: Owned,
    pub(super) input: Owned,
    pub(super) errors: Owned,
    last: Mutex<Last>,
}

/// The last value of facts and headers, where it is mostly that of the next request too.
struct Last {
    facts: Vec<Option<Value>>,
    headers: Vec<Option<Value>>,
}

/// A value as the host gave it, and as Python has it.
struct Value {
    bytes: Vec<u8>,
    string: Owned,
}

/// One environ while it is filled.
struct Filling<'a> {
    environ: &'a Environ,
    dict: Owned,
    /// Nothing while another thread is just here: then every value is made anew.
    last: Option<MutexGuard<'a, Last>>,
    /// The server has variables, which stand in the dictionary first and may have names of ours.
    replaces: bool,
    name: Vec<u8>,
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
            last: Mutex::new(Last {
                facts: Fact::ALL.iter().map(|_| None).collect(),
                headers: KnownHeader::ALL.iter().map(|_| None).collect(),
            }),
            template,
            empty,
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
            set_item(&environ.template, key, &environ.empty)?;
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
        let last = self.last.try_lock().ok();
        // SAFETY: attached.
        let dict = Owned::new(unsafe { ffi::PyDict_Copy(self.template.as_ptr()) })?;
        let replaces = request.variables().next().is_some();
        let mut filling = Filling { environ: self, dict, last, replaces, name: Vec::new() };
        let mut result = Ok(());
        each_variable(request, |key, value| {
            if result.is_ok() {
                result = filling.set(key, value);
            }
        });
        result?;
        for fact in SAME {
            if request.fact(fact).is_none() {
                // Not the last request's.
                set_item(&filling.dict, self.facts.get(fact as usize).ok_or(Raised)?, &self.empty)?;
            }
        }
        Ok(filling.dict)
    }
}

impl Filling<'_> {
    fn set(&mut self, key: Key<'_>, value: &[u8]) -> Result<()> {
        let made;
        let key = match key {
            Key::Fact(fact) => return self.set_fact(fact, value),
            Key::Header(header) => return self.set_header(header, value),
            Key::ContentLength => &self.environ.content_length,
            Key::Https => &self.environ.https,
            Key::OtherHeader(header) => {
                header_key(header, &mut self.name);
                made = latin1(&self.name)?;
                &made
            }
            Key::Named(key) => {
                made = latin1(key)?;
                &made
            }
        };
        set_item(&self.dict, key, &latin1(value)?)
    }

    fn set_fact(&mut self, fact: Fact, value: &[u8]) -> Result<()> {
        let key = self.environ.facts.get(fact as usize).ok_or(Raised)?;
        let slot = self.last.as_mut().filter(|_| !CHANGING.contains(&fact));
        let Some(slot) = slot.and_then(|last| last.facts.get_mut(fact as usize)) else {
            return set_item(&self.dict, key, &latin1(value)?);
        };
        let in_template = SAME.contains(&fact);
        match slot {
            Some(last) if last.bytes == value => {
                if in_template && !self.replaces {
                    return Ok(());
                }
                set_item(&self.dict, key, &last.string)
            }
            _ => {
                let string = latin1(value)?;
                set_item(&self.dict, key, &string)?;
                if in_template {
                    set_item(&self.environ.template, key, &string)?;
                }
                Value::put(slot, value, string);
                Ok(())
            }
        }
    }

    fn set_header(&mut self, header: KnownHeader, value: &[u8]) -> Result<()> {
        let key = self.environ.headers.get(header as usize).ok_or(Raised)?;
        let slot = self.last.as_mut().filter(|_| SHARED.contains(&header));
        let Some(slot) = slot.and_then(|last| last.headers.get_mut(header as usize)) else {
            return set_item(&self.dict, key, &latin1(value)?);
        };
        match slot {
            Some(last) if last.bytes == value => set_item(&self.dict, key, &last.string),
            _ => {
                let string = latin1(value)?;
                set_item(&self.dict, key, &string)?;
                Value::put(slot, value, string);
                Ok(())
            }
        }
    }
}

impl Value {
    fn put(slot: &mut Option<Value>, bytes: &[u8], string: Owned) {
        match slot {
            Some(value) => {
                value.bytes.clear();
                value.bytes.extend_from_slice(bytes);
                value.string = string;
            }
            None => *slot = Some(Value { bytes: bytes.to_vec(), string }),
        }
    }
}

/// Enough to let the table of CPython's dictionaries grow by one step.
const SPARE_KEYS: i64 = 3;

/// Facts that differ from request to request: their values are not kept.
const CHANGING: [Fact; 5] = [Fact::PathInfo, Fact::QueryString, Fact::RequestUri, Fact::RemotePort, Fact::RemoteUser];

/// Facts that are mostly the same: the template has their last values.
const SAME: [Fact; 6] =
    [Fact::Method, Fact::ScriptName, Fact::Protocol, Fact::Scheme, Fact::ServerName, Fact::ServerPort];

/// Headers that many clients send alike, or one client with every request.
const SHARED: [KnownHeader; 6] = [
    KnownHeader::Accept,
    KnownHeader::AcceptEncoding,
    KnownHeader::AcceptLanguage,
    KnownHeader::Connection,
    KnownHeader::Host,
    KnownHeader::UserAgent,
];

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
