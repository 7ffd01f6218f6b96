use std::cell::Cell;
use std::sync::Arc;

use super::*;
use crate::request::Fact;

/// Everything a fake server was told, in order.
#[derive(Default)]
struct Server {
    events: Arc<Mutex<Vec<String>>>,
    gone_after: usize,
    sends: usize,
    request: Option<Request>,
}

impl Server {
    fn note(&mut self, event: String) -> Result<(), ClientGone> {
        self.sends += 1;
        if self.gone_after > 0 && self.sends > self.gone_after {
            return Err(ClientGone);
        }
        self.events.lock().unwrap().push(event);
        Ok(())
    }
}

fn shown(head: &Head) -> String {
    format!("{} {:?}", head.status(), head.content_length())
}

impl Exchange for Server {
    fn request(&self) -> &Request {
        self.request.as_ref().unwrap()
    }
    fn read_body(&mut self, _: &mut [u8]) -> Result<usize, BodyError> {
        Err(BodyError::Truncated)
    }
    fn send_whole(&mut self, head: Head, blocks: Vec<Block>) -> Result<(), ClientGone> {
        let blocks: Vec<_> =
            blocks.iter().map(|block| String::from_utf8_lossy(block.as_bytes()).into_owned()).collect();
        self.note(format!("whole {} {blocks:?}", shown(&head)))
    }
    fn send_head(&mut self, head: Head) -> Result<(), ClientGone> {
        self.note(format!("head {}", shown(&head)))
    }
    fn send_block(&mut self, block: Block) -> Result<(), ClientGone> {
        self.note(format!("block {}", String::from_utf8_lossy(block.as_bytes())))
    }
    fn send_file(&mut self, file: FileRange) -> Result<(), ClientGone> {
        self.note(format!("file {}+{}", file.offset, file.length))
    }
    fn finish(&mut self, outcome: Outcome) {
        self.events.lock().unwrap().push(format!("{outcome:?}"));
    }
    fn log(&mut self, level: Level, text: &str) {
        let code = text.split(' ').next().unwrap_or_default();
        self.events.lock().unwrap().push(format!("{level:?} {code}"));
    }
}

/// An application that does what its script says.
struct Script<'a> {
    lease: &'a Lease,
    start: Option<Head>,
    returned: Option<Returned>,
    steps: Vec<Result<&'static str, &'static str>>,
    closed: Cell<usize>,
}

fn raised(text: &str) -> Report {
    Report::new(Code::Raised, text)
}

impl Call for Script<'_> {
    fn call(&mut self) -> Result<Returned, Report> {
        if let Some(head) = self.start.take() {
            self.lease.with(|response| response.start(head, false)).unwrap().unwrap();
        }
        self.returned.take().ok_or_else(|| raised("in call"))
    }
    fn next_block(&mut self) -> Result<Option<Block>, Report> {
        if self.steps.is_empty() {
            return Ok(None);
        }
        match self.steps.remove(0) {
            Ok(text) => Ok(Some(Block::Copied(text.as_bytes().to_vec()))),
            Err(text) => Err(raised(text)),
        }
    }
    fn close(&mut self) -> Result<(), Report> {
        self.closed.set(self.closed.get() + 1);
        Ok(())
    }
    fn end(&mut self) {}
    fn detached<R>(&mut self, wait: impl FnOnce() -> R) -> R {
        wait()
    }
}

struct Case {
    method: &'static str,
    head: Option<&'static str>,
    length: Option<&'static str>,
    returned: Option<Returned>,
    steps: Vec<Result<&'static str, &'static str>>,
    gone_after: usize,
}

fn case(returned: Option<Returned>) -> Case {
    Case { method: "GET", head: Some("200 OK"), length: None, returned, steps: Vec::new(), gone_after: 0 }
}

fn blocks(steps: &[Result<&'static str, &'static str>]) -> Case {
    Case { steps: steps.to_vec(), ..case(Some(Returned::Blocks)) }
}

fn whole(texts: &[&str]) -> Case {
    case(Some(Returned::Whole(texts.iter().map(|text| Block::Copied(text.as_bytes().to_vec())).collect())))
}

/// What the server saw, and how often close() was called.
fn events(case: Case) -> (Vec<String>, usize) {
    let mut builder = Request::builder(16, 0);
    builder.fact(Fact::Method, case.method.as_bytes());
    let events = Arc::new(Mutex::new(Vec::new()));
    let request = Some(builder.build());
    let lease = Lease::new(Box::new(Server { events: events.clone(), gone_after: case.gone_after, sends: 0, request }));
    let start = case.head.map(|status| {
        let mut head = Head::new(status.as_bytes()).unwrap();
        if let Some(length) = case.length {
            head.push(b"Content-Length", length.as_bytes()).unwrap();
        }
        head
    });
    let mut script = Script { lease: &lease, start, returned: case.returned, steps: case.steps, closed: Cell::new(0) };
    if let Some(rest) = run(&mut script, &lease) {
        rest.finish(&lease);
    }
    assert_eq!(lease.with(|_| ()), Err(Closed));
    let closed = script.closed.get();
    (std::mem::take(&mut *events.lock().unwrap()), closed)
}

