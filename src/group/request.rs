//! A request on its way to a worker.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::frame::{Fields, Kind, Violation, put_long, put_short};
use crate::environ::KnownHeader;
use crate::request::{BodyLength, Fact, Request};
use crate::settings::Target;

/// Bytes of the longest request, without its body.
pub const LONGEST: usize = 1024 * 1024;

/// The page slot of a request that has none: it counts as begun from the start.
pub const NO_SLOT: u32 = u32::MAX;

/// Which application is to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answerer {
    /// One of the desired state, by its identifier; never 0.
    Listed(u64),
    /// A script found at request time.
    Script { target: Target, script_reloading: bool },
}

/// Writes the payload of a REQUEST into `out`, which is cleared first. False: it is longer than [`LONGEST`], or has more
/// headers or variables than can be counted.
#[must_use]
pub fn put(out: &mut Vec<u8>, answerer: &Answerer, page_slot: u32, request: &Request) -> bool {
    out.clear();
    let counts = [request.headers().count(), request.variables().count(), request.params().count()];
    if counts.iter().any(|count| *count > usize::from(u16::MAX)) {
        return false;
    }
    let identifier = match answerer {
        Answerer::Listed(identifier) => *identifier,
        Answerer::Script { .. } => 0,
    };
    out.extend_from_slice(&identifier.to_le_bytes());
    out.extend_from_slice(&page_slot.to_le_bytes());
    let (kind, length) = match request.body() {
        BodyLength::Absent => (0_u8, 0),
        BodyLength::Known(length) => (1, length),
        BodyLength::Unknown => (2, 0),
    };
    out.push(kind);
    out.extend_from_slice(&length.to_le_bytes());
    let present = Fact::ALL.iter().enumerate().filter(|(_, fact)| request.fact(**fact).is_some());
    let mask = present.fold(0_u16, |mask, (index, _)| mask | 1 << index);
    out.extend_from_slice(&mask.to_le_bytes());
    for fact in Fact::ALL {
        if let Some(value) = request.fact(*fact) {
            put_long(out, value);
        }
    }
    out.extend_from_slice(&(request.headers().count() as u16).to_le_bytes());
    for header in request.headers() {
        match header.known {
            Some(known) => out.push(known as u8 + 1),
            None => {
                out.push(0);
                put_short(out, header.name);
            }
        }
        put_long(out, header.value);
    }
    put_pairs(out, request.variables());
    put_pairs(out, request.params());
    if let Answerer::Script { target, script_reloading } = answerer {
        put_long(out, target.script_path().as_os_str().as_encoded_bytes());
        put_short(out, target.callable.as_bytes());
        out.push(u8::from(*script_reloading));
    }
    out.len() <= LONGEST
}

fn put_pairs<'a>(out: &mut Vec<u8>, pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
    let at = out.len();
    out.extend_from_slice(&[0, 0]);
    let mut count = 0_u16;
    for (name, value) in pairs {
        count = count.saturating_add(1);
        put_short(out, name);
        put_long(out, value);
    }
    if let Some(place) = out.get_mut(at..at + 2) {
        place.copy_from_slice(&count.to_le_bytes());
    }
}

/// What a REQUEST says: who answers, the page slot, and the request.
pub fn read(payload: &[u8]) -> Result<(Answerer, u32, Request), Violation> {
    read_fields(Fields(payload)).ok_or(Violation::Payload(Kind::Request))
}

fn read_fields(mut fields: Fields<'_>) -> Option<(Answerer, u32, Request)> {
    let identifier = fields.u64()?;
    let page_slot = fields.u32()?;
    let kind = fields.u8()?;
    let length = fields.u64()?;
    let mut builder = Request::builder(fields.0.len(), 16);
    builder.body(match kind {
        0 => BodyLength::Absent,
        1 => BodyLength::Known(length),
        2 => BodyLength::Unknown,
        _ => return None,
    });
    let mask = fields.u16()?;
    for (index, fact) in Fact::ALL.iter().enumerate() {
        if mask & 1 << index != 0 {
            builder.fact(*fact, fields.long()?);
        }
    }
    for _ in 0..fields.u16()? {
        match fields.u8()? {
            0 => {
                let name = fields.short()?;
                builder.header(name, fields.long()?);
            }
            known => {
                let known = KnownHeader::ALL.get(usize::from(known) - 1)?;
                builder.known_header(*known, fields.long()?);
            }
        }
    }
    for _ in 0..fields.u16()? {
        let name = fields.short()?;
        builder.variable(name, fields.long()?);
    }
    for _ in 0..fields.u16()? {
        let name = fields.short()?;
        builder.param(name, fields.long()?);
    }
    let answerer = if identifier != 0 {
        Answerer::Listed(identifier)
    } else {
        let path = std::str::from_utf8(fields.long()?).ok()?;
        let callable = std::str::from_utf8(fields.short()?).ok()?;
        let script_reloading = fields.u8()? != 0;
        if !path.starts_with('/') || path.contains('\0') || callable.contains('\0') {
            return None;
        }
        Answerer::Script { target: Target::script(PathBuf::from(path), callable), script_reloading }
    };
    fields.end()?;
    Some((answerer, page_slot, builder.build()))
}

/// The mask has a bit for each.
const _: () = assert!(Fact::ALL.len() <= 16);
/// A byte holds each and one more.
const _: () = assert!(KnownHeader::ALL.len() < 255);

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Request {
        let mut builder = Request::builder(0, 0);
        builder.fact(Fact::Method, b"POST").fact(Fact::PathInfo, b"/caf\xc3\xa9").fact(Fact::QueryString, b"");
        builder
            .header(b"Host", b"example.org")
            .header(b"X-Token", b"1")
            .header(b"Cookie", b"")
            .header(b"X-Token", b"2");
        builder.variable(b"SSL_CIPHER", b"x").param(b"STAGE", b"test");
        builder.body(BodyLength::Known(12));
        builder.build()
    }

    fn described(request: &Request) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        crate::environ::each_variable(request, |key, value| {
            all.push((format!("{key:?}").into_bytes(), value.to_vec()))
        });
        all
    }

    #[test]
    fn a_request_comes_back_as_it_was() {
        let script = Answerer::Script { target: Target::script("/srv/app.wsgi", "app"), script_reloading: true };
        for answerer in [Answerer::Listed(u64::MAX), script] {
            let mut out = b"left over".to_vec();
            assert!(put(&mut out, &answerer, 17, &sample()));
            let (again, slot, request) = read(&out).unwrap();
            assert_eq!((again, slot), (answerer, 17));
            assert_eq!(described(&request), described(&sample()));
            assert_eq!(request.body(), BodyLength::Known(12));
        }
    }

    #[test]
    fn what_would_be_too_long_to_be_read_is_told() {
        let mut builder = Request::builder(0, 0);
        builder.header(b"X", "x".repeat(LONGEST).as_bytes());
        assert!(!put(&mut Vec::new(), &Answerer::Listed(5), NO_SLOT, &builder.build()));
        let mut builder = Request::builder(0, 0);
        for _ in 0..=u16::MAX {
            builder.header(b"X", b"");
        }
        assert!(!put(&mut Vec::new(), &Answerer::Listed(5), NO_SLOT, &builder.build()));
    }

    #[test]
    fn what_is_cut_or_too_long_is_a_violation() {
        let mut out = Vec::new();
        assert!(put(&mut out, &Answerer::Listed(5), NO_SLOT, &sample()));
        for length in 0..out.len() {
            assert!(read(&out[..length]).is_err(), "{length}");
        }
        out.push(0);
        assert!(read(&out).is_err());
    }
}
