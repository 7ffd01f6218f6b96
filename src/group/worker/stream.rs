//! One request on a connection: what both the thread that reads the connection and the one that runs the application
//! touch of it, and the watch that ends it when its time is over.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::connection::Connection;
use crate::exchange::{BodyError, Outcome};
use crate::group::frame::{self, Kind, Violation};
use crate::group::message::{self, Ending, Part};
use crate::group::outgoing::{Batch, Then};
use crate::group::page::Phase;
use crate::log::Level;
use crate::request::{Fact, Request};

pub struct Stream {
    number: u32,
    pub page_slot: u32,
    pub request: Request,
    pub connection: Arc<Connection>,
    /// The thread that runs it, as the page numbers them.
    thread: AtomicU32,
    state: Mutex<State>,
    /// Signalled when body bytes or credit have come, and when the request is over.
    moved: Condvar,
}

/// A piece of the request body.
pub enum Piece {
    Memory(Vec<u8>),
    File { file: File, offset: u64, length: u64 },
}

#[derive(Default)]
pub(super) struct State {
    /// The server has no use for more: its client left, or its connection ended.
    pub(super) gone: bool,
    /// FINISH was appended; nothing may follow.
    pub(super) ended: bool,
    pub(super) begun: bool,
    pub(super) given_up: bool,
    /// Bytes of blocks the client has not taken yet.
    pub(super) unsent: u64,
    pub(super) pieces: VecDeque<Piece>,
    /// How the body ended, once all of it is in `pieces`.
    pub(super) end: Option<Result<(), BodyError>>,
    /// Bytes of BODY that may still come, and those that were read and not granted again.
    pub(super) allowed: u64,
    pub(super) ungranted: u64,
    /// The application has waited for it.
    pub(super) asked: bool,
    /// Threads that wait for something to move.
    waiting: usize,
}

impl Stream {
    pub fn new(
        number: u32,
        page_slot: u32,
        request: Request,
        connection: Arc<Connection>,
        has_body: bool,
    ) -> Arc<Stream> {
        let end = (!has_body).then_some(Ok(()));
        let state = State { end, allowed: BODY_WINDOW, ..State::default() };
        let (state, moved, thread) = (Mutex::new(state), Condvar::new(), AtomicU32::new(u32::MAX));
        Arc::new(Stream { number, page_slot, request, connection, thread, state, moved })
    }

    pub fn number(&self) -> u32 {
        self.number
    }

    /// Method and target, for the log and the page.
    pub fn title(&self) -> Vec<u8> {
        let fact = |fact| self.request.fact(fact).unwrap_or_default();
        let target = match self.request.fact(Fact::RequestUri) {
            // No query strings in logs.
            Some(uri) => uri.split(|byte| *byte == b'?').next().unwrap_or_default().to_vec(),
            None => [fact(Fact::ScriptName), fact(Fact::PathInfo)].concat(),
        };
        [fact(Fact::Method), &target].join(&b' ')
    }

    /// The thread of this number runs the request.
    pub fn set_thread(&self, thread: u32) {
        self.thread.store(thread, Ordering::Relaxed);
    }

    pub fn is_gone(&self) -> bool {
        self.lock().gone
    }

    pub fn was_given_up(&self) -> bool {
        self.lock().given_up
    }

    /// A frame of the server's for this request.
    pub fn take(&self, frame: &frame::Frame<'_>, file: Option<File>) -> Result<(), Violation> {
        let mut state = self.lock();
        let piece = match (frame.kind, file) {
            (Kind::Body, _) => {
                let length = frame.payload.len() as u64;
                state.allowed = state.allowed.checked_sub(length).ok_or(Violation::Unexpected(frame.kind))?;
                (length > 0).then(|| Piece::Memory(frame.payload.to_vec()))
            }
            (Kind::BodyFile, Some(file)) => {
                let Part { offset, length } = message::read_part(frame)?;
                (length > 0).then_some(Piece::File { file, offset, length })
            }
            (Kind::BodyFailed, _) => {
                let error = message::read_body_failed(frame)?;
                end(&mut state, frame.kind, Err(error))?;
                None
            }
            (Kind::Taken, _) => {
                state.unsent = state.unsent.saturating_sub(message::read_credit(frame)?.into());
                self.wake(&state);
                return Ok(());
            }
            (Kind::Gone, _) => {
                state.gone = true;
                self.wake(&state);
                return Ok(());
            }
            _ => return Err(Violation::Unexpected(frame.kind)),
        };
        if frame.kind != Kind::BodyFailed {
            if state.end.is_some() {
                return Err(Violation::Unexpected(frame.kind));
            }
            state.pieces.extend(piece);
            if frame.end {
                end(&mut state, frame.kind, Ok(()))?;
            }
        }
        self.wake(&state);
        Ok(())
    }

    /// The connection has ended.
    pub fn close(&self) {
        let mut state = self.lock();
        state.gone = true;
        self.wake(&state);
    }

    /// Ends the request on the wire whatever its application does, which notices when it sends or reads. `ending` is how
    /// if its head was not sent. Tells whether the application waits for the client just now, and so notices at once.
    pub fn give_up(&self, ending: Ending) -> bool {
        let mut state = self.lock();
        let waits = state.waiting > 0;
        if !state.ended {
            state.given_up = true;
            let ending = if state.begun { Ending::Outcome(Outcome::Truncated) } else { ending };
            self.end(state, ending, true);
        }
        waits
    }

    /// Appends FINISH, once. `now`: it is not put off.
    pub(super) fn end(&self, mut state: MutexGuard<'_, State>, ending: Ending, now: bool) {
        if std::mem::replace(&mut state.ended, true) {
            return;
        }
        let finish = |batch: &mut Batch| message::finish(batch.bytes(), self.number, ending);
        let then = if now {
            self.connection.append(finish);
            Then::Flush
        } else {
            self.connection.answer(finish)
        };
        self.wake(&state);
        drop(state);
        self.connection.forget(self.number);
        self.connection.then(then);
    }

    /// Ends the request without its application.
    pub fn finish(&self, ending: Ending) {
        self.end(self.lock(), ending, false);
    }

    /// A record of this request. False where it has ended, and the record has to go elsewhere.
    pub fn log(&self, level: Level, text: &str) -> bool {
        let state = self.lock();
        if state.ended || self.connection.waiting() > MOST_WAITING {
            return false;
        }
        self.connection.append(|batch| message::log(batch.bytes(), self.number, level, text));
        drop(state);
        self.connection.flush();
        true
    }

    /// Nobody waits in most requests, and waking nobody costs a system call.
    fn wake(&self, state: &State) {
        if state.waiting > 0 {
            self.moved.notify_all();
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to move, shown as `phase` on the page.
    pub(super) fn wait<'a>(&self, mut state: MutexGuard<'a, State>, phase: Phase) -> MutexGuard<'a, State> {
        let thread = self.thread.load(Ordering::Relaxed);
        self.connection.wire().set_phase(thread, phase);
        state.waiting += 1;
        let mut state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        self.connection.wire().set_phase(thread, Phase::Application);
        state
    }
}

fn end(state: &mut State, kind: Kind, how: Result<(), BodyError>) -> Result<(), Violation> {
    if state.end.is_some() {
        return Err(Violation::Unexpected(kind));
    }
    state.end = Some(how);
    Ok(())
}

/// Bytes of BODY that may come before any was read.
pub const BODY_WINDOW: u64 = 64 * 1024;

/// Records find another way while so many bytes wait for a server that does not read.
const MOST_WAITING: usize = 4 * 1024 * 1024;
