//! What a worker writes to its standard output and standard error: whole lines, those of one write as one record.
#![forbid(unsafe_code)]

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use highball::group::control::LogLevel;

use super::group::{Group, place_of};
use super::log::Log;

pub struct Output {
    pipe: std::fs::File,
    line: Vec<u8>,
    since: Option<Instant>,
    ended: bool,
}

impl Output {
    pub fn new(pipe: OwnedFd) -> Output {
        Output { pipe: pipe.into(), line: Vec::new(), since: None, ended: false }
    }

    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        (!self.ended).then(|| self.pipe.as_fd())
    }

    /// The pipe, also where nobody writes to it any more.
    pub fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads what is there; the records that are complete. Never waits: the pipe is non-blocking.
    pub fn read(&mut self) -> Vec<String> {
        let mut records = Vec::new();
        let mut buffer = [0; 16 * 1024];
        for _ in 0..READS {
            match self.pipe.read(&mut buffer) {
                Ok(0) => {
                    self.ended = true;
                    records.extend(self.rest());
                    return records;
                }
                Ok(read) => {
                    self.line.extend_from_slice(buffer.get(..read).unwrap_or_default());
                    self.since.get_or_insert_with(Instant::now);
                    let end = self.line.iter().rposition(|byte| *byte == b'\n').map(|end| end + 1);
                    // What faulthandler writes, it writes piece by piece, and then the process ends.
                    let end = end.filter(|_| !self.line.starts_with(b"Fatal Python error"));
                    if let Some(end) = end.or_else(|| (self.line.len() > LONGEST).then_some(self.line.len())) {
                        let rest = self.line.split_off(end);
                        let whole = std::mem::replace(&mut self.line, rest);
                        records.push(text(&whole));
                        self.since = None;
                    }
                }
                Err(_) => break,
            }
        }
        records
    }

    /// A line without its end, once it has waited long enough.
    pub fn late(&mut self) -> Option<String> {
        self.since.filter(|since| since.elapsed() > LATE).and_then(|_| self.rest())
    }

    pub fn rest(&mut self) -> Option<String> {
        self.since = None;
        let line = std::mem::take(&mut self.line);
        (!line.is_empty()).then(|| text(&line))
    }
}

impl Group {
    /// What a worker writes to its standard output and standard error. `all`: it has ended.
    pub fn read_output(&mut self, incarnation: u64, all: bool, log: &Log) {
        let Some(worker) = self.find(incarnation) else { return };
        let mut records = worker.output.read();
        records.extend(if all { worker.output.rest() } else { None });
        let (pid, name) = (worker.facts.pid, worker.facts.group.clone());
        for text in records {
            log.write(LogLevel::Notice, pid, &text, &place_of(&name, pid));
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches(['\n', '\r']).to_string()
}

/// Reads before others have their turn.
const READS: usize = 16;

const LONGEST: usize = 32 * 1024;

const LATE: Duration = Duration::from_millis(500);
