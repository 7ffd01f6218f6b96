//! What must hold whatever bytes come: one function per parser. Fuzzers and `tests/properties.rs` call them.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use highball::environ::{self, Key};
use highball::exchange::{Block, BodyError, Exchange, FileRange, Outcome};
use highball::framing::{Admit, Framing};
use highball::group::client::{Link, Said};
use highball::group::frame::{self, Kind};
use highball::group::request::Answerer;
use highball::group::worker::probe::Probe;
use highball::group::{page, socket};
use highball::log::{self, Level};
use highball::request::{BodyLength, Request};
use highball::response::Head;
use highball::settings::{Target, did_you_mean, parse_size, parse_time};
use highball::uri;
use highball::worker::mailbox::{Mailbox, Posted};
use highball::worker::relay::{Fed, Message, Relay, Segment};

pub type Oracle = fn(&[u8]);

pub const ALL: &[(&str, Oracle)] = &[
    ("head", head),
    ("framing", framing),
    ("environ", environ),
    ("settings", settings),
    ("uri", uri),
    ("log", log_record),
    ("relay", relay),
    ("link", link),
    ("connection", connection),
];

/// Separates fields in the input of `head` and `environ`; names end at the second.
const FIELD: u8 = 0x1e;
const NAME: u8 = 0x1f;

/// A head that can be built is one that a strict parser of HTTP reads, and reads as it was given.
pub fn head(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == FIELD);
    let Ok(mut head) = Head::new(lines.next().unwrap_or_default()) else { return };
    for line in lines.take(60) {
        let (name, value) = pair(line);
        let _ = head.push(name, value);
    }
    let mut text = format!("HTTP/1.1 {} ", head.status()).into_bytes();
    text.extend_from_slice(head.reason());
    text.extend_from_slice(b"\r\n");
    for (name, value) in head.fields() {
        text.extend_from_slice(name);
        text.extend_from_slice(b": ");
        text.extend_from_slice(value);
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(&text);
    assert_eq!(parsed, Ok(httparse::Status::Complete(text.len())), "{}", text.escape_ascii());
    assert_eq!(response.code, Some(head.status()));
    assert!((200..=599).contains(&head.status()));
    assert_eq!(response.headers.len(), head.fields().len());
    for (read, (name, value)) in response.headers.iter().zip(head.fields()) {
        assert_eq!((read.name.as_bytes(), read.value), (name, value));
        for forbidden in ["connection", "transfer-encoding", "keep-alive", "upgrade", "te", "trailer", "content-length"]
        {
            assert!(!name.eq_ignore_ascii_case(forbidden.as_bytes()));
        }
    }
}

/// Never more leaves than Content-Length promises, nothing where there is no body, and what is missing is known.
pub fn framing(data: &[u8]) {
    let [status, declared @ .., is_head, blocks] = data else { return };
    let status = [&b"200"[..], b"204", b"304", b"404"][usize::from(status % 4)];
    let Ok(mut head) = Head::new(status) else { return };
    if declared.first().is_some_and(|first| first % 2 == 0) {
        let _ = head.push(b"Content-Length", &declared[1..declared.len().min(20)]);
    }
    let is_head = is_head % 2 == 0;
    let mut framing = Framing::new(&head, is_head);
    let (mut sent, mut offered) = (0_u64, 0_u64);
    for (index, byte) in declared.iter().enumerate().take(usize::from(*blocks)) {
        let length = u64::from(*byte) << (index % 40);
        offered = offered.saturating_add(length);
        match framing.admit(length) {
            Admit::All => sent = sent.saturating_add(length),
            Admit::First(part) => {
                assert!(part < length);
                sent += part;
            }
            Admit::Bodiless => assert!(is_head || !head.allows_body()),
        }
    }
    if is_head || !head.allows_body() {
        assert_eq!((sent, framing.shortfall()), (0, None));
    } else if let Some(length) = head.content_length() {
        assert!(sent <= length);
        assert_eq!(framing.shortfall(), (sent < length).then_some((sent, length)));
        assert_eq!(sent, offered.min(length));
    } else {
        assert_eq!(framing.shortfall(), None);
    }
}

