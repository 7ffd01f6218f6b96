//! One connection of a server process: its frames in, its frames out, and the requests that are open on it.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::descriptors;
use super::stream::Stream;
use super::wire::Wire;
use crate::group::frame::{Assembly, Frame, Kind, VERSION, Violation};
use crate::group::message::{self, Welcome};
use crate::group::outgoing::{Batch, Flushed, Outgoing, Then};
use crate::group::reader::Reader;
use crate::group::request::{self, Answerer, NO_SLOT};
use crate::group::{socket, state};
use crate::log::Level;

pub struct Connection {
    number: u64,
    socket: OwnedFd,
    /// Another descriptor of the socket, for waiting for room while the first one waits for frames.
    room: OnceLock<OwnedFd>,
    wire: Arc<Wire>,
    outgoing: Outgoing,
    incoming: Mutex<Incoming>,
    streams: Mutex<HashMap<u32, Arc<Stream>>>,
    said_goaway: AtomicBool,
}

#[derive(Default)]
struct Incoming {
    reader: Reader,
    assembly: Assembly,
    state: Greeting,
    last_stream: u32,
    slots: (u32, u32),
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Greeting {
    #[default]
    Awaited,
    Welcomed,
    /// The other side speaks another version, and is to close.
    OtherVersion,
    Closed,
}

/// A request that waits for a thread.
pub struct Job {
    pub stream: Arc<Stream>,
    pub answerer: Answerer,
    pub received: Instant,
}

impl Connection {
    pub fn new(number: u64, socket: OwnedFd, wire: Arc<Wire>) -> Arc<Connection> {
        descriptors::note(socket.as_raw_fd());
        Arc::new(Connection {
            number,
            socket,
            room: OnceLock::new(),
            wire,
            outgoing: Outgoing::default(),
            incoming: Mutex::default(),
            streams: Mutex::default(),
            said_goaway: AtomicBool::new(false),
        })
    }

    pub fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// Waits for its first frame.
    pub fn begin(&self) -> std::io::Result<()> {
        self.wire.poller.add(&self.socket, self.number)
    }

    /// Reads what is there, and queues requests in `jobs`. False: the connection is over. Only the thread that was woken
    /// for it.
    pub fn read(self: &Arc<Self>, scratch: &mut [u8], jobs: &mut Vec<Job>) -> bool {
        let mut incoming = self.incoming();
        if incoming.state == Greeting::Closed {
            return false;
        }
        let mut open = true;
        for _ in 0..READS {
            let (bytes, files) = match socket::receive(&self.socket, scratch) {
                Ok(received) if received.bytes == 0 => {
                    open = false;
                    break;
                }
                Ok(received) => (received.bytes, received.files),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    open = false;
                    break;
                }
            };
            let now = Instant::now();
            let had_files = !files.is_empty();
            let mut reader = std::mem::take(&mut incoming.reader);
            let read = reader.read(scratch.get(..bytes).unwrap_or_default(), files, |frame, file| {
                self.frame(&mut incoming, frame, file.map(File::from), now, jobs)
            });
            incoming.reader = reader;
            if let Err(violation) = read {
                let text = format!("a connection of a server process was closed: it sent {violation}");
                self.wire.log(Level::Error, &text);
                open = false;
                break;
            }
            // A message that carries a descriptor ends a read.
            if bytes < scratch.len() && !had_files {
                break;
            }
        }
        if open {
            drop(incoming);
            self.wire.poller.again(&self.socket, self.number);
        } else {
            self.close(incoming);
        }
        open
    }

    fn frame(
        self: &Arc<Self>,
        incoming: &mut Incoming,
        frame: &Frame<'_>,
        file: Option<File>,
        now: Instant,
        jobs: &mut Vec<Job>,
    ) -> Result<(), Violation> {
        match (incoming.state, frame.kind) {
            (Greeting::Awaited, Kind::Hello) if frame.stream == 0 => self.hello(incoming, frame),
            (Greeting::OtherVersion, _) => Ok(()),
            (Greeting::Welcomed, Kind::Request) => {
                if frame.stream < incoming.last_stream || frame.stream == 0 {
                    return Err(Violation::Unexpected(frame.kind));
                }
                let Incoming { assembly, last_stream, slots, .. } = incoming;
                let Some(payload) = assembly.add(frame, request::LONGEST)? else { return Ok(()) };
                if frame.stream == *last_stream {
                    return Err(Violation::Unexpected(frame.kind));
                }
                *last_stream = frame.stream;
                let (answerer, slot, request) = request::read(payload)?;
                // Within the connection's own range, or nothing is marked.
                let slot = Some(slot).filter(|slot| (slots.0..slots.0 + slots.1).contains(slot)).unwrap_or(NO_SLOT);
                let stream = Stream::new(frame.stream, slot, request, self.clone(), !frame.end);
                let mut streams = self.streams();
                if streams.len() >= MOST_STREAMS {
                    return Err(Violation::Unexpected(frame.kind));
                }
                streams.insert(frame.stream, stream.clone());
                drop(streams);
                jobs.push(Job { stream, answerer, received: now });
                Ok(())
            }
            (Greeting::Welcomed, Kind::Body | Kind::BodyFile | Kind::BodyFailed | Kind::Taken | Kind::Gone) => {
                let stream = self.streams().get(&frame.stream).cloned();
                match stream {
                    Some(stream) => stream.take(frame, file),
                    // It has ended meanwhile.
                    None if frame.stream <= incoming.last_stream => Ok(()),
                    None => Err(Violation::Unexpected(frame.kind)),
                }
            }
            _ => Err(Violation::Unexpected(frame.kind)),
        }
    }

