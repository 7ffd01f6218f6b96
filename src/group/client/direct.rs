//! A group as threads see it that each have one request: they wait for a free worker, and for what it says (Apache).

use std::cell::Cell;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{
    LONGEST_NOT_HERE, Link, LinkError, MOST_NOT_HERE, NOT_HERE, Refusal, Said, Settings, choose, most_outstanding,
    socket_path,
};
use crate::exchange::{Block, BodyError, ClientGone, Exchange, Outcome};
use crate::group::message::Ending;
use crate::group::request::Answerer;
use crate::log::Level;
use crate::request::BodyLength;
use crate::response::Head;

/// What a server's own end of a request has, besides what it has for an application in the same process.
pub trait Client: Exchange {
    /// As `read_body`, without waiting: `None` where the client has sent nothing more yet.
    fn read_now(&mut self, buf: &mut [u8]) -> Result<Option<usize>, BodyError>;

    /// What to wait at for more; `None` where only `read_body` can wait.
    fn socket(&self) -> Option<BorrowedFd<'_>>;

    /// How long the client may send nothing while the application waits for it.
    fn patience(&self) -> Duration;

    /// The client sent nothing for that long.
    fn timed_out(&mut self) -> BodyError;

    /// Whether the client waits for "100 Continue" before it sends its body.
    fn awaits_continue(&self) -> bool;

    /// Ends the exchange with a status of the server's own, or visibly if some of the response has left already.
    fn refuse(&mut self, status: u16);
}

/// A group, for all threads of a server process.
pub struct Group {
    settings: Settings,
    state: Mutex<State>,
    /// Signalled when a worker has room.
    freed: Condvar,
    /// Threads whose requests no worker has had the application of.
    not_here: AtomicUsize,
}

struct State {
    slots: Vec<Slot>,
    turn: usize,
    /// Threads that wait for room.
    waiting: usize,
}

#[derive(Default)]
struct Slot {
    outstanding: usize,
    idle: Vec<Link>,
    /// Counts the workers that had this slot: links of former ones are not used again.
    generation: u64,
    /// A link that only tells when the worker leaves.
    sentinel: Option<Arc<Mutex<Link>>>,
    /// No worker could be reached there, until then.
    down_until: Option<Instant>,
}

/// A link that is one thread's for the time of a request.
struct Lease {
    slot: usize,
    generation: u64,
    link: Link,
}

/// How one worker ended its part.
enum Attempt {
    Done,
    /// The client has left, and the worker has not noticed yet.
    Gone,
    /// The connection broke off before the request had begun: another worker may try.
    Again,
    /// The connection broke off.
    Died,
    /// It was not sent.
    TooLong,
    /// The worker does not have the application.
    NotHere,
}

/// The body on its way to a worker.
struct Upload {
    has_body: bool,
    /// The application waits for it.
    asked: bool,
    /// What was sent, as long as it could be sent again.
    sent: Option<Vec<u8>>,
    end: Option<Result<(), BodyError>>,
}

impl Group {
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn new(settings: Settings) -> Group {
        let slots = (0..settings.processes).map(|_| Slot::default()).collect();
        Group {
            settings,
            state: Mutex::new(State { slots, turn: 0, waiting: 0 }),
            freed: Condvar::new(),
            not_here: AtomicUsize::new(0),
        }
    }

    /// Has a worker answer the request. Returns when the exchange is over.
    pub fn serve(&self, client: &mut dyn Client, answerer: &Answerer) {
        let began = Instant::now();
        let deadline = began + self.settings.queue_timeout;
        let has_body = client.request().body() != BodyLength::Absent;
        let mut upload = Upload {
            has_body,
            asked: !client.awaits_continue(),
            sent: Some(Vec::new()),
            end: (!has_body).then_some(Ok(())),
        };
        loop {
            let mut lease = match self.acquire(deadline) {
                Ok(lease) => lease,
                Err(refusal) => return self.refuse(client, refusal),
            };
            let attempt = self.attempt(&mut lease.link, client, answerer, &mut upload);
            self.release(lease, matches!(attempt, Attempt::Done | Attempt::TooLong | Attempt::NotHere));
            match attempt {
                Attempt::Done | Attempt::Gone => return,
                Attempt::TooLong => return self.refuse(client, Refusal::TooLong),
                Attempt::NotHere if upload.sent.is_some() && self.sleeps(began, deadline) => {}
                Attempt::NotHere => return self.refuse(client, Refusal::NotHere),
                Attempt::Again => {}
                Attempt::Died => {
                    client.log(Level::Error, &super::ended(&self.settings).to_string());
                    return client.refuse(502);
                }
            }
        }
    }

