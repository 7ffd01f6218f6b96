//! The server's error log on its way to our stderr. Held until the application is there: what fails before is told once.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::process::ChildStderr;

pub struct Log {
    source: ChildStderr,
    /// What came before the application was ready; `None` from then on.
    held: Option<Vec<u8>>,
    /// The code of the report that the command itself tells.
    told: String,
}

/// No server needs so much to say that it cannot start.
const HELD_AT_MOST: usize = 1 << 20;

impl Log {
    pub fn new(source: ChildStderr) -> Log {
        Log { source, held: Some(Vec::new()), told: String::new() }
    }

    pub fn descriptor(&self) -> RawFd {
        self.source.as_raw_fd()
    }

    /// Takes what has arrived. False: the server and all its children have closed their end.
    pub fn take(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        let Ok(length) = self.source.read(&mut buffer) else { return true };
        let arrived = buffer.get(..length).unwrap_or_default();
        match &mut self.held {
            Some(held) if held.len() < HELD_AT_MOST => held.extend_from_slice(arrived),
            Some(_) => {}
            None => {
                std::io::stderr().write_all(arrived).ok();
            }
        }
        length > 0
    }

    /// From now on everything passes, and so does what was held, but for the server's notices and what is told anyway.
    pub fn release(&mut self) {
        let held = self.held.take().unwrap_or_default();
        let text = String::from_utf8_lossy(&held);
        let mut out = std::io::stderr().lock();
        for record in records(&text).into_iter().filter(|record| !is_notice(record) && !self.is_told(record)) {
            out.write_all(record.as_bytes()).ok();
        }
    }

    /// The server did not start, and this report, which the command will tell, is why: no record needs to say it again.
    /// Other records may help. What comes from now on, while the server ends, stays held.
    pub fn release_without(&mut self, report: &str) {
        self.told = report.split(' ').next().unwrap_or_default().to_string();
        self.release();
        self.held = Some(Vec::new());
    }

    fn is_told(&self, record: &str) -> bool {
        !self.told.is_empty() && record.contains(&self.told)
    }
}

/// Lines, each with the indented ones that belong to it; Apache sets its own brackets before each.
fn records(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut position = 0;
    for line in text.split_inclusive('\n') {
        if position > start && !is_continued(line) {
            found.extend(text.get(start..position));
            start = position;
        }
        position += line.len();
    }
    found.extend(text.get(start..).filter(|rest| !rest.is_empty()));
    found
}

fn is_continued(line: &str) -> bool {
    line.starts_with("    ") || (line.starts_with('[') && line.contains("]     "))
}

fn is_notice(record: &str) -> bool {
    let first = record.lines().next().unwrap_or_default();
    [" [notice] ", ":notice] ", " [info] ", ":info] "].iter().any(|level| first.contains(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_keeps_its_indented_lines() {
        let text = "a [notice] x\nb [crit] HB0303\n    Traceback\n    more\nc\n";
        assert_eq!(records(text), ["a [notice] x\n", "b [crit] HB0303\n    Traceback\n    more\n", "c\n"]);
        let apache = "[t] [wsgi:error] [pid 1] HB0303\n[t] [wsgi:error] [pid 1]     Traceback\n[t] [core:warn] x\n";
        assert_eq!(records(apache).len(), 2);
        assert!(records("").is_empty());
    }

    #[test]
    fn notices_are_known_in_both_spellings() {
        assert!(is_notice("2026/01/01 00:00:00 [notice] 1#1: start worker processes"));
        assert!(is_notice("[Thu Jan 01 00:00:00 2026] [mpm_event:notice] [pid 1] AH00489: resuming"));
        assert!(!is_notice("2026/01/01 00:00:00 [crit] 1#1: HB0303"));
    }
}
