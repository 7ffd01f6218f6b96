//! Which variables a request puts into `environ`, without Python. PEP 3333, "environ Variables"; RFC 3875 section 4.1.
#![forbid(unsafe_code)]

use crate::request::{BodyLength, Fact, Request};

/// A key of `environ`. Those with a fixed text are made into Python strings once per interpreter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    Fact(Fact),
    Header(KnownHeader),
    ContentLength,
    Https,
    /// A header outside the table, by its name as received: `HTTP_` and the name in capitals, `-` as `_`.
    OtherHeader(&'a [u8]),
    /// A variable named by the server or the operator.
    Named(&'a [u8]),
}

/// Calls `set` for each variable, in rising order of precedence: a later one replaces an earlier one of the same key.
pub fn each_variable<'a>(request: &'a Request, mut set: impl FnMut(Key<'a>, &[u8])) {
    for (name, value) in request.variables() {
        // The core's own, which are not of this request and stand in environ before; and what tells of a body, which
        // may be that of another request (the page that includes this one).
        if !name.starts_with(b"wsgi.") && ![&b"SERVER_SOFTWARE"[..], b"CONTENT_LENGTH", b"CONTENT_TYPE"].contains(&name)
        {
            set(Key::Named(name), value);
        }
    }
    for fact in Fact::ALL {
        if let Some(value) = request.fact(*fact) {
            set(Key::Fact(*fact), value);
        }
    }
    if request.fact(Fact::Scheme) == Some(b"https") {
        set(Key::Https, b"on");
    }
    if let BodyLength::Known(length) = request.body() {
        set(Key::ContentLength, length.to_string().as_bytes());
    }
    each_header(request, &mut set);
    for (name, value) in request.params() {
        set(Key::Named(name), value);
    }
}

/// Repeated headers become one value, joined by `, ` (RFC 9110 section 5.3), Cookie by `; ` (RFC 6265 section 5.4).
fn each_header<'a>(request: &'a Request, set: &mut impl FnMut(Key<'a>, &[u8])) {
    let mut seen: u128 = 0;
    let mut repeated: u128 = 0;
    let mut others: Vec<(&'a [u8], &'a [u8])> = Vec::new();
    for header in request.headers() {
        match header.known {
            Some(known) => {
                let bit = 1 << (known as u32);
                if seen & bit != 0 {
                    repeated |= bit;
                } else {
                    seen |= bit;
                    set(Key::Header(known), header.value);
                }
            }
            None => others.push((header.name, header.value)),
        }
    }
    let known = if repeated == 0 { &[] } else { KnownHeader::ALL };
    for known in known {
        if repeated & (1 << (*known as u32)) != 0 {
            let values: Vec<&[u8]> =
                request.headers().filter(|header| header.known == Some(*known)).map(|header| header.value).collect();
            let separator: &[u8] = if *known == KnownHeader::Cookie { b"; " } else { b", " };
            set(Key::Header(*known), &values.join(separator));
        }
    }
    if others.len() > 1 {
        // Sorted, so that equal names stand together: a client may send thousands.
        others.sort_by(|left, right| lower(left.0).cmp(lower(right.0)));
    }
    for group in others.chunk_by(|left, right| left.0.eq_ignore_ascii_case(right.0)) {
        match group {
            [] => {}
            [(name, value)] => set(Key::OtherHeader(name), value),
            [(name, _), ..] => {
                let values: Vec<&[u8]> = group.iter().map(|(_, value)| *value).collect();
                set(Key::OtherHeader(name), &values.join(&b", "[..]));
            }
        }
    }
}

fn lower(name: &[u8]) -> impl Iterator<Item = u8> + '_ {
    name.iter().map(u8::to_ascii_lowercase)
}

/// The key of a header outside the table: `X-Token` is `HTTP_X_TOKEN`. Written into `key`, which is cleared first.
pub fn header_key(name: &[u8], key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(b"HTTP_");
    key.extend(name.iter().map(|byte| if *byte == b'-' { b'_' } else { byte.to_ascii_uppercase() }));
}

/// Headers whose keys exist as Python strings before any request arrives.
macro_rules! known_headers {
    ($($name:ident $header:literal $key:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum KnownHeader { $($name,)* }

        impl KnownHeader {
            pub const ALL: &'static [KnownHeader] = &[$(KnownHeader::$name,)*];

            /// The key in `environ`.
            pub fn key(self) -> &'static str {
                match self { $(KnownHeader::$name => $key,)* }
            }

            /// The header of this name, in any case.
            pub fn find(name: &[u8]) -> Option<KnownHeader> {
                let mut buffer = [0_u8; 32];
                let lowered = buffer.get_mut(..name.len())?;
                lowered.copy_from_slice(name);
                lowered.make_ascii_lowercase();
                match &*lowered {
                    $($header => Some(KnownHeader::$name),)*
                    _ => None,
                }
            }
        }
    };
}

