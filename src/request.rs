//! One HTTP request as the server established it: owned, flat, `Send`.
//!
//! A host copies what it knows into one buffer, once, on its own thread. The request holds facts and never
//! configuration: nothing a peer sends can name a file, a module or an interpreter.
#![forbid(unsafe_code)]

use crate::environ::KnownHeader;

/// Facts of the server about a request, each with its key in `environ`.
macro_rules! facts {
    ($($name:ident $key:literal $text:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fact { $(#[doc = $text] $name,)* }

        impl Fact {
            pub const ALL: &'static [Fact] = &[$(Fact::$name,)*];

            /// The key in `environ`.
            pub fn key(self) -> &'static str {
                match self { $(Fact::$name => $key,)* }
            }
        }
    };
}

facts! {
    Method "REQUEST_METHOD" "As received.";
    ScriptName "SCRIPT_NAME" "The mount, decoded; empty for the root.";
    PathInfo "PATH_INFO" "The path below the mount, decoded.";
    QueryString "QUERY_STRING" "Raw, without the question mark.";
    RequestUri "REQUEST_URI" "The request target as received.";
    Protocol "SERVER_PROTOCOL" "`HTTP/1.1` and so on.";
    Scheme "wsgi.url_scheme" "`http` or `https`, as the server sees the connection.";
    ServerName "SERVER_NAME" "The name of the virtual host.";
    ServerPort "SERVER_PORT" "The port the request arrived at.";
    ServerAddr "SERVER_ADDR" "The local address.";
    RemoteAddr "REMOTE_ADDR" "The client's address, after the server's own realip or remoteip.";
    RemotePort "REMOTE_PORT" "The client's port.";
    RemoteUser "REMOTE_USER" "Whom the server itself authenticated; otherwise absent.";
    AuthType "AUTH_TYPE" "How the server authenticated; otherwise absent.";
    DocumentRoot "DOCUMENT_ROOT" "The virtual host's document root.";
    ScriptFilename "SCRIPT_FILENAME" "The script's path, where there is a script.";
}

/// How long the request body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyLength {
    /// The request has neither Content-Length nor a transfer coding.
    #[default]
    Absent,
    Known(u64),
    /// The body ends where the server says so (chunked, HTTP/2 without Content-Length).
    Unknown,
}

#[derive(Debug)]
pub struct Request {
    text: Vec<u8>,
    facts: [Option<Span>; Fact::ALL.len()],
    headers: Vec<Header>,
    variables: Vec<(Span, Span)>,
    params: Vec<(Span, Span)>,
    body: BodyLength,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    length: u32,
}

#[derive(Debug, Clone, Copy)]
struct Header {
    known: Option<KnownHeader>,
    name: Span,
    value: Span,
}

/// A request header as it arrived: its name in any case, and its place in the table of well-known ones, without a name
/// there if it came over the wire.
pub struct HeaderRef<'a> {
    pub known: Option<KnownHeader>,
    pub name: &'a [u8],
    pub value: &'a [u8],
}

impl Request {
    /// A request of which nothing is known.
    pub(crate) const EMPTY: Request = Request {
        text: Vec::new(),
        facts: [None; Fact::ALL.len()],
        headers: Vec::new(),
        variables: Vec::new(),
        params: Vec::new(),
        body: BodyLength::Absent,
    };

    /// A builder with room for `bytes` of text and `headers` headers.
    pub fn builder(bytes: usize, headers: usize) -> RequestBuilder {
        RequestBuilder {
            request: Request {
                text: Vec::with_capacity(bytes),
                headers: Vec::with_capacity(headers),
                ..Request::EMPTY
            },
        }
    }

    pub fn fact(&self, fact: Fact) -> Option<&[u8]> {
        self.facts.get(fact as usize).copied().flatten().map(|span| self.slice(span))
    }

    pub fn headers(&self) -> impl Iterator<Item = HeaderRef<'_>> {
        self.headers.iter().map(|header| HeaderRef {
            known: header.known,
            name: self.slice(header.name),
            value: self.slice(header.value),
        })
    }

    /// Variables of the server (SetEnv, RewriteRule `[E=]`, mod_ssl): values of the core win over them.
    pub fn variables(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.variables.iter().map(|(name, value)| (self.slice(*name), self.slice(*value)))
    }

    /// What the operator wrote for this mount (`wsgi_param`): wins over everything.
    pub fn params(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.params.iter().map(|(name, value)| (self.slice(*name), self.slice(*value)))
    }

    pub fn body(&self) -> BodyLength {
        self.body
    }

    pub fn is_head(&self) -> bool {
        self.fact(Fact::Method) == Some(b"HEAD")
    }

    fn slice(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        self.text.get(start..start + span.length as usize).unwrap_or_default()
    }
}