    /// Waits before a request is tried again whose application a worker does not have. False: that is not to be tried.
    fn sleeps(&self, began: Instant, deadline: Instant) -> bool {
        if Instant::now() + NOT_HERE >= deadline || began.elapsed() >= LONGEST_NOT_HERE {
            return false;
        }
        let others = self.not_here.fetch_add(1, Ordering::Relaxed);
        let sleeps = others < MOST_NOT_HERE;
        if sleeps {
            std::thread::sleep(NOT_HERE);
        }
        self.not_here.fetch_sub(1, Ordering::Relaxed);
        sleeps
    }

    fn refuse(&self, client: &mut dyn Client, refusal: Refusal) {
        client.log(Level::Error, &refusal.report(&self.settings).to_string());
        client.refuse(refusal.status());
    }

    /// A link to the least busy worker; waits for one.
    fn acquire(&self, deadline: Instant) -> Result<Lease, Refusal> {
        let most = most_outstanding(self.settings.threads);
        let mut state = self.lock();
        let mut queued = false;
        loop {
            let now = Instant::now();
            let chosen = choose(state.slots.len(), most, state.turn, |slot| {
                let slot = state.slots.get(slot)?;
                slot.down_until.is_none_or(|until| until <= now).then_some(slot.outstanding)
            });
            if let Some(number) = chosen
                && let Some(slot) = state.slots.get_mut(number)
            {
                slot.outstanding += 1;
                let (idle, generation) = (slot.idle.pop(), slot.generation);
                state.turn = number + 1;
                if queued {
                    state.waiting -= 1;
                    queued = false;
                }
                if let Some(link) = idle {
                    return Ok(Lease { slot: number, generation, link });
                }
                drop(state);
                if let Ok(link) = self.connect(number, deadline) {
                    self.watch(number, generation);
                    return Ok(Lease { slot: number, generation, link });
                }
                state = self.lock();
                if let Some(slot) = state.slots.get_mut(number) {
                    slot.outstanding -= 1;
                    slot.down_until = Some(Instant::now() + DOWN);
                }
                continue;
            }
            if now >= deadline {
                state.waiting -= usize::from(queued);
                return Err(Refusal::TooLate);
            }
            if !queued {
                if state.waiting >= self.settings.queue_size {
                    return Err(Refusal::QueueFull);
                }
                state.waiting += 1;
                queued = true;
            }
            // What is unreachable tells nobody when it is back.
            let longest = deadline.saturating_duration_since(now).min(DOWN);
            state = self.freed.wait_timeout(state, longest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn connect(&self, slot: usize, deadline: Instant) -> Result<Link, LinkError> {
        let path = socket_path(&self.settings.directory, &self.settings.name, slot as u32);
        let mut link = Link::connect(&path, &self.settings.key)?;
        let others = self.settings.processes > 1;
        let deadline = if others { deadline.min(Instant::now() + WELCOME) } else { deadline };
        let mut buffer = [0; 256];
        while !link.is_ready() {
            let left = deadline.saturating_duration_since(Instant::now());
            let (ready, _) = wait((link.socket()?, PollFlags::IN), None, left)?;
            if ready.is_empty() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            if !link.read(&mut buffer, false, |_, _| {})? || link.is_leaving() {
                return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
            }
        }
        Ok(link)
    }

    /// Sees to it that somebody learns when the worker of this slot leaves.
    fn watch(&self, number: usize, generation: u64) {
        let wanted = {
            let state = self.lock();
            state.slots.get(number).is_some_and(|slot| slot.sentinel.is_none() && slot.generation == generation)
        };
        if !wanted {
            return;
        }
        let Ok(link) = self.connect(number, Instant::now() + WELCOME) else { return };
        if let Some(slot) = self.lock().slots.get_mut(number)
            && slot.sentinel.is_none()
        {
            slot.sentinel = Some(Arc::new(Mutex::new(link)));
        }
    }

    /// Closes what leads to workers that have left or are about to. Called again and again; waits at most `longest`.
    pub fn mind(&self, longest: Duration) {
        let sentinels: Vec<(usize, Arc<Mutex<Link>>)> = {
            let state = self.lock();
            let slots = state.slots.iter().enumerate();
            slots.filter_map(|(number, slot)| Some((number, slot.sentinel.clone()?))).collect()
        };
        let locked: Vec<(usize, MutexGuard<'_, Link>)> = sentinels
            .iter()
            .map(|(number, link)| (*number, link.lock().unwrap_or_else(PoisonError::into_inner)))
            .collect();
        let sockets = locked.iter().filter_map(|(_, link)| link.socket().ok());
        let mut files: Vec<PollFd<'_>> =
            sockets.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)).collect();
        if rustix::event::poll(&mut files, Some(&timespec(longest))).is_err() {
            return;
        }
        let ready: Vec<bool> = files.iter().map(|file| !file.revents().is_empty()).collect();
        drop(files);
        let mut gone = Vec::new();
        for ((number, mut link), ready) in locked.into_iter().zip(ready) {
            let goes_on = !ready || matches!(link.read(&mut [0; 256], false, |_, _| {}), Ok(true));
            if !goes_on || link.is_leaving() {
                gone.push(number);
            }
        }
        for number in gone {
            let mut state = self.lock();
            let Some(slot) = state.slots.get_mut(number) else { continue };
            slot.generation += 1;
            let (idle, sentinel) = (std::mem::take(&mut slot.idle), slot.sentinel.take());
            drop(state);
            drop((idle, sentinel));
        }
    }

    fn release(&self, lease: Lease, usable: bool) {
        let Lease { slot: number, generation, link } = lease;
        let mut state = self.lock();
        let mut link = Some(link).filter(|link| usable && !link.is_leaving() && link.outstanding() == 0);
        if let Some(slot) = state.slots.get_mut(number) {
            slot.outstanding -= 1;
            slot.down_until = None;
            if slot.generation == generation
                && let Some(link) = link.take()
            {
                slot.idle.push(link);
            }
        }
        let waits = state.waiting > 0;
        drop(state);
        if waits {
            self.freed.notify_one();
        }
        // Closed without the lock.
        drop(link);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt(&self, link: &mut Link, client: &mut dyn Client, answerer: &Answerer, upload: &mut Upload) -> Attempt {
        let Some(stream) = link.open(answerer, client.request(), upload.has_body) else { return Attempt::TooLong };
        let socket_timeout = self.settings.socket_timeout;
        let mut passing = Passing { link, stream, client, upload, socket_timeout, begun: false, gone: None };
        match passing.run() {
            Ok(true) => Attempt::Done,
            Ok(false) => Attempt::NotHere,
            Err(_) if passing.gone.is_some() => {
                passing.client.finish(Outcome::ClientGone);
                Attempt::Gone
            }
            Err(error) => {
                if !matches!(error, LinkError::Socket(_)) {
                    passing.client.log(Level::Error, &super::closed(&self.settings, &error));
                }
                // One that lives may still begin it.
                let is_gone = matches!(error, LinkError::Socket(_));
                let again =
                    is_gone && !passing.begun && passing.upload.sent.is_some() && !passing.link.has_begun(stream);
                if again { Attempt::Again } else { Attempt::Died }
            }
        }
    }
}

/// One request on one link.
struct Passing<'a> {
    link: &'a mut Link,
    stream: u32,
    client: &'a mut dyn Client,
    upload: &'a mut Upload,
    socket_timeout: Duration,
    /// Something has left for the client.
    begun: bool,
    /// Since when the client is known to have left.
    gone: Option<Instant>,
}

impl Passing<'_> {
    /// Passes both directions on until FINISH. False: the worker does not have the application.
    fn run(&mut self) -> Result<bool, LinkError> {
        // One for each thread, for its life: making it costs more than most requests.
        let mut buffer = BUFFER.take();
        buffer.resize(SCRATCH, 0);
        let passed = self.pass(&mut buffer);
        BUFFER.set(buffer);
        passed
    }

    fn pass(&mut self, buffer: &mut [u8]) -> Result<bool, LinkError> {
        let mut said = Vec::new();
        self.upload.resend(self.link, self.stream);
        loop {
            let wants_body = self.gone.is_none() && self.send_body(buffer);
            // A worker that has gone may have answered before.
            let flushed = self.link.flush();
            let waits_for_client = wants_body && self.upload.asked;
            // httpd sends "100 Continue" only with a read that waits.
            if flushed.is_ok() && waits_for_client && (self.client.socket().is_none() || self.client.awaits_continue())
            {
                self.read_body(buffer);
                continue;
            }
            let longest = match self.gone {
                Some(since) => GONE.saturating_sub(since.elapsed()),
                None if waits_for_client => self.client.patience(),
                None => FOREVER,
            };
            let worker_patience = self.link.patience(self.socket_timeout);
            let longest = worker_patience.map_or(longest, |patience| patience.min(longest));
            let longest = if flushed.is_err() { Duration::ZERO } else { longest };
            let events = if self.link.is_full() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let client_events = if wants_body { PollFlags::IN } else { PollFlags::empty() };
            let socket = self.client.socket().filter(|_| self.gone.is_none()).map(|socket| (socket, client_events));
            let (mut link_ready, client_ready) = wait((self.link.socket()?, events), socket, longest)?;
            if flushed.is_err() {
                link_ready |= PollFlags::IN;
            }
            if link_ready.is_empty() && client_ready.is_empty() {
                if self.link.patience(self.socket_timeout) == Some(Duration::ZERO) {
                    return Err(LinkError::Stuck(self.socket_timeout));
                }
                if self.gone.is_some() {
                    // The application has not noticed yet, and this thread is needed.
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
                if waits_for_client {
                    let error = self.client.timed_out();
                    self.upload.finish(self.link, self.stream, Err(error));
                }
                continue;
            }
            if client_ready.intersects(PollFlags::HUP | PollFlags::ERR) && !wants_body {
                self.leave();
            }
            if link_ready.is_empty() {
                continue;
            }
            let open = self.link.read(buffer, flushed.is_err(), |_, what| said.push(what))?;
            if let Some(ending) = self.deliver(&mut said) {
                match ending {
                    _ if self.gone.is_some() => self.client.finish(Outcome::ClientGone),
                    Ending::NotHere => return Ok(false),
                    Ending::TimedOut => self.client.refuse(504),
                    Ending::Outcome(outcome) => self.client.finish(outcome),
                }
                return Ok(true);
            }
            flushed?;
            if !open {
                return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
            }
        }
    }

    /// Sends what has come of the body, as far as it is allowed. True: there is room for more than has come.
    fn send_body(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            let allowed = self.link.allowed(self.stream).min(buffer.len());
            if self.upload.end.is_some() || allowed == 0 {
                return false;
            }
            // "100 Continue" leaves with the first read, and that is the application's.
            if self.client.awaits_continue() {
                return self.upload.asked;
            }
            let read = self.client.read_now(buffer.get_mut(..allowed).unwrap_or_default());
            match read {
                Ok(None) => return true,
                Ok(Some(0)) => self.upload.finish(self.link, self.stream, Ok(())),
                Ok(Some(read)) => self.upload.send(self.link, self.stream, buffer.get(..read).unwrap_or_default()),
                Err(error) => self.upload.finish(self.link, self.stream, Err(error)),
            }
        }
    }

    /// As [`send_body`](Self::send_body), where only reading can wait.
    fn read_body(&mut self, buffer: &mut [u8]) {
        let allowed = self.link.allowed(self.stream).min(buffer.len());
        match self.client.read_body(buffer.get_mut(..allowed).unwrap_or_default()) {
            Ok(0) => self.upload.finish(self.link, self.stream, Ok(())),
            Ok(read) => self.upload.send(self.link, self.stream, buffer.get(..read).unwrap_or_default()),
            Err(error) => self.upload.finish(self.link, self.stream, Err(error)),
        }
    }

    /// Passes on what the worker said; `said` is left empty. Returns how the exchange ended, if it did.
    fn deliver(&mut self, said: &mut Vec<Said>) -> Option<Ending> {
        let mut head: Option<Head> = None;
        let mut blocks: Vec<Block> = Vec::new();
        let mut ending = None;
        for said in said.drain(..) {
            match said {
                Said::Log(level, text) => self.client.log(level, &text),
                Said::Read => self.upload.asked = true,
                Said::Head(new) => head = Some(new),
                Said::Block(bytes) => blocks.push(Block::Copied(bytes)),
                Said::File(file) => {
                    self.begin(head.take());
                    self.send_blocks(std::mem::take(&mut blocks));
                    if self.gone.is_none() && self.client.send_file(file).is_err() {
                        self.leave();
                    }
                }
                Said::Finish(how) => ending = Some(how),
            }
        }
        // That all of it has come says nothing about its length, unless the application did.
        let is_whole = |head: &mut Head| head.content_length().is_some() || !head.allows_body();
        if self.gone.is_none()
            && ending == Some(Ending::Outcome(Outcome::Complete))
            && let Some(head) = head.take_if(is_whole)
        {
            self.begun = true;
            if self.client.send_whole(head, std::mem::take(&mut blocks)).is_err() {
                self.leave();
            }
            return ending;
        }
        self.begin(head);
        self.send_blocks(blocks);
        ending
    }

    fn begin(&mut self, head: Option<Head>) {
        if let Some(head) = head.filter(|_| self.gone.is_none()) {
            self.begun = true;
            if self.client.send_head(head).is_err() {
                self.leave();
            }
        }
    }

    /// Waits for the client where the server does; the worker learns what has left.
    fn send_blocks(&mut self, blocks: Vec<Block>) {
        for block in blocks {
            if self.gone.is_some() {
                return;
            }
            let bytes = block.as_bytes().len();
            match self.client.send_block(block) {
                Ok(()) => self.link.taken(self.stream, bytes),
                Err(ClientGone) => self.leave(),
            }
        }
    }

    fn leave(&mut self) {
        if self.gone.is_none() {
            self.gone = Some(Instant::now());
            self.link.gone(self.stream);
        }
    }
}

impl Upload {
    /// What an earlier worker got of the body, for another one.
    fn resend(&self, link: &mut Link, stream: u32) {
        if let Some(sent) = self.sent.as_ref().filter(|_| self.has_body) {
            link.body(stream, sent);
            if let Some(end) = &self.end {
                link.body_end(stream, end.clone());
            }
        }
    }

