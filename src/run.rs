//! Drives one exchange: call, hold the head until the first non-empty block, send block by block, close() once.
//!
//! Knows neither Python nor a server: the application is a [`Call`], the server an [`Exchange`], and both are faked
//! in the tests below.
#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::error::{Code, Report};
use crate::exchange::{Block, BodyError, ClientGone, Exchange, FileRange, Outcome};
use crate::framing::{Admit, Framing};
use crate::log::Level;
use crate::request::Request;
use crate::response::Head;

/// One call of an application, seen from the server.
pub trait Call {
    /// Calls the application.
    fn call(&mut self) -> Result<Returned, Report>;
    /// The next block of what it returned; may be empty; `None` is the end.
    fn next_block(&mut self) -> Result<Option<Block>, Report>;
    /// Calls `close()` of what it returned, if there is one. PEP 3333: "regardless of whether the request was
    /// completed normally, or terminated early".
    fn close(&mut self) -> Result<(), Report>;
    /// Called when all is done, while the log of the request is still there.
    fn end(&mut self);
    /// Runs `wait` while detached from the interpreter.
    fn detached<R>(&mut self, wait: impl FnOnce() -> R) -> R;
}

/// What an application returned.
pub enum Returned {
    /// A list or tuple: every block is known, and there is no `close()`.
    Whole(Vec<Block>),
    /// `wsgi.file_wrapper` over a regular file, from its position to its end.
    File(FileRange),
    /// Anything else: asked block by block.
    Blocks,
}

/// The response of one exchange, under one lock: whoever holds it, detached, may call the server. One thread at a
/// time, not one thread: applications read and write from threads of their own too.
pub struct Lease {
    slot: Mutex<Response>,
    waits: bool,
}

/// The exchange is over; what the application kept of it is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// What is known of a response, and the server's end of it.
pub struct Response {
    exchange: Box<dyn Exchange>,
    head: Option<Head>,
    /// Set when the head leaves.
    framing: Option<Framing>,
    /// Head, body and end have left together: whatever comes later, the client has its answer.
    whole: bool,
    gone: bool,
    /// Why the request body could not be read: if the application raises just that, it is the client's doing.
    body_error: Option<BodyError>,
    warned: bool,
    finished: bool,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartError {
    /// PEP 3333: "it is a fatal error to call start_response without the exc_info argument if start_response has
    /// already been called".
    AlreadyCalled,
    /// With exc_info after the head was sent: the exception is to be raised again.
    HeadSent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// start_response was not called.
    NotStarted,
    ClientGone,
}

/// Whether more blocks are of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    More,
    /// The response has no body, or Content-Length is exceeded.
    Enough,
}

impl Lease {
    pub fn new(exchange: Box<dyn Exchange>) -> Lease {
        let waits = exchange.waits();
        Lease { slot: Mutex::new(Response::new(exchange)), waits }
    }

    /// Runs `f` on the response, waiting for other threads that use it. Detached only.
    pub fn with<R>(&self, f: impl FnOnce(&mut Response) -> R) -> Result<R, Closed> {
        let mut response = self.lock();
        if response.finished { Err(Closed) } else { Ok(f(&mut response)) }
    }

