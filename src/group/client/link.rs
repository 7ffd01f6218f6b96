//! One connection to a worker. Never waits; belongs to one thread at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::exchange::{BodyError, FileRange};
use crate::group::frame::{self, Assembly, END, Frame, Kind, VERSION, Violation};
use crate::group::message::{self, Ending, Key, Part};
use crate::group::outgoing::Batch;
use crate::group::page::Page;
use crate::group::reader::Reader;
use crate::group::request::{self, Answerer, NO_SLOT};
use crate::group::socket;
use crate::log::Level;
use crate::request::Request;
use crate::response::Head;

pub struct Link {
    /// `None` once it was given up.
    socket: Option<OwnedFd>,
    outgoing: Batch,
    /// Since when the socket has taken nothing of what waits.
    full: Option<Instant>,
    reader: Reader,
    has_more: bool,
    assembly: Assembly,
    state: Greeting,
    window: u64,
    page: Option<Page>,
    free_slots: Vec<u32>,
    last_stream: u32,
    streams: HashMap<u32, Open>,
    /// The payload of a REQUEST, kept for its memory.
    scratch: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Greeting {
    Awaited,
    Welcomed,
    Leaving,
}

/// A request that has no FINISH yet.
struct Open {
    page_slot: u32,
    /// Its head has come.
    has_head: bool,
    /// Files that were sent: each is a descriptor until the client has it.
    files: usize,
    /// Bytes of blocks that were not confirmed as taken.
    unsent: u64,
    /// Bytes of its body that may still be sent.
    allowed: u64,
    /// The whole body was sent, or it will not come.
    body_ended: bool,
}

/// What a worker says of one request.
pub enum Said {
    Head(Head),
    /// Never empty.
    Block(Vec<u8>),
    File(FileRange),
    Log(Level, String),
    /// More of the body may be sent; the application waits for it.
    Read,
    /// The last of a request.
    Finish(Ending),
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("it speaks version {0} of the protocol, this server speaks {VERSION}")]
    Version(u16),
    #[error("it sent {0}")]
    Violation(#[from] Violation),
    #[error("it has taken nothing for {0:?} (socket-timeout)")]
    Stuck(Duration),
    #[error("{0}")]
    Socket(#[from] io::Error),
}

impl Link {
    /// Connects to the socket of a worker, and says hello.
    pub fn connect(path: &Path, key: &Key) -> io::Result<Link> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Link::new(socket, key)
    }

    /// Says hello on a socket that is connected, and does not block.
    pub fn new(socket: OwnedFd, key: &Key) -> io::Result<Link> {
        let mut outgoing = Batch::default();
        message::hello(outgoing.bytes(), key);
        let mut link = Link {
            socket: Some(socket),
            outgoing,
            full: None,
            reader: Reader::default(),
            has_more: false,
            assembly: Assembly::default(),
            state: Greeting::Awaited,
            window: 0,
            page: None,
            free_slots: Vec::new(),
            last_stream: 0,
            streams: HashMap::new(),
            scratch: Vec::new(),
        };
        link.flush()?;
        Ok(link)
    }

    pub fn socket(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.socket.as_ref().ok_or(ErrorKind::NotConnected)?.as_fd())
    }

    /// The socket, for whoever closes it; this link is of no use any more.
    pub fn give_up_socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// Whether a new request may be sent.
    pub fn is_ready(&self) -> bool {
        self.state == Greeting::Welcomed && self.last_stream < u32::MAX
    }

    /// Whether the worker wants no new requests; the link is to be closed when its last one is over.
    pub fn is_leaving(&self) -> bool {
        self.state == Greeting::Leaving
    }

    /// Requests on their way.
    pub fn outstanding(&self) -> usize {
        self.streams.len()
    }

    /// Sends a request; its body, if it has one, follows. Returns the number it has on this link; `None`, and nothing is
    /// sent: it is too long for a worker.
    pub fn open(&mut self, answerer: &Answerer, request: &Request, has_body: bool) -> Option<u32> {
        let page_slot = self.free_slots.pop().unwrap_or(NO_SLOT);
        if !request::put(&mut self.scratch, answerer, page_slot, request) {
            self.free_slots.extend(Some(page_slot).filter(|slot| *slot != NO_SLOT));
            return None;
        }
        self.last_stream += 1;
        let stream = self.last_stream;
        let flags = if has_body { 0 } else { END };
        frame::put(self.outgoing.bytes(), stream, Kind::Request, flags, &self.scratch);
        self.scratch.shrink_to(KEPT);
        let open =
            Open { page_slot, has_head: false, files: 0, unsent: 0, allowed: BODY_WINDOW, body_ended: !has_body };
        self.streams.insert(stream, open);
        Some(stream)
    }

