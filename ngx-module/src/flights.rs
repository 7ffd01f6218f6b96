//! Requests in flight. Event loop only.

use std::ptr::NonNull;

use crate::log::{self, Source};
use crate::peer::Peer;
use crate::response::LoopEnd;

/// Requests in flight, by the number their relay carries: until the worker is done with them, whatever nginx does.
#[derive(Default)]
pub struct Flights {
    pub slots: Vec<Option<Flight>>,
    free: Vec<usize>,
    pub count: usize,
}

pub struct Flight {
    pub peer: Peer,
    /// Nothing once the request is over on nginx's side.
    pub end: Option<NonNull<LoopEnd>>,
    /// nginx's number of the connection.
    pub connection: u64,
}

impl Flights {
    pub fn reserve(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        })
    }

    /// Whether it is the only one.
    pub fn fill(&mut self, flight: Flight) -> bool {
        let key = flight.peer.key();
        if let Some(slot) = self.slots.get_mut(key) {
            *slot = Some(flight);
            self.count += 1;
        }
        self.count == 1
    }

    pub fn at(&mut self, key: usize) -> Option<&mut Flight> {
        self.slots.get_mut(key)?.as_mut()
    }

    /// Whether it was the last one.
    pub fn clear(&mut self, key: usize) -> bool {
        if self.slots.get_mut(key).and_then(Option::take).is_some() {
            self.free.push(key);
            self.count -= 1;
        }
        self.count == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (usize, Option<NonNull<LoopEnd>>)> + '_ {
        self.slots.iter().flatten().map(|flight| (flight.peer.key(), flight.end))
    }
}

impl Flight {
    /// The request's own log is freed with its connection.
    pub fn source(&self) -> Source {
        // SAFETY: in the flight, so the request and its connection are alive.
        let r = self.end.and_then(|end| unsafe { end.as_ref() }.request());
        // SAFETY: as above.
        let log = r.map_or_else(log::of_process, |r| unsafe { (*(*r.as_ptr()).connection).log });
        Source { log, connection: self.connection }
    }
}
