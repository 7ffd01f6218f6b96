//! A request for a process group, and its body on the way there. Event loop only.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use highball::exchange::BodyError;
use highball::group::client::Link;
use highball::group::request::Answerer;
use highball::request::Request;
use highball::worker::relay::{Fed, Segment};

use crate::group::{Group, Wired};
use crate::process::Process;

/// A request for a group, as long as it has no end.
pub struct Stream {
    pub key: usize,
    pub request: Request,
    pub answerer: Answerer,
    pub group: Rc<Group>,
    /// When it came.
    pub since: Instant,
    /// Where it is, and its number there.
    pub at: RefCell<Option<(Rc<Wired>, u32)>>,
    pub upload: RefCell<Upload>,
    /// It waits for a worker.
    pub queued: Cell<bool>,
    /// nginx has no use for an answer any more.
    pub gone: Cell<bool>,
}

/// The body on its way.
pub struct Upload {
    pub parts: Vec<Segment>,
    /// The part that is being sent, and how much of it has been.
    pub part: usize,
    pub sent: u64,
    /// A piece that the loop gave, and how much of it has been sent.
    pub piece: (Vec<u8>, usize),
    /// The client waits for "100 Continue" until the application asks for the body.
    pub held: bool,
    /// Some of it was sent that cannot be sent again.
    pub lost: bool,
    pub ended: bool,
}

impl Stream {
    /// `held`: the client waits for "100 Continue".
    pub fn new(
        key: usize,
        group: Rc<Group>,
        answerer: Answerer,
        request: Request,
        body: Vec<Segment>,
        held: bool,
    ) -> Rc<Stream> {
        let upload = Upload { parts: body, part: 0, sent: 0, piece: (Vec::new(), 0), held, lost: false, ended: false };
        Rc::new(Stream {
            key,
            request,
            answerer,
            group,
            since: Instant::now(),
            at: RefCell::default(),
            upload: RefCell::new(upload),
            queued: Cell::new(false),
            gone: Cell::new(false),
        })
    }

    pub fn key(&self) -> usize {
        self.key
    }

    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The client has taken this many bytes of blocks.
    pub fn taken_by_client(&self, bytes: usize) {
        self.say(|link, number| link.taken(number, bytes));
    }

    /// nginx has no use for an answer any more. A request that waits for a worker is over with that.
    pub fn close(&self) {
        if !self.gone.replace(true) {
            self.say(Link::gone);
        }
    }

    /// Whether it waits for a worker.
    pub fn is_queued(&self) -> bool {
        self.queued.get()
    }

    fn say(&self, say: impl FnOnce(&mut Link, u32)) {
        let at = self.at.borrow().clone();
        if let Some((wired, number)) = at {
            say(&mut wired.link.borrow_mut(), number);
            if let Some(process) = Process::current() {
                process.groups.write_later(&wired);
            }
        }
    }

    /// Sends what there is of the body. True: a piece from the loop is wanted, with [`feed`](Self::feed).
    pub fn send_body(&self) -> bool {
        let mut wanted = false;
        self.say(|link, number| wanted = self.upload.borrow_mut().send(link, number));
        wanted
    }

    /// A piece that the loop was asked for.
    pub fn feed(&self, fed: Fed) {
        let mut upload = self.upload.borrow_mut();
        match fed {
            Fed::Piece(piece) => {
                if let Some(Segment::Loop { length }) = upload.parts.get(upload.part) {
                    let length = *length;
                    upload.sent = (upload.sent + piece.len() as u64).min(length);
                } else {
                    upload.lost = true;
                }
                upload.piece = (piece, 0);
            }
            Fed::End => upload.next(),
            Fed::Failed(error) => {
                upload.ended = true;
                drop(upload);
                self.say(|link, number| link.body_end(number, Err(error)));
            }
        }
    }
}

impl Upload {
    fn next(&mut self) {
        self.part += 1;
        self.sent = 0;
    }

    /// Sends as much as may be sent. True: the next piece is wanted.
    fn send(&mut self, link: &mut Link, number: u32) -> bool {
        while !self.ended {
            let allowed = link.allowed(number);
            let (piece, at) = &mut self.piece;
            let rest = piece.get(*at..).unwrap_or_default();
            if !rest.is_empty() {
                let now = rest.get(..rest.len().min(allowed)).unwrap_or_default();
                if now.is_empty() {
                    return false;
                }
                link.body(number, now);
                *at += now.len();
                continue;
            }
            match self.parts.get(self.part) {
                None => {
                    self.ended = true;
                    if !self.parts.is_empty() {
                        link.body_end(number, Ok(()));
                    }
                }
                Some(Segment::Memory(bytes)) => {
                    let rest = bytes.get(self.sent as usize..).unwrap_or_default();
                    let now = rest.get(..rest.len().min(allowed)).unwrap_or_default();
                    link.body(number, now);
                    self.sent += now.len() as u64;
                    if self.sent == bytes.len() as u64 {
                        self.next();
                    } else if now.is_empty() {
                        return false;
                    }
                }
                Some(Segment::File { file, offset, length }) => {
                    match file.try_clone() {
                        Ok(file) => link.body_file(number, file.into(), *offset, *length),
                        Err(error) => {
                            self.ended = true;
                            link.body_end(number, Err(BodyError::Failed(error.to_string())));
                        }
                    }
                    self.next();
                }
                Some(Segment::Loop { length }) if self.sent >= *length => self.next(),
                Some(Segment::Loop { .. }) => return allowed > 0,
                Some(Segment::Stream) => return allowed > 0 && !self.held,
            }
        }
        false
    }

    /// Begins again, for another worker; false where that cannot be.
    pub fn rewind(&mut self) -> bool {
        if self.lost {
            return false;
        }
        (self.part, self.sent, self.piece, self.ended) = (0, 0, (Vec::new(), 0), false);
        true
    }
}
