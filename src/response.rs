//! The head of a response: a status and fields that any strict HTTP parser accepts, or no head at all.
#![forbid(unsafe_code)]

/// Status and header fields. Cannot hold a line break, a NUL, a hop-by-hop field or a status outside 200–599.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    status: u16,
    /// Everything after the status code: the reason, then of each field the two lengths, its name and its value.
    text: Vec<u8>,
    reason: usize,
    fields: usize,
    content_length: Option<u64>,
}

/// The fields of a [`Head`]: names and values in the order given.
pub struct Fields<'a> {
    rest: &'a [u8],
    left: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the status {0:?} does not begin with three digits and a space")]
    Status(String),
    #[error("the status code {0} is not one an application can send; use 200 to 599")]
    StatusCode(u16),
    #[error("the status {0:?} contains a control character")]
    StatusText(String),
    #[error("the header name {0:?} is not a token (RFC 9110 section 5.6.2)")]
    Name(String),
    #[error("the value of header {0:?} contains a control character")]
    Value(String),
    #[error("the header {0:?} is hop-by-hop, the server's to set (PEP 3333, \"Other HTTP Features\")")]
    HopByHop(String),
    #[error("the header \"Content-Length\" has the value {0:?}, not a number")]
    ContentLength(String),
    #[error("the header \"Content-Length\" is given twice, as {0} and {1}")]
    ContentLengthTwice(u64, u64),
}

impl Head {
    /// Begins a head from the status as the application gave it: three digits, then nothing or a space and a reason.
    pub fn new(status: &[u8]) -> Result<Head, HeadError> {
        let (code, rest) = status.split_at_checked(3).ok_or_else(|| HeadError::Status(printable(status)))?;
        let reason = match rest {
            [] => rest,
            [b' ', reason @ ..] => reason,
            _ => return Err(HeadError::Status(printable(status))),
        };
        let code = number(code).ok_or_else(|| HeadError::Status(printable(status)))? as u16;
        if !(200..=599).contains(&code) {
            return Err(HeadError::StatusCode(code));
        }
        let reason = reason.trim_ascii();
        if !is_text(reason) {
            return Err(HeadError::StatusText(printable(status)));
        }
        let mut text = Vec::with_capacity(256);
        text.extend_from_slice(reason);
        Ok(Head { status: code, reason: reason.len(), text, fields: 0, content_length: None })
    }

    /// Adds a field. Content-Length is kept apart, as a number.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
        if name.is_empty() || !is_token(name) {
            return Err(HeadError::Name(printable(name)));
        }
        let value = value.trim_ascii();
        if !is_text(value) {
            return Err(HeadError::Value(printable(name)));
        }
        if HOP_BY_HOP.iter().any(|hop| hop.len() == name.len() && hop.as_bytes().eq_ignore_ascii_case(name)) {
            return Err(HeadError::HopByHop(printable(name)));
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = number(value).ok_or_else(|| HeadError::ContentLength(printable(value)))?;
            if let Some(before) = self.content_length.filter(|before| *before != length) {
                return Err(HeadError::ContentLengthTwice(before, length));
            }
            self.content_length = Some(length);
            return Ok(());
        }
        self.fields += 1;
        self.text.extend_from_slice(&name.len().to_ne_bytes());
        self.text.extend_from_slice(&value.len().to_ne_bytes());
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        Ok(())
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// The reason as the application gave it; may be empty.
    pub fn reason(&self) -> &[u8] {
        self.text.get(..self.reason).unwrap_or_default()
    }

    /// Names and values in the order given, without Content-Length.
    pub fn fields(&self) -> Fields<'_> {
        Fields { rest: self.text.get(self.reason..).unwrap_or_default(), left: self.fields }
    }

    pub fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    pub(crate) fn set_content_length(&mut self, length: u64) {
        self.content_length = Some(length);
    }

    /// Whether a response with this status can have a body at all (RFC 9110 section 6.4.1).
    pub fn allows_body(&self) -> bool {
        !matches!(self.status, 204 | 304)
    }

    /// Whether nothing of a body may be sent. 205 says so with a length of 0, where 204 and 304 need none (RFC 9110
    /// section 15.3.6).
    pub(crate) fn is_bodiless(&self) -> bool {
        self.status == 205 || !self.allows_body()
    }

    /// Before it is sent: what the status says of the body goes before what the application says. 204 has no length at
    /// all (RFC 9110 section 8.6); that of 304 is of the answer it stands for.
    pub(crate) fn settle(&mut self) {
        match self.status {
            204 => self.content_length = None,
            205 => self.content_length = Some(0),
            _ => {}
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let (name, rest) = self.rest.split_first_chunk()?;
        let (value, rest) = rest.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(usize::from_ne_bytes(*name))?;
        let (value, rest) = rest.split_at_checked(usize::from_ne_bytes(*value))?;
        self.rest = rest;
        self.left -= 1;
        Some((name, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Fields<'_> {}

/// `1*DIGIT`, nothing else: no sign, no underscore, no white space.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    digits.iter().try_fold(0_u64, |total, digit| total.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
}

/// RFC 9110 section 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| TOKEN.get(usize::from(*byte)) == Some(&true))
}

/// What a field value or reason may hold: RFC 9110 section 5.5 (HTAB, SP, VCHAR, obs-text). Looks at all bytes, which is
/// faster than to stop.
fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |text, byte| text & ((*byte == b'\t') | ((*byte >= b' ') & (*byte != 0x7f))))
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 0x80 {
        let symbol = matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        );
        #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            table[byte as usize] = symbol || byte.is_ascii_alphanumeric();
        }
        byte += 1;
    }
    table
};

