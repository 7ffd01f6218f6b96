//! A worker's connection without a worker, for fuzzers and property tests.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::connection::Connection;
use super::exchange::WireExchange;
use super::poller::Poller;
use super::wire::{Slots, Wire};
use crate::exchange::Exchange;
use crate::group::{message, page, socket, state};
use crate::log::Level;

pub struct Probe {
    connection: Arc<Connection>,
    server: Option<OwnedFd>,
    scratch: Vec<u8>,
}

impl Probe {
    /// A connection that has been welcomed, with this window.
    pub fn new(window: u64) -> io::Result<Probe> {
        let page = page::create(2)?;
        let page = (page::Page::map(page.as_fd(), true)?, page);
        let key_hash = state::key_hash(&[7; 32]);
        let log = Box::new(|_: Level, _: &str| ());
        let wire = Wire::new(Poller::new()?, window, key_hash, 1, page, Slots::new(2), log);
        let (ours, server) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let connection = wire.connections.add(|number| Connection::new(number, ours.into(), wire.clone()));
        let mut probe = Probe { connection, server: Some(server.into()), scratch: vec![0; 4096] };
        let mut hello = Vec::new();
        message::hello(&mut hello, &[7; 32]);
        probe.send(&hello, &[])?;
        Ok(probe)
    }

    /// Sends what a server process might, with descriptors; the requests that came of it. `None`: the connection is over.
    pub fn send(&mut self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<Option<Vec<Box<dyn Exchange>>>> {
        let Some(server) = &self.server else { return Ok(None) };
        if !bytes.is_empty() {
            socket::send(server, bytes, files)?;
        }
        let mut jobs = Vec::new();
        let open = self.connection.read(&mut self.scratch, &mut jobs);
        let exchanges = jobs.into_iter().map(|job| WireExchange::new(job.stream) as Box<dyn Exchange>).collect();
        Ok(open.then_some(exchanges))
    }

    /// What the worker has sent.
    pub fn receive(&mut self) -> Vec<u8> {
        self.connection.wire().unwritten.flush();
        self.connection.flush();
        let mut all = Vec::new();
        let Some(server) = &self.server else { return all };
        while let Ok(received) = socket::receive(server, &mut self.scratch)
            && received.bytes > 0
        {
            all.extend_from_slice(self.scratch.get(..received.bytes).unwrap_or_default());
        }
        all
    }

    /// The server process is gone.
    pub fn close(&mut self) {
        self.server = None;
        while self.connection.read(&mut self.scratch, &mut Vec::new()) {}
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.close();
        // It holds the connection, which holds it.
        self.connection.wire().unwritten.flush();
    }
}