/// Collects a request. Texts are copied; together they must stay below 4 GiB, which every server's limits see to.
pub struct RequestBuilder {
    request: Request,
}

impl RequestBuilder {
    pub fn fact(&mut self, fact: Fact, value: &[u8]) -> &mut Self {
        let span = self.push(value);
        if let Some(slot) = self.request.facts.get_mut(fact as usize) {
            *slot = Some(span);
        }
        self
    }

    /// Adds a header as received. Names that cannot be mapped without ambiguity are dropped here, on every host:
    /// anything but letters, digits and `-` (an underscore would spoof a dash), and `Proxy` (it would become
    /// `HTTP_PROXY`, CVE-2016-5385). Content-Length is the host's to state, with [`body`](Self::body).
    pub fn header(&mut self, name: &[u8], value: &[u8]) -> &mut Self {
        let known = KnownHeader::find(name);
        if known.is_none() && !is_passed_on(name) {
            return self;
        }
        let header = Header { known, name: self.push(name), value: self.push(without_white_space(value)) };
        self.request.headers.push(header);
        self
    }

    /// Adds a header of the table.
    pub fn known_header(&mut self, known: KnownHeader, value: &[u8]) -> &mut Self {
        let header = Header { known: Some(known), name: self.push(b""), value: self.push(value) };
        self.request.headers.push(header);
        self
    }

    pub fn variable(&mut self, name: &[u8], value: &[u8]) -> &mut Self {
        let pair = (self.push(name), self.push(value));
        self.request.variables.push(pair);
        self
    }

    pub fn param(&mut self, name: &[u8], value: &[u8]) -> &mut Self {
        let pair = (self.push(name), self.push(value));
        self.request.params.push(pair);
        self
    }

    pub fn body(&mut self, length: BodyLength) -> &mut Self {
        self.request.body = length;
        self
    }

    pub fn build(self) -> Request {
        self.request
    }

    fn push(&mut self, bytes: &[u8]) -> Span {
        let start = self.request.text.len() as u32;
        self.request.text.extend_from_slice(bytes);
        Span { start, length: bytes.len() as u32 }
    }
}

/// A field's value has no white space at its ends (RFC 9110 section 5.5); nginx leaves tabs there.
fn without_white_space(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn is_passed_on(name: &[u8]) -> bool {
    let clean = !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    clean && !name.eq_ignore_ascii_case(b"proxy") && !name.eq_ignore_ascii_case(b"content-length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_come_back_as_given() {
        let mut builder = Request::builder(64, 4);
        builder.fact(Fact::Method, b"HEAD").fact(Fact::PathInfo, b"/caf\xe9");
        let request = builder.build();
        assert!(request.is_head());
        assert_eq!(request.fact(Fact::PathInfo), Some(&b"/caf\xe9"[..]));
        assert_eq!(request.fact(Fact::RemoteUser), None);
    }

    #[test]
    fn values_have_no_white_space_at_their_ends() {
        let mut builder = Request::builder(64, 4);
        builder.header(b"X-A", b"\t a\tb \t").header(b"X-B", b" \t ").header(b"X-C", b"");
        let request = builder.build();
        let values: Vec<_> = request.headers().map(|header| header.value.to_vec()).collect();
        assert_eq!(values, [b"a\tb".to_vec(), Vec::new(), Vec::new()]);
    }

    #[test]
    fn ambiguous_and_dangerous_header_names_are_dropped() {
        let mut builder = Request::builder(64, 4);
        for name in [&b"X_Token"[..], b"Proxy", b"PROXY", b"X Y", b"", b"X\xe9", b"Content-Length", b"X-Token"] {
            builder.header(name, b"1");
        }
        let request = builder.build();
        let names: Vec<_> = request.headers().map(|header| header.name.to_vec()).collect();
        assert_eq!(names, [b"X-Token".to_vec()]);
    }
}
