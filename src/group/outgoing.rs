//! What waits to be written to one connection, and who writes it.
//!
//! Frames are appended by any thread, for a moment; one thread at a time writes, without the lock, and goes on until
//! nothing is left. Answers are put off so that several leave in one write: until [`MANY`] of them wait, or one is
//! [`OLD`], or [`Outgoing::flush`] is called. A full socket makes nobody wait: the rest leaves when there is room.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::group::socket;

/// Frames, and the descriptors that go with some of their bytes.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// So many of the bytes have left.
    sent: usize,
    /// With which byte each descriptor goes.
    files: VecDeque<(usize, OwnedFd)>,
}

#[derive(Default)]
pub struct Outgoing {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pending: Batch,
    /// What is being written, or what a full socket did not take.
    current: Batch,
    writing: bool,
    full: bool,
    closed: bool,
    answers: usize,
    /// When the first answer of those came.
    since: Option<Instant>,
}

/// What to do after frames were appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Somebody writes them soon.
    Nothing,
    /// They are the first that wait: whoever ends the stretch is to flush.
    Remember,
    Flush,
}

/// How a flush ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// All has left, or another thread is at it.
    Done,
    /// The socket is full: flush again, with [`Outgoing::resume`], when it has room.
    Full,
    /// Nothing can be written any more.
    Broken,
}

impl Batch {
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The next byte appended takes this along.
    pub fn file(&mut self, file: OwnedFd) {
        self.files.push_back((self.bytes.len(), file));
    }

