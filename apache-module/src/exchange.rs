//! The exchange on httpd's own request: plain calls on `request_rec`, from one thread at a time.

use std::cell::Cell;
use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use highball::error::{Code, Report};
use highball::exchange::{Block, BodyError, ClientGone, Exchange, FileRange, Outcome};
use highball::group::client::direct::Client;
use highball::log::Level;
use highball::request::{BodyLength, Fact, Request};
use highball::response::Head;

use crate::ffi::brigade::{Brigade, Taken};
use crate::ffi::rec::{Rec, process_is_stopping};
use crate::ffi::{
    self, AP_FILTER_ERROR, APR_EAGAIN, APR_ENOSPC, APR_EOF, APR_INCOMPLETE, APR_SUCCESS, APR_TIMEUP, HTTP_BAD_REQUEST,
    HTTP_INTERNAL_SERVER_ERROR, HTTP_REQUEST_ENTITY_TOO_LARGE, HTTP_REQUEST_TIME_OUT, OK, ap_graceful_shutdown_timeout,
    ap_index_of_response, ap_map_http_request_error, apr_status_t,
};
use crate::log;

pub struct Direct {
    rec: Rec,
    request: Request,
    /// What the handler returns to httpd.
    status: NonNull<Cell<c_int>>,
    /// What httpd read of the body and the application did not take yet.
    received: Option<Brigade>,
    /// What the last part of the response left in.
    output: Option<Brigade>,
    body_ended: bool,
    /// The status for a body that could not be read.
    body_failure: Option<c_int>,
    /// `WSGIErrorOverride`.
    overrides: bool,
    /// The status of the application's whose page httpd sends.
    overridden: Option<c_int>,
    sent: Sent,
    /// A file is on its way, which httpd sends on without us.
    file_sent: bool,
    /// When this process was first seen to end.
    stopping: Option<Instant>,
}

// SAFETY: `rec` is Send; `status` belongs to the handler, which waits for the exchange to end and looks only then.
unsafe impl Send for Direct {}

/// How far the response is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sent {
    Nothing,
    /// The head is set on the request; httpd sends it with the first brigade.
    Head,
    Some,
    /// Body and end.
    All,
}

impl Direct {
    /// # Safety
    /// `rec` and `status` live until the exchange is dropped.
    pub unsafe fn new(rec: Rec, request: Request, status: &Cell<c_int>, overrides: bool) -> Direct {
        // What could be read would be the body of another request.
        let body_ended = request.body() == BodyLength::Absent && (rec.is_error_page() || rec.is_subrequest());
        Direct {
            rec,
            request,
            status: NonNull::from(status),
            received: None,
            output: None,
            body_ended,
            body_failure: None,
            overrides,
            overridden: None,
            sent: Sent::Nothing,
            file_sent: false,
            stopping: None,
        }
    }

    /// Sets the head on the request, unless httpd's own page answers in place of the application's: false then.
    fn set_head(&mut self, head: &Head) -> bool {
        if self.overrides && has_page(head.status()) && !self.rec.is_error_page() {
            let challenge = head.fields().find(|(name, _)| name.eq_ignore_ascii_case(b"www-authenticate"));
            if let Some((_, value)) = challenge.filter(|_| head.status() == 401) {
                self.rec.add_challenge(self.rec.pool().string(value));
            }
            self.overridden = Some(head.status().into());
            return false;
        }
        self.rec.leave_ranges_alone();
        let pool = self.rec.pool();
        let line = (!head.reason().is_empty()).then(|| {
            let mut line = Vec::with_capacity(4 + head.reason().len());
            line.extend_from_slice(head.status().to_string().as_bytes());
            line.push(b' ');
            line.extend_from_slice(head.reason());
            pool.string(&line)
        });
        // An error page keeps the status it is the page of, unless the application names another.
        if head.status() != 200 || !self.rec.is_error_page() {
            self.rec.set_status(head.status(), line);
        }
        let mut content_type = None;
        for (name, value) in head.fields() {
            if name.eq_ignore_ascii_case(b"content-type") {
                content_type = Some(pool.string(value));
            } else {
                self.rec.add_header(pool.string(name), pool.string(value));
            }
        }
        self.rec.set_content_type(content_type);
        if let Some(length) = head.content_length() {
            self.rec.set_content_length(length);
        }
        self.sent = Sent::Head;
        true
    }

    /// Passes content to httpd. Waits for the client where httpd does.
    fn pass(&mut self, mut brigade: Brigade) -> Result<(), ClientGone> {
        self.sent = self.sent.max(Sent::Some);
        let status = brigade.pass(self.rec.output_filters());
        self.output = Some(brigade);
        if status != APR_SUCCESS || self.rec.is_aborted() { Err(ClientGone) } else { Ok(()) }
    }

