//! Request targets and paths, before the servers' own tables know them.
#![forbid(unsafe_code)]

use std::borrow::Cow;

/// Splits a request target: host and port, where it has them (RFC 9112 section 3.2.2), and the rest.
pub fn split_authority(target: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let scheme = target.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)).count();
    let Some(rest) = target.get(scheme..).and_then(|rest| rest.strip_prefix(b"://")).filter(|_| scheme > 0) else {
        return (None, target);
    };
    let end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    (Some(authority).filter(|authority| !authority.is_empty()), rest)
}

/// Whether a target is one of a request for a path: RFC 9112 sections 3.2.1 and 3.2.2.
pub fn names_path(target: &[u8]) -> bool {
    target.starts_with(b"/") || split_authority(target).0.is_some()
}

/// A path that a target with a host may leave out is `/` (RFC 9110 section 4.2.3).
pub fn rooted(path: &[u8]) -> Cow<'_, [u8]> {
    if path.starts_with(b"/") { Cow::Borrowed(path) } else { Cow::Owned([b"/", path].concat()) }
}

/// The target of a request line.
pub fn target(request_line: &[u8]) -> &[u8] {
    let mut words = request_line.split(|byte| *byte == b' ' || *byte == b'\t').filter(|word| !word.is_empty());
    words.nth(1).unwrap_or_default()
}

/// Runs of slashes become one, as mod_wsgi hands them on.
pub fn without_runs(path: &[u8]) -> Cow<'_, [u8]> {
    if !path.windows(2).any(|pair| pair == b"//") {
        return Cow::Borrowed(path);
    }
    let mut kept = path.to_vec();
    kept.dedup_by(|next, before| *next == b'/' && *before == b'/');
    Cow::Owned(kept)
}

/// The path below a mount of whole segments; nothing where it is outside. The mount has no slash at its end.
pub fn below<'a>(path: &'a [u8], mount: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(mount)?;
    (rest.is_empty() || rest.starts_with(b"/")).then_some(rest)
}

/// How many bytes of `uri` the alias covers. Any run of slashes in one matches any run in the other; an alias that does
/// not end in a slash matches whole path segments.
pub fn covered(location: &[u8], uri: &[u8]) -> Option<usize> {
    let (mut location, mut rest) = (location, uri);
    let mut ends_in_slash = false;
    while let [byte, tail @ ..] = location {
        ends_in_slash = *byte == b'/';
        if ends_in_slash {
            let after = skip_slashes(rest);
            if after.len() == rest.len() {
                return None;
            }
            (location, rest) = (skip_slashes(location), after);
        } else {
            (location, rest) = (tail, rest.strip_prefix(&[*byte])?);
        }
    }
    let whole = ends_in_slash || rest.is_empty() || rest.starts_with(b"/");
    whole.then_some(uri.len() - rest.len())
}

fn skip_slashes(path: &[u8]) -> &[u8] {
    let slashes = path.iter().take_while(|byte| **byte == b'/').count();
    path.get(slashes..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_with_a_host_is_split() {
        assert_eq!(split_authority(b"http://other.example:81/a?b"), (Some(&b"other.example:81"[..]), &b"/a?b"[..]));
        assert_eq!(split_authority(b"HTTP://h?x"), (Some(&b"h"[..]), &b"?x"[..]));
        assert_eq!(split_authority(b"http:///a"), (None, &b"/a"[..]));
        for target in [&b"/a://b"[..], b"*", b"", b"a:80", b"://x"] {
            assert_eq!(split_authority(target), (None, target));
        }
    }

    #[test]
    fn the_target_is_taken_from_the_request_line() {
        assert_eq!(target(b"GET /a%2Fb//c?x=http://y/ HTTP/1.1"), b"/a%2Fb//c?x=http://y/");
        assert_eq!(target(b"OPTIONS * HTTP/1.1"), b"*");
        assert_eq!(target(b"GET"), b"");
    }

    #[test]
    fn targets_name_a_path() {
        for target in [&b"/"[..], b"//a", b"/a://b", b"http://x", b"http://x?a"] {
            assert!(names_path(target), "{target:?}");
        }
        for target in [&b""[..], b"*", b"?a=b", b"http:///a", b"x:443", b"a/b"] {
            assert!(!names_path(target), "{target:?}");
        }
        assert_eq!(&*rooted(b"/a?b"), b"/a?b");
        assert_eq!(&*rooted(b"?a=b"), b"/?a=b");
        assert_eq!(&*rooted(b""), b"/");
    }

    #[test]
    fn runs_of_slashes_become_one() {
        assert_eq!(&*without_runs(b"//a///b/"), b"/a/b/");
        assert_eq!(&*without_runs(b"/a/b"), b"/a/b");
    }

    #[test]
    fn mounts_are_whole_segments() {
        assert_eq!(below(b"/a/b", b"/a"), Some(&b"/b"[..]));
        assert_eq!(below(b"/a", b"/a"), Some(&b""[..]));
        assert_eq!(below(b"/ab", b"/a"), None);
        assert_eq!(below(b"/x", b""), Some(&b"/x"[..]));
    }

    #[test]
    fn aliases_match_whole_segments() {
        assert_eq!(covered(b"/app", b"/app"), Some(4));
        assert_eq!(covered(b"/app", b"/app/x"), Some(4));
        assert_eq!(covered(b"/app", b"/apple"), None);
        assert_eq!(covered(b"/app/", b"/app/x"), Some(5));
        assert_eq!(covered(b"/app/", b"/app"), None);
        assert_eq!(covered(b"/", b"/anything"), Some(1));
    }

    #[test]
    fn any_run_of_slashes_matches_any_run() {
        assert_eq!(covered(b"//a/b", b"/a///b/c"), Some(6));
        assert_eq!(covered(b"/a", b"//a"), Some(3));
        assert_eq!(covered(b"/a/b", b"/ab"), None);
    }
}
