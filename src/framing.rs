//! How much of what an application yields may leave: Content-Length, HEAD, and statuses without a body.
#![forbid(unsafe_code)]

use crate::response::Head;

/// Accounts for the body of one response.
#[derive(Debug, Clone, Copy)]
pub struct Framing {
    /// What Content-Length promises, where the application gave one.
    declared: Option<u64>,
    sent: u64,
    /// HEAD, 204, 304: no body whatever the application yields.
    bodiless: bool,
}

/// What to do with the next block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    All,
    /// Only the first bytes: the rest is beyond Content-Length.
    First(u64),
    /// None: this response has no body.
    Bodiless,
}

impl Framing {
    pub fn new(head: &Head, is_head: bool) -> Framing {
        let bodiless = is_head || head.is_bodiless();
        Framing { declared: head.content_length(), sent: 0, bodiless }
    }

    pub fn admit(&mut self, length: u64) -> Admit {
        if self.bodiless {
            return Admit::Bodiless;
        }
        let room = self.declared.map_or(u64::MAX, |declared| declared.saturating_sub(self.sent));
        let taken = length.min(room);
        self.sent += taken;
        if taken < length { Admit::First(taken) } else { Admit::All }
    }

    /// What is missing at the end: (sent, promised).
    pub fn shortfall(&self) -> Option<(u64, u64)> {
        let declared = self.declared.filter(|_| !self.bodiless)?;
        (self.sent < declared).then_some((self.sent, declared))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(status: &str, length: Option<&str>, is_head: bool) -> Framing {
        let mut head = Head::new(status.as_bytes()).unwrap();
        if let Some(length) = length {
            head.push(b"Content-Length", length.as_bytes()).unwrap();
        }
        Framing::new(&head, is_head)
    }

    #[test]
    fn more_than_content_length_is_cut() {
        let mut framing = framing("200 OK", Some("5"), false);
        assert_eq!(framing.admit(3), Admit::All);
        assert_eq!(framing.admit(3), Admit::First(2));
        assert_eq!(framing.admit(1), Admit::First(0));
        assert_eq!(framing.shortfall(), None);
    }

    #[test]
    fn less_than_content_length_is_a_shortfall() {
        let mut framing = framing("200 OK", Some("5"), false);
        framing.admit(3);
        assert_eq!(framing.shortfall(), Some((3, 5)));
    }

    #[test]
    fn head_and_bodiless_statuses_take_nothing() {
        for mut framing in [
            framing("200 OK", Some("5"), true),
            framing("204 No Content", None, false),
            framing("304 Not Modified", Some("5"), false),
        ] {
            assert_eq!(framing.admit(3), Admit::Bodiless);
            assert_eq!(framing.shortfall(), None);
        }
    }
}
