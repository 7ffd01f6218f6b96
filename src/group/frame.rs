//! Frames of a connection between a server process and a worker: eight bytes of header, then a payload.
//!
//! Little-endian: stream (u32), length of the payload (u16), kind (u8), flags (u8).
#![forbid(unsafe_code)]

/// Both ends of a connection speak the same one, or not at all. Built with HIGHBALL_NEXT_VERSION it is the next one, for the
/// test that upgrades.
pub const VERSION: u16 = if option_env!("HIGHBALL_NEXT_VERSION").is_some() { 2 } else { 1 };

pub const HEADER: usize = 8;

/// Bytes of the longest payload.
pub const LONGEST: usize = u16::MAX as usize;

/// The sender's side of the stream is complete.
pub const END: u8 = 1;
/// The payload goes on in the next frame of this stream and kind.
pub const MORE: u8 = 2;

macro_rules! kinds {
    ($($name:ident = $number:literal $text:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind { $(#[doc = $text] $name = $number,)* }

        impl Kind {
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            fn from_number(number: u8) -> Option<Kind> {
                match number { $($number => Some(Kind::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    Hello = 1 "Server: who it is.";
    Welcome = 2 "Worker: the connection may be used.";
    Goaway = 3 "Worker: no new requests here.";
    Version = 4 "Worker: the version it speaks, if another.";
    Request = 16 "Server: a request.";
    Body = 17 "Server: bytes of its body.";
    BodyFile = 18 "Server: a part of its body, in a file.";
    BodyFailed = 19 "Server: the rest of the body will not come.";
    Taken = 20 "Server: bytes have left for the client.";
    Gone = 21 "Server: the client has left.";
    Head = 32 "Worker: status and headers.";
    Block = 33 "Worker: bytes of the response.";
    File = 34 "Worker: a part of the response, in a file.";
    Finish = 35 "Worker: how the exchange ended.";
    Log = 36 "Worker: a record of the request.";
    Read = 37 "Worker: so much more of the body may come.";
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub stream: u32,
    pub kind: Kind,
    pub end: bool,
    pub more: bool,
    pub payload: &'a [u8],
}

/// What the other end sent is not of this protocol; the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    #[error("a frame with the unknown flags {0}")]
    Flags(u8),
    #[error("a {0:?} frame whose payload cannot be read")]
    Payload(Kind),
    #[error("a {0:?} frame where none may come")]
    Unexpected(Kind),
    #[error("a {0:?} frame without its descriptor, or a descriptor without its frame")]
    Descriptor(Kind),
    #[error("a message of more than {0} bytes")]
    TooLong(usize),
}

/// Appends one frame. A payload longer than [`LONGEST`] becomes several, all but the last with [`MORE`].
pub fn put(out: &mut Vec<u8>, stream: u32, kind: Kind, flags: u8, payload: &[u8]) {
    let mut rest = payload;
    loop {
        let (now, later) = rest.split_at(rest.len().min(LONGEST));
        let flags = if later.is_empty() { flags } else { MORE };
        out.extend_from_slice(&header(stream, now.len() as u16, kind, flags));
        out.extend_from_slice(now);
        if later.is_empty() {
            return;
        }
        rest = later;
    }
}

/// The header of a frame whose payload is sent from elsewhere.
pub fn header(stream: u32, length: u16, kind: Kind, flags: u8) -> [u8; HEADER] {
    let [a, b, c, d] = stream.to_le_bytes();
    let [e, f] = length.to_le_bytes();
    [a, b, c, d, e, f, kind as u8, flags]
}

/// Takes the first frame off `bytes`; `None` where it is not all there yet.
pub fn take<'a>(bytes: &mut &'a [u8]) -> Result<Option<Frame<'a>>, Violation> {
    let Some((&[a, b, c, d, e, f, kind, flags], rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let known = Kind::from_number(kind).ok_or(Violation::Kind(kind))?;
    if flags & !(END | MORE) != 0 {
        return Err(Violation::Flags(flags));
    }
    let Some((payload, rest)) = rest.split_at_checked(usize::from(u16::from_le_bytes([e, f]))) else {
        return Ok(None);
    };
    *bytes = rest;
    Ok(Some(Frame {
        stream: u32::from_le_bytes([a, b, c, d]),
        kind: known,
        end: flags & END != 0,
        more: flags & MORE != 0,
        payload,
    }))
}

/// Puts messages together that came in several frames. One at a time on a connection: [`put`] interleaves nothing.
#[derive(Default)]
pub struct Assembly {
    kind: Option<(u32, Kind)>,
    bytes: Vec<u8>,
}

impl Assembly {
    /// The whole payload once its last frame is here, in `self` or in the frame. At most `longest` bytes.
    pub fn add<'a>(&'a mut self, frame: &Frame<'a>, longest: usize) -> Result<Option<&'a [u8]>, Violation> {
        if self.kind.is_some_and(|started| started != (frame.stream, frame.kind)) {
            return Err(Violation::Unexpected(frame.kind));
        }
        if self.kind.is_none() && !frame.more {
            return Ok(Some(frame.payload));
        }
        if self.kind.is_none() {
            self.bytes.clear();
        }
        if self.bytes.len() + frame.payload.len() > longest {
            return Err(Violation::TooLong(longest));
        }
        self.bytes.extend_from_slice(frame.payload);
        self.kind = frame.more.then_some((frame.stream, frame.kind));
        Ok((!frame.more).then_some(&*self.bytes))
    }
}

/// Reads fields off a payload; `None` where it is too short.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Bytes after their length, of 16 bits.
    pub fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.bytes(length.into())
    }

    /// Bytes after their length, of 32 bits.
    pub fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(usize::try_from(length).ok()?)
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Nothing may be left.
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Appends bytes with their length in 16 bits; longer ones are cut.
pub fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = bytes.get(..bytes.len().min(u16::MAX.into())).unwrap_or_default();
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Appends bytes with their length in 32 bits. Texts of a request stay below 4 GiB together.
pub fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_put() {
        let mut out = Vec::new();
        for kind in Kind::ALL {
            put(&mut out, 7, *kind, END, b"abc");
        }
        let mut rest = &out[..];
        for kind in Kind::ALL {
            let frame = take(&mut rest).unwrap().unwrap();
            assert_eq!(frame, Frame { stream: 7, kind: *kind, end: true, more: false, payload: b"abc" });
        }
        assert_eq!(take(&mut rest), Ok(None));
    }

    #[test]
    fn a_frame_is_waited_for_until_its_last_byte() {
        let mut out = Vec::new();
        put(&mut out, 1, Kind::Block, 0, b"abc");
        for length in 0..out.len() {
            assert_eq!(take(&mut &out[..length]), Ok(None), "{length}");
        }
    }

    #[test]
    fn long_messages_are_put_together_and_bounded() {
        let message = vec![b'x'; LONGEST * 2 + 5];
        let mut out = Vec::new();
        put(&mut out, 3, Kind::Request, END, &message);
        let mut rest = &out[..];
        let mut assembly = Assembly::default();
        let mut whole = None;
        while let Some(frame) = take(&mut rest).unwrap() {
            assert!(whole.is_none());
            whole = assembly.add(&frame, 1 << 20).unwrap().map(<[u8]>::to_vec);
            assert_eq!(frame.end, whole.is_some());
        }
        assert_eq!(whole.as_deref(), Some(&message[..]));
        let mut rest = &out[..];
        let first = take(&mut rest).unwrap().unwrap();
        let second = take(&mut rest).unwrap().unwrap();
        assert_eq!(assembly.add(&first, LONGEST), Ok(None));
        assert_eq!(assembly.add(&second, LONGEST), Err(Violation::TooLong(LONGEST)));
        let other = Frame { stream: 4, ..second };
        assert_eq!(Assembly::default().add(&other, LONGEST), Ok(None));
        assert_eq!(assembly.add(&other, LONGEST), Err(Violation::Unexpected(Kind::Request)));
    }

    #[test]
    fn unknown_kinds_and_flags_are_violations() {
        assert_eq!(take(&mut &[0, 0, 0, 0, 0, 0, 99, 0][..]), Err(Violation::Kind(99)));
        assert_eq!(take(&mut &[0, 0, 0, 0, 0, 0, 33, 4][..]), Err(Violation::Flags(4)));
    }
}