    /// An empty brigade for the response: one for all of it, as the request's pool gives nothing back before its end.
    fn brigade(&mut self) -> Brigade {
        self.output.take().unwrap_or_else(|| self.rec.brigade())
    }

    /// Sends what httpd holds back of a finished response: the application's `close()` comes next and may take long.
    fn push_out(&mut self) {
        let mut brigade = self.brigade();
        brigade.flush();
        brigade.pass(self.rec.connection_filters());
    }

    /// Ends the response so that the client sees it is not complete.
    fn break_off(&mut self) {
        self.rec.close_connection();
        if self.rec.is_aborted() {
            return;
        }
        if self.sent == Sent::Head {
            // An error that comes before the head would turn into a page of its own.
            let mut brigade = self.brigade();
            brigade.flush();
            if self.pass(brigade).is_err() {
                return;
            }
        }
        // Without a length or chunks the end of the connection is the end of the body: it must not look orderly.
        let reset = self.rec.ends_with_connection().then(|| self.rec.socket()).flatten();
        let mut brigade = self.brigade();
        brigade.broken();
        brigade.end();
        self.pass(brigade).ok();
        if let Some(socket) = reset {
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            // SAFETY: the client's socket is open; the option's value is read during the call.
            unsafe {
                libc::setsockopt(
                    socket,
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    (&raw const linger).cast(),
                    size_of::<libc::linger>() as libc::socklen_t,
                );
            }
            self.rec.abort_connection();
        }
        self.sent = Sent::All;
    }

    /// A response that goes on must not keep a process for ever that has been told to end.
    fn retired(&mut self) -> bool {
        if !process_is_stopping() {
            return false;
        }
        let since = *self.stopping.get_or_insert_with(Instant::now);
        // SAFETY: a plain number, set when the configuration is read.
        let limit = unsafe { ap_graceful_shutdown_timeout };
        let limit =
            u64::try_from(limit).ok().filter(|seconds| *seconds > 0).map_or(LONGEST_STREAM, Duration::from_secs);
        if since.elapsed() < limit {
            return false;
        }
        let method = String::from_utf8_lossy(self.request.fact(Fact::Method).unwrap_or_default());
        let path = String::from_utf8_lossy(self.rec.uri()).into_owned();
        let cause = format!(
            "{method} {path} was still going on {} s after its server process was told to end",
            limit.as_secs()
        );
        log::request(
            self.rec,
            Level::Warn,
            &Report::new(Code::Retired, cause).remedy("its connection was broken").to_string(),
        );
        true
    }

    fn body_error(&mut self, status: apr_status_t) -> BodyError {
        self.rec.close_connection();
        // SAFETY: a plain mapping of numbers.
        self.body_failure = Some(unsafe { ap_map_http_request_error(status, HTTP_BAD_REQUEST) });
        match status {
            APR_EOF | APR_INCOMPLETE | libc::ECONNRESET | libc::ECONNABORTED | libc::EPIPE => BodyError::Truncated,
            APR_TIMEUP => BodyError::TimedOut,
            APR_ENOSPC => BodyError::TooLarge,
            // A chunk's size that is none.
            libc::EINVAL => self.malformed(HTTP_BAD_REQUEST),
            // One of httpd's filters has answered already; its number is no APR status.
            AP_FILTER_ERROR => match self.rec.status() {
                HTTP_REQUEST_ENTITY_TOO_LARGE => BodyError::TooLarge,
                HTTP_REQUEST_TIME_OUT => BodyError::TimedOut,
                status => self.malformed(status),
            },
            _ if self.rec.is_aborted() => BodyError::Truncated,
            _ => BodyError::Failed(ffi::status_text(status)),
        }
    }

    fn malformed(&self, status: c_int) -> BodyError {
        let text = format!("the request body is malformed; the client got status {status}");
        log::request(self.rec, Level::Info, &text);
        BodyError::Truncated
    }

    /// Reads the body; `None` where nothing has come and this must not wait.
    fn read(&mut self, buf: &mut [u8], waits: bool) -> Result<Option<usize>, BodyError> {
        if self.body_ended || buf.is_empty() {
            return Ok(Some(0));
        }
        if self.body_failure.is_some() {
            return Err(BodyError::Failed("reading it failed before".into()));
        }
        loop {
            let received = self.received.get_or_insert_with(|| self.rec.brigade());
            match received.take(buf) {
                Taken::Some(count) => return Ok(Some(count)),
                Taken::End => {
                    self.body_ended = true;
                    return Ok(Some(0));
                }
                Taken::Nothing => {}
                Taken::Failed(status) => return Err(self.body_error(status)),
            }
            let status = received.receive(self.rec.input_filters(), buf.len(), waits);
            if !waits && (status == APR_EAGAIN || status == APR_SUCCESS && received.is_empty()) {
                return Ok(None);
            }
            if status != APR_SUCCESS {
                return Err(self.body_error(status));
            }
        }
    }

