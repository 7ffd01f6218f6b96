//! What frames say, apart from requests: built and read on both sides.
#![forbid(unsafe_code)]

use super::frame::{self, END, Fields, Frame, Kind, VERSION, Violation, put_long, put_short};
use crate::exchange::{BodyError, Outcome};
use crate::log::Level;
use crate::response::Head;

/// The first four bytes of a connection's payload.
const MAGIC: [u8; 4] = *b"HBWG";

/// What proves a server process to a worker; the worker knows its hash.
pub type Key = [u8; 32];

/// How an exchange ended, as a worker tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Outcome(Outcome),
    /// The request's time was over before its head was sent: 504.
    TimedOut,
    /// The worker does not have the application, and nothing has begun: another one may have it, or will.
    NotHere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    pub version: u16,
    /// Bytes of blocks that may be on their way to a client, per request.
    pub window: u32,
    /// The connection's part of the page.
    pub first_slot: u32,
    pub slots: u32,
    pub incarnation: u64,
}

/// A part of a file whose descriptor came along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub offset: u64,
    pub length: u64,
}

pub fn hello(out: &mut Vec<u8>, key: &Key) {
    let mut payload = Vec::with_capacity(38);
    payload.extend_from_slice(&MAGIC);
    payload.extend_from_slice(&VERSION.to_le_bytes());
    payload.extend_from_slice(key);
    frame::put(out, 0, Kind::Hello, 0, &payload);
}

/// Version and key.
pub fn read_hello(frame: &Frame<'_>) -> Result<(u16, Key), Violation> {
    read(frame, |fields| {
        if fields.array()? != MAGIC {
            return None;
        }
        let version = fields.u16()?;
        // What comes after is of that version.
        if version != VERSION { Some((version, [0; 32])) } else { Some((version, fields.array()?)) }
    })
}

pub fn welcome(out: &mut Vec<u8>, welcome: &Welcome) {
    let mut payload = Vec::with_capacity(22);
    payload.extend_from_slice(&welcome.version.to_le_bytes());
    for number in [welcome.window, welcome.first_slot, welcome.slots] {
        payload.extend_from_slice(&number.to_le_bytes());
    }
    payload.extend_from_slice(&welcome.incarnation.to_le_bytes());
    frame::put(out, 0, Kind::Welcome, 0, &payload);
}

pub fn read_welcome(frame: &Frame<'_>) -> Result<Welcome, Violation> {
    read(frame, |fields| {
        Some(Welcome {
            version: fields.u16()?,
            window: fields.u32()?,
            first_slot: fields.u32()?,
            slots: fields.u32()?,
            incarnation: fields.u64()?,
        })
    })
}

pub fn version(out: &mut Vec<u8>) {
    frame::put(out, 0, Kind::Version, 0, &VERSION.to_le_bytes());
}

pub fn read_version(frame: &Frame<'_>) -> Result<u16, Violation> {
    read(frame, Fields::u16)
}

/// TAKEN and READ.
pub fn credit(out: &mut Vec<u8>, stream: u32, kind: Kind, bytes: u32) {
    frame::put(out, stream, kind, 0, &bytes.to_le_bytes());
}

pub fn read_credit(frame: &Frame<'_>) -> Result<u32, Violation> {
    read(frame, Fields::u32)
}

/// FILE and BODY_FILE; the descriptor goes with the frame's first byte.
pub fn part(out: &mut Vec<u8>, stream: u32, kind: Kind, flags: u8, part: Part) {
    let mut payload = [0; 16];
    let (offset, length) = payload.split_at_mut(8);
    offset.copy_from_slice(&part.offset.to_le_bytes());
    length.copy_from_slice(&part.length.to_le_bytes());
    frame::put(out, stream, kind, flags, &payload);
}

pub fn read_part(frame: &Frame<'_>) -> Result<Part, Violation> {
    read(frame, |fields| {
        let part = Part { offset: fields.u64()?, length: fields.u64()? };
        part.offset.checked_add(part.length).filter(|end| i64::try_from(*end).is_ok())?;
        Some(part)
    })
}

pub fn body_failed(out: &mut Vec<u8>, stream: u32, error: &BodyError) {
    let (number, text) = match error {
        BodyError::Truncated => (1_u8, ""),
        BodyError::TooLarge => (2, ""),
        BodyError::TimedOut => (3, ""),
        BodyError::Failed(text) => (4, text.as_str()),
    };
    let mut payload = vec![number];
    payload.extend_from_slice(text.as_bytes().get(..text.len().min(1024)).unwrap_or_default());
    frame::put(out, stream, Kind::BodyFailed, END, &payload);
}

