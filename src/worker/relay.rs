//! The pipe between the thread that runs an application and the event loop that owns the request.
//!
//! Bounded: a sender waits, detached, while more bytes than its bound have not been taken by the client. Whole responses
//! and files do not wait: nothing more comes of a whole one, and a file takes no memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::mailbox::Mailbox;
use crate::exchange::{Block, BodyError, ClientGone, Exchange, FileRange, Outcome};
use crate::log::Level;
use crate::request::Request;
use crate::response::Head;

/// One request in flight, shared by both ends.
pub struct Relay {
    request: Request,
    mailbox: Arc<Mailbox>,
    key: usize,
    /// Bytes of blocks that may wait for the client.
    bound: usize,
    state: Mutex<State>,
    /// Signalled when the client has taken something, when body bytes have come, when the request is gone.
    moved: Condvar,
}

/// What the worker end says to the loop, in order.
pub enum Message {
    Head(Head),
    Block(Block),
    File(FileRange),
    /// Head, body and end.
    Whole(Head, Vec<Block>),
    Log(Level, String),
    /// The last of an exchange, whether the request is still there or not; only records may follow.
    Finish(Outcome),
}

/// A part of a request body that needs nothing of the loop, or the rest of it in pieces from there.
pub enum Segment {
    Memory(Vec<u8>),
    File {
        file: File,
        offset: u64,
        length: u64,
    },
    /// This many bytes, asked for piece by piece with [`Taken::wants_body`].
    Loop {
        length: u64,
    },
    /// All of it, asked for piece by piece as the client sends it; its length need not be known.
    Stream,
}

/// What the loop answers to a worker that asks for more of the body.
pub enum Fed {
    /// Never empty.
    Piece(Vec<u8>),
    /// The body is complete.
    End,
    Failed(BodyError),
}

/// What the loop found in a relay, besides messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The worker waits for [`Relay::feed`].
    pub wants_body: bool,
}

#[derive(Default)]
struct State {
    messages: Vec<Message>,
    /// Bytes of blocks that the client has not taken yet.
    unsent: usize,
    /// Stands in the mailbox.
    posted: bool,
    gone: bool,
    finished: bool,
    wants_body: bool,
    fed: Option<Fed>,
    /// The worker waits for `moved`.
    waiting: bool,
    thread: Option<libc::pthread_t>,
}

impl Relay {
    /// `key` is the loop's name for the request; `bound`: how many bytes of blocks may wait for the client before the
    /// application does.
    pub fn new(
        request: Request,
        body: Vec<Segment>,
        mailbox: Arc<Mailbox>,
        key: usize,
        bound: usize,
    ) -> (Arc<Relay>, Box<WorkerEnd>) {
        // Room for a whole answer, made by the thread that will free it.
        let state = State { messages: Vec::with_capacity(2), ..State::default() };
        let relay = Arc::new(Relay { request, mailbox, key, bound, state: Mutex::new(state), moved: Condvar::new() });
        let end = WorkerEnd { relay: relay.clone(), body: body.into(), begun: false, finished: false };
        (relay, Box::new(end))
    }

    pub fn request(&self) -> &Request {
        &self.request
    }

    pub fn key(&self) -> usize {
        self.key
    }

    /// Moves the messages into `into`, which is empty. Event loop only.
    pub fn take(&self, into: &mut Vec<Message>) -> Taken {
        let mut state = self.lock();
        state.posted = false;
        into.append(&mut state.messages);
        Taken { wants_body: std::mem::take(&mut state.wants_body) }
    }

    /// The client has taken this many bytes of blocks. Event loop only.
    pub fn taken_by_client(&self, bytes: usize) {
        let mut state = self.lock();
        let waited = state.unsent > self.bound;
        state.unsent = state.unsent.saturating_sub(bytes);
        if waited && state.unsent <= self.bound {
            self.wake(&state);
        }
    }

    /// Gives the piece of the body that was asked for. Event loop only.
    pub fn feed(&self, fed: Fed) {
        let mut state = self.lock();
        state.fed = Some(fed);
        self.wake(&state);
    }

