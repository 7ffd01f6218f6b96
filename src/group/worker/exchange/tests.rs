use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::connection::{Connection, Job};
use super::super::poller::Poller;
use super::super::wire::{Slots, Wire};
use super::*;
use crate::group::frame::{END, Frame};
use crate::group::{page, request, socket, state};
use crate::request::BodyLength;

const WINDOW: u64 = 1000;

/// A connection, and the server's end of it.
struct Pair {
    connection: Arc<Connection>,
    server: OwnedFd,
    received: Vec<u8>,
}

impl Pair {
    fn new() -> Pair {
        let page = page::create(2).unwrap();
        let page = (page::Page::map(page.as_fd(), true).unwrap(), page);
        let key_hash = state::key_hash(&[7; 32]);
        let log = Box::new(|_: Level, _: &str| ());
        let wire = Wire::new(Poller::new().unwrap(), WINDOW, key_hash, 1, page, Slots::new(2), log);
        let (ours, server) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let connection = wire.connections.add(|number| Connection::new(number, ours.into(), wire.clone()));
        let mut pair = Pair { connection, server: server.into(), received: Vec::new() };
        let mut hello = Vec::new();
        message::hello(&mut hello, &[7; 32]);
        pair.send(&hello);
        assert_eq!(pair.names(), ["0 Welcome"]);
        pair
    }

    /// What the server sends; the requests that came of it.
    fn send(&mut self, bytes: &[u8]) -> Vec<Job> {
        socket::send(&self.server, bytes, &[]).unwrap();
        let mut jobs = Vec::new();
        self.connection.read(&mut [0; 4096], &mut jobs);
        jobs
    }

    fn frame(&mut self, stream: u32, kind: Kind, flags: u8, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, stream, kind, flags, payload);
        assert!(self.send(&bytes).is_empty());
    }

    fn request(&mut self, stream: u32, body: bool) -> Box<WireExchange> {
        let mut builder = Request::builder(0, 0);
        builder.body(if body { BodyLength::Unknown } else { BodyLength::Absent });
        let (mut payload, mut bytes) = (Vec::new(), Vec::new());
        assert!(request::put(&mut payload, &request::Answerer::Listed(1), request::NO_SLOT, &builder.build()));
        frame::put(&mut bytes, stream, Kind::Request, if body { 0 } else { END }, &payload);
        WireExchange::new(self.send(&bytes).pop().unwrap().stream)
    }

    /// What has arrived at the server: stream and kind; of blocks their lengths together, of FINISH the outcome.
    fn names(&mut self) -> Vec<String> {
        self.connection.flush();
        let mut buffer = [0; 65536];
        while let Ok(received) = socket::receive(&self.server, &mut buffer)
            && received.bytes > 0
        {
            self.received.extend_from_slice(&buffer[..received.bytes]);
        }
        let mut names: Vec<String> = Vec::new();
        let mut rest = &self.received[..];
        while let Some(Frame { stream, kind, payload, .. }) = frame::take(&mut rest).unwrap() {
            names.push(match kind {
                Kind::Block | Kind::Log => format!("{stream} {kind:?} {}", payload.len()),
                Kind::Finish => format!("{stream} {kind:?} {}", payload[0]),
                Kind::Read => format!("{stream} {kind:?} {}", u32::from_le_bytes(payload.try_into().unwrap())),
                _ => format!("{stream} {kind:?}"),
            });
        }
        self.received.clear();
        names
    }
}

fn head() -> Head {
    Head::new(b"200 OK").unwrap()
}

fn block(length: usize) -> Block {
    Block::Copied(vec![b'x'; length])
}

fn until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(10), "nothing happened");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_short_answer_is_complete_at_once_and_nothing_follows_it() {
    let mut pair = Pair::new();
    let mut exchange = pair.request(1, false);
    exchange.log(Level::Info, "before");
    exchange.send_whole(head(), vec![block(10), block(20)]).unwrap();
    exchange.log(Level::Info, "after");
    assert_eq!(exchange.send_block(block(1)), Err(ClientGone));
    exchange.finish(Outcome::Failed);
    drop(exchange);
    assert_eq!(pair.names(), ["1 Log 7", "1 Head", "1 Block 10", "1 Block 20", "1 Finish 0"]);
}

#[test]
fn a_whole_answer_beyond_the_window_goes_as_a_file() {
    let mut pair = Pair::new();
    pair.request(1, false).send_whole(head(), vec![block(WINDOW as usize), block(1)]).unwrap();
    assert_eq!(pair.names(), ["1 Head", "1 File", "1 Finish 0"]);
}

#[test]
fn an_exchange_that_is_dropped_ends_visibly() {
    let mut pair = Pair::new();
    drop(pair.request(1, false));
    let mut begun = pair.request(2, false);
    begun.send_head(head()).unwrap();
    drop(begun);
    assert_eq!(pair.names(), ["1 Finish 1", "2 Head", "2 Finish 2"]);
}