    /// Bytes of the request's body that may be sent now.
    pub fn allowed(&self, stream: u32) -> usize {
        let open = self.streams.get(&stream).filter(|open| !open.body_ended);
        open.map_or(0, |open| usize::try_from(open.allowed).unwrap_or(usize::MAX))
    }

    /// Sends bytes of a body, no more than are [`allowed`](Self::allowed).
    pub fn body(&mut self, stream: u32, bytes: &[u8]) {
        if let Some(open) = self.streams.get_mut(&stream).filter(|open| !open.body_ended && !bytes.is_empty()) {
            open.allowed = open.allowed.saturating_sub(bytes.len() as u64);
            for piece in bytes.chunks(PIECE) {
                frame::put(self.outgoing.bytes(), stream, Kind::Body, 0, piece);
            }
        }
    }

    /// Sends a part of a body as a file.
    pub fn body_file(&mut self, stream: u32, file: OwnedFd, offset: u64, length: u64) {
        if self.streams.get(&stream).is_some_and(|open| !open.body_ended) {
            self.outgoing.file(file);
            message::part(self.outgoing.bytes(), stream, Kind::BodyFile, 0, Part { offset, length });
        }
    }

    /// The body is complete, or the rest of it will not come.
    pub fn body_end(&mut self, stream: u32, end: Result<(), BodyError>) {
        if let Some(open) = self.streams.get_mut(&stream).filter(|open| !open.body_ended) {
            open.body_ended = true;
            match end {
                Ok(()) => frame::put(self.outgoing.bytes(), stream, Kind::Body, END, b""),
                Err(error) => message::body_failed(self.outgoing.bytes(), stream, &error),
            }
        }
    }

    /// Bytes of blocks have left for the client.
    pub fn taken(&mut self, stream: u32, bytes: usize) {
        if let Some(open) = self.streams.get_mut(&stream) {
            open.unsent = open.unsent.saturating_sub(bytes as u64);
            message::credit(self.outgoing.bytes(), stream, Kind::Taken, u32::try_from(bytes).unwrap_or(u32::MAX));
        }
    }

    /// The client has left. FINISH follows nevertheless.
    pub fn gone(&mut self, stream: u32) {
        if self.streams.contains_key(&stream) {
            frame::put(self.outgoing.bytes(), stream, Kind::Gone, 0, b"");
        }
    }

    /// Whether the application may have seen the request: only one that has not can go to another worker.
    pub fn has_begun(&self, stream: u32) -> bool {
        match (self.streams.get(&stream), &self.page) {
            (Some(open), Some(page)) => open.page_slot == NO_SLOT || page.begun(open.page_slot) == stream,
            _ => true,
        }
    }