#[test]
fn a_known_body_leaves_in_one() {
    assert_eq!(events(whole(&["a", "", "b"])).0, [r#"whole 200 Some(2) ["ab"]"#, "Complete"]);
    assert_eq!(events(whole(&[])).0, ["whole 200 Some(0) []", "Complete"]);
}

#[test]
fn the_head_waits_for_the_first_nonempty_block() {
    let (seen, closed) = events(blocks(&[Ok(""), Ok("a"), Ok("b")]));
    assert_eq!(seen, ["head 200 None", "block a", "block b", "Complete"]);
    assert_eq!(closed, 1);
    assert_eq!(events(blocks(&[Ok("")])).0, ["whole 200 Some(0) []", "Complete"]);
}

#[test]
fn a_first_block_as_long_as_content_length_leaves_with_the_end() {
    let (seen, closed) = events(Case { length: Some("3"), ..blocks(&[Ok("abc")]) });
    assert_eq!((seen, closed), (vec![r#"whole 200 Some(3) ["abc"]"#.to_string(), "Complete".into()], 1));
    let (seen, _) = events(Case { length: Some("3"), ..blocks(&[Ok("abc"), Err("late")]) });
    assert_eq!(seen.last().unwrap(), "Complete");
}

#[test]
fn a_failure_before_the_head_is_the_hosts_500() {
    assert_eq!(events(case(None)).0, ["Error HB0401", "Failed"]);
    let (seen, closed) = events(blocks(&[Err("first")]));
    assert_eq!((seen, closed), (vec!["Error HB0401".to_string(), "Failed".into()], 1));
}

#[test]
fn a_failure_after_the_head_truncates() {
    let (seen, closed) = events(blocks(&[Ok("a"), Err("second")]));
    assert_eq!((seen.last().unwrap().as_str(), closed), ("Truncated", 1));
    assert!(seen.contains(&"Error HB0402".to_string()));
}

#[test]
fn start_response_is_demanded() {
    for returned in [blocks(&[Ok("a")]), blocks(&[]), whole(&["a"])] {
        assert_eq!(events(Case { head: None, ..returned }).0, ["Error HB0404", "Failed"]);
    }
}

#[test]
fn content_length_is_kept_to() {
    let long = Case { length: Some("3"), ..blocks(&[Ok("ab"), Ok("cd"), Ok("ef")]) };
    assert_eq!(events(long).0, ["head 200 Some(3)", "block ab", "Warn HB0407", "block c", "Complete"]);
    let short = Case { length: Some("9"), ..blocks(&[Ok("ab")]) };
    assert_eq!(events(short).0, ["head 200 Some(9)", "block ab", "Error HB0406", "Truncated"]);
    let short = Case { length: Some("9"), ..whole(&["ab"]) };
    assert_eq!(events(short).0, ["head 200 Some(9)", "block ab", "Error HB0406", "Truncated"]);
    let long = Case { length: Some("1"), ..whole(&["ab"]) };
    assert_eq!(events(long).0, ["Warn HB0407", r#"whole 200 Some(1) ["a"]"#, "Complete"]);
    let empty = Case { length: Some("5"), ..blocks(&[]) };
    assert_eq!(events(empty).0, ["head 200 Some(5)", "Error HB0406", "Truncated"]);
}

#[test]
fn head_requests_and_bodiless_statuses_send_the_head_alone() {
    assert_eq!(events(Case { method: "HEAD", ..whole(&["abc"]) }).0, ["whole 200 Some(3) []", "Complete"]);
    assert_eq!(events(Case { method: "HEAD", ..whole(&[]) }).0, ["whole 200 None []", "Complete"]);
    let (seen, closed) = events(Case { method: "HEAD", ..blocks(&[Ok("a"), Ok("b")]) });
    assert_eq!((seen, closed), (vec!["head 200 None".to_string(), "Complete".into()], 1));
    assert_eq!(events(Case { head: Some("204 No Content"), ..whole(&["x"]) }).0, ["whole 204 None []", "Complete"]);
    let not_modified = Case { head: Some("304 Not Modified"), length: Some("7"), ..blocks(&[]) };
    assert_eq!(events(not_modified).0, ["whole 304 Some(7) []", "Complete"]);
}

#[test]
fn a_client_that_left_ends_the_iteration() {
    let (seen, closed) = events(Case { gone_after: 2, ..blocks(&[Ok("a"), Ok("b"), Ok("c")]) });
    assert_eq!(seen, ["head 200 None", "block a", "Info HB0501", "ClientGone"]);
    assert_eq!(closed, 1);
}

#[test]
fn a_file_leaves_as_far_as_content_length() {
    let file = |length| {
        let file = std::fs::File::open("/dev/null").unwrap().into();
        case(Some(Returned::File(FileRange { file, offset: 2, length })))
    };
    assert_eq!(events(file(4)).0, ["head 200 Some(4)", "file 2+4", "Complete"]);
    assert_eq!(events(Case { length: Some("3"), ..file(4) }).0, ["head 200 Some(3)", "file 2+3", "Complete"]);
    let short = events(Case { length: Some("9"), ..file(4) }).0;
    assert_eq!(short, ["head 200 Some(9)", "file 2+4", "Error HB0406", "Truncated"]);
    assert_eq!(events(Case { method: "HEAD", ..file(4) }).0, ["head 200 Some(4)", "Complete"]);
    assert_eq!(events(file(4)).1, 1);
}

#[test]
fn exc_info_may_replace_a_head_that_waits() {
    let head = |status: &str| Head::new(status.as_bytes()).unwrap();
    let server = Server { request: Some(Request::builder(0, 0).build()), ..Server::default() };
    let lease = Lease::new(Box::new(server));
    lease
        .with(|response| {
            assert_eq!(response.start(head("200 OK"), false), Ok(()));
            assert_eq!(response.start(head("200 OK"), false), Err(StartError::AlreadyCalled));
            assert_eq!(response.start(head("500 Oops"), true), Ok(()));
            assert_eq!(response.write(Block::Copied(b"a".to_vec())), Ok(Progress::More));
            assert_eq!(response.start(head("500 Oops"), true), Err(StartError::HeadSent));
            assert_eq!(response.start(head("200 OK"), false), Err(StartError::AlreadyCalled));
        })
        .unwrap();
}
