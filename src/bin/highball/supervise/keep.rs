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

pub fn keep(socket: impl AsFd, name: &str, text: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let memory = socket::sealed(text)?;
    let all: Vec<BorrowedFd<'_>> = std::iter::once(memory.as_fd()).chain(files.iter().copied()).collect();
    send(socket, &format!("keep {name}"), &all)
}

pub fn drop_kept(socket: impl AsFd, name: &str) -> io::Result<()> {
    send(socket, &format!("drop {name}"), &[])
}

pub fn all(socket: impl AsFd) -> io::Result<()> {
    send(socket, "all", &[])
}

pub fn ended(socket: impl AsFd, pid: u32, status: i32) -> io::Result<()> {
    send(socket, &format!("ended {pid} {status}"), &[])
}

pub fn over(socket: impl AsFd) -> io::Result<()> {
    send(socket, "over", &[])
}

fn send(socket: impl AsFd, text: &str, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let socket = socket.as_fd();
    loop {
        match socket::send(socket, text.as_bytes(), files) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(&mut [PollFd::from_borrowed_fd(socket, PollFlags::OUT)], None)?;
            }
            sent => return sent.map(drop),
        }
    }
}

/// The next thing said; `None` where nothing is there now.
pub fn receive(socket: impl AsFd) -> io::Result<Option<Said>> {
    let mut buffer = [0; 512];
    let received = match socket::receive(socket, &mut buffer) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Some(Said::End)),
        Err(error) => return Err(error),
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
