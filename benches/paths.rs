//! The paths that every request takes, without a server and without Python, to count instructions of
//! (tests/test_budgets.py): `paths NAME COUNT` runs one so many times. What a process costs besides is in a run of 0.
#![allow(clippy::unwrap_used, clippy::panic, reason = "not part of a server")]

use std::hint::black_box;
use std::sync::Arc;

use highball::environ::each_variable;
use highball::exchange::{Block, Exchange, Outcome};
use highball::group::frame::{self, Kind};
use highball::group::message::{self, Ending};
use highball::request::{Fact, Request};
use highball::response::Head;
use highball::worker::mailbox::{Mailbox, Posted};
use highball::worker::relay::{Message, Relay};

const BODY: &[u8] = b"Hello, world\n";

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let count: usize = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(1);
    match name.as_str() {
        "request" => (0..count).for_each(|_| variables()),
        "head" => (0..count).for_each(|_| drop(black_box(head()))),
        "relay" => {
            let mailbox = Mailbox::new(|| {}, Arc::default());
            let (mut posted, mut messages) = (Posted::default(), Vec::new());
            (0..count).for_each(|_| relay(&mailbox, &mut posted, &mut messages));
        }
        "frames" => {
            let mut bytes = Vec::new();
            (0..count).for_each(|_| frames(&mut bytes));
        }
        _ => panic!("paths request|head|relay|frames COUNT"),
    }
}

/// What a browser sends, copied from a host and named for environ.
fn request() -> Request {
    let mut builder = Request::builder(1024, 24);
    builder.fact(Fact::Method, b"GET").fact(Fact::ScriptName, b"").fact(Fact::PathInfo, b"/items/7");
    builder.fact(Fact::QueryString, b"page=2").fact(Fact::RequestUri, b"/items/7?page=2");
    builder.fact(Fact::Protocol, b"HTTP/1.1").fact(Fact::Scheme, b"http").fact(Fact::ServerName, b"localhost");
    builder.fact(Fact::ServerPort, b"8000").fact(Fact::RemoteAddr, b"127.0.0.1").fact(Fact::RemotePort, b"54321");
    for (name, value) in [
        (&b"Host"[..], &b"localhost:8000"[..]),
        (b"User-Agent", b"Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0"),
        (b"Accept", b"text/html,application/xhtml+xml"),
        (b"Accept-Language", b"en,de;q=0.7"),
        (b"Accept-Encoding", b"gzip, deflate"),
        (b"Referer", b"http://localhost:8000/items"),
        (b"Connection", b"keep-alive"),
        (b"Cookie", b"session=0123456789abcdef; theme=dark"),
        (b"Upgrade-Insecure-Requests", b"1"),
        (b"Sec-Fetch-Mode", b"navigate"),
        (b"X-Request-Id", b"7f3a2b1c"),
        (b"X-Of-This-Site", b"1"),
    ] {
        builder.header(name, value);
    }
    builder.build()
}

fn variables() {
    let request = black_box(request());
    each_variable(&request, |key, value| {
        black_box((key, value));
    });
}

fn head() -> Head {
    let mut head = Head::new(black_box(b"200 OK")).unwrap();
    for (name, value) in [
        (&b"Content-Type"[..], &b"text/html; charset=utf-8"[..]),
        (b"Content-Length", b"13"),
        (b"X-Frame-Options", b"DENY"),
        (b"Vary", b"Cookie"),
        (b"Set-Cookie", b"session=0123456789abcdef; HttpOnly; Path=/; SameSite=Lax"),
    ] {
        head.push(black_box(name), black_box(value)).unwrap();
    }
    head
}

/// An answer that is known whole, from the application's thread to the event loop.
fn relay(mailbox: &Arc<Mailbox>, posted: &mut Posted, messages: &mut Vec<Message>) {
    let (relay, mut end) = Relay::new(Request::builder(0, 0).build(), Vec::new(), mailbox.clone(), 0, 1);
    end.finish_whole(Head::new(b"200 OK").unwrap(), vec![Block::Copied(BODY.to_vec())]).unwrap();
    drop(end);
    mailbox.take(posted);
    for relay in posted.relays.drain(..) {
        black_box(relay.take(messages));
        black_box(&*messages);
        messages.clear();
    }
    relay.close();
}

/// An answer over the wire, written and read.
fn frames(bytes: &mut Vec<u8>) {
    bytes.clear();
    assert!(message::head(bytes, 1, &head()));
    frame::put(bytes, 1, Kind::Block, 0, BODY);
    message::finish(bytes, 1, Ending::Outcome(Outcome::Complete));
    let mut rest = &bytes[..];
    while let Some(frame) = frame::take(&mut rest).unwrap() {
        match frame.kind {
            Kind::Head => drop(black_box(message::read_head(frame.payload).unwrap())),
            Kind::Finish => drop(black_box(message::read_finish(&frame).unwrap())),
            _ => drop(black_box(frame.payload)),
        }
    }
}
