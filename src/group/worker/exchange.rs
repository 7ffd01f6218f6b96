//! The application's end of a request that came over the wire.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, MutexGuard};

use super::descriptors::is_fork;
use super::stream::{BODY_WINDOW, Piece, State, Stream};
use crate::error::{Code, Report};
use crate::exchange::{Block, BodyError, ClientGone, Exchange, FileRange, Outcome};
use crate::group::frame::{self, Kind};
use crate::group::message::{self, Ending, Part};
use crate::group::outgoing::Batch;
use crate::group::page::Phase;
use crate::log::Level;
use crate::request::Request;
use crate::response::Head;

/// Dropped without [`Exchange::finish`] it ends the exchange as failed.
pub struct WireExchange {
    stream: Arc<Stream>,
    current: Option<Piece>,
    /// How much of `current` was read, where it is memory.
    read: usize,
}

impl WireExchange {
    pub fn new(stream: Arc<Stream>) -> Box<WireExchange> {
        Box::new(WireExchange { stream, current: None, read: 0 })
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, ClientGone> {
        let state = self.stream.lock();
        if state.gone || state.ended { Err(ClientGone) } else { Ok(state) }
    }

    fn append(&self, add: impl FnOnce(&mut Batch, u32)) {
        let number = self.stream.number();
        self.stream.connection.append(|batch| add(batch, number));
    }

    fn append_head(&self, head: &Head) -> bool {
        let mut fits = true;
        self.append(|batch, number| fits = message::head(batch.bytes(), number, head));
        fits
    }

    /// The request ends as failed: no server would take such a head.
    fn too_long(&self, state: MutexGuard<'_, State>) -> ClientGone {
        let cause = format!("the status and headers are longer than {} KiB together", message::LONGEST_HEAD / 1024);
        let report = Report::new(Code::HeadInvalid, cause).remedy("send less: servers and browsers take far less");
        let number = self.stream.number();
        self.stream.connection.append(|batch| message::log(batch.bytes(), number, Level::Error, &report.to_string()));
        self.stream.end(state, Ending::Outcome(Outcome::Failed), false);
        ClientGone
    }

    /// The next piece of the body, waited for; `None` at its end.
    fn next(&self) -> Result<Option<Piece>, BodyError> {
        let mut state = self.stream.lock();
        loop {
            if let Some(piece) = state.pieces.pop_front() {
                return Ok(Some(piece));
            }
            if let Some(end) = &state.end {
                return end.clone().map(|()| None);
            }
            if state.gone || state.ended {
                return Err(BodyError::Truncated);
            }
            // The first time the server is told in any case: its client may wait for "100 Continue".
            let least = u64::from(std::mem::replace(&mut state.asked, true));
            if self.grant(&mut state, least) {
                drop(state);
                self.stream.connection.flush();
                state = self.stream.lock();
            } else {
                state = self.stream.wait(state, Phase::Reading);
            }
        }
    }

    /// Lets the server send again what was read, if that is at least so much. Tells whether there is a frame to write.
    fn grant(&self, state: &mut State, least: u64) -> bool {
        if state.ungranted < least || state.end.is_some() || state.gone || state.ended {
            return false;
        }
        let bytes = std::mem::take(&mut state.ungranted);
        state.allowed += bytes;
        self.append(|batch, number| message::credit(batch.bytes(), number, Kind::Read, bytes as u32));
        true
    }

    fn was_read(&self, bytes: usize) {
        let mut state = self.stream.lock();
        state.ungranted += bytes as u64;
        if self.grant(&mut state, BODY_WINDOW / 2) {
            drop(state);
            self.stream.connection.flush();
        }
    }
}

impl Exchange for WireExchange {
    fn request(&self) -> &Request {
        &self.stream.request
    }

