//! What is said to the supervisor, and the thread that hears it. Never attached.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::descriptors;
use super::process::Worker;
use crate::group::control::{FromWorker, LONGEST, LogLevel, ToWorker};
use crate::group::socket;
use crate::log::{self, Level};

pub struct Supervisor {
    control: OwnedFd,
    closed: AtomicBool,
    /// Reasons for which this worker has asked to be replaced, and when.
    asked: Mutex<HashMap<String, Instant>>,
}

impl Supervisor {
    pub fn new(control: OwnedFd) -> Supervisor {
        Supervisor { control, closed: AtomicBool::new(false), asked: Mutex::default() }
    }

    /// Writes a record. May wait for the supervisor, a moment.
    pub fn log(&self, level: Level, text: &str) {
        if descriptors::is_fork() || self.closed.load(Ordering::Relaxed) {
            writeln!(std::io::stderr(), "{}", log::record(text)).ok();
            return;
        }
        let text = cut(text, LONGEST_TEXT);
        self.send(&FromWorker::Log { level: LogLevel::from(level), text: text.into() }, PATIENCE);
    }

    /// Asks to be replaced; for one reason not again within [`AGAIN`]. `case` tells apart what the reason's text does not:
    /// each version of a script is one. Does not wait.
    pub fn retire(&self, reason: &str, case: &str) {
        if descriptors::is_fork() {
            return;
        }
        let key = format!("{reason} {case}");
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.get(&key).is_none_or(|last| last.elapsed() >= AGAIN)
            && self.send(
                &FromWorker::Retire { reason: cut(reason, LONGEST_TEXT).into(), case: case.into() },
                Duration::ZERO,
            )
        {
            asked.retain(|_, last| last.elapsed() < AGAIN);
            asked.insert(key, Instant::now());
        }
    }

    pub fn say(&self, packet: &FromWorker) {
        self.send(packet, PATIENCE);
    }

    /// Whether it was sent.
    fn send(&self, packet: &FromWorker, patience: Duration) -> bool {
        let mut text = serde_json::to_vec(packet).unwrap_or_default();
        if text.len() > LONGEST {
            // Only what an application says can be so long, and its beginning says what there is.
            text = serde_json::to_vec(&shortened(packet)).unwrap_or_default();
        }
        for _ in 0..2 {
            match socket::send(&self.control, &text, &[]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && !patience.is_zero() => {
                    wait(&mut [PollFd::new(&self.control, PollFlags::OUT)], Some(patience));
                }
                sent => return sent.is_ok(),
            }
        }
        false
    }
}

fn shortened(packet: &FromWorker) -> FromWorker {
    let short = |text: &String| cut(text, LONGEST / 8).to_string();
    match packet {
        FromWorker::Log { level, text } => FromWorker::Log { level: *level, text: short(text) },
        FromWorker::Stacks { text } => FromWorker::Stacks { text: short(text) },
        FromWorker::Failed { report } => FromWorker::Failed { report: short(report) },
        FromWorker::Retire { reason, case } => FromWorker::Retire { reason: short(reason), case: case.clone() },
        FromWorker::Ready { failed } => {
            let each = LONGEST / 8 / failed.len().max(1);
            let cut = |text: &String| cut(text, each / 2).to_string();
            FromWorker::Ready { failed: failed.iter().map(|(name, report)| (cut(name), cut(report))).collect() }
        }
        other => other.clone(),
    }
}

/// The first bytes of a text, whole characters.
fn cut(text: &str, longest: usize) -> &str {
    let end = (0..=longest.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or_default()).unwrap_or_default()
}

