//! `control.sock`: what `highball status`, `stacks`, `reload`, `stop` and `start` ask.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What may be asked. One line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub command: Command,
    /// Of `status` none is all.
    pub group: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    Status,
    Stacks,
    Reload,
    Stop,
    Start,
}

impl Command {
    fn changes(self) -> bool {
        !matches!(self, Command::Status)
    }
}

/// What is answered. One line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    pub ok: bool,
    pub text: String,
    #[serde(default)]
    pub status: serde_json::Value,
}

impl Answer {
    pub fn done(text: impl Into<String>) -> Answer {
        Answer { ok: true, text: text.into(), status: serde_json::Value::Null }
    }

    pub fn failed(text: impl Into<String>) -> Answer {
        Answer { ok: false, text: text.into(), status: serde_json::Value::Null }
    }
}

pub struct Control {
    listener: UnixListener,
    pub clients: Vec<Client>,
    last: u64,
}

pub struct Client {
    pub number: u64,
    stream: UnixStream,
    received: Vec<u8>,
    since: Instant,
    asked: bool,
}

impl Control {
    pub fn new(directory: &Path) -> io::Result<Control> {
        let path = directory.join("control.sock");
        std::fs::remove_file(&path).ok();
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(&path);
        rustix::process::umask(before);
        let listener = listener?;
        listener.set_nonblocking(true)?;
        Ok(Control { listener, clients: Vec::new(), last: 0 })
    }

    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < MOST && stream.set_nonblocking(true).is_ok() {
                self.last += 1;
                let client =
                    Client { number: self.last, stream, received: Vec::new(), since: Instant::now(), asked: false };
                self.clients.push(client);
            }
        }
    }

    /// The question of a client, once it is whole. `family`: processes of this supervisor's, and of its workers.
    pub fn read(&mut self, number: u64, family: &[u32]) -> Option<Question> {
        let client = self.clients.iter_mut().find(|client| client.number == number)?;
        let mut buffer = [0; 1024];
        match client.stream.read(&mut buffer) {
            Ok(read) if read > 0 && client.received.len() < LONGEST && !client.asked => {
                client.received.extend_from_slice(buffer.get(..read).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            _ => {
                self.clients.retain(|client| client.number != number);
                return None;
            }
        }
        if !client.received.ends_with(b"\n") {
            return None;
        }
        client.asked = true;
        let question = serde_json::from_slice::<Question>(&client.received);
        let refusal = match &question {
            Ok(question) if question.command.changes() => client.refusal(family),
            Ok(_) => None,
            Err(error) => Some(format!("the question cannot be read: {error}")),
        };
        match (question, refusal) {
            (Ok(question), None) => Some(question),
            (_, refusal) => {
                self.answer(number, &Answer::failed(refusal.unwrap_or_default()));
                None
            }
        }
    }

    pub fn answer(&mut self, number: u64, answer: &Answer) {
        if let Some(at) = self.clients.iter().position(|client| client.number == number) {
            let mut client = self.clients.swap_remove(at);
            let mut text = serde_json::to_vec(answer).unwrap_or_default();
            text.push(b'\n');
            client.stream.set_nonblocking(false).ok();
            client.stream.set_write_timeout(Some(std::time::Duration::from_millis(500))).ok();
            client.stream.write_all(&text).ok();
        }
    }

    /// Forgets clients that say nothing.
    pub fn tidy(&mut self) {
        self.clients.retain(|client| client.asked || client.since.elapsed().as_secs() < 10);
    }
}

impl Client {
    pub fn stream(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Why this client may change nothing.
    fn refusal(&self, family: &[u32]) -> Option<String> {
        let Ok(peer) = rustix::net::sockopt::socket_peercred(&self.stream) else {
            return Some("the kernel does not say who asks".into());
        };
        if peer.uid.is_root() && rustix::process::geteuid().is_root() && !descends(peer.pid, family) {
            return None;
        }
        if peer.uid != rustix::process::geteuid() {
            return Some("only root, or who started the server, may do this".into());
        }
        descends(peer.pid, family).then(|| "an application's own process may not do this".into())
    }
}

/// Whether a process is one of these, or a descendant. One that is not there any more counts as one.
fn descends(pid: rustix::process::Pid, family: &[u32]) -> bool {
    let mut pid = pid.as_raw_nonzero().get() as u32;
    for _ in 0..DEEPEST {
        if family.contains(&pid) {
            return true;
        }
        if pid <= 1 {
            return false;
        }
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
        // The name may contain anything, and ends with the last bracket.
        let rest = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
        let Some(parent) = rest.split(' ').nth(1).and_then(|parent| parent.parse().ok()) else { return true };
        pid = parent;
    }
    true
}

const MOST: usize = 32;
const LONGEST: usize = 4096;
const DEEPEST: usize = 1000;