    fn read_body(&mut self, buf: &mut [u8]) -> Result<usize, BodyError> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.current {
                None => match self.next()? {
                    None => return Ok(0),
                    piece => (self.current, self.read) = (piece, 0),
                },
                Some(Piece::Memory(bytes)) => {
                    let rest = bytes.get(self.read..).unwrap_or_default();
                    let length = rest.len().min(buf.len());
                    if let (Some(to), Some(from)) = (buf.get_mut(..length), rest.get(..length)) {
                        to.copy_from_slice(from);
                    }
                    self.read += length;
                    if self.read == bytes.len() {
                        self.current = None;
                    }
                    self.was_read(length);
                    return Ok(length);
                }
                Some(Piece::File { length: 0, .. }) => self.current = None,
                Some(Piece::File { file, offset, length }) => {
                    let most = buf.len().min(usize::try_from(*length).unwrap_or(usize::MAX));
                    let buf = buf.get_mut(..most).unwrap_or_default();
                    let read = file.read_at(buf, *offset).map_err(|error| BodyError::Failed(error.to_string()))?;
                    if read == 0 {
                        return Err(BodyError::Failed("its temporary file is shorter than it was".into()));
                    }
                    *offset += read as u64;
                    *length -= read as u64;
                    return Ok(read);
                }
            }
        }
    }

    fn send_whole(&mut self, head: Head, blocks: Vec<Block>) -> Result<(), ClientGone> {
        let total: u64 = blocks.iter().map(|block| block.as_bytes().len() as u64).sum();
        // Larger than the window it goes as a file, so that this thread waits for nobody.
        let file = if total > self.stream.connection.wire().window { in_memory(&blocks) } else { None };
        if file.is_none() && total > self.stream.connection.wire().window {
            self.send_head(head)?;
            return blocks.into_iter().try_for_each(|block| self.send_block(block));
        }
        let mut state = self.open()?;
        if !self.append_head(&head) {
            return Err(self.too_long(state));
        }
        state.begun = true;
        self.append(|batch, number| match file {
            Some(file) => {
                batch.file(file.into());
                let part = Part { offset: 0, length: total };
                message::part(batch.bytes(), number, Kind::File, 0, part);
            }
            None => {
                for block in &blocks {
                    put_block(batch, number, block.as_bytes());
                }
            }
        });
        // Whatever comes later, the client has its answer.
        self.stream.end(state, Ending::Outcome(Outcome::Complete), false);
        Ok(())
    }

    /// Only appended: a block or the end follows.
    fn send_head(&mut self, head: Head) -> Result<(), ClientGone> {
        let mut state = self.open()?;
        if !self.append_head(&head) {
            return Err(self.too_long(state));
        }
        state.begun = true;
        Ok(())
    }

    fn send_block(&mut self, block: Block) -> Result<(), ClientGone> {
        let mut rest = block.as_bytes();
        while !rest.is_empty() {
            let mut state = self.open()?;
            let room = self.stream.connection.wire().window.saturating_sub(state.unsent);
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            if now.is_empty() {
                drop(self.stream.wait(state, Phase::Sending));
                continue;
            }
            state.unsent += now.len() as u64;
            self.append(|batch, number| put_block(batch, number, now));
            drop(state);
            self.stream.connection.flush();
            rest = later;
        }
        Ok(())
    }

    fn send_file(&mut self, file: FileRange) -> Result<(), ClientGone> {
        let state = self.open()?;
        self.append(|batch, number| {
            batch.file(file.file);
            let part = Part { offset: file.offset, length: file.length };
            message::part(batch.bytes(), number, Kind::File, 0, part);
        });
        drop(state);
        self.stream.connection.flush();
        Ok(())
    }

    fn finish(&mut self, outcome: Outcome) {
        self.stream.finish(Ending::Outcome(outcome));
    }

    fn log(&mut self, level: Level, text: &str) {
        if self.stream.was_given_up() && level == Level::Info {
            // How an interruption looks from within; the watch has said what happened.
            return;
        }
        if is_fork() || !self.stream.log(level, text) {
            let title = self.stream.title();
            let text = format!("{text}\nrequest: {}", String::from_utf8_lossy(&title));
            self.stream.connection.wire().log(level, &text);
        }
    }

    fn waits(&self) -> bool {
        false
    }
}

impl Drop for WireExchange {
    fn drop(&mut self) {
        let begun = self.stream.lock().begun;
        self.finish(if begun { Outcome::Truncated } else { Outcome::Failed });
    }
}

/// In pieces that leave room for other answers between them.
fn put_block(batch: &mut Batch, number: u32, bytes: &[u8]) {
    for piece in bytes.chunks(PIECE) {
        frame::put(batch.bytes(), number, Kind::Block, 0, piece);
    }
}

/// Blocks as a file of memory.
fn in_memory(blocks: &[Block]) -> Option<File> {
    let file = rustix::fs::memfd_create("highball-response", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    let mut file = File::from(file);
    blocks.iter().try_for_each(|block| file.write_all(block.as_bytes())).ok()?;
    Some(file)
}

/// Bytes of a BLOCK frame.
const PIECE: usize = 32 * 1024;

#[cfg(test)]
#[path = "exchange/tests.rs"]
mod tests;