    fn hello(&self, incoming: &mut Incoming, frame: &Frame<'_>) -> Result<(), Violation> {
        let (version, key) = message::read_hello(frame)?;
        if version != VERSION {
            incoming.state = Greeting::OtherVersion;
            self.append(|batch| message::version(batch.bytes()));
            self.flush();
            return Ok(());
        }
        if state::key_hash(&key) != self.wire.key_hash {
            return Err(Violation::Payload(Kind::Hello));
        }
        incoming.state = Greeting::Welcomed;
        incoming.slots = self.wire.slots.take(&self.wire.page);
        let welcome = Welcome {
            version: VERSION,
            window: u32::try_from(self.wire.window).unwrap_or(u32::MAX),
            first_slot: incoming.slots.0,
            slots: incoming.slots.1,
            incarnation: self.wire.incarnation,
        };
        // Without it the server would wait for ever: better that it connects again, once there are descriptors.
        let page = self.wire.page_file.try_clone().map_err(|_| Violation::Descriptor(Kind::Welcome))?;
        self.append(|batch| {
            batch.file(page);
            message::welcome(batch.bytes(), &welcome);
        });
        if self.wire.draining.load(Ordering::SeqCst) {
            self.goaway();
        }
        self.flush();
        Ok(())
    }

    /// Says that no new requests are wanted here, once.
    pub fn goaway(&self) {
        if !self.said_goaway.swap(true, Ordering::SeqCst) {
            self.append(|batch| crate::group::frame::put(batch.bytes(), 0, Kind::Goaway, 0, b""));
            self.flush();
        }
    }

    /// Whether it may be told to go away: before its hello it would not understand.
    pub fn is_welcome(&self) -> bool {
        self.incoming().state == Greeting::Welcomed
    }

    pub fn append(&self, add: impl FnOnce(&mut Batch)) {
        if !descriptors::is_fork() {
            self.outgoing.append(add);
        }
    }

    /// Appends the end of an answer. The result is for [`then`](Self::then).
    pub fn answer(&self, add: impl FnOnce(&mut Batch)) -> Then {
        if descriptors::is_fork() { Then::Nothing } else { self.outgoing.answer(add) }
    }

    pub fn then(self: &Arc<Self>, then: Then) {
        match then {
            Then::Nothing => {}
            Then::Remember => self.wire.unwritten.remember(self.clone()),
            Then::Flush => self.flush(),
        }
    }

    /// Bytes that the server has not taken.
    pub fn waiting(&self) -> usize {
        self.outgoing.waiting()
    }

    pub fn flush(&self) {
        if !descriptors::is_fork() {
            self.flushed(self.outgoing.flush(&self.socket));
        }
    }

    /// The socket has room again.
    pub fn resume(&self) {
        self.flushed(self.outgoing.resume(&self.socket));
    }

    pub fn forget(&self, stream: u32) {
        let removed = self.streams().remove(&stream);
        drop(removed);
    }

    fn flushed(&self, flushed: Flushed) {
        match flushed {
            Flushed::Done => {}
            Flushed::Full => {
                if self.room.get().is_none()
                    && let Ok(room) = self.socket.try_clone()
                {
                    descriptors::note(room.as_raw_fd());
                    // Another thread cannot be here: who is told of a full socket is the only writer.
                    self.room.set(room).ok();
                }
                match self.room.get() {
                    Some(room) => self.wire.poller.await_room(room, self.number),
                    // Nobody would tell when there is room.
                    None => self.flushed(Flushed::Broken),
                }
            }
            // Whoever reads finds the end, and cleans up.
            Flushed::Broken => drop(rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both)),
        }
    }

    /// Everything of this connection ends.
    fn close(&self, mut incoming: MutexGuard<'_, Incoming>) {
        incoming.state = Greeting::Closed;
        let slots = std::mem::take(&mut incoming.slots);
        drop(incoming);
        self.wire.poller.remove(&self.socket);
        if let Some(room) = self.room.get() {
            self.wire.poller.remove(room);
        }
        self.outgoing.close();
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).ok();
        let streams = std::mem::take(&mut *self.streams());
        streams.values().for_each(|stream| stream.close());
        self.wire.connections.remove(self.number);
        self.wire.slots.give_back(slots);
    }

    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Arc<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        descriptors::forget(self.socket.as_raw_fd());
        if let Some(room) = self.room.get() {
            descriptors::forget(room.as_raw_fd());
        }
    }
}

/// Reads before other connections have their turn.
const READS: usize = 8;

/// Open requests of one connection: a server sends twice as many as there are threads.
const MOST_STREAMS: usize = 16 * 1024;