/// No header of a client's makes a key of the server's, none passes for another, and no key comes twice.
pub fn environ(data: &[u8]) {
    let mut builder = Request::builder(0, 0);
    let mut given = Vec::new();
    for line in data.split(|byte| *byte == FIELD).take(200) {
        let (name, value) = pair(line);
        given.push(name);
        builder.header(name, value);
    }
    builder.body(BodyLength::Known(7));
    let request = builder.build();
    let mut seen: Vec<Vec<u8>> = Vec::new();
    environ::each_variable(&request, |key, value| {
        let mut name = Vec::new();
        match key {
            Key::ContentLength => {
                assert_eq!(value, b"7");
                name.extend_from_slice(b"CONTENT_LENGTH");
            }
            Key::Header(known) => name.extend_from_slice(known.key().as_bytes()),
            Key::OtherHeader(header) => environ::header_key(header, &mut name),
            Key::Fact(_) | Key::Https | Key::Named(_) => panic!("{key:?} from a header"),
        }
        assert!(
            name == b"CONTENT_TYPE" || name == b"CONTENT_LENGTH" || name.starts_with(b"HTTP_"),
            "{}",
            name.escape_ascii()
        );
        assert!(name.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_'));
        assert!(!matches!(&*name, b"HTTP_PROXY" | b"HTTP_CONTENT_LENGTH" | b"HTTP_CONTENT_TYPE"));
        if let Some(suffix) = name.strip_prefix(b"HTTP_") {
            let dashed: Vec<u8> = suffix.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect();
            assert!(
                given.iter().any(|given| given.eq_ignore_ascii_case(&dashed)),
                "{} from no header",
                name.escape_ascii()
            );
        }
        // Of a repeated header the joined value replaces the first.
        if !seen.contains(&name) {
            seen.push(name);
        } else {
            assert!(value.windows(2).any(|pair| pair == b", " || pair == b"; "));
        }
    });
}

/// What is understood comes back as it was written.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(target) = Target::parse(text) {
        assert_eq!(Target::parse(&target.to_string()).as_ref(), Ok(&target), "{text}");
        assert!(!text.contains('\0'));
    }
    if let Some(size) = parse_size(text) {
        assert!(i64::try_from(size).is_ok() && text.starts_with(|first: char| first.is_ascii_digit()));
    }
    parse_time(text);
    let near = did_you_mean(text, ["process-group", "application-group", "on"].into_iter());
    assert!(near.is_none() || text.len() < 40);
}

/// Paths and targets are split without loss, and a mount covers whole segments.
pub fn uri(data: &[u8]) {
    let (authority, rest) = uri::split_authority(data);
    assert!(data.ends_with(rest));
    if let Some(authority) = authority {
        assert!(!authority.is_empty() && !authority.contains(&b'/') && !authority.contains(&b'?'));
        assert!(data.len() >= authority.len() + rest.len() + 4);
    }
    let target = uri::target(data);
    assert!(!target.contains(&b' ') && !target.contains(&b'\t'));
    let clean = uri::without_runs(data);
    assert!(!clean.windows(2).any(|pair| pair == b"//") && clean.len() <= data.len());
    assert_eq!(&*uri::without_runs(&clean), &*clean);
    let (first, second) = pair(data);
    if let Some(covered) = uri::covered(first, second) {
        assert!(covered <= second.len());
        let rest = &second[covered..];
        assert!(first.is_empty() || first.ends_with(b"/") || rest.is_empty() || rest.starts_with(b"/"));
    }
    if let Some(rest) = uri::below(second, first) {
        assert!(second.starts_with(first) && (rest.is_empty() || rest.starts_with(b"/")));
    }
}

/// A record stays one record, whatever its text.
pub fn log_record(data: &[u8]) {
    let record = log::record(&String::from_utf8_lossy(data));
    for (number, line) in record.split('\n').enumerate() {
        assert!(number == 0 || line.starts_with("    "), "{record:?}");
        assert!(line.chars().all(|character| character == '\t' || !character.is_control()), "{record:?}");
    }
}

