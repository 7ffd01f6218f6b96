//! What all connections of a worker share.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::connection::Connection;
use super::poller::Poller;
use crate::group::page::{Page, Phase, SLOTS};
use crate::log::Level;

/// Writes a record that belongs to no request.
pub type Log = dyn Fn(Level, &str) + Send + Sync;

pub struct Wire {
    pub poller: Poller,
    /// Bytes of blocks that may be on their way to a client, per request.
    pub window: u64,
    /// SHA-256 of the key, in hexadecimal.
    pub key_hash: String,
    pub incarnation: u64,
    pub page: Page,
    pub page_file: OwnedFd,
    pub slots: Slots,
    pub connections: Connections,
    pub unwritten: Unwritten,
    /// No new requests are wanted.
    pub draining: AtomicBool,
    log: Box<Log>,
    /// The same moment on two clocks.
    started: (Instant, u64),
}

impl Wire {
    pub fn new(
        poller: Poller,
        window: u64,
        key_hash: String,
        incarnation: u64,
        page: (Page, OwnedFd),
        slots: Slots,
        log: Box<Log>,
    ) -> Arc<Wire> {
        let (page, page_file) = page;
        Arc::new(Wire {
            poller,
            window: window.max(1),
            key_hash,
            incarnation,
            page,
            page_file,
            slots,
            connections: Connections::default(),
            unwritten: Unwritten::default(),
            draining: AtomicBool::new(false),
            log,
            started: (Instant::now(), now()),
        })
    }

    /// A record that belongs to no request, or to none that is still there.
    pub fn log(&self, level: Level, text: &str) {
        (self.log)(level, text);
    }

    /// Shows on the page what a thread does.
    pub fn set_phase(&self, thread: u32, phase: Phase) {
        self.page.set_phase(thread, phase, self.clock(Instant::now()));
    }

    /// A time on the page's clock: CLOCK_MONOTONIC in milliseconds.
    pub fn clock(&self, time: Instant) -> u64 {
        self.started.1 + time.saturating_duration_since(self.started.0).as_millis() as u64
    }
}

/// CLOCK_MONOTONIC in milliseconds.
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// The page's slots, in ranges: one for each connection as long as there are any.
pub struct Slots {
    each: u32,
    free: Mutex<Vec<u32>>,
}

impl Slots {
    /// Twice as many as threads is what a server process sends at once.
    pub fn new(threads: u32) -> Slots {
        let each = (threads * 2).clamp(16, SLOTS);
        let free = (0..SLOTS / each).rev().map(|range| range * each).collect();
        Slots { each, free: Mutex::new(free) }
    }

    /// First and count; none where all are taken.
    pub fn take(&self, page: &Page) -> (u32, u32) {
        let Some(first) = self.lock().pop() else { return (0, 0) };
        // What another connection left there says nothing about this one's requests.
        (first..first + self.each).for_each(|slot| page.set_begun(slot, 0));
        (first, self.each)
    }

    pub fn give_back(&self, (first, count): (u32, u32)) {
        if count > 0 {
            self.lock().push(first);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections by number; numbers are never used again.
#[derive(Default)]
pub struct Connections {
    all: Mutex<(u64, HashMap<u64, Arc<Connection>>)>,
}

impl Connections {
    pub fn add(&self, make: impl FnOnce(u64) -> Arc<Connection>) -> Arc<Connection> {
        let mut all = self.lock();
        all.0 += 1;
        let number = all.0;
        let connection = make(number);
        all.1.insert(number, connection.clone());
        connection
    }

    pub fn find(&self, number: u64) -> Option<Arc<Connection>> {
        self.lock().1.get(&number).cloned()
    }

    pub fn remove(&self, number: u64) {
        let removed = self.lock().1.remove(&number);
        drop(removed);
    }

    pub fn is_empty(&self) -> bool {
        self.lock().1.is_empty()
    }

    pub fn all(&self) -> Vec<Arc<Connection>> {
        self.lock().1.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Arc<Connection>>)> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections with answers that were put off.
#[derive(Default)]
pub struct Unwritten {
    any: AtomicBool,
    connections: Mutex<Vec<Arc<Connection>>>,
}

impl Unwritten {
    pub fn remember(&self, connection: Arc<Connection>) {
        self.lock().push(connection);
        self.any.store(true, Ordering::Release);
    }

    /// Writes all that was put off. Any thread.
    pub fn flush(&self) {
        if !self.any.swap(false, Ordering::AcqRel) {
            return;
        }
        let connections = std::mem::take(&mut *self.lock());
        connections.iter().for_each(|connection| connection.flush());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::group::page;

    #[test]
    fn ranges_of_slots_are_used_again_without_their_marks() {
        let file = page::create(2).unwrap();
        let page = Page::map(file.as_fd(), true).unwrap();
        let slots = Slots::new(4000);
        let first = slots.take(&page);
        assert_eq!(first, (0, 8000));
        assert_eq!(slots.take(&page), (8000, 8000));
        assert_eq!(slots.take(&page), (0, 0));
        page.set_begun(5, 77);
        slots.give_back((0, 0));
        slots.give_back(first);
        assert_eq!(slots.take(&page), first);
        assert_eq!(page.begun(5), 0);
    }
}
