//! The seam between a host and the core: one request and its response.
//!
//! A host implements [`Exchange`]; the core calls it. Calls come from one thread at a time, not always the same
//! thread, and never while that thread is attached to the interpreter, with the one exception [`Exchange::waits`]
//! names. A method may block.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use crate::log::Level;
use crate::request::Request;
use crate::response::Head;

pub trait Exchange: Send {
    fn request(&self) -> &Request;

    /// Reads the next bytes of the request body into `buf`; 0 is the end of a body that arrived whole.
    fn read_body(&mut self, buf: &mut [u8]) -> Result<usize, BodyError>;

    /// Sends head, body and end together; the whole body is known. Nothing but [`finish`](Self::finish) follows.
    fn send_whole(&mut self, head: Head, blocks: Vec<Block>) -> Result<(), ClientGone>;

    /// [`send_whole`](Self::send_whole), and [`finish`](Self::finish) with [`Outcome::Complete`] if that goes well.
    fn finish_whole(&mut self, head: Head, blocks: Vec<Block>) -> Result<(), ClientGone> {
        self.send_whole(head, blocks)?;
        self.finish(Outcome::Complete);
        Ok(())
    }

    fn send_head(&mut self, head: Head) -> Result<(), ClientGone>;

    /// Returns when the block is committed to the server with a flush and the request is within its buffer
    /// bound. PEP 3333, "Handling Block Boundaries": transmission may go on while the application produces the next.
    fn send_block(&mut self, block: Block) -> Result<(), ClientGone>;

    /// Sends a part of a regular file after [`send_head`](Self::send_head), copied by the kernel where possible.
    fn send_file(&mut self, file: FileRange) -> Result<(), ClientGone>;

    /// Ends the exchange. Called once, last; after it only [`log`](Self::log) may follow.
    fn finish(&mut self, outcome: Outcome);

    /// Writes one record to the server's error log, in the context of this request. `text` may have several lines.
    fn log(&mut self, level: Level, text: &str);

    /// Whether [`send_whole`](Self::send_whole), [`finish`](Self::finish) and [`log`](Self::log) may wait for the
    /// client, the disk or another thread. Where they only queue, the core saves itself detaching round them. In any case
    /// `finish` with [`Outcome::Complete`], after a `send_whole` that went well, waits for nothing.
    fn waits(&self) -> bool {
        true
    }
}

/// One bytestring from the application. Never empty when it reaches a host.
pub enum Block {
    Copied(Vec<u8>),
    /// Memory of a Python object, by reference. Dropping it is allowed on any thread, attached or not.
    Held(Box<dyn AsRef<[u8]> + Send + Sync>),
}

impl Block {
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Block::Copied(bytes) => bytes,
            Block::Held(bytes) => (**bytes).as_ref(),
        }
    }

    /// Keeps the first `length` bytes.
    pub(crate) fn truncate(self, length: usize) -> Block {
        match self {
            Block::Copied(mut bytes) => {
                bytes.truncate(length);
                Block::Copied(bytes)
            }
            Block::Held(_) => Block::Copied(self.as_bytes().iter().take(length).copied().collect()),
        }
    }
}

/// A part of a regular file. The descriptor is ours; its position is not used.
pub struct FileRange {
    pub file: OwnedFd,
    pub offset: u64,
    pub length: u64,
}

/// How an exchange ended, for the host to translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    /// Nothing was sent: the host answers 500, through its own error pages.
    Failed,
    /// Something was sent and the rest will not come: the host breaks the connection or resets the stream, so that
    /// the client can tell. Never ended as if complete.
    Truncated,
    ClientGone,
}

/// The client closed the connection, or the server gave the request up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client closed the connection")]
pub struct ClientGone;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the client closed the connection before the request body was complete")]
    Truncated,
    #[error("the request body is larger than the server allows")]
    TooLarge,
    #[error("the client sent nothing more of the request body within the server's time-out")]
    TimedOut,
    #[error("the request body cannot be read: {0}")]
    Failed(String),
}
