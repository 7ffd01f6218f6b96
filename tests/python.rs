//! The core with a real Python and a fake server: what an application sees, and what leaves.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};

use highball::exchange::{Block, BodyError, ClientGone, Exchange, FileRange, Outcome};
use highball::log::Level;
use highball::python::{Application, Host, Interpreter, Status, serve};
use highball::request::{BodyLength, Fact, Request};
use highball::response::Head;
use highball::settings::{ApplicationSettings, InterpreterSettings, Target};

/// What left through a fake server.
#[derive(Default, Debug)]
struct Sent {
    head: Option<Head>,
    blocks: Vec<Vec<u8>>,
    outcome: Option<Outcome>,
    log: Vec<String>,
    whole: bool,
}

struct Fake {
    request: Request,
    body: VecDeque<Result<Vec<u8>, BodyError>>,
    sent: Arc<Mutex<Sent>>,
}

impl Exchange for Fake {
    fn request(&self) -> &Request {
        &self.request
    }
    fn read_body(&mut self, buf: &mut [u8]) -> Result<usize, BodyError> {
        let Some(piece) = self.body.pop_front() else { return Ok(0) };
        let mut piece = piece?;
        let rest = piece.split_off(piece.len().min(buf.len()));
        buf[..piece.len()].copy_from_slice(&piece);
        if !rest.is_empty() {
            self.body.push_front(Ok(rest));
        }
        Ok(piece.len())
    }
    fn send_whole(&mut self, head: Head, blocks: Vec<Block>) -> Result<(), ClientGone> {
        let mut sent = self.sent.lock().unwrap();
        sent.whole = true;
        sent.head = Some(head);
        sent.blocks.extend(blocks.iter().map(|block| block.as_bytes().to_vec()));
        Ok(())
    }
    fn send_head(&mut self, head: Head) -> Result<(), ClientGone> {
        self.sent.lock().unwrap().head = Some(head);
        Ok(())
    }
    fn send_block(&mut self, block: Block) -> Result<(), ClientGone> {
        self.sent.lock().unwrap().blocks.push(block.as_bytes().to_vec());
        Ok(())
    }
    fn send_file(&mut self, file: FileRange) -> Result<(), ClientGone> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; file.length as usize];
        std::fs::File::from(file.file).read_exact_at(&mut bytes, file.offset).unwrap();
        self.sent.lock().unwrap().blocks.push(bytes);
        Ok(())
    }
    fn finish(&mut self, outcome: Outcome) {
        let before = self.sent.lock().unwrap().outcome.replace(outcome);
        assert_eq!(before, None, "an exchange ends once");
    }
    fn log(&mut self, _: Level, text: &str) {
        self.sent.lock().unwrap().log.push(text.to_owned());
    }
}

struct Log(Mutex<Vec<String>>);