#[test]
fn blocks_stop_at_the_window_until_they_are_taken() {
    let mut pair = Pair::new();
    let mut exchange = pair.request(1, false);
    let returned = Arc::new(AtomicBool::new(false));
    let sender = thread::spawn({
        let returned = returned.clone();
        move || {
            exchange.send_head(head()).unwrap();
            exchange.send_block(block(WINDOW as usize + 10)).unwrap();
            returned.store(true, Ordering::SeqCst);
            exchange.finish(Outcome::Complete);
        }
    });
    thread::sleep(Duration::from_millis(50));
    assert_eq!(pair.names(), ["1 Head", "1 Block 1000"]);
    pair.frame(1, Kind::Taken, 0, &9_u32.to_le_bytes());
    thread::sleep(Duration::from_millis(20));
    assert!(!returned.load(Ordering::SeqCst));
    pair.frame(1, Kind::Taken, 0, &1_u32.to_le_bytes());
    until(|| returned.load(Ordering::SeqCst));
    sender.join().unwrap();
    assert_eq!(pair.names(), ["1 Block 9", "1 Block 1", "1 Finish 0"]);
}

#[test]
fn a_waiting_sender_and_a_waiting_reader_learn_that_the_client_is_gone() {
    let mut pair = Pair::new();
    let (mut sender, mut reader) = (pair.request(1, false), pair.request(2, true));
    let sends =
        thread::spawn(move || (sender.send_head(head()), sender.send_block(block(2000)), sender.send_head(head())));
    let reads = thread::spawn(move || reader.read_body(&mut [0; 10]));
    thread::sleep(Duration::from_millis(20));
    pair.frame(1, Kind::Gone, 0, b"");
    let gone = Err(ClientGone);
    assert_eq!(sends.join().unwrap(), (Ok(()), gone, gone));
    // The connection ends.
    pair.server = std::fs::File::open("/dev/null").unwrap().into();
    pair.connection.read(&mut [0; 4096], &mut Vec::new());
    assert_eq!(reads.join().unwrap(), Err(BodyError::Truncated));
}

#[test]
fn what_was_read_may_be_sent_again() {
    let mut pair = Pair::new();
    let mut exchange = pair.request(1, true);
    pair.frame(1, Kind::Body, 0, &[b'x'; 3000]);
    let mut buffer = [0; 2048];
    assert_eq!(exchange.read_body(&mut buffer), Ok(2048));
    assert_eq!(exchange.read_body(&mut buffer), Ok(952));
    assert!(pair.names().is_empty(), "half the window is free yet");
    let reader = thread::spawn(move || (exchange.read_body(&mut buffer), exchange.read_body(&mut buffer), exchange));
    thread::sleep(Duration::from_millis(20));
    assert_eq!(pair.names(), ["1 Read 3000"], "whoever waits lets the server go on");
    pair.frame(1, Kind::Body, END, b"end");
    let (last, end, exchange) = reader.join().unwrap();
    assert_eq!((last, end), (Ok(3), Ok(0)));
    drop(exchange);
    assert_eq!(pair.names(), ["1 Finish 1"], "no credit for a body that is complete");
}

#[test]
fn a_body_that_fails_gives_what_came_before() {
    let mut pair = Pair::new();
    let mut exchange = pair.request(1, true);
    pair.frame(1, Kind::Body, 0, b"abc");
    pair.frame(1, Kind::BodyFailed, END, &[2]);
    assert_eq!(exchange.read_body(&mut [0; 10]), Ok(3));
    assert_eq!(exchange.read_body(&mut [0; 10]), Err(BodyError::TooLarge));
    assert_eq!(exchange.read_body(&mut [0; 10]), Err(BodyError::TooLarge));
}

#[test]
fn a_request_whose_time_is_over_is_answered_without_its_thread() {
    let mut pair = Pair::new();
    let (mut held, mut begun) = (pair.request(1, false), pair.request(2, false));
    begun.send_head(head()).unwrap();
    for _ in 0..2 {
        assert!(!held.stream.give_up(Ending::TimedOut) && !begun.stream.give_up(Ending::TimedOut));
    }
    assert_eq!(held.send_whole(head(), vec![block(1)]), Err(ClientGone));
    assert_eq!(begun.send_block(block(1)), Err(ClientGone));
    held.finish(Outcome::Failed);
    assert_eq!(pair.names(), ["2 Head", "1 Finish 4", "2 Finish 2"]);
}

#[test]
fn nothing_a_server_sends_does_more_than_close_its_connection() {
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut request = Vec::new();
    let answerer = request::Answerer::Listed(1);
    assert!(request::put(&mut request, &answerer, 3, &Request::builder(0, 0).build()));
    let (mut closed, mut began) = (0, 0);
    for _ in 0..3000 {
        let mut pair = Pair::new();
        let mut bytes = Vec::new();
        for stream in 1..4 {
            let kind = Kind::ALL[random(Kind::ALL.len())];
            frame::put(&mut bytes, stream, Kind::Request, random(2) as u8, &request);
            frame::put(&mut bytes, random(5) as u32, kind, random(2) as u8, &[7; 64][..random(64)]);
        }
        for _ in 0..random(4) {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
        }
        socket::send(&pair.server, &bytes, &[]).unwrap();
        let mut jobs = Vec::new();
        closed += u32::from(!pair.connection.read(&mut [0; 100], &mut jobs));
        began += jobs.len();
        for job in jobs {
            drop(WireExchange::new(job.stream));
        }
        pair.names();
    }
    assert!(closed > 500 && began > 1000, "{closed} {began}");
}