    /// The request is over on the loop's side, for whatever reason: wakes the worker, which then ends alone.
    pub fn close(&self) {
        let mut state = self.lock();
        state.gone = true;
        self.wake(&state);
    }

    /// The thread that runs the application, while it does.
    pub fn thread(&self) -> Option<libc::pthread_t> {
        let state = self.lock();
        state.thread.filter(|_| !state.finished)
    }

    fn push(self: &Arc<Self>, mut state: MutexGuard<'_, State>, message: Message) {
        state.messages.push(message);
        self.post(state);
    }

    /// As [`push`](Self::push), for what completes an answer.
    fn push_last(self: &Arc<Self>, mut state: MutexGuard<'_, State>, message: Message) {
        state.messages.push(message);
        if !std::mem::replace(&mut state.posted, true) {
            drop(state);
            self.mailbox.answer(self.clone());
        }
    }

    fn post(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if !std::mem::replace(&mut state.posted, true) {
            drop(state);
            self.mailbox.relay(self.clone());
        }
    }

    /// Held for moments only.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        condition: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        state.waiting = true;
        let mut state = self.moved.wait_while(state, condition).unwrap_or_else(PoisonError::into_inner);
        state.waiting = false;
        state
    }

    /// Signalling is a system call, whether anybody waits or not.
    fn wake(&self, state: &State) {
        if state.waiting {
            self.moved.notify_all();
        }
    }
}

/// The application's end. Dropped without [`Exchange::finish`] it ends the exchange as failed.
pub struct WorkerEnd {
    relay: Arc<Relay>,
    body: Body,
    begun: bool,
    finished: bool,
}

impl WorkerEnd {
    pub fn relay(&self) -> &Arc<Relay> {
        &self.relay
    }

    /// The calling thread runs the application from now on.
    pub fn enter(&self) {
        // SAFETY: pthread_self() always succeeds.
        self.relay.lock().thread = Some(unsafe { libc::pthread_self() });
    }
}

impl Exchange for WorkerEnd {
    fn request(&self) -> &Request {
        &self.relay.request
    }

    fn read_body(&mut self, buf: &mut [u8]) -> Result<usize, BodyError> {
        self.body.read(&self.relay, buf)
    }

    fn send_whole(&mut self, head: Head, blocks: Vec<Block>) -> Result<(), ClientGone> {
        self.begun = true;
        let state = self.relay.lock();
        if state.gone {
            return Err(ClientGone);
        }
        self.relay.push_last(state, Message::Whole(head, blocks));
        Ok(())
    }

    fn finish_whole(&mut self, head: Head, blocks: Vec<Block>) -> Result<(), ClientGone> {
        self.begun = true;
        let mut state = self.relay.lock();
        if state.gone {
            return Err(ClientGone);
        }
        self.finished = true;
        state.finished = true;
        state.messages.push(Message::Whole(head, blocks));
        self.relay.push_last(state, Message::Finish(Outcome::Complete));
        Ok(())
    }

    /// Only queued: a block or the end follows.
    fn send_head(&mut self, head: Head) -> Result<(), ClientGone> {
        self.begun = true;
        let mut state = self.relay.lock();
        if state.gone {
            return Err(ClientGone);
        }
        state.messages.push(Message::Head(head));
        Ok(())
    }

    fn send_block(&mut self, block: Block) -> Result<(), ClientGone> {
        let mut state = self.relay.lock();
        if state.gone {
            return Err(ClientGone);
        }
        state.unsent += block.as_bytes().len();
        self.relay.push(state, Message::Block(block));
        let state = self.relay.lock();
        let state = self.relay.wait_while(state, |state| state.unsent > self.relay.bound && !state.gone);
        if state.gone { Err(ClientGone) } else { Ok(()) }
    }

    fn send_file(&mut self, file: FileRange) -> Result<(), ClientGone> {
        let state = self.relay.lock();
        if state.gone {
            return Err(ClientGone);
        }
        self.relay.push(state, Message::File(file));
        Ok(())
    }