    fn send(&mut self, link: &mut Link, stream: u32, bytes: &[u8]) {
        link.body(stream, bytes);
        match &mut self.sent {
            Some(sent) if sent.len() + bytes.len() <= KEPT => sent.extend_from_slice(bytes),
            sent => *sent = None,
        }
    }

    fn finish(&mut self, link: &mut Link, stream: u32, end: Result<(), BodyError>) {
        link.body_end(stream, end.clone());
        self.end = Some(end);
    }
}

fn wait(
    (link, events): (BorrowedFd<'_>, PollFlags),
    client: Option<(BorrowedFd<'_>, PollFlags)>,
    longest: Duration,
) -> io::Result<(PollFlags, PollFlags)> {
    let (socket, client_events) = client.unwrap_or((link, PollFlags::empty()));
    let mut files = [PollFd::from_borrowed_fd(link, events), PollFd::from_borrowed_fd(socket, client_events)];
    let count = 1 + usize::from(client.is_some());
    match rustix::event::poll(files.get_mut(..count).unwrap_or_default(), Some(&timespec(longest))) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let [link, client] = files;
    Ok((link.revents(), client.revents()))
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How long a worker that cannot be reached is left alone.
const DOWN: Duration = Duration::from_millis(20);

/// How long one of several workers may take to welcome a connection.
const WELCOME: Duration = Duration::from_millis(200);

/// How long an application may take to notice that its client has left, before its server process stops listening to it.
const GONE: Duration = Duration::from_secs(1);

const FOREVER: Duration = Duration::from_secs(3600);

/// Bytes of a body that are kept for another worker: as many as may be sent before any were read.
const KEPT: usize = 64 * 1024;

const SCRATCH: usize = 64 * 1024;
