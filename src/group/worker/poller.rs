//! The one set in which all threads wait: for connections, for room in full sockets, and for work that is left.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

pub struct Poller {
    set: OwnedFd,
    /// Counts calls and is never read: each write is one edge, which one thread gets.
    call: OwnedFd,
    /// Written once: every thread sees it for ever.
    stop: OwnedFd,
}

/// Why a thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Work is left, and nobody else has been called for it.
    Called,
    Stop,
    Listener,
    /// Something can be read from the connection of this number.
    Readable(u64),
    /// There is room again in the socket of the connection of this number.
    Room(u64),
    /// Nothing happened within the time.
    Nothing,
}

const STOP: u64 = 0;
const CALL: u64 = 1;
const LISTENER: u64 = 2;
const FIRST: u64 = 3;

impl Poller {
    pub fn new() -> io::Result<Poller> {
        let new = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let poller = Poller { set: epoll::create(CreateFlags::CLOEXEC)?, call: new()?, stop: new()? };
        epoll::add(&poller.set, &poller.call, EventData::new_u64(CALL), EventFlags::IN | EventFlags::ET)?;
        epoll::add(&poller.set, &poller.stop, EventData::new_u64(STOP), EventFlags::IN)?;
        Ok(poller)
    }

    /// Wakes one thread with [`Event::Called`], now or when the next one waits. At most one such call is outstanding.
    pub fn call(&self) {
        rustix::io::write(&self.call, &1_u64.to_ne_bytes()).ok();
    }

    pub fn stop(&self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).ok();
    }

    /// Can be read once [`stop`](Self::stop) was called.
    pub fn stopped(&self) -> &OwnedFd {
        &self.stop
    }

    /// Waits for one event, which no other thread gets; no longer than so many milliseconds, if that is given.
    pub fn wait(&self, longest: Option<u16>) -> Event {
        let longest = longest.map(|ms| Timespec { tv_sec: 0, tv_nsec: i64::from(ms) * 1_000_000 });
        let mut events = Vec::with_capacity(1);
        loop {
            match epoll::wait(&self.set, spare_capacity(&mut events), longest.as_ref()) {
                Ok(0) if longest.is_some() => return Event::Nothing,
                Ok(_) | Err(Errno::INTR) => {}
                // The set itself is broken: there is nothing to wait for.
                Err(_) => return Event::Stop,
            }
            let Some(event) = events.pop() else { continue };
            return match event.data.u64() {
                STOP => Event::Stop,
                CALL => Event::Called,
                LISTENER => Event::Listener,
                number if (number - FIRST).is_multiple_of(2) => Event::Readable((number - FIRST) / 2),
                number => Event::Room((number - FIRST) / 2),
            };
        }
    }

    pub fn add_listener(&self, listener: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.set, listener, EventData::new_u64(LISTENER), EventFlags::IN | EventFlags::ONESHOT)?)
    }

    pub fn again_listener(&self, listener: impl AsFd) {
        epoll::modify(&self.set, listener, EventData::new_u64(LISTENER), EventFlags::IN | EventFlags::ONESHOT).ok();
    }

    pub fn add(&self, socket: impl AsFd, number: u64) -> io::Result<()> {
        Ok(epoll::add(&self.set, socket, readable(number), EventFlags::IN | EventFlags::ONESHOT)?)
    }

    /// Waits for the connection again, once.
    pub fn again(&self, socket: impl AsFd, number: u64) {
        epoll::modify(&self.set, socket, readable(number), EventFlags::IN | EventFlags::ONESHOT).ok();
    }

    /// Waits once for room in a connection's socket, through a descriptor of its own that is in the set already or not.
    pub fn await_room(&self, socket: impl AsFd, number: u64) {
        let (data, flags) = (EventData::new_u64(FIRST + 2 * number + 1), EventFlags::OUT | EventFlags::ONESHOT);
        if epoll::add(&self.set, &socket, data, flags) == Err(Errno::EXIST) {
            epoll::modify(&self.set, &socket, data, flags).ok();
        }
    }

    /// A descriptor leaves the set before it is closed: a duplicate would keep it there.
    pub fn remove(&self, socket: impl AsFd) {
        epoll::delete(&self.set, socket).ok();
    }
}

fn readable(number: u64) -> EventData {
    EventData::new_u64(FIRST + 2 * number)
}
