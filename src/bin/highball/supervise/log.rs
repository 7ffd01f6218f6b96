//! The server's error log, in its own format.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use chrono::Local;

use highball::group::control::LogLevel;
use highball::group::state::{self, LogFormat};
use highball::log::record;

pub struct Log {
    settings: state::Log,
    file: File,
}

impl Log {
    pub fn new(settings: state::Log, file: OwnedFd) -> Log {
        Log { settings, file: file.into() }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Opens the log again where its path leads to another file now: it was rotated.
    pub fn follow(&mut self) {
        // What /dev/stderr is differs from process to process.
        let Some(path) = self.settings.path.as_ref().filter(|path| !path.starts_with("/dev")) else { return };
        let same = match (path.metadata(), self.file.metadata()) {
            (Ok(now), Ok(open)) => (now.dev(), now.ino()) == (open.dev(), open.ino()),
            _ => true,
        };
        if !same && let Ok(file) = OpenOptions::new().append(true).open(path) {
            self.file = file;
        }
    }

    /// Writes a record about a process, or about none: 0.
    pub fn write(&self, level: LogLevel, pid: u32, text: &str, place: &str) {
        if level > self.settings.level {
            return;
        }
        let pid = if pid == 0 { std::process::id() } else { pid };
        let text = record(text);
        let (first, rest) = text.split_once('\n').unwrap_or((text.as_str(), ""));
        let name = name(level);
        let now = Local::now();
        let lines = match self.settings.format {
            LogFormat::Nginx => {
                let end = if rest.is_empty() { "" } else { "\n" };
                format!("{} [{name}] {pid}#{pid}: {first}{place}\n{rest}{end}", now.format("%Y/%m/%d %H:%M:%S"))
            }
            LogFormat::Apache => {
                let head = format!("[{}] [wsgi:{name}] [pid {pid}:tid {pid}]", now.format("%a %b %d %H:%M:%S%.6f %Y"));
                let mut lines = format!("{head} {first}{place}\n");
                rest.lines().for_each(|line| lines.push_str(&format!("{head} {line}\n")));
                lines
            }
        };
        (&self.file).write_all(lines.as_bytes()).ok();
    }
}

fn name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Crit => "crit",
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Notice => "notice",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    }
}