    fn finish(&mut self, outcome: Outcome) {
        self.finished = true;
        let mut state = self.relay.lock();
        state.finished = true;
        self.relay.push_last(state, Message::Finish(outcome));
    }

    fn log(&mut self, level: Level, text: &str) {
        self.relay.push(self.relay.lock(), Message::Log(level, text.to_string()));
    }

    fn waits(&self) -> bool {
        false
    }
}

impl Drop for WorkerEnd {
    fn drop(&mut self) {
        if !self.finished {
            self.finish(if self.begun { Outcome::Truncated } else { Outcome::Failed });
        }
    }
}

/// What is left of a request body.
struct Body {
    segments: std::vec::IntoIter<Segment>,
    current: Option<Segment>,
    /// The piece that is being read: memory, and how far.
    piece: Vec<u8>,
    read: usize,
    /// The rest will not come, for this reason.
    failed: Option<BodyError>,
}

impl From<Vec<Segment>> for Body {
    fn from(segments: Vec<Segment>) -> Body {
        Body { segments: segments.into_iter(), current: None, piece: Vec::new(), read: 0, failed: None }
    }
}

impl Body {
    fn read(&mut self, relay: &Arc<Relay>, buf: &mut [u8]) -> Result<usize, BodyError> {
        if buf.is_empty() {
            return Ok(0);
        }
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        loop {
            let rest = self.piece.get(self.read..).unwrap_or_default();
            if !rest.is_empty() {
                let length = rest.len().min(buf.len());
                if let (Some(to), Some(from)) = (buf.get_mut(..length), rest.get(..length)) {
                    to.copy_from_slice(from);
                }
                self.read += length;
                return Ok(length);
            }
            match &mut self.current {
                None | Some(Segment::Memory(_)) => match self.segments.next() {
                    None => return Ok(0),
                    Some(Segment::Memory(bytes)) => (self.piece, self.read) = (bytes, 0),
                    Some(segment) => self.current = Some(segment),
                },
                Some(Segment::File { length: 0, .. } | Segment::Loop { length: 0 }) => self.current = None,
                Some(Segment::File { file, offset, length }) => {
                    let most = buf.len().min(usize::try_from(*length).unwrap_or(usize::MAX));
                    let read = match buf.get_mut(..most) {
                        Some(buf) => {
                            file.read_at(buf, *offset).map_err(|error| BodyError::Failed(error.to_string()))?
                        }
                        None => 0,
                    };
                    if read == 0 {
                        return Err(BodyError::Failed("its temporary file is shorter than it was".into()));
                    }
                    *offset += read as u64;
                    *length -= read as u64;
                    return Ok(read);
                }
                Some(Segment::Loop { length }) => {
                    let Fed::Piece(piece) = ask(relay)? else { return Err(BodyError::Truncated) };
                    *length = length.saturating_sub(piece.len() as u64);
                    (self.piece, self.read) = (piece, 0);
                }
                Some(Segment::Stream) => match ask(relay)? {
                    Fed::Piece(piece) => (self.piece, self.read) = (piece, 0),
                    Fed::End => self.current = None,
                    Fed::Failed(error) => {
                        self.failed = Some(error.clone());
                        return Err(error);
                    }
                },
            }
        }
    }
}

/// Asks the loop for the next piece of the body, and waits for it.
fn ask(relay: &Arc<Relay>) -> Result<Fed, BodyError> {
    let mut state = relay.lock();
    if state.gone {
        return Err(BodyError::Truncated);
    }
    state.wants_body = true;
    relay.post(state);
    let mut state = relay.wait_while(relay.lock(), |state| state.fed.is_none() && !state.gone);
    state.fed.take().ok_or(BodyError::Truncated)
}

/// How much may wait for a client where nothing else is said: the socket's own buffers come on top.
pub const BOUND: usize = 64 * 1024;

#[cfg(test)]
#[path = "relay/tests.rs"]
mod tests;