    fn answer(&self, status: c_int) {
        // SAFETY: the handler's cell lives until the exchange is dropped, as `new` demands.
        unsafe { self.status.as_ref() }.set(status);
    }
}

impl Exchange for Direct {
    fn request(&self) -> &Request {
        &self.request
    }

    fn read_body(&mut self, buf: &mut [u8]) -> Result<usize, BodyError> {
        self.read(buf, true).map(Option::unwrap_or_default)
    }

    fn send_whole(&mut self, head: Head, blocks: Vec<Block>) -> Result<(), ClientGone> {
        if !self.set_head(&head) {
            return Ok(());
        }
        let total: usize = blocks.iter().map(|block| block.as_bytes().len()).sum();
        let mut brigade = self.brigade();
        blocks.into_iter().for_each(|block| brigade.block(block));
        brigade.end();
        let passed = self.pass(brigade);
        self.sent = Sent::All;
        if total <= PUSHED_OUT {
            self.push_out();
        }
        passed
    }

    fn send_head(&mut self, head: Head) -> Result<(), ClientGone> {
        self.set_head(&head);
        Ok(())
    }

    fn send_block(&mut self, block: Block) -> Result<(), ClientGone> {
        if self.overridden.is_some() {
            return Ok(());
        }
        if self.retired() {
            return Err(ClientGone);
        }
        let mut brigade = self.brigade();
        brigade.block(block);
        brigade.flush();
        self.pass(brigade)
    }

    fn send_file(&mut self, file: FileRange) -> Result<(), ClientGone> {
        if self.overridden.is_some() {
            return Ok(());
        }
        let mut brigade = self.brigade();
        let status = brigade.file(file.file, file.offset, file.length, !self.rec.forbids_sendfile());
        if status != APR_SUCCESS {
            let text = format!("a file of the response cannot be sent: {}", ffi::status_text(status));
            log::request(self.rec, Level::Error, &text);
            return Err(ClientGone);
        }
        self.file_sent = true;
        self.pass(brigade)
    }

    fn finish(&mut self, outcome: Outcome) {
        self.received = None;
        if let Some(status) = self.overridden {
            return self.answer(status);
        }
        match (outcome, self.sent) {
            (Outcome::Complete, Sent::All) => self.answer(OK),
            (Outcome::Complete, _) => {
                let mut brigade = self.brigade();
                brigade.end();
                self.pass(brigade).ok();
                self.sent = Sent::All;
                if !self.file_sent {
                    self.push_out();
                }
                self.answer(OK);
            }
            // httpd answers, with its own pages; or a filter of its has done so.
            (_, Sent::Nothing) => {
                let status = self.body_failure.unwrap_or(match outcome {
                    Outcome::ClientGone => HTTP_BAD_REQUEST,
                    _ => HTTP_INTERNAL_SERVER_ERROR,
                });
                self.answer(status);
            }
            _ => {
                self.break_off();
                self.answer(OK);
            }
        }
    }

    fn log(&mut self, level: Level, text: &str) {
        log::request(self.rec, level, text);
    }
}

impl Client for Direct {
    fn read_now(&mut self, buf: &mut [u8]) -> Result<Option<usize>, BodyError> {
        self.read(buf, false)
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the connection, and with it its socket, outlives the exchange.
        self.rec.socket().map(|socket| unsafe { BorrowedFd::borrow_raw(socket) })
    }

    fn patience(&self) -> Duration {
        self.rec.timeout()
    }

    fn timed_out(&mut self) -> BodyError {
        self.body_error(APR_TIMEUP)
    }

    fn awaits_continue(&self) -> bool {
        self.rec.awaits_continue()
    }

    fn refuse(&mut self, status: u16) {
        if self.sent != Sent::Nothing {
            self.break_off();
            return self.answer(OK);
        }
        if status == 503 {
            self.rec.add_error_header(c"Retry-After", c"1");
        }
        self.answer(status.into());
    }
}

/// Whether httpd knows this error; of others it would make a 500.
fn has_page(status: u16) -> bool {
    // SAFETY: a plain lookup, which gives the place of 500 for what is not there.
    let place = |status: c_int| unsafe { ap_index_of_response(status) };
    status == 500 || status >= 400 && place(status.into()) != place(HTTP_INTERNAL_SERVER_ERROR)
}

/// A finished body up to this size is written at once, as it does not wait for the client. The rest of a larger one is left
/// to httpd, whose event MPM writes it without a thread.
const PUSHED_OUT: usize = 32 * 1024;

/// How long a response may go on in a process that has been told to end, where GracefulShutdownTimeout says nothing.
const LONGEST_STREAM: Duration = Duration::from_secs(60);