impl Host for Log {
    fn log(&self, _: Level, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

static LOG: LazyLock<Arc<Log>> = LazyLock::new(|| Arc::new(Log(Mutex::default())));

static PYTHON: LazyLock<Arc<Interpreter>> = LazyLock::new(|| {
    let settings = InterpreterSettings {
        path: vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/core"))],
        server_software: "Test/1.0".into(),
        multithread: true,
        host_signals: vec![libc::SIGTERM],
        ..InterpreterSettings::default()
    };
    Interpreter::start(&settings, LOG.clone()).unwrap()
});

fn application(target: &str) -> Arc<Application> {
    Application::new(ApplicationSettings { target: Target::parse(target).unwrap(), script_reloading: true })
}

/// Runs one request of `method` with `body` against `tests/core/behaviours.py`.
fn run(callable: &str, method: &str, body: Vec<Result<Vec<u8>, BodyError>>) -> Sent {
    run_application(&application(&format!("behaviours:{callable}")), method, body)
}

fn run_application(application: &Arc<Application>, method: &str, body: Vec<Result<Vec<u8>, BodyError>>) -> Sent {
    let mut builder = Request::builder(256, 4);
    builder.fact(Fact::Method, method.as_bytes()).fact(Fact::Scheme, b"http").fact(Fact::PathInfo, b"/caf\xc3\xa9");
    builder.fact(Fact::Protocol, b"HTTP/1.1").fact(Fact::ServerName, b"localhost").fact(Fact::ServerPort, b"80");
    builder.header(b"X-Thing", b"1").header(b"Host", b"localhost");
    let total = body.iter().map(|piece| piece.as_ref().map_or(1, Vec::len)).sum::<usize>();
    builder.body(if body.is_empty() { BodyLength::Absent } else { BodyLength::Known(total as u64) });
    run_request(application, builder.build(), body)
}

fn run_request(application: &Arc<Application>, request: Request, body: Vec<Result<Vec<u8>, BodyError>>) -> Sent {
    let sent = Arc::new(Mutex::new(Sent::default()));
    let exchange = Fake { request, body: body.into(), sent: sent.clone() };
    PYTHON.attach(|attached| serve(attached, application, Box::new(exchange)));
    std::mem::take(&mut *sent.lock().unwrap())
}

fn get(callable: &str) -> Sent {
    run(callable, "GET", Vec::new())
}

fn text(sent: &Sent) -> String {
    String::from_utf8(sent.blocks.concat()).unwrap()
}

#[test]
fn a_list_leaves_whole_with_its_length() {
    let sent = get("hello");
    assert_eq!((text(&sent).as_str(), sent.whole, sent.outcome), ("Hello world", true, Some(Outcome::Complete)));
    assert_eq!(sent.head.unwrap().content_length(), Some(11));
}

#[test]
fn a_generator_leaves_block_by_block() {
    let sent = get("generator");
    assert_eq!(sent.blocks, [b"one".to_vec(), b"two".to_vec()]);
    assert_eq!((sent.head.unwrap().content_length(), sent.outcome), (None, Some(Outcome::Complete)));
}

#[test]
fn write_comes_before_the_iterable() {
    assert_eq!(text(&get("written")), "written, returned");
}

#[test]
fn environ_has_what_the_pep_demands() {
    let sent = get("environ");
    let shown = text(&sent);
    for line in [
        "REQUEST_METHOD='GET'",
        "PATH_INFO='/cafÃ©'",
        "SCRIPT_NAME=''",
        "HTTP_X_THING='1'",
        "wsgi.version=(1, 0)",
        "wsgi.url_scheme='http'",
        "wsgi.multithread=True",
        "wsgi.multiprocess=False",
        "wsgi.run_once=False",
        "SERVER_SOFTWARE='Test/1.0'",
    ] {
        assert!(shown.lines().any(|found| found == line), "{line} in {shown}");
    }
    assert!(!shown.contains("CONTENT_LENGTH"));
}

#[test]
fn environ_has_nothing_of_the_request_before() {
    let application = application("behaviours:environ");
    let full = |method: &[u8], name: &[u8], agent: &[u8]| {
        let mut builder = Request::builder(256, 4);
        builder.fact(Fact::Method, method).fact(Fact::Scheme, b"https").fact(Fact::ScriptName, b"/mount");
        builder.fact(Fact::Protocol, b"HTTP/1.1").fact(Fact::ServerName, name).fact(Fact::ServerPort, b"8443");
        builder.header(b"User-Agent", agent).header(b"Host", name);
        builder
    };
    let expect = |request: Request, lines: &[&str], absent: &[&str]| {
        let shown = text(&run_request(&application, request, Vec::new()));
        for line in lines {
            assert!(shown.lines().any(|found| found == *line), "{line} in {shown}");
        }
        for key in absent {
            assert!(!shown.contains(key), "{key} in {shown}");
        }
    };
    for _ in 0..2 {
        let lines = ["SERVER_NAME='one'", "SCRIPT_NAME='/mount'", "HTTP_USER_AGENT='a'", "HTTPS='on'"];
        expect(full(b"GET", b"one", b"a").build(), &lines, &[]);
        let lines = ["SERVER_NAME='two'", "HTTP_HOST='two'", "HTTP_USER_AGENT='b'", "REQUEST_METHOD='PUT'"];
        expect(full(b"PUT", b"two", b"b").build(), &lines, &[]);
        // What the server says of a request goes before its variables, on a value that stays the same too.
        let mut with_variables = full(b"PUT", b"two", b"b");
        with_variables
            .variable(b"SERVER_NAME", b"spoofed")
            .variable(b"REQUEST_METHOD", b"GET")
            .variable(b"OTHER", b"1");
        expect(with_variables.build(), &["SERVER_NAME='two'", "REQUEST_METHOD='PUT'", "OTHER='1'"], &[]);
        // PEP 3333 wants these in every environ, and they are not known of this request.
        let lines = ["REQUEST_METHOD=''", "SERVER_NAME=''", "SCRIPT_NAME=''", "wsgi.url_scheme=''", "SERVER_PORT=''"];
        expect(Request::builder(0, 0).build(), &lines, &["HTTP_USER_AGENT", "HTTP_HOST", "HTTPS", "OTHER"]);
    }
}

#[test]
fn input_is_read_in_every_way() {
    let body = || vec![Ok(b"first\nsec".to_vec()), Ok(b"ond\n".to_vec()), Ok(b"last".to_vec())];
    for (callable, expected) in [
        ("read_all", r"[b'first\nsecond\nlast', b'']"),
        ("read_pieces", r"[b'firs', b't\nse', b'cond', b'\nlas', b't', b'', b'']"),
        ("read_lines", r"[b'first\n', b'se', b'cond\n', b'last', b'']"),
        ("read_readlines", r"[[b'first\n', b'second\n', b'last'], []]"),
        ("read_hint", r"[[b'first\n'], [b'second\n', b'last']]"),
        ("read_iterated", r"[b'first\n', b'second\n', b'last']"),
        ("read_mixed", r"[b'first\n', b'second', b'\n', b'last']"),
        ("read_none", r"[b'', b'first\nsecond\nlast']"),
    ] {
        assert_eq!(text(&run(callable, "POST", body())), expected, "{callable}");
    }
}

#[test]
fn a_cut_upload_raises() {
    let sent = run("read_all_or_error", "POST", vec![Ok(b"abc".to_vec()), Err(BodyError::Truncated)]);
    assert!(text(&sent).starts_with("ConnectionError OSError"), "{}", text(&sent));
}

#[test]
fn a_file_leaves_from_its_position_on() {
    let sent = get("file");
    assert_eq!(text(&sent), "cdef");
    assert_eq!(sent.head.unwrap().content_length(), Some(4));
    assert_eq!(text(&get("file_without_descriptor")), "in memory");
}

#[test]
fn a_compressed_file_is_not_mistaken_for_its_descriptor() {
    assert_eq!(text(&get("file_gzip")), "plain text");
}

#[test]
fn an_exception_before_the_head_fails_the_exchange() {
    let sent = get("raises");
    assert_eq!((sent.outcome, sent.head.is_none()), (Some(Outcome::Failed), true));
    let record = sent.log.join("\n");
    assert!(record.starts_with("HB0401 application \"behaviours:raises\" raised ZeroDivisionError"), "{record}");
    assert!(record.contains("Traceback") && record.contains("1 / 0") && !record.contains("<highball>"), "{record}");
}

#[test]
fn an_exception_after_the_head_cuts_the_response() {
    let sent = get("raises_late");
    assert_eq!((text(&sent).as_str(), sent.outcome), ("begun", Some(Outcome::Truncated)));
    assert!(sent.log.join("\n").starts_with("HB0402"));
}

#[test]
fn faults_of_the_application_are_named() {
    for (callable, code) in [
        ("gives_str", "HB0403"),
        ("gives_none", "HB0403"),
        ("gives_bytes", "HB0403"),
        ("never_starts", "HB0404"),
        ("bad_status", "HB0405"),
        ("bad_header", "HB0405"),
        ("header_beyond_latin1", "HB0405"),
        ("headers_no_list", "HB0405"),
        ("starts_twice", "HB0401"),
        ("exits", "HB0409"),
    ] {
        let sent = get(callable);
        assert_eq!((sent.outcome, sent.head.is_none()), (Some(Outcome::Failed), true), "{callable}: {sent:?}");
        assert!(sent.log.join("\n").starts_with(code), "{callable}: {:?}", sent.log);
    }
}

#[test]
fn exc_info_replaces_a_head_not_sent_and_raises_after() {
    let sent = get("recovers");
    assert_eq!((sent.head.as_ref().unwrap().status(), text(&sent).as_str()), (500, "recovered"));
    let sent = get("recovers_too_late");
    assert_eq!(sent.outcome, Some(Outcome::Truncated));
    assert!(sent.log.join("\n").contains("KeyError"), "{:?}", sent.log);
}

#[test]
fn exc_info_must_be_an_exception() {
    let sent = get("exc_info_of_nothing");
    assert_eq!((text(&sent).as_str(), sent.outcome), ("begun.....", Some(Outcome::Complete)));
}

#[test]
fn an_exception_in_iter_is_the_applications_own() {
    let record = get("raises_in_iter").log.concat();
    assert!(record.starts_with("HB0401") && record.contains("from __iter__"), "{record}");
}

#[test]
fn a_printed_line_without_an_end_stays_with_its_request() {
    assert_eq!(get("prints_half_a_line").log, ["half a line"]);
}

#[test]
fn start_response_may_come_after_empty_blocks() {
    assert_eq!(text(&get("starts_late")), "late");
}

#[test]
fn close_is_called_once_whatever_happens() {
    for callable in ["closing", "closing_raises"] {
        get(callable);
    }
    assert_eq!(text(&get("closed")), "[1, 1]");
}

#[test]
fn errors_and_prints_reach_the_log_of_the_request() {
    let sent = get("logs");
    assert_eq!(sent.log, ["one\ntwo\n", "printed\n", "unfinished"]);
}

#[test]
fn objects_raise_after_the_exchange() {
    get("keeps");
    let shown = text(&get("kept"));
    assert_eq!(shown, "RuntimeError RuntimeError RuntimeError");
}

#[test]
fn children_do_not_inherit_the_servers_signals() {
    // The threads of a server block its signals, and their mask is what a child starts with.
    // SAFETY: plain C calls on a signal set of this function.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        libc::sigaddset(&mut signals, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
    }
    assert_eq!(text(&get("spawns")), "(1, -15)");
    assert_eq!(text(&get("forks")), "15");
}

#[test]
fn signal_handlers_stay_the_servers() {
    let sent = get("signals");
    assert_eq!(text(&sent), "True");
    assert!(sent.log.join("").contains("signal.signal(SIGTERM) was ignored"), "{:?}", sent.log);
}

#[test]
fn a_record_has_a_bound() {
    let record = get("long_message").log.concat();
    assert!(record.starts_with("HB0401") && record.len() < 100_000, "{}", record.len());
}

#[test]
fn what_cannot_be_loaded_says_why() {
    for (target, code, words) in [
        ("no_such_module:app", "HB0303", "no_such_module"),
        ("behaviours:no_such", "HB0306", "hello"),
        ("behaviours:not_callable", "HB0307", "int"),
        ("syntax_error:app", "HB0304", "line 2"),
        ("missing_package:app", "HB0303", "a_package_that_is_missing"),
        ("raises_on_import:app", "HB0305", "RuntimeError: not today"),
        ("/nonexistent/app.wsgi", "HB0301", "/nonexistent/app.wsgi"),
    ] {
        let application = application(target);
        application.load(&PYTHON);
        let Status::Failed(report) = application.status() else { panic!("{target} was loaded") };
        let record = report.to_string();
        assert!(record.starts_with(code) && record.contains(words), "{target}: {record}");
        assert!(LOG.0.lock().unwrap().contains(&record));
        let sent = run_application(&application, "GET", Vec::new());
        assert_eq!(sent.outcome, Some(Outcome::Failed));
        assert!(sent.log.join("").contains(code));
    }
}

#[test]
fn a_factory_makes_the_application() {
    let sent = run_application(&application("behaviours:make()"), "GET", Vec::new());
    assert_eq!(text(&sent), "made");
}

#[test]
fn a_changed_script_is_loaded_again() {
    let directory = std::env::temp_dir().join(format!("highball-core-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let script = directory.join("app.wsgi");
    let source = |answer: &str| format!("def application(e, s):\n    s('200 OK', [])\n    return [b'{answer}']\n");
    std::fs::write(&script, source("one")).unwrap();
    let application = application(script.to_str().unwrap());
    assert_eq!(text(&run_application(&application, "GET", Vec::new())), "one");
    std::fs::write(&script, source("three")).unwrap();
    assert_eq!(text(&run_application(&application, "GET", Vec::new())), "one", "it is not looked at for each request");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(text(&run_application(&application, "GET", Vec::new())), "three");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn many_threads_share_one_interpreter() {
    let application = application("behaviours:hello");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    assert_eq!(text(&run_application(&application, "GET", Vec::new())), "Hello world");
                }
            });
        }
    });
}