pub fn read_body_failed(frame: &Frame<'_>) -> Result<BodyError, Violation> {
    read(frame, |fields| {
        let number = fields.u8()?;
        let text = String::from_utf8_lossy(fields.rest());
        match number {
            1 => Some(BodyError::Truncated),
            2 => Some(BodyError::TooLarge),
            3 => Some(BodyError::TimedOut),
            4 => Some(BodyError::Failed(text.into_owned())),
            _ => None,
        }
    })
}

/// Bytes of the longest head, and of the longest record.
pub const LONGEST_HEAD: usize = 1024 * 1024;
pub const LONGEST_RECORD: usize = 1024 * 1024;

/// Content-Length is a field like any other here. False, and nothing is put: it is longer than [`LONGEST_HEAD`].
#[must_use]
pub fn head(out: &mut Vec<u8>, stream: u32, head: &Head) -> bool {
    let mut payload = Vec::with_capacity(256);
    payload.extend_from_slice(&head.status().to_le_bytes());
    put_short(&mut payload, head.reason());
    let length = head.content_length().map(|length| length.to_string());
    let count = head.fields().len() + usize::from(length.is_some());
    payload.extend_from_slice(&(count as u16).to_le_bytes());
    let length = length.as_ref().map(|length| (&b"Content-Length"[..], length.as_bytes()));
    for (name, value) in head.fields().chain(length) {
        put_short(&mut payload, name);
        put_long(&mut payload, value);
    }
    let fits = payload.len() <= LONGEST_HEAD;
    if fits {
        frame::put(out, stream, Kind::Head, 0, &payload);
    }
    fits
}

/// A head from its whole payload; checked as one of an application is, since a worker is not trusted.
pub fn read_head(payload: &[u8]) -> Result<Head, Violation> {
    let read = |mut fields: Fields<'_>| {
        let mut status = fields.u16()?.to_string().into_bytes();
        let reason = fields.short()?;
        status.push(b' ');
        status.extend_from_slice(reason);
        let count = fields.u16()?;
        let mut head = Head::new(&status).ok()?;
        for _ in 0..count {
            let name = fields.short()?;
            head.push(name, fields.long()?).ok()?;
        }
        fields.end()?;
        Some(head)
    };
    read(Fields(payload)).ok_or(Violation::Payload(Kind::Head))
}

pub fn finish(out: &mut Vec<u8>, stream: u32, ending: Ending) {
    let number = match ending {
        Ending::Outcome(Outcome::Complete) => 0,
        Ending::Outcome(Outcome::Failed) => 1,
        Ending::Outcome(Outcome::Truncated) => 2,
        Ending::Outcome(Outcome::ClientGone) => 3,
        Ending::TimedOut => 4,
        Ending::NotHere => 5,
    };
    frame::put(out, stream, Kind::Finish, END, &[number]);
}

pub fn read_finish(frame: &Frame<'_>) -> Result<Ending, Violation> {
    read(frame, |fields| match fields.u8()? {
        0 => Some(Ending::Outcome(Outcome::Complete)),
        1 => Some(Ending::Outcome(Outcome::Failed)),
        2 => Some(Ending::Outcome(Outcome::Truncated)),
        3 => Some(Ending::Outcome(Outcome::ClientGone)),
        4 => Some(Ending::TimedOut),
        5 => Some(Ending::NotHere),
        _ => None,
    })
}

/// A text that is too long is cut.
pub fn log(out: &mut Vec<u8>, stream: u32, level: Level, text: &str) {
    let number = LEVELS.iter().position(|known| *known == level).unwrap_or_default();
    let mut payload = vec![number as u8];
    payload.extend_from_slice(text.as_bytes().get(..LONGEST_RECORD - 1).unwrap_or(text.as_bytes()));
    frame::put(out, stream, Kind::Log, 0, &payload);
}

pub fn read_log(payload: &[u8]) -> Result<(Level, String), Violation> {
    let mut fields = Fields(payload);
    let level = fields.u8().and_then(|number| LEVELS.get(usize::from(number)));
    let level = *level.ok_or(Violation::Payload(Kind::Log))?;
    Ok((level, String::from_utf8_lossy(fields.rest()).into_owned()))
}

const LEVELS: [Level; 6] = [Level::Crit, Level::Error, Level::Warn, Level::Notice, Level::Info, Level::Debug];