/// Whatever the order of events, messages arrive in order and whole, the bound is kept, and the end is told once.
pub fn relay(data: &[u8]) {
    const BOUND: usize = 64;
    let mailbox = Mailbox::new(|| (), Arc::default());
    let body = vec![Segment::Memory(b"memory".to_vec()), Segment::Stream];
    let (relay, mut end) = Relay::new(Request::builder(0, 0).build(), body, mailbox.clone(), 3, BOUND);
    let (mut sent, mut taken, mut read) = (Vec::new(), Vec::new(), Vec::new());
    let (mut gone, mut ends, mut begun, mut unsent, mut failed) = (false, 0, false, 0, false);
    let mut fed: Vec<u8> = b"memory".to_vec();
    let mut ended_body = false;
    let mut messages = Vec::new();
    for (index, byte) in data.iter().enumerate().take(200) {
        match byte % 8 {
            0 | 1 if !begun => {
                begun = true;
                let head = Head::new(b"200 OK").unwrap();
                assert_eq!(end.send_head(head).is_err(), gone);
            }
            0 | 1 => {
                let block = vec![index as u8; usize::from(byte / 8) + 1];
                // More would wait for the client, here for ever.
                if gone || unsent + block.len() <= BOUND {
                    let result = end.send_block(Block::Copied(block.clone()));
                    assert_eq!(result.is_err(), gone);
                    if !gone {
                        unsent += block.len();
                        sent.extend_from_slice(&block);
                    }
                }
            }
            2 => end.log(Level::Info, "record"),
            3 => {
                relay.take(&mut messages);
                for message in messages.drain(..) {
                    match message {
                        Message::Block(block) => {
                            unsent -= block.as_bytes().len();
                            relay.taken_by_client(block.as_bytes().len());
                            taken.extend_from_slice(block.as_bytes());
                        }
                        Message::Finish(_) => ends += 1,
                        _ => {}
                    }
                }
                mailbox.take(&mut Posted::default());
            }
            4 | 5 => {
                // Answered before it is asked, as nobody else is here to do it.
                match byte / 8 {
                    0 => {
                        relay.feed(Fed::End);
                        ended_body = true;
                    }
                    1 => relay.feed(Fed::Failed(BodyError::TooLarge)),
                    length => {
                        if !ended_body && !failed {
                            fed.extend(std::iter::repeat_n(index as u8, usize::from(length)));
                        }
                        relay.feed(Fed::Piece(vec![index as u8; usize::from(length)]));
                    }
                }
                let mut buffer = [0; 7];
                match end.read_body(&mut buffer) {
                    Ok(length) => read.extend_from_slice(&buffer[..length]),
                    Err(error) => {
                        assert!(gone || failed || error == BodyError::TooLarge || error == BodyError::Truncated);
                        failed = true;
                    }
                }
                // What was not asked for is replaced by the next answer: only the order is to be kept.
                assert!(read.len() <= fed.len() || ended_body || failed);
            }
            6 if byte / 8 == 0 => {
                gone = true;
                relay.close();
            }
            6 => {
                let file = std::fs::File::open("/dev/null").unwrap();
                let range = FileRange { file: file.as_fd().try_clone_to_owned().unwrap(), offset: 0, length: 1 };
                assert_eq!(end.send_file(range).is_err(), gone);
            }
            _ => {}
        }
        assert!(unsent <= BOUND || gone);
    }
    end.finish(Outcome::Complete);
    drop(end);
    // It holds the relay, which holds it.
    mailbox.take(&mut Posted::default());
    relay.take(&mut messages);
    for message in messages.drain(..) {
        match message {
            Message::Block(block) => taken.extend_from_slice(block.as_bytes()),
            Message::Finish(_) => ends += 1,
            _ => {}
        }
    }
    assert_eq!((taken, ends), (sent, 1));
}

