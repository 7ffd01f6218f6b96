//! Who answers a request: a thread of this process, or a worker of a process group. Event loop only.

use std::rc::Rc;
use std::sync::Arc;

use highball::request::Request;
use highball::worker::relay::Relay;

use crate::stream::Stream;

#[derive(Clone)]
pub enum Peer {
    Pool(Arc<Relay>),
    Group(Rc<Stream>),
}

impl Peer {
    pub fn key(&self) -> usize {
        match self {
            Peer::Pool(relay) => relay.key(),
            Peer::Group(stream) => stream.key(),
        }
    }

    pub fn request(&self) -> &Request {
        match self {
            Peer::Pool(relay) => relay.request(),
            Peer::Group(stream) => stream.request(),
        }
    }

    /// The client has taken this many bytes of blocks.
    pub fn taken_by_client(&self, bytes: usize) {
        match self {
            Peer::Pool(relay) => relay.taken_by_client(bytes),
            Peer::Group(stream) => stream.taken_by_client(bytes),
        }
    }

    /// The request is over on nginx's side, for whatever reason.
    pub fn close(&self) {
        match self {
            Peer::Pool(relay) => relay.close(),
            Peer::Group(stream) => stream.close(),
        }
    }

    pub fn is(&self, relay: &Arc<Relay>) -> bool {
        matches!(self, Peer::Pool(own) if Arc::ptr_eq(own, relay))
    }

    pub fn relay(self) -> Option<Arc<Relay>> {
        match self {
            Peer::Pool(relay) => Some(relay),
            Peer::Group(_) => None,
        }
    }

    /// Whether no worker has it.
    pub fn is_queued(&self) -> bool {
        matches!(self, Peer::Group(stream) if stream.is_queued())
    }
}