fn read<'a, T>(frame: &Frame<'a>, read: impl FnOnce(&mut Fields<'a>) -> Option<T>) -> Result<T, Violation> {
    let mut fields = Fields(frame.payload);
    let read = read(&mut fields).filter(|_| !frame.more);
    read.ok_or(Violation::Payload(frame.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(out: &[u8]) -> Frame<'_> {
        let mut rest = out;
        let frame = frame::take(&mut rest).unwrap().unwrap();
        assert!(rest.is_empty());
        frame
    }

    #[test]
    fn messages_come_back_as_they_were_put() {
        let mut out = Vec::new();
        hello(&mut out, &[7; 32]);
        assert_eq!(read_hello(&only(&out)), Ok((VERSION, [7; 32])));

        let greeting = Welcome { version: 1, window: 65536, first_slot: 8, slots: 64, incarnation: u64::MAX };
        out.clear();
        welcome(&mut out, &greeting);
        assert_eq!(read_welcome(&only(&out)), Ok(greeting));

        out.clear();
        part(&mut out, 3, Kind::File, 0, Part { offset: 1, length: 1 << 40 });
        assert_eq!(read_part(&only(&out)), Ok(Part { offset: 1, length: 1 << 40 }));

        for error in [BodyError::Truncated, BodyError::TooLarge, BodyError::TimedOut, BodyError::Failed("x".into())] {
            out.clear();
            body_failed(&mut out, 3, &error);
            assert_eq!(read_body_failed(&only(&out)), Ok(error));
        }
        for ending in [Ending::Outcome(Outcome::Truncated), Ending::TimedOut, Ending::NotHere] {
            out.clear();
            finish(&mut out, 3, ending);
            assert_eq!(read_finish(&only(&out)), Ok(ending));
        }
        out.clear();
        log(&mut out, 3, Level::Warn, "caf\u{e9}");
        assert_eq!(read_log(only(&out).payload), Ok((Level::Warn, "caf\u{e9}".to_string())));
    }

    #[test]
    fn heads_keep_order_repeats_and_length() {
        let mut before = Head::new(b"404 No").unwrap();
        for (name, value) in [("Set-Cookie", "a"), ("X", ""), ("Set-Cookie", "b"), ("content-length", "12")] {
            before.push(name.as_bytes(), value.as_bytes()).unwrap();
        }
        let mut out = Vec::new();
        assert!(head(&mut out, 3, &before));
        let after = read_head(only(&out).payload).unwrap();
        assert_eq!(after.fields().collect::<Vec<_>>(), before.fields().collect::<Vec<_>>());
        assert_eq!((after.status(), after.reason(), after.content_length()), (404, &b"No"[..], Some(12)));
    }

    #[test]
    fn what_would_be_too_long_to_be_read_is_not_put() {
        let mut out = Vec::new();
        log(&mut out, 3, Level::Error, &"x".repeat(2 * LONGEST_RECORD));
        let mut assembly = frame::Assembly::default();
        let mut rest = &out[..];
        let mut whole = None;
        while let Some(frame) = frame::take(&mut rest).unwrap() {
            whole = assembly.add(&frame, LONGEST_RECORD).unwrap().map(<[u8]>::len);
        }
        assert_eq!(whole, Some(LONGEST_RECORD));
        let mut large = Head::new(b"200 OK").unwrap();
        large.push(b"X", "x".repeat(LONGEST_HEAD).as_bytes()).unwrap();
        out.clear();
        assert!(!head(&mut out, 3, &large) && out.is_empty());
    }

    #[test]
    fn a_worker_cannot_smuggle_a_line_through_a_head() {
        let mut payload = 200_u16.to_le_bytes().to_vec();
        put_short(&mut payload, b"OK");
        payload.extend_from_slice(&1_u16.to_le_bytes());
        put_short(&mut payload, b"X");
        put_long(&mut payload, b"a\r\nSet-Cookie: b");
        assert_eq!(read_head(&payload), Err(Violation::Payload(Kind::Head)));
    }

    #[test]
    fn parts_beyond_what_a_file_can_hold_are_violations() {
        for part_ in [Part { offset: u64::MAX, length: 1 }, Part { offset: 1 << 62, length: 1 << 62 }] {
            let mut out = Vec::new();
            part(&mut out, 3, Kind::File, 0, part_);
            assert_eq!(read_part(&only(&out)), Err(Violation::Payload(Kind::File)));
        }
    }
}
