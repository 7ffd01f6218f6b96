//! Requests that no application is called for, as one reader takes them for one thing and the next for another. The host
//! answers 400.
#![forbid(unsafe_code)]

use std::fmt;

use crate::environ::KnownHeader;
use crate::request::{Fact, Request};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A header that a request may have once, and has several times (RFC 9110 section 5.3). A server may have joined them
    /// before anybody could count: then it is seen in the value.
    Repeated(&'static str),
    /// A header of the connection where a stream is not framed by any (RFC 9113 section 8.2.2, RFC 9114 section 4.2).
    Misplaced(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Repeated(name) => write!(f, "the request has several {name} headers; the client got status 400"),
            Refusal::Misplaced(name) => write!(f, "{name} has no place in HTTP/2; the client got status 400"),
        }
    }
}

pub fn refusal(request: &Request) -> Option<Refusal> {
    let protocol = request.fact(Fact::Protocol).unwrap_or_default();
    let streamed = protocol.starts_with(b"HTTP/2") || protocol.starts_with(b"HTTP/3");
    let (mut host, mut content_type, mut authorization) = (false, false, false);
    request.headers().find_map(|header| {
        let Some(known) = header.known else {
            return MISPLACED
                .iter()
                .find(|name| streamed && header.name.eq_ignore_ascii_case(name.as_bytes()))
                .map(|name| Refusal::Misplaced(name));
        };
        let (name, seen, joined) = match known {
            KnownHeader::Host => ("Host", &mut host, false),
            KnownHeader::ContentType => ("Content-Type", &mut content_type, elements(header.value).any(is_media_type)),
            KnownHeader::Authorization => ("Authorization", &mut authorization, is_joined(header.value)),
            KnownHeader::TransferEncoding if streamed => return Some(Refusal::Misplaced("Transfer-Encoding")),
            KnownHeader::Connection if streamed => return Some(Refusal::Misplaced("Connection")),
            KnownHeader::KeepAlive if streamed => return Some(Refusal::Misplaced("Keep-Alive")),
            KnownHeader::Te if streamed && !header.value.eq_ignore_ascii_case(b"trailers") => {
                return Some(Refusal::Misplaced("TE"));
            }
            _ => return None,
        };
        (std::mem::replace(seen, true) || joined).then_some(Refusal::Repeated(name))
    })
}

/// What follows the commas of a value, those in quotes excepted.
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    value
        .split(move |byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b',' => return !quoted,
                _ => {}
            }
            false
        })
        .skip(1)
        .map(<[u8]>::trim_ascii)
}

/// `type/subtype`: a comma before it is no part of a parameter.
fn is_media_type(element: &[u8]) -> bool {
    let essence = element.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let mut halves = essence.split(|byte| *byte == b'/');
    let token =
        |half: Option<&[u8]>| half.is_some_and(|half| !half.is_empty() && half.iter().all(|byte| is_token(*byte)));
    token(halves.next()) && token(halves.next()) && halves.next().is_none()
}

/// Credentials of Basic and Bearer have no comma (RFC 7617, RFC 6750). Those of other schemes have parameters after
/// each, where a scheme of its own would be followed by a space.
fn is_joined(value: &[u8]) -> bool {
    let scheme = value.split(|byte| *byte == b' ').next().unwrap_or_default();
    let single = scheme.eq_ignore_ascii_case(b"basic") || scheme.eq_ignore_ascii_case(b"bearer");
    elements(value).any(|element| single || begins_with_scheme(element))
}

fn begins_with_scheme(element: &[u8]) -> bool {
    let name = element.iter().take_while(|byte| is_token(**byte)).count();
    let rest = element.get(name..).unwrap_or_default();
    name > 0 && rest.starts_with(b" ") && !rest.trim_ascii_start().starts_with(b"=")
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Those that are not in the table of well-known headers.
const MISPLACED: [&str; 2] = ["Upgrade", "Proxy-Connection"];

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: Option<Refusal> = Some(Refusal::Repeated("Content-Type"));
    const CREDENTIALS: Option<Refusal> = Some(Refusal::Repeated("Authorization"));

    fn of(headers: &[(&str, &str)]) -> Option<Refusal> {
        over("HTTP/1.1", headers)
    }

    fn over(protocol: &str, headers: &[(&str, &str)]) -> Option<Refusal> {
        let mut builder = Request::builder(256, 8);
        builder.fact(Fact::Protocol, protocol.as_bytes());
        for (name, value) in headers {
            builder.header(name.as_bytes(), value.as_bytes());
        }
        refusal(&builder.build())
    }

    #[test]
    fn one_of_each_is_right() {
        assert_eq!(
            of(&[("Host", "x"), ("Content-Type", "a/b"), ("Authorization", "Basic dTpw"), ("Accept", "a/b, c/d")]),
            None
        );
        assert_eq!(of(&[("Accept", "a/b"), ("Accept", "c/d"), ("Cookie", "a=1"), ("cookie", "b=2")]), None);
    }

    #[test]
    fn two_of_one_contradict_each_other() {
        for name in ["Host", "Content-Type", "Authorization"] {
            let two = of(&[(name, "x"), ("X-A", "1"), (&name.to_lowercase(), "x")]);
            assert_eq!(two, Some(Refusal::Repeated(name)));
        }
    }

    #[test]
    fn a_stream_has_no_headers_of_a_connection() {
        for (name, value) in [
            ("Transfer-Encoding", "chunked"),
            ("Connection", "close"),
            ("Keep-Alive", "5"),
            ("Upgrade", "x"),
            ("Proxy-Connection", "close"),
            ("TE", "gzip"),
        ] {
            assert_eq!(over("HTTP/2.0", &[(name, value)]), Some(Refusal::Misplaced(name)));
            assert_eq!(over("HTTP/3.0", &[("X-A", "1"), (name, value)]), Some(Refusal::Misplaced(name)));
            assert_eq!(over("HTTP/1.1", &[(name, value)]), None);
        }
        assert_eq!(over("HTTP/2.0", &[("TE", "trailers"), ("X-Upgrade", "1")]), None);
    }

    #[test]
    fn joined_types_are_two() {
        for value in ["a/b, c/d", "a/b,a/b", "a/b; charset=x , c/d; q=1", "a/b; x=\"\\\"\", c/d"] {
            assert_eq!(of(&[("Content-Type", value)]), TYPES, "{value}");
        }
        for value in
            ["a/b; boundary=\",c/d\"", "a/b; boundary=x,y", "a/b; x=\"\\\", c/d\"", "a/b,", "", "text/html, no type"]
        {
            assert_eq!(of(&[("Content-Type", value)]), None, "{value}");
        }
    }

    #[test]
    fn joined_credentials_are_two() {
        for value in [
            "Basic dTpw, Basic eDp5",
            "bearer a,b",
            "Digest username=\"u\", realm=\"r\", Basic eDp5",
            "Digest username=\"u\", Digest username=\"v\"",
        ] {
            assert_eq!(of(&[("Authorization", value)]), CREDENTIALS, "{value}");
        }
        for value in [
            "Basic dTpw",
            "Digest username=\"u, Basic x\", realm=\"r\", nc = 1, qop=auth",
            "AWS4-HMAC-SHA256 Credential=A/2026/x, SignedHeaders=host;x-amz-date, Signature=ab",
            "Token a b",
            "x",
            "",
        ] {
            assert_eq!(of(&[("Authorization", value)]), None, "{value}");
        }
    }
}