/// The thread: obeys the supervisor until `stop` can be read, and drains when nobody is left.
pub fn listen(worker: &Arc<Worker>, life: OwnedFd, stop: impl AsFd) {
    let supervisor = &worker.supervisor;
    let mut buffer = vec![0; LONGEST];
    let mut life = Some(life);
    let mut place = None;
    loop {
        let closed = supervisor.closed.load(Ordering::Relaxed);
        let mut files = vec![PollFd::new(&stop, PollFlags::IN)];
        if !closed {
            files.push(PollFd::new(&supervisor.control, PollFlags::IN));
        }
        if let Some(life) = &life {
            files.push(PollFd::new(life, PollFlags::IN));
        }
        wait(&mut files, closed.then_some(PATH_WATCH));
        let ready: Vec<bool> = files.iter().map(|file| !file.revents().is_empty()).collect();
        drop(files);
        let mut ready = ready.into_iter();
        if ready.next() == Some(true) {
            return;
        }
        if !closed && ready.next() == Some(true) {
            match socket::receive(&supervisor.control, &mut buffer) {
                Ok(received) if received.bytes == 0 => supervisor.closed.store(true, Ordering::Relaxed),
                Ok(received) => {
                    let packet = serde_json::from_slice(buffer.get(..received.bytes).unwrap_or_default());
                    match packet {
                        Ok(packet) => obey(worker, packet, &mut place),
                        Err(error) => {
                            supervisor.log(Level::Error, &format!("the supervisor said what cannot be read: {error}"));
                        }
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => supervisor.closed.store(true, Ordering::Relaxed),
            }
        }
        if ready.next() == Some(true) {
            // Nothing is ever written to it: the server is gone.
            life = None;
            worker.drain(worker.shutdown_timeout());
        }
        // Nobody says any more whether the slot is still this worker's: the path of its socket does.
        if closed && (place.is_none() || place != inode(worker.socket_path())) {
            worker.drain(worker.shutdown_timeout());
        }
    }
}

fn obey(worker: &Arc<Worker>, packet: ToWorker, place: &mut Option<(u64, u64)>) {
    match packet {
        ToWorker::Hello => worker.hello(),
        ToWorker::Serve => {
            *place = inode(worker.socket_path());
            worker.accept_connections();
        }
        ToWorker::Drain { within } => worker.drain(Duration::from_millis(within)),
        ToWorker::Stacks => worker.watch.ask_stacks(worker),
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn wait(files: &mut [PollFd<'_>], longest: Option<Duration>) {
    let longest =
        longest.map(|longest| Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: longest.subsec_nanos().into() });
    poll(files, longest.as_ref()).ok();
}

/// How long a record waits for a supervisor that has no time.
const PATIENCE: Duration = Duration::from_secs(1);

/// What led to nothing, because new processes could not serve, is asked for again after so long.
const AGAIN: Duration = Duration::from_secs(30);

/// How often the socket's path is looked at when no supervisor is there.
const PATH_WATCH: Duration = Duration::from_secs(1);

/// Bytes of a record; escaped as JSON it may become longer.
const LONGEST_TEXT: usize = LONGEST - 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_for_a_packet_is_cut() {
        let (ours, theirs) = socket::packets().unwrap();
        let supervisor = Supervisor::new(ours);
        let mut buffer = vec![0; LONGEST];
        for text in ["\u{1}".repeat(LONGEST), "\u{e9}".repeat(LONGEST), "x".repeat(LONGEST)] {
            supervisor.log(Level::Warn, &text);
            supervisor.say(&FromWorker::Ready { failed: vec![(text.clone(), text); 30] });
            for _ in 0..2 {
                let received = socket::receive(&theirs, &mut buffer).unwrap();
                serde_json::from_slice::<FromWorker>(&buffer[..received.bytes]).unwrap();
            }
        }
    }

    #[test]
    fn retirement_is_asked_for_once_for_each_reason() {
        let (ours, theirs) = socket::packets().unwrap();
        let supervisor = Supervisor::new(ours);
        for (reason, case) in [("one", ""), ("one", ""), ("script", "a"), ("script", "b"), ("script", "b")] {
            supervisor.retire(reason, case);
        }
        let mut buffer = vec![0; LONGEST];
        for _ in 0..3 {
            assert!(socket::receive(&theirs, &mut buffer).unwrap().bytes > 0);
        }
        assert_eq!(socket::receive(&theirs, &mut buffer).map(drop).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