    /// Writes what was said. True: the socket has taken everything.
    pub fn flush(&mut self) -> io::Result<bool> {
        let socket = self.socket.as_ref().ok_or(ErrorKind::NotConnected)?.as_fd();
        let waited = self.outgoing.waiting();
        let sent = self.outgoing.send(|bytes, file| match &file {
            Some(file) => socket::send(socket, bytes, std::slice::from_ref(file)),
            None => socket::send(socket, bytes, &[]),
        });
        match sent {
            Ok(()) => {
                self.full = None;
                self.outgoing.clear();
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let same = self.full.filter(|_| self.outgoing.waiting() == waited);
                self.full = same.or_else(|| Some(Instant::now()));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether frames wait for room in the socket.
    pub fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// How long the worker may go on taking nothing; `None` where nothing waits for it.
    pub fn patience(&self, socket_timeout: Duration) -> Option<Duration> {
        self.full.map(|since| socket_timeout.saturating_sub(since.elapsed()))
    }

    /// Whether frames wait to be written.
    pub fn has_frames(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Reads what is there, and gives `take` what the worker says of requests. False: the worker has closed. `to_end`: it
    /// has or may have, and nobody will say so again.
    pub fn read(
        &mut self,
        buffer: &mut [u8],
        to_end: bool,
        mut take: impl FnMut(u32, Said),
    ) -> Result<bool, LinkError> {
        self.has_more = false;
        for _ in 0..READS {
            let socket = self.socket()?;
            let (bytes, files) = match socket::receive(socket, buffer) {
                Ok(received) if received.bytes == 0 => return Ok(false),
                Ok(received) => (received.bytes, received.files),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let had_files = !files.is_empty();
            let mut reader = std::mem::take(&mut self.reader);
            let mut other_version = None;
            let read = reader.read(buffer.get(..bytes).unwrap_or_default(), files, |frame, file| {
                self.frame(frame, file, &mut take, &mut other_version)
            });
            self.reader = reader;
            if let Some(version) = other_version {
                return Err(LinkError::Version(version));
            }
            read?;
            // A message that carries a descriptor ends a read.
            if bytes < buffer.len() && !had_files && !to_end {
                return Ok(true);
            }
        }
        self.has_more = true;
        Ok(true)
    }

    /// Whether the last [`read`](Self::read) left something, so that others have their turn.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    fn frame(
        &mut self,
        frame: &Frame<'_>,
        file: Option<OwnedFd>,
        take: &mut impl FnMut(u32, Said),
        other_version: &mut Option<u16>,
    ) -> Result<(), Violation> {
        let unexpected = Violation::Unexpected(frame.kind);
        if frame.stream == 0 {
            return match (frame.kind, self.state, file) {
                (Kind::Welcome, Greeting::Awaited, Some(file)) => self.welcome(frame, &file),
                (Kind::Goaway, Greeting::Welcomed | Greeting::Leaving, _) => {
                    self.state = Greeting::Leaving;
                    Ok(())
                }
                (Kind::Version, Greeting::Awaited, _) => {
                    *other_version = Some(message::read_version(frame)?);
                    Ok(())
                }
                _ => Err(unexpected),
            };
        }
        let Some(open) = self.streams.get_mut(&frame.stream) else {
            // Only what was said before FINISH counts.
            return Err(unexpected);
        };
        let said = match (frame.kind, file) {
            (Kind::Block | Kind::File, _) if !open.has_head => return Err(unexpected),
            (Kind::Block, _) => {
                open.unsent += frame.payload.len() as u64;
                if open.unsent > self.window {
                    return Err(unexpected);
                }
                if frame.payload.is_empty() {
                    return Ok(());
                }
                Said::Block(frame.payload.to_vec())
            }
            (Kind::File, Some(file)) => {
                let Part { offset, length } = message::read_part(frame)?;
                let file = File::from(file);
                let metadata = file.metadata().map_err(|_| Violation::Descriptor(frame.kind))?;
                // Anything else could make the server wait.
                if !metadata.is_file() {
                    return Err(Violation::Descriptor(frame.kind));
                }
                if length == 0 {
                    return Ok(());
                }
                open.files += 1;
                if open.files > MOST_FILES {
                    return Err(unexpected);
                }
                Said::File(FileRange { file: file.into(), offset, length })
            }
            (Kind::Head, _) => {
                let Some(payload) = self.assembly.add(frame, message::LONGEST_HEAD)? else { return Ok(()) };
                if std::mem::replace(&mut open.has_head, true) {
                    return Err(unexpected);
                }
                Said::Head(message::read_head(payload)?)
            }
            (Kind::Log, _) => {
                let Some(payload) = self.assembly.add(frame, message::LONGEST_RECORD)? else { return Ok(()) };
                let (level, text) = message::read_log(payload)?;
                Said::Log(level, text)
            }
            (Kind::Read, _) => {
                open.allowed = open.allowed.saturating_add(message::read_credit(frame)?.into());
                Said::Read
            }
            (Kind::Finish, _) => {
                let ending = message::read_finish(frame)?;
                if let Some(open) = self.streams.remove(&frame.stream)
                    && open.page_slot != NO_SLOT
                {
                    self.free_slots.push(open.page_slot);
                }
                Said::Finish(ending)
            }
            _ => return Err(unexpected),
        };
        take(frame.stream, said);
        Ok(())
    }

    fn welcome(&mut self, frame: &Frame<'_>, file: &OwnedFd) -> Result<(), Violation> {
        let welcome = message::read_welcome(frame)?;
        self.page = Page::map(file.as_fd(), false).ok();
        self.window = welcome.window.into();
        let slots = welcome.slots.min(MOST_SLOTS);
        self.free_slots = (0..slots).rev().map(|slot| welcome.first_slot.saturating_add(slot)).collect();
        self.state = Greeting::Welcomed;
        Ok(())
    }
}

/// Reads before others have their turn.
const READS: usize = 16;

/// Files in one response; a worker sends one.
const MOST_FILES: usize = 8;

/// Bytes of BODY that may be sent before any were read.
const BODY_WINDOW: u64 = 64 * 1024;

/// Bytes of a BODY frame.
const PIECE: usize = 32 * 1024;

const MOST_SLOTS: u32 = 16 * 1024;

/// Bytes of memory that are kept for requests.
const KEPT: usize = 16 * 1024;