    pub fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Bytes that nobody has taken yet.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.sent = 0;
        self.files.clear();
    }

    /// Sends what there is. `send` gets bytes, and the descriptor that goes with the first of them.
    pub fn send(&mut self, mut send: impl FnMut(&[u8], Option<BorrowedFd<'_>>) -> io::Result<usize>) -> io::Result<()> {
        while !self.is_empty() {
            let first = self.files.front().filter(|(at, _)| *at == self.sent).map(|(_, file)| file.as_fd());
            // A message ends before the next descriptor: it must not go with the bytes of another frame.
            let end = self.files.iter().map(|(at, _)| *at).find(|at| *at > self.sent).unwrap_or(self.bytes.len());
            let bytes = self.bytes.get(self.sent..end).unwrap_or_default();
            let had_file = first.is_some();
            match send(bytes, first) {
                Ok(sent) => {
                    self.sent += sent;
                    if had_file && sent > 0 {
                        self.files.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.forget_sent();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// A socket that is never empty must not make this grow for ever.
    fn forget_sent(&mut self) {
        if self.sent >= KEPT {
            self.bytes.drain(..self.sent);
            self.files.iter_mut().for_each(|(at, _)| *at -= self.sent);
            self.sent = 0;
        }
    }
}

impl Outgoing {
    /// Appends what is to leave at once, or waits for others to leave with it.
    pub fn append(&self, add: impl FnOnce(&mut Batch)) {
        let mut state = self.lock();
        if !state.closed {
            add(&mut state.pending);
        }
    }

    /// Appends the end of an answer, which may be put off.
    pub fn answer(&self, add: impl FnOnce(&mut Batch)) -> Then {
        let mut state = self.lock();
        if state.closed {
            return Then::Nothing;
        }
        add(&mut state.pending);
        state.answers += 1;
        match state.since {
            None => {
                state.since = Some(Instant::now());
                Then::Remember
            }
            Some(since) if state.answers >= MANY || since.elapsed() >= OLD => Then::Flush,
            Some(_) => Then::Nothing,
        }
    }

    /// Bytes that nobody has taken yet.
    pub fn waiting(&self) -> usize {
        let state = self.lock();
        state.pending.waiting() + state.current.waiting()
    }

    /// Writes what there is, unless the socket is full or another thread is at it.
    pub fn flush(&self, socket: impl AsFd) -> Flushed {
        let state = self.lock();
        if state.writing || state.full { Flushed::Done } else { self.write(state, socket.as_fd()) }
    }

    /// As [`flush`](Self::flush), when the socket has room again.
    pub fn resume(&self, socket: impl AsFd) -> Flushed {
        let mut state = self.lock();
        state.full = false;
        if state.writing { Flushed::Done } else { self.write(state, socket.as_fd()) }
    }

    /// Nothing is written any more.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.pending.clear();
    }

    fn write<'a>(&'a self, mut state: MutexGuard<'a, State>, socket: BorrowedFd<'_>) -> Flushed {
        loop {
            if state.closed {
                return Flushed::Broken;
            }
            state.answers = 0;
            state.since = None;
            if state.current.is_empty() {
                state.current.clear();
                let State { current, pending, .. } = &mut *state;
                std::mem::swap(current, pending);
            }
            if state.current.is_empty() {
                return Flushed::Done;
            }
            state.writing = true;
            let mut current = std::mem::take(&mut state.current);
            drop(state);
            let sent = current.send(|bytes, file| match &file {
                Some(file) => socket::send(socket, bytes, std::slice::from_ref(file)),
                None => socket::send(socket, bytes, &[]),
            });
            state = self.lock();
            state.current = current;
            state.writing = false;
            match sent {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    state.full = true;
                    return Flushed::Full;
                }
                Err(_) => {
                    state.closed = true;
                    return Flushed::Broken;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many answers leave at once.
pub const MANY: usize = 16;

/// So old an answer leaves.
pub const OLD: Duration = Duration::from_micros(200);

/// Bytes of memory that an empty batch keeps.
const KEPT: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    fn sockets() -> (OwnedFd, OwnedFd) {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        (one.into(), other.into())
    }

    fn received(socket: &OwnedFd) -> (Vec<u8>, usize) {
        let mut buffer = vec![0; 1 << 20];
        match socket::receive(socket, &mut buffer) {
            Ok(received) => (buffer[..received.bytes].to_vec(), received.files.len()),
            Err(_) => (Vec::new(), 0),
        }
    }

    #[test]
    fn answers_are_put_off_until_there_are_many_or_old_ones() {
        let outgoing = Outgoing::default();
        let (ours, theirs) = sockets();
        let answer = || outgoing.answer(|batch| batch.bytes().push(b'x'));
        assert_eq!(answer(), Then::Remember);
        assert_eq!(outgoing.flush(&ours), Flushed::Done);
        assert_eq!(received(&theirs).0.len(), 1);
        assert_eq!(answer(), Then::Remember);
        let begun = Instant::now();
        let mut rest = 1;
        while answer() != Then::Flush {
            rest += 1;
        }
        assert!(rest == MANY - 1 || begun.elapsed() >= OLD, "{rest}");
        outgoing.flush(&ours);
        assert_eq!(answer(), Then::Remember);
        std::thread::sleep(OLD);
        assert_eq!(answer(), Then::Flush);
    }

    #[test]
    fn a_descriptor_goes_with_the_first_byte_of_its_frame_alone() {
        let outgoing = Outgoing::default();
        // Packets show what was sent at once.
        let (ours, theirs) = socket::packets().unwrap();
        outgoing.append(|batch| batch.bytes().extend_from_slice(b"before"));
        for _ in 0..2 {
            outgoing.append(|batch| {
                batch.file(File::open("/dev/null").unwrap().into());
                batch.bytes().extend_from_slice(b"frame");
            });
        }
        outgoing.append(|batch| batch.bytes().extend_from_slice(b"after"));
        assert_eq!(outgoing.flush(&ours), Flushed::Done);
        assert_eq!(received(&theirs), (b"before".to_vec(), 0));
        assert_eq!(received(&theirs), (b"frame".to_vec(), 1));
        assert_eq!(received(&theirs), (b"frameafter".to_vec(), 1));
    }

    #[test]
    fn what_a_full_socket_does_not_take_leaves_later_and_in_order() {
        let outgoing = Outgoing::default();
        let (ours, theirs) = sockets();
        let all: Vec<u8> = (0..3_000_000_u32).map(|number| (number / 7) as u8).collect();
        outgoing.append(|batch| batch.bytes().extend_from_slice(&all));
        assert_eq!(outgoing.flush(&ours), Flushed::Full);
        outgoing.append(|batch| batch.bytes().push(b'!'));
        assert_eq!(outgoing.flush(&ours), Flushed::Done, "nobody tries again before there is room");
        let mut theirs = File::from(theirs);
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; 3_000_001];
            theirs.read_exact(&mut got).unwrap();
            got
        });
        while outgoing.resume(&ours) == Flushed::Full {
            std::thread::sleep(Duration::from_millis(1));
        }
        let got = reader.join().unwrap();
        assert!(got[..3_000_000] == all && got[3_000_000] == b'!');
        assert_eq!(outgoing.waiting(), 0);
    }

    #[test]
    fn a_broken_connection_takes_nothing_more() {
        let outgoing = Outgoing::default();
        let (ours, theirs) = sockets();
        drop(theirs);
        outgoing.append(|batch| batch.bytes().push(b'x'));
        assert_eq!(outgoing.flush(&ours), Flushed::Broken);
        assert_eq!(outgoing.answer(|batch| batch.bytes().push(b'x')), Then::Nothing);
        assert_eq!(outgoing.flush(&ours), Flushed::Broken);
    }
}