/// Whatever a worker sends: of each request a server process hears a head, then blocks within the window, then one end.
pub fn link(data: &[u8]) {
    const WINDOW: u32 = 4096;
    let (ours, worker) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut link = Link::new(ours.into(), &[7; 32]).unwrap();
    let page = page::create(1).unwrap();
    let greeting = highball::group::message::Welcome {
        version: frame::VERSION,
        window: WINDOW,
        first_slot: 0,
        slots: 2,
        incarnation: 1,
    };
    let mut welcome = Vec::new();
    highball::group::message::welcome(&mut welcome, &greeting);
    let mut buffer = vec![0; 512];
    socket::send(&worker, &welcome, &[page.as_fd()]).unwrap();
    assert!(link.read(&mut buffer, false, |_, _| panic!("before any request")).unwrap() && link.is_ready());
    let request = Request::builder(0, 0).build();
    let streams: Vec<u32> = (0..3).map(|_| link.open(&Answerer::Listed(1), &request, true).unwrap()).collect();

    let file = sealed_file();
    let (mut heads, mut ended, mut unsent) = (HashSet::new(), HashSet::new(), 0);
    each_message(data, |bytes, with_file| {
        let files = [file.as_fd()];
        if socket::send(&worker, bytes, if with_file { &files } else { &[] }).is_err() {
            return false;
        }
        let read = link.read(&mut buffer, false, |stream, said| {
            assert!(streams.contains(&stream) && !ended.contains(&stream), "after its end");
            match said {
                Said::Head(head) => {
                    assert!(heads.insert(stream), "a second head");
                    assert!((200..=599).contains(&head.status()));
                }
                Said::Block(bytes) => {
                    assert!(heads.contains(&stream) && !bytes.is_empty());
                    unsent += bytes.len();
                }
                Said::File(range) => {
                    assert!(heads.contains(&stream));
                    assert!(range.length > 0 && range.offset.checked_add(range.length).is_some());
                }
                Said::Log(..) | Said::Read => {}
                Said::Finish(_) => assert!(ended.insert(stream)),
            }
        });
        assert!(unsent <= 3 * WINDOW as usize, "more than a client that takes nothing may be sent");
        assert_eq!(link.outstanding(), streams.len() - ended.len());
        matches!(read, Ok(true))
    });
}

/// Whatever a server process sends: each request has at most the body that was sent, ends when the connection does, and
/// is told so; the worker says nothing that a server process would not understand.
pub fn connection(data: &[u8]) {
    let Ok(mut probe) = Probe::new(1000) else { return };
    let file = sealed_file();
    let (mut exchanges, mut sent, mut said) = (Vec::new(), 0, Vec::new());
    each_message(data, |bytes, with_file| {
        let files = [file.as_fd()];
        sent += bytes.len();
        let Ok(came) = probe.send(bytes, if with_file { &files } else { &[] }) else { return false };
        let open = came.is_some();
        exchanges.extend(came.into_iter().flatten());
        said.extend(probe.receive());
        open
    });
    for (index, exchange) in exchanges.iter_mut().enumerate().take(4) {
        let head = Head::new(b"200 OK").unwrap();
        let gone = exchange.send_head(head).is_err();
        if !gone && index % 2 == 0 {
            exchange.finish(Outcome::Complete);
            assert!(exchange.send_block(Block::Copied(vec![0])).is_err(), "after its end");
        }
    }
    said.extend(probe.receive());
    let mut rest = &said[..];
    let mut finished = HashSet::new();
    while let Some(frame) = frame::take(&mut rest).unwrap() {
        assert!(frame.kind != Kind::Finish || finished.insert(frame.stream), "a second end");
    }
    assert!(rest.is_empty());
    probe.close();
    for exchange in &mut exchanges {
        let (mut buffer, mut read) = ([0; 256], 0);
        loop {
            match exchange.read_body(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => read += length,
            }
            // Each part of a file can be read once for each time it was sent.
            assert!(read <= sent + sent / frame::HEADER * FILE.len(), "more than was sent");
        }
        assert!(exchange.send_block(Block::Copied(vec![0])).is_err());
    }
}

const FILE: &[u8] = b"what a file has";

fn sealed_file() -> OwnedFd {
    let file = socket::sealed(FILE).unwrap();
    File::from(file).into()
}

/// The first byte says how long messages are, the bits of the second which of them carry a descriptor.
fn each_message(data: &[u8], mut send: impl FnMut(&[u8], bool) -> bool) {
    let [length, files, rest @ ..] = data else { return };
    let length = usize::from(*length).max(1) * 4;
    for (index, bytes) in rest.chunks(length).enumerate().take(64) {
        if !send(bytes, files >> (index % 8) & 1 == 1) {
            return;
        }
    }
}

fn pair(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|byte| *byte == NAME) {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, b""),
    }
}
