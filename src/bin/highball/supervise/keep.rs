//! What a supervisor leaves with its minder, for a supervisor after it: texts and descriptors, by name.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};

use highball::group::socket;

use super::wait;

/// One thing that is kept.
pub struct Kept {
    pub name: String,
    pub text: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

/// What one end says to the other.
pub enum Said {
    Keep(Kept),
    Drop(String),
    /// Minder: this was everything.
    All,
    /// Minder: a process has ended that was not the supervisor's child; its status is as of wait().
    Ended {
        pid: u32,
        status: i32,
    },
    /// Supervisor: it ends, and nothing is to be started again.
    Over,
    /// The other end is gone.
    End,
}

/// The same, of whoever has it now.
pub struct Thing<'a> {
    pub name: String,
    pub text: Vec<u8>,
    pub files: Vec<BorrowedFd<'a>>,
}

impl Kept {
    pub fn thing(&self) -> Thing<'_> {
        Thing { name: self.name.clone(), text: self.text.clone(), files: self.files.iter().map(AsFd::as_fd).collect() }
    }
}

impl Thing<'_> {
    /// Leaves it with the other end.
    pub fn keep(&self, socket: impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd();
        while !self.try_to_keep(socket)? {
            wait(&mut [PollFd::from_borrowed_fd(socket, PollFlags::OUT)], None)?;
        }
        Ok(())
    }

    /// The same where there is room at once; false where there is none.
    fn try_to_keep(&self, socket: impl AsFd) -> io::Result<bool> {
        let memory = socket::sealed(&self.text)?;
        let all: Vec<BorrowedFd<'_>> = std::iter::once(memory.as_fd()).chain(self.files.iter().copied()).collect();
        match socket::send(socket, format!("keep {}", self.name).as_bytes(), &all) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            sent => sent.map(|_| true),
        }
    }
}

/// Hands everything over to a process that `start` starts with the other end of a socket; our end. What the socket holds
/// is there before the process runs, so that the process has it even where this one dies at once.
pub fn hand_over(things: &[Thing<'_>], start: impl FnOnce(OwnedFd) -> io::Result<()>) -> io::Result<OwnedFd> {
    let (ours, theirs) = socket::packets()?;
    let mut rest = things;
    while let [first, others @ ..] = rest
        && first.try_to_keep(&ours)?
    {
        rest = others;
    }
    let all = rest.is_empty() && try_to_send(&ours, "all")?;
    start(theirs)?;
    rest.iter().try_for_each(|thing| thing.keep(&ours))?;
    if !all {
        send(&ours, "all")?;
    }
    Ok(ours)
}

pub fn drop_kept(socket: impl AsFd, name: &str) -> io::Result<()> {
    send(socket, &format!("drop {name}"))
}

pub fn ended(socket: impl AsFd, pid: u32, status: i32) -> io::Result<()> {
    send(socket, &format!("ended {pid} {status}"))
}

pub fn over(socket: impl AsFd) -> io::Result<()> {
    send(socket, "over")
}

fn send(socket: impl AsFd, text: &str) -> io::Result<()> {
    let socket = socket.as_fd();
    while !try_to_send(socket, text)? {
        wait(&mut [PollFd::from_borrowed_fd(socket, PollFlags::OUT)], None)?;
    }
    Ok(())
}

/// False where there is no room now.
fn try_to_send(socket: impl AsFd, text: &str) -> io::Result<bool> {
    match socket::send(socket, text.as_bytes(), &[]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        sent => sent.map(|_| true),
    }
}

/// The next thing said; `None` where nothing is there now.
pub fn receive(socket: impl AsFd) -> io::Result<Option<Said>> {
    let mut buffer = [0; 512];
    let received = loop {
        match socket::receive(&socket, &mut buffer) {
            Ok(received) => break received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // Told once, of an end that died before it had read everything; what it had said comes after that.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error),
        }
    };
    let text = String::from_utf8_lossy(buffer.get(..received.bytes).unwrap_or_default()).into_owned();
    Ok(Some(match text.split_once(' ') {
        Some(("keep", name)) => {
            let mut files = received.files.into_iter();
            let text = files.next().map_or_else(|| Ok(Vec::new()), |memory| socket::content(memory, u64::MAX))?;
            Said::Keep(Kept { name: name.into(), text, files: files.collect() })
        }
        Some(("drop", name)) => Said::Drop(name.into()),
        Some(("ended", rest)) => {
            let (pid, status) = rest.split_once(' ').unwrap_or_default();
            Said::Ended { pid: pid.parse().unwrap_or_default(), status: status.parse().unwrap_or_default() }
        }
        None if text == "all" => Said::All,
        None if text == "over" => Said::Over,
        _ => Said::End,
    }))
}