/// For messages: latin-1, cut to a readable length.
fn printable(bytes: &[u8]) -> String {
    bytes.iter().take(80).map(|byte| char::from(*byte)).collect()
}

/// RFC 9110 section 7.6.1 and RFC 2616 section 13.5.1, which PEP 3333 names.
const HOP_BY_HOP: [&str; 10] = [
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Trailers",
    "Transfer-Encoding",
    "Upgrade",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: &str) -> Result<Head, HeadError> {
        Head::new(status.as_bytes())
    }

    #[test]
    fn a_status_is_three_digits_and_a_reason() {
        assert_eq!(head("404 Not Found").unwrap().status(), 404);
        assert_eq!(head("404 Not Found").unwrap().reason(), b"Not Found");
        assert_eq!(head("200").unwrap().reason(), b"");
        for wrong in ["", "20", "2000 OK", "OK", "+20 OK", "200OK", "２００ OK"] {
            assert!(head(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn statuses_an_application_cannot_send_are_refused() {
        for wrong in ["100 Continue", "101 Switching Protocols", "600 X", "999 X", "000 X"] {
            assert!(matches!(head(wrong), Err(HeadError::StatusCode(_))), "{wrong}");
        }
    }

    #[test]
    fn line_breaks_and_nul_never_pass() {
        for wrong in ["200 OK\r\nX: 1", "200 O\0K", "200 O\nK", "200 \x7f"] {
            assert!(head(wrong).is_err(), "{wrong:?}");
        }
        let mut head = head("200 OK").unwrap();
        for wrong in [&b"a\r\nb"[..], b"a\nb", b"a\0b", b"a\x7fb", b"\x01"] {
            assert!(matches!(head.push(b"X", wrong), Err(HeadError::Value(_))));
            assert!(matches!(head.push(wrong, b"1"), Err(HeadError::Name(_))));
        }
        for wrong in [&b"X Y"[..], b"X:", b"", b"X\xe9", b"X(", b" X"] {
            assert!(matches!(head.push(wrong, b"1"), Err(HeadError::Name(_))));
        }
        assert_eq!(head.fields().len(), 0);
    }

    #[test]
    fn hop_by_hop_fields_are_refused() {
        let mut head = head("200 OK").unwrap();
        for wrong in ["connection", "Transfer-Encoding", "UPGRADE", "te", "Keep-Alive"] {
            assert!(matches!(head.push(wrong.as_bytes(), b"x"), Err(HeadError::HopByHop(_))));
        }
    }

    #[test]
    fn content_length_is_digits_once() {
        for wrong in ["-1", "+1", "1_0", "", "1 0", "0x1", "18446744073709551616"] {
            assert!(head("200 OK").unwrap().push(b"Content-Length", wrong.as_bytes()).is_err(), "{wrong}");
        }
        let mut head = head("200 OK").unwrap();
        head.push(b"content-length", b"5").unwrap();
        head.push(b"Content-Length", b"5").unwrap();
        assert!(matches!(head.push(b"Content-Length", b"6"), Err(HeadError::ContentLengthTwice(5, 6))));
        assert_eq!((head.content_length(), head.fields().len()), (Some(5), 0));
    }

    #[test]
    fn statuses_without_content_have_a_length_of_their_own() {
        for (status, settled) in [("204", None), ("205", Some(0)), ("304", Some(5)), ("200", Some(5))] {
            let mut head = head(status).unwrap();
            head.push(b"Content-Length", b"5").unwrap();
            head.settle();
            assert_eq!(head.content_length(), settled, "{status}");
        }
    }

    #[test]
    fn fields_keep_their_order_and_bytes() {
        let mut head = head("200 OK").unwrap();
        head.push(b"Set-Cookie", b"a=1").unwrap();
        head.push(b"X-Latin", b" caf\xe9\t").unwrap();
        head.push(b"Set-Cookie", b"b=2").unwrap();
        let fields: Vec<_> = head.fields().collect();
        assert_eq!(fields, [(&b"Set-Cookie"[..], &b"a=1"[..]), (b"X-Latin", b"caf\xe9"), (b"Set-Cookie", b"b=2")]);
    }
}
