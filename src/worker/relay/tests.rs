use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::worker::mailbox::Posted;

fn pipe(body: Vec<Segment>) -> (Arc<Mailbox>, Arc<Relay>, Box<WorkerEnd>) {
    let mailbox = Mailbox::new(|| (), Arc::default());
    let (relay, end) = Relay::new(Request::builder(0, 0).build(), body, mailbox.clone(), 7, BOUND);
    (mailbox, relay, end)
}

fn head() -> Head {
    Head::new(b"200 OK").unwrap()
}

fn block(length: usize) -> Block {
    Block::Copied(vec![b'x'; length])
}

fn names(messages: &[Message]) -> Vec<&'static str> {
    let name = |message: &Message| match message {
        Message::Head(_) => "head",
        Message::Block(_) => "block",
        Message::File(_) => "file",
        Message::Whole(..) => "whole",
        Message::Log(..) => "log",
        Message::Finish(Outcome::Complete) => "complete",
        Message::Finish(Outcome::Failed) => "failed",
        Message::Finish(Outcome::Truncated) => "truncated",
        Message::Finish(Outcome::ClientGone) => "client gone",
    };
    messages.iter().map(name).collect()
}

fn until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(10), "nothing happened");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn messages_keep_their_order_and_stand_in_the_mailbox_once() {
    let (mailbox, relay, mut end) = pipe(Vec::new());
    end.log(Level::Info, "a");
    end.send_head(head()).unwrap();
    end.send_block(block(1)).unwrap();
    end.finish(Outcome::Complete);
    let mut posted = Posted::default();
    mailbox.take(&mut posted);
    assert_eq!(posted.relays.len(), 1);
    let mut messages = Vec::new();
    relay.take(&mut messages);
    assert_eq!(names(&messages), ["log", "head", "block", "complete"]);
}

#[test]
fn a_sender_waits_while_more_than_the_bound_is_unsent() {
    let (_mailbox, relay, mut end) = pipe(Vec::new());
    end.send_head(head()).unwrap();
    end.send_block(block(BOUND)).unwrap();
    let returned = Arc::new(AtomicBool::new(false));
    let sender = thread::spawn({
        let returned = returned.clone();
        move || {
            end.send_block(block(10)).unwrap();
            returned.store(true, Ordering::SeqCst);
        }
    });
    thread::sleep(Duration::from_millis(50));
    assert!(!returned.load(Ordering::SeqCst));
    relay.taken_by_client(9);
    thread::sleep(Duration::from_millis(20));
    assert!(!returned.load(Ordering::SeqCst));
    relay.taken_by_client(1);
    until(|| returned.load(Ordering::SeqCst));
    sender.join().unwrap();
}

#[test]
fn a_waiting_sender_learns_that_the_client_is_gone() {
    let (_mailbox, relay, mut end) = pipe(Vec::new());
    let sender = thread::spawn(move || {
        let result = end.send_block(block(BOUND + 1));
        (result, end.send_block(block(1)), end.send_head(head()), end.send_whole(head(), Vec::new()))
    });
    thread::sleep(Duration::from_millis(20));
    relay.close();
    let gone = Err(ClientGone);
    assert_eq!(sender.join().unwrap(), (gone, gone, gone, gone));
}

#[test]
fn an_end_that_never_ran_fails_and_one_that_had_begun_is_truncated() {
    let (_mailbox, relay, end) = pipe(Vec::new());
    drop(end);
    let mut messages = Vec::new();
    relay.take(&mut messages);
    assert_eq!(names(&messages), ["failed"]);
    let (_mailbox, relay, mut end) = pipe(Vec::new());
    end.send_head(head()).unwrap();
    drop(end);
    messages.clear();
    relay.take(&mut messages);
    assert_eq!(names(&messages), ["head", "truncated"]);
}

#[test]
fn bodies_are_read_from_memory_and_file_to_their_end() {
    let path = std::env::temp_dir().join(format!("highball-relay-{}", std::process::id()));
    let mut file = File::create(&path).unwrap();
    file.write_all(b"--file--").unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let body = vec![Segment::Memory(b"mem".to_vec()), Segment::File { file, offset: 2, length: 4 }];
    let (_mailbox, _relay, mut end) = pipe(body);
    let mut all = Vec::new();
    let mut buf = [0_u8; 2];
    loop {
        match end.read_body(&mut buf).unwrap() {
            0 => break,
            read => all.extend_from_slice(&buf[..read]),
        }
    }
    assert_eq!(all, b"memfile");
    assert_eq!(end.read_body(&mut buf), Ok(0));
}

#[test]
fn a_body_of_the_loop_comes_in_pieces_and_ends_with_the_request() {
    let (mailbox, relay, mut end) = pipe(vec![Segment::Loop { length: 5 }]);
    let reader = thread::spawn(move || {
        let mut buf = [0_u8; 8];
        (end.read_body(&mut buf), buf[..3].to_vec(), end.read_body(&mut buf))
    });
    let mut posted = Posted::default();
    let asked = |posted: &mut Posted| {
        mailbox.take(posted);
        let asked = !posted.relays.is_empty() && relay.take(&mut Vec::new()).wants_body;
        posted.relays.clear();
        asked
    };
    while !asked(&mut posted) {}
    relay.feed(Fed::Piece(b"abc".to_vec()));
    while !asked(&mut posted) {}
    relay.close();
    assert_eq!(reader.join().unwrap(), (Ok(3), b"abc".to_vec(), Err(BodyError::Truncated)));
}