known_headers! {
    Accept b"accept" "HTTP_ACCEPT";
    AcceptCharset b"accept-charset" "HTTP_ACCEPT_CHARSET";
    AcceptEncoding b"accept-encoding" "HTTP_ACCEPT_ENCODING";
    AcceptLanguage b"accept-language" "HTTP_ACCEPT_LANGUAGE";
    AccessControlRequestHeaders b"access-control-request-headers" "HTTP_ACCESS_CONTROL_REQUEST_HEADERS";
    AccessControlRequestMethod b"access-control-request-method" "HTTP_ACCESS_CONTROL_REQUEST_METHOD";
    Authorization b"authorization" "HTTP_AUTHORIZATION";
    CacheControl b"cache-control" "HTTP_CACHE_CONTROL";
    Connection b"connection" "HTTP_CONNECTION";
    ContentEncoding b"content-encoding" "HTTP_CONTENT_ENCODING";
    ContentType b"content-type" "CONTENT_TYPE";
    Cookie b"cookie" "HTTP_COOKIE";
    Date b"date" "HTTP_DATE";
    Dnt b"dnt" "HTTP_DNT";
    Expect b"expect" "HTTP_EXPECT";
    Forwarded b"forwarded" "HTTP_FORWARDED";
    From b"from" "HTTP_FROM";
    Host b"host" "HTTP_HOST";
    IfMatch b"if-match" "HTTP_IF_MATCH";
    IfModifiedSince b"if-modified-since" "HTTP_IF_MODIFIED_SINCE";
    IfNoneMatch b"if-none-match" "HTTP_IF_NONE_MATCH";
    IfRange b"if-range" "HTTP_IF_RANGE";
    IfUnmodifiedSince b"if-unmodified-since" "HTTP_IF_UNMODIFIED_SINCE";
    KeepAlive b"keep-alive" "HTTP_KEEP_ALIVE";
    Origin b"origin" "HTTP_ORIGIN";
    Pragma b"pragma" "HTTP_PRAGMA";
    Priority b"priority" "HTTP_PRIORITY";
    Range b"range" "HTTP_RANGE";
    Referer b"referer" "HTTP_REFERER";
    SecChUa b"sec-ch-ua" "HTTP_SEC_CH_UA";
    SecChUaMobile b"sec-ch-ua-mobile" "HTTP_SEC_CH_UA_MOBILE";
    SecChUaPlatform b"sec-ch-ua-platform" "HTTP_SEC_CH_UA_PLATFORM";
    SecFetchDest b"sec-fetch-dest" "HTTP_SEC_FETCH_DEST";
    SecFetchMode b"sec-fetch-mode" "HTTP_SEC_FETCH_MODE";
    SecFetchSite b"sec-fetch-site" "HTTP_SEC_FETCH_SITE";
    SecFetchUser b"sec-fetch-user" "HTTP_SEC_FETCH_USER";
    Te b"te" "HTTP_TE";
    Traceparent b"traceparent" "HTTP_TRACEPARENT";
    Tracestate b"tracestate" "HTTP_TRACESTATE";
    TransferEncoding b"transfer-encoding" "HTTP_TRANSFER_ENCODING";
    UpgradeInsecureRequests b"upgrade-insecure-requests" "HTTP_UPGRADE_INSECURE_REQUESTS";
    UserAgent b"user-agent" "HTTP_USER_AGENT";
    Via b"via" "HTTP_VIA";
    XCsrfToken b"x-csrf-token" "HTTP_X_CSRF_TOKEN";
    XCsrftoken b"x-csrftoken" "HTTP_X_CSRFTOKEN";
    XForwardedFor b"x-forwarded-for" "HTTP_X_FORWARDED_FOR";
    XForwardedHost b"x-forwarded-host" "HTTP_X_FORWARDED_HOST";
    XForwardedPort b"x-forwarded-port" "HTTP_X_FORWARDED_PORT";
    XForwardedProto b"x-forwarded-proto" "HTTP_X_FORWARDED_PROTO";
    XRealIp b"x-real-ip" "HTTP_X_REAL_IP";
    XRequestId b"x-request-id" "HTTP_X_REQUEST_ID";
    XRequestedWith b"x-requested-with" "HTTP_X_REQUESTED_WITH";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(build: impl FnOnce(&mut crate::request::RequestBuilder)) -> Vec<(String, String)> {
        let mut builder = Request::builder(256, 8);
        build(&mut builder);
        let request = builder.build();
        let mut out: Vec<(String, String)> = Vec::new();
        each_variable(&request, |key, value| {
            let key = match key {
                Key::Fact(fact) => fact.key().to_string(),
                Key::Header(header) => header.key().to_string(),
                Key::ContentLength => "CONTENT_LENGTH".into(),
                Key::Https => "HTTPS".into(),
                Key::OtherHeader(name) => {
                    let mut key = Vec::new();
                    header_key(name, &mut key);
                    String::from_utf8(key).unwrap()
                }
                Key::Named(name) => String::from_utf8(name.to_vec()).unwrap(),
            };
            out.retain(|(existing, _)| *existing != key);
            out.push((key, String::from_utf8_lossy(value).into_owned()));
        });
        out
    }

    fn value(variables: &[(String, String)], key: &str) -> Option<String> {
        variables.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    #[test]
    fn header_names_become_cgi_names_in_any_case() {
        let found = variables(|b| {
            b.header(b"content-TYPE", b"text/plain").header(b"X-Some-Thing", b"1").header(b"hOST", b"a");
        });
        assert_eq!(value(&found, "CONTENT_TYPE").as_deref(), Some("text/plain"));
        assert_eq!(value(&found, "HTTP_X_SOME_THING").as_deref(), Some("1"));
        assert_eq!(value(&found, "HTTP_HOST").as_deref(), Some("a"));
        assert_eq!(value(&found, "HTTP_CONTENT_TYPE"), None);
    }

    #[test]
    fn repeated_headers_are_joined_in_order() {
        let found = variables(|b| {
            b.header(b"Cookie", b"a=1").header(b"X-A", b"1").header(b"Accept", b"x");
            b.header(b"x-a", b"2").header(b"cookie", b"b=2").header(b"accept", b"y").header(b"X-B", b"3");
        });
        assert_eq!(value(&found, "HTTP_COOKIE").as_deref(), Some("a=1; b=2"));
        assert_eq!(value(&found, "HTTP_ACCEPT").as_deref(), Some("x, y"));
        assert_eq!(value(&found, "HTTP_X_A").as_deref(), Some("1, 2"));
        assert_eq!(value(&found, "HTTP_X_B").as_deref(), Some("3"));
    }

    #[test]
    fn content_length_is_the_servers_word() {
        assert_eq!(
            value(
                &variables(|b| {
                    b.body(BodyLength::Known(0));
                }),
                "CONTENT_LENGTH"
            )
            .as_deref(),
            Some("0")
        );
        assert_eq!(
            value(
                &variables(|b| {
                    b.body(BodyLength::Unknown);
                }),
                "CONTENT_LENGTH"
            ),
            None
        );
        assert_eq!(
            value(
                &variables(|b| {
                    b.header(b"content-length", b"7");
                }),
                "CONTENT_LENGTH"
            ),
            None
        );
    }

    #[test]
    fn operators_params_win_and_server_variables_lose() {
        let found = variables(|b| {
            b.fact(Fact::ServerName, b"real").variable(b"SERVER_NAME", b"set").variable(b"A", b"1");
            b.fact(Fact::ServerPort, b"80").param(b"SERVER_PORT", b"8080");
        });
        assert_eq!(value(&found, "SERVER_NAME").as_deref(), Some("real"));
        assert_eq!(value(&found, "SERVER_PORT").as_deref(), Some("8080"));
        assert_eq!(value(&found, "A").as_deref(), Some("1"));
    }

    #[test]
    fn server_variables_tell_nothing_of_a_body() {
        let found = variables(|b| {
            b.variable(b"CONTENT_LENGTH", b"6").variable(b"CONTENT_TYPE", b"a/b");
        });
        assert_eq!(value(&found, "CONTENT_LENGTH"), None);
        assert_eq!(value(&found, "CONTENT_TYPE"), None);
    }

    #[test]
    fn https_follows_the_scheme() {
        assert_eq!(
            value(
                &variables(|b| {
                    b.fact(Fact::Scheme, b"https");
                }),
                "HTTPS"
            )
            .as_deref(),
            Some("on")
        );
        assert_eq!(
            value(
                &variables(|b| {
                    b.fact(Fact::Scheme, b"http");
                }),
                "HTTPS"
            ),
            None
        );
    }

    #[test]
    fn the_table_finds_every_header_it_lists() {
        for known in KnownHeader::ALL {
            let name = known.key().trim_start_matches("HTTP_").replace('_', "-");
            assert_eq!(KnownHeader::find(name.as_bytes()), Some(*known), "{name}");
        }
        assert!(KnownHeader::ALL.len() <= 128);
    }
}