    /// As [`with`](Self::with), for what never waits itself: attached, unless another thread holds the lease; then
    /// `detached` runs the wait for it.
    pub fn with_soon<R>(
        &self,
        f: impl FnOnce(&mut Response) -> R,
        detached: impl FnOnce(&mut dyn FnMut()),
    ) -> Result<R, Closed> {
        let mut response = match self.slot.try_lock() {
            Ok(response) => response,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let mut response = None;
                detached(&mut || response = Some(self.lock()));
                response.ok_or(Closed)?
            }
        };
        if response.finished { Err(Closed) } else { Ok(f(&mut response)) }
    }

    /// Writes a record to the server's log in the context of the request, as long as there is one. Detached only.
    pub fn log(&self, level: Level, text: &str) -> Result<(), Closed> {
        let mut response = self.lock();
        if response.closed {
            return Err(Closed);
        }
        response.exchange.log(level, text);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Response> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Response {
    fn new(exchange: Box<dyn Exchange>) -> Response {
        Response {
            exchange,
            head: None,
            framing: None,
            whole: false,
            gone: false,
            body_error: None,
            warned: false,
            finished: false,
            closed: false,
        }
    }

    pub fn request(&self) -> &Request {
        self.exchange.request()
    }

    /// Reads the next bytes of the request body; see [`Exchange::read_body`].
    pub fn read_body(&mut self, buf: &mut [u8]) -> Result<usize, BodyError> {
        let read = self.exchange.read_body(buf);
        if let Err(error @ (BodyError::Truncated | BodyError::TimedOut | BodyError::TooLarge)) = &read {
            self.body_error = Some(error.clone());
        }
        read
    }

    /// Whether any byte of the response has left.
    pub fn begun(&self) -> bool {
        self.framing.is_some()
    }

    /// Takes the head from start_response. `again`: exc_info was given, which allows to replace a head not yet sent.
    pub fn start(&mut self, head: Head, again: bool) -> Result<(), StartError> {
        match (self.begun(), again) {
            (true, true) => Err(StartError::HeadSent),
            (_, false) if self.head.is_some() || self.begun() => Err(StartError::AlreadyCalled),
            _ => {
                self.head = Some(head);
                Ok(())
            }
        }
    }

    /// Sends one block, and before the first non-empty one the head.
    pub fn write(&mut self, block: Block) -> Result<Progress, WriteError> {
        if self.gone {
            return Err(WriteError::ClientGone);
        }
        let length = block.as_bytes().len() as u64;
        if length == 0 {
            // An application may yield empty blocks until it knows its status (PEP 3333, "Middleware Handling of Block
            // Boundaries").
            return Ok(Progress::More);
        }
        if self.completes(length) {
            return self.whole(vec![block], false).map(|()| Progress::More);
        }
        if !self.begun() {
            self.send_head()?;
        }
        match self.framing.as_mut().map_or(Admit::Bodiless, |framing| framing.admit(length)) {
            Admit::Bodiless => Ok(Progress::Enough),
            Admit::All => self.sent(|exchange| exchange.send_block(block)).map(|()| Progress::More),
            Admit::First(length) => {
                self.warn_long();
                if length > 0 {
                    self.sent(|exchange| exchange.send_block(block.truncate(length as usize)))?;
                }
                Ok(Progress::Enough)
            }
        }
    }

    /// Whether a first block of this length is all the body there will be: Content-Length says so. It can leave
    /// together with the end, at once.
    fn completes(&self, length: u64) -> bool {
        !self.begun() && self.head.as_ref().is_some_and(|head| head.content_length() == Some(length))
    }

    /// Sends a body that is known whole: head, body and end in one, if nothing has left yet. `ends`: and the exchange
    /// with it, as nothing of the application is left to run.
    fn whole(&mut self, blocks: Vec<Block>, ends: bool) -> Result<(), WriteError> {
        if self.begun() {
            for block in join(blocks) {
                if self.write(block)? == Progress::Enough {
                    break;
                }
            }
            return Ok(());
        }
        let mut head = self.head.take().ok_or(WriteError::NotStarted)?;
        let is_head = self.exchange.request().is_head();
        let total = total(&blocks);
        // An empty answer to HEAD says nothing about the length of the body that GET would get.
        if head.content_length().is_none() && head.allows_body() && !(is_head && total == 0) {
            head.set_content_length(total);
        }
        head.settle();
        let mut framing = Framing::new(&head, is_head);
        let blocks = match framing.admit(total) {
            Admit::All => join(blocks),
            Admit::Bodiless => Vec::new(),
            Admit::First(length) => {
                self.warn_long();
                first(blocks, length)
            }
        };
        self.framing = Some(framing);
        if framing.shortfall().is_none() {
            self.whole = true;
            return self.sent(|exchange| {
                if ends { exchange.finish_whole(head, blocks) } else { exchange.send_whole(head, blocks) }
            });
        }
        self.sent(|exchange| exchange.send_head(head))?;
        blocks.into_iter().try_for_each(|block| self.sent(|exchange| exchange.send_block(block)))
    }

    /// Sends a file from its range on, no further than Content-Length, which it sets where it is missing.
    fn file(&mut self, mut file: FileRange) -> Result<(), WriteError> {
        if !self.begun() {
            let head = self.head.as_mut().ok_or(WriteError::NotStarted)?;
            if head.content_length().is_none() && head.allows_body() {
                head.set_content_length(file.length);
            }
            self.send_head()?;
        }
        match self.framing.as_mut().map_or(Admit::Bodiless, |framing| framing.admit(file.length)) {
            Admit::Bodiless => return Ok(()),
            Admit::All => {}
            // A part of a file is what an answer to Range asks for: no fault.
            Admit::First(length) => file.length = length,
        }
        if file.length > 0 { self.sent(|exchange| exchange.send_file(file)) } else { Ok(()) }
    }

    /// Ends the exchange: sends a head that is still held, writes the one record a failure gets, tells the host.
    fn finish(&mut self, result: Result<(), Stop>) {
        let result = result.and_then(|()| if self.begun() { Ok(()) } else { Ok(self.whole(Vec::new(), false)?) });
        let outcome = match result {
            _ if self.gone => self.client_gone(),
            Ok(()) => self.complete(),
            Err(Stop::ClientGone) => self.client_gone(),
            Err(Stop::Failed(report)) if self.is_body_error(&report) => self.body_failed(),
            Err(Stop::Failed(report)) => self.failed(report),
            Err(Stop::NotStarted) => self.failed(
                Report::new(Code::NotStarted, "the application returned without calling start_response")
                    .remedy("call start_response(status, headers) before the first block (PEP 3333)"),
            ),
        };
        self.exchange.finish(outcome);
        self.finished = true;
    }

    /// Ends the exchange, with a body that is known whole if it has not ended yet, and gives up the server's end.
    fn end(&mut self, body: Option<Vec<Block>>) {
        if let Some(blocks) = body {
            let result = self.whole(blocks, true).map_err(Stop::from);
            if !self.is_over() {
                self.finish(result);
            }
        }
        drop(self.close());
    }

    /// Head, body and end have left: [`Exchange::finish`] has nothing to wait for.
    fn is_over(&self) -> bool {
        self.whole && !self.gone
    }

    fn complete(&mut self) -> Outcome {
        let Some((sent, promised)) = self.framing.as_ref().and_then(Framing::shortfall) else {
            return Outcome::Complete;
        };
        let cause = format!("the response ended after {sent} of the {promised} bytes its Content-Length says");
        let report = Report::new(Code::BodyShort, cause)
            .remedy("correct Content-Length or leave it out; the connection was broken so that the client can tell");
        self.exchange.log(Level::Error, &report.to_string());
        Outcome::Truncated
    }

    fn failed(&mut self, mut report: Report) -> Outcome {
        let (outcome, now) = if self.whole {
            (Outcome::Complete, "the response was already complete")
        } else if self.begun() {
            if report.code == Code::Raised {
                report.code = Code::RaisedLate;
            }
            (Outcome::Truncated, "the response had begun, so the connection was broken")
        } else {
            (Outcome::Failed, "the client got status 500")
        };
        let remedy = std::mem::take(&mut report.remedy);
        report.remedy = if remedy.is_empty() { now.into() } else { format!("{remedy}; {now}") };
        // The host has said already that it gives the request up.
        let level = if matches!(report.code, Code::Retired | Code::TimedOut) { Level::Info } else { Level::Error };
        self.exchange.log(level, &report.to_string());
        outcome
    }

    /// Ends the lease: whoever comes later finds it closed. Gives the server's end back, to be dropped.
    fn close(&mut self) -> Box<dyn Exchange> {
        self.finished = true;
        self.closed = true;
        std::mem::replace(&mut self.exchange, Box::new(Over))
    }

    fn is_body_error(&self, report: &Report) -> bool {
        self.body_error.as_ref().is_some_and(|error| report.cause.ends_with(&error.to_string()))
    }

    fn body_failed(&mut self) -> Outcome {
        let cause = self.body_error.as_ref().map_or_else(String::new, BodyError::to_string);
        self.exchange.log(Level::Info, &Report::new(Code::ClientGone, cause).to_string());
        Outcome::ClientGone
    }

    fn client_gone(&mut self) -> Outcome {
        let report = Report::new(Code::ClientGone, "the client closed the connection before its response was complete");
        self.exchange.log(Level::Info, &report.to_string());
        Outcome::ClientGone
    }

    fn send_head(&mut self) -> Result<(), WriteError> {
        let mut head = self.head.take().ok_or(WriteError::NotStarted)?;
        head.settle();
        self.framing = Some(Framing::new(&head, self.exchange.request().is_head()));
        self.sent(|exchange| exchange.send_head(head))
    }

    fn sent(&mut self, send: impl FnOnce(&mut dyn Exchange) -> Result<(), ClientGone>) -> Result<(), WriteError> {
        if self.gone {
            return Err(WriteError::ClientGone);
        }
        send(&mut *self.exchange).map_err(|ClientGone| {
            self.gone = true;
            WriteError::ClientGone
        })
    }

    fn warn_long(&mut self) {
        if !std::mem::replace(&mut self.warned, true) {
            let report = Report::new(Code::BodyLong, "the response has more bytes than its Content-Length says")
                .remedy("the surplus was not sent; correct Content-Length or leave it out");
            self.exchange.log(Level::Warn, &report.to_string());
        }
    }
}

/// Runs one exchange as far as the application is needed. Attached when called; detaches for whatever may wait. What is
/// left, if anything, is for [`Rest::finish`].
pub fn run(call: &mut impl Call, lease: &Lease) -> Option<Rest> {
    let returned = match call.call() {
        // Nothing of the application is left to run: the rest is one stay on the server's side.
        Ok(Returned::Whole(blocks)) => {
            call.end();
            if lease.waits || total(&blocks) > DETACHED {
                return Some(Rest(Some(blocks)));
            }
            on_response(call, lease, false, |response| response.end(Some(blocks)));
            return None;
        }
        returned => returned,
    };
    let has_close = returned.is_ok();
    let result = returned.map_err(Stop::Failed).and_then(|returned| respond(call, lease, returned));
    let over = result.is_ok() && lease.slot.try_lock().is_ok_and(|response| response.is_over());
    let waits = lease.waits && !over;
    on_response(call, lease, waits, |response| response.finish(result));
    if has_close && let Err(report) = call.close() {
        let report = Report { code: Code::CloseRaised, ..report };
        on_response(call, lease, lease.waits, |response| {
            response.exchange.log(Level::Error, &report.to_string());
        });
    }
    call.end();
    if lease.waits {
        return Some(Rest(None));
    }
    on_response(call, lease, false, |response| response.end(None));
    None
}

/// What is left of an exchange when its application has nothing more to do: a body that is known whole, and the end.
#[must_use]
pub struct Rest(Option<Vec<Block>>);

impl Rest {
    /// Ends the exchange. Detached only.
    pub fn finish(self, lease: &Lease) {
        lease.lock().end(self.0);
    }
}

/// Ends an exchange whose run was broken off by a fault of ours. Detached.
pub fn abandon(lease: &Lease) {
    let mut response = lease.lock();
    if !response.finished {
        let report = Report::new(Code::Panic, "a fault in Highball itself while it ran the application")
            .remedy("please report it, with the record before this one");
        response.finish(Err(Stop::Failed(report)));
    }
    drop(response.close());
}

/// Why a response did not come to its end.
#[derive(Debug)]
enum Stop {
    Failed(Report),
    NotStarted,
    ClientGone,
}

impl From<WriteError> for Stop {
    fn from(error: WriteError) -> Stop {
        match error {
            WriteError::NotStarted => Stop::NotStarted,
            WriteError::ClientGone => Stop::ClientGone,
        }
    }
}

fn respond(call: &mut impl Call, lease: &Lease, returned: Returned) -> Result<(), Stop> {
    match returned {
        Returned::Whole(blocks) => on_response(call, lease, true, |response| response.whole(blocks, false))?,
        Returned::File(file) => on_response(call, lease, true, |response| response.file(file))?,
        Returned::Blocks => {
            while let Some(block) = call.next_block().map_err(Stop::Failed)? {
                let length = block.as_bytes().len() as u64;
                let whole = !lease.waits
                    && length <= DETACHED
                    && on_response(call, lease, false, |response| response.completes(length));
                if on_response(call, lease, !whole, |response| response.write(block))? == Progress::Enough {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Runs `f` on the response: detached where it may wait or where another thread holds the lease.
fn on_response<R>(call: &mut impl Call, lease: &Lease, waits: bool, f: impl FnOnce(&mut Response) -> R) -> R {
    if waits {
        return call.detached(|| f(&mut lease.lock()));
    }
    let free = match lease.slot.try_lock() {
        Ok(response) => Some(response),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    match free {
        Some(mut response) => f(&mut response),
        None => call.detached(|| f(&mut lease.lock())),
    }
}

/// Stands in a closed lease for the exchange that was there.
struct Over;

impl Exchange for Over {
    fn request(&self) -> &Request {
        static NONE: Request = Request::EMPTY;
        &NONE
    }
    fn read_body(&mut self, _: &mut [u8]) -> Result<usize, BodyError> {
        Err(BodyError::Failed("the request is over".into()))
    }
    fn send_whole(&mut self, _: Head, _: Vec<Block>) -> Result<(), ClientGone> {
        Err(ClientGone)
    }
    fn send_head(&mut self, _: Head) -> Result<(), ClientGone> {
        Err(ClientGone)
    }
    fn send_block(&mut self, _: Block) -> Result<(), ClientGone> {
        Err(ClientGone)
    }
    fn send_file(&mut self, _: FileRange) -> Result<(), ClientGone> {
        Err(ClientGone)
    }
    fn finish(&mut self, _: Outcome) {}
    fn log(&mut self, _: Level, _: &str) {}
}

/// Copies small blocks into one: one buffer, one write. Large ones stay as they are.
fn join(mut blocks: Vec<Block>) -> Vec<Block> {
    blocks.retain(|block| !block.as_bytes().is_empty());
    let total: usize = blocks.iter().map(|block| block.as_bytes().len()).sum();
    if blocks.len() < 2 || total > JOIN_LIMIT {
        return blocks;
    }
    let mut joined = Vec::with_capacity(total);
    for block in &blocks {
        joined.extend_from_slice(block.as_bytes());
    }
    vec![Block::Copied(joined)]
}

fn total(blocks: &[Block]) -> u64 {
    blocks.iter().map(|block| block.as_bytes().len() as u64).sum()
}

/// The first `length` bytes of `blocks`.
fn first(blocks: Vec<Block>, mut length: u64) -> Vec<Block> {
    let mut kept = Vec::with_capacity(blocks.len());
    for block in blocks {
        let size = block.as_bytes().len() as u64;
        kept.push(if size > length { block.truncate(length as usize) } else { block });
        length = length.saturating_sub(size);
    }
    join(kept)
}

/// A body larger than this is not copied while others wait for the interpreter.
const DETACHED: u64 = 64 * 1024;

/// A judgement: below this a copy costs less than carrying a reference (16 KiB in our trials).
const JOIN_LIMIT: usize = 16 * 1024;

#[cfg(test)]
mod tests;
