//! The loop's end of one request in flight: the head into nginx's structures, blocks into its output, back-pressure, the
//! end. Event loop only.
//!
//! nginx may give the request up at any time; its cleanup then takes `r` away here. Blocks stay until the request's pool
//! is destroyed, as buffers in nginx's hands (HTTP/2 frames, the connection's output) refer to them.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use highball::exchange::{Block, FileRange, Outcome};
use highball::response::Head;
use highball::worker::relay::Message;

use crate::body::Source;
use crate::ffi::{
    self, Pool, ngx_buf_t, ngx_chain_t, ngx_http_core_loc_conf_t, ngx_http_request_t, ngx_int_t, ngx_table_elt_t,
};
use crate::peer::Peer;

pub struct LoopEnd {
    /// Null once the request is over.
    r: *mut ngx_http_request_t,
    pub peer: Peer,
    body: Source,
    /// The worker gets parts of the body from the loop: then the request lives until the worker is done.
    feeds: bool,
    /// `wsgi_intercept_errors`.
    intercepts: bool,
    head: Option<Head>,
    begun: bool,
    handed: VecDeque<Handed>,
    /// Buffers that are free again.
    spare: Vec<NonNull<ngx_buf_t>>,
    /// What to do once everything that was handed over has left.
    ending: Option<End>,
}

/// A buffer in nginx's hands and what it refers to.
struct Handed {
    buf: NonNull<ngx_buf_t>,
    size: usize,
    /// How much of it the worker was told to be taken.
    told: usize,
    _content: Content,
}

enum Content {
    Block(Block),
    File(#[allow(dead_code, reason = "keeps the file open")] OwnedFd),
}

impl Content {
    /// What it counts against the worker's bound: a file takes no memory.
    fn size(&self) -> usize {
        match self {
            Content::Block(block) => block.as_bytes().len(),
            Content::File(_) => 0,
        }
    }
}

/// What the caller does to the request, once it holds no reference to this end any more: it may be freed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Finalize(ngx_int_t),
    /// The response is cut short, visibly.
    Break,
}

impl LoopEnd {
    pub fn new(r: *mut ngx_http_request_t, peer: Peer, body: Source, feeds: bool, intercepts: bool) -> LoopEnd {
        LoopEnd {
            r,
            peer,
            body,
            feeds,
            intercepts,
            head: None,
            begun: false,
            handed: VecDeque::new(),
            spare: Vec::new(),
            ending: None,
        }
    }

    /// The request, while there is one.
    pub fn request(&self) -> Option<NonNull<ngx_http_request_t>> {
        NonNull::new(self.r)
    }

    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// The worker has ended, and the request is about to.
    pub fn discard_body(&mut self) {
        if !self.r.is_null() {
            // SAFETY: alive.
            unsafe { self.body.discard(self.r) };
        }
    }

    /// The request is over: the worker is told, and nothing is sent any more.
    pub fn detach(&mut self) {
        self.r = null_mut();
        self.peer.close();
    }

    /// Gives the worker the next piece of the request body, once it is there; to one of a group as much as it takes.
    pub fn feed(&mut self) {
        if self.r.is_null() {
            return;
        }
        match self.peer.clone() {
            Peer::Pool(relay) => {
                // SAFETY: the request is alive until `detach`.
                let fed = unsafe { self.body.next(self.r) };
                fed.into_iter().for_each(|fed| relay.feed(fed));
            }
            Peer::Group(stream) => {
                while stream.send_body() {
                    // SAFETY: as above.
                    match unsafe { self.body.next(self.r) } {
                        Some(fed) => stream.feed(fed),
                        None => return,
                    }
                }
            }
        }
    }

    /// The client has sent something, or nothing for too long.
    pub fn readable(&mut self) {
        if self.r.is_null() {
            return;
        }
        // SAFETY: as above.
        let Some(fed) = (unsafe { self.body.arrived(self.r) }) else { return };
        match &self.peer {
            Peer::Pool(relay) => relay.feed(fed),
            Peer::Group(stream) => {
                stream.feed(fed);
                self.feed();
            }
        }
    }

    /// The body begins again; false where that cannot be.
    pub fn rewind(&mut self) -> bool {
        self.body.rewind()
    }

    /// Says when to come back.
    pub fn retry_after(&mut self) {
        if !self.r.is_null() {
            // SAFETY: alive; the strings are for ever.
            unsafe { push(&mut *self.r, b"Retry-After", b"1") };
        }
    }

    /// Sends what the worker has said. `messages` is left empty.
    pub fn deliver(&mut self, messages: &mut Vec<Message>) -> Option<End> {
        let mut contents: Vec<Content> = Vec::new();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut head = None;
        let mut whole = false;
        let mut outcome = None;
        for message in messages.drain(..) {
            match message {
                Message::Head(new) => head = Some(new),
                Message::Block(block) => contents.push(Content::Block(block)),
                Message::File(FileRange { file, offset, length }) => {
                    ranges.push((offset, length));
                    contents.push(Content::File(file));
                }
                Message::Whole(new, blocks) => {
                    head = Some(new);
                    whole = true;
                    contents.extend(blocks.into_iter().map(Content::Block));
                }
                Message::Log(..) => {}
                Message::Finish(new) => outcome = Some(new),
            }
        }
        if self.r.is_null() {
            return None;
        }
        let failure = match outcome {
            Some(Outcome::Failed) => Some(ffi::NGX_HTTP_INTERNAL_SERVER_ERROR),
            Some(Outcome::ClientGone) => Some(ffi::NGX_HTTP_CLIENT_CLOSED_REQUEST),
            _ => None,
        };
        if let Some(status) = failure {
            // For want of its body, as nginx itself would have answered.
            let status = self.body.failure().filter(|_| !self.begun).unwrap_or(status as ngx_int_t);
            return Some(End::Finalize(status));
        }
        let complete = whole || outcome == Some(Outcome::Complete);
        if let Some(end) = self.ending {
            return outcome.map(|_| end);
        }
        let mut result = ffi::OK;
        if let Some(head) = head {
            if self.intercepts && self.has_error_page(head.status()) {
                return Some(self.intercept(head));
            }
            result = self.send_head(head);
            if result == ffi::ERROR || result > ffi::OK {
                return Some(End::Finalize(result));
            }
        }
        // SAFETY: alive.
        let header_only = unsafe { (*self.r).header_only() } != 0;
        if header_only && self.begun {
            // Nobody will take a body (auth_request, mirror): the answer is complete, and the worker is told.
            self.peer.taken_by_client(contents.iter().map(Content::size).sum());
            return self.settle(result, true, outcome);
        } else if complete || !contents.is_empty() {
            result = self.send(contents, ranges, complete);
        }
        self.settle(result, complete, outcome)
    }

    fn settle(&mut self, result: ngx_int_t, complete: bool, outcome: Option<Outcome>) -> Option<End> {
        if result == ffi::ERROR {
            return Some(End::Finalize(ffi::ERROR));
        }
        self.account();
        if complete {
            let end = End::Finalize(result);
            if self.feeds && outcome.is_none() {
                self.ending = Some(end);
                return self.wait_for_client();
            }
            return Some(end);
        }
        if outcome == Some(Outcome::Truncated) {
            if !self.is_buffered() {
                return Some(End::Break);
            }
            self.ending = Some(End::Break);
        }
        self.wait_for_client()
    }

    /// The socket takes more, or has not done so for too long.
    pub fn writable(&mut self) -> Option<End> {
        if self.r.is_null() || !self.begun {
            return None;
        }
        // SAFETY: alive, and so is its connection; events of a connection are never null.
        let (r, c, event) = unsafe { (&mut *self.r, &mut *(*self.r).connection, &mut *(*(*self.r).connection).write) };
        if event.timedout() != 0 {
            c.set_timedout(1);
            return Some(End::Finalize(ffi::NGX_HTTP_REQUEST_TIME_OUT as ngx_int_t));
        }
        if event.delayed() != 0 || r.aio() != 0 {
            return self.wait_for_client();
        }
        if !self.is_buffered() {
            return None;
        }
        // SAFETY: alive; null means: go on with what is there.
        if unsafe { ffi::ngx_http_output_filter(self.r, null_mut()) } == ffi::ERROR {
            return Some(End::Finalize(ffi::ERROR));
        }
        self.account();
        if !self.is_buffered() && self.ending == Some(End::Break) {
            return self.ending;
        }
        self.wait_for_client()
    }

    /// Arms the time-out for a client that takes nothing, or disarms it.
    fn wait_for_client(&mut self) -> Option<End> {
        // SAFETY: alive.
        let event = unsafe { &mut *(*(*self.r).connection).write };
        // SAFETY: alive; what the core module keeps for a location.
        let core =
            unsafe { ffi::location_of::<ngx_http_core_loc_conf_t>(self.r, &raw const ffi::ngx_http_core_module) }?;
        if !self.is_buffered() {
            if event.delayed() == 0 {
                // SAFETY: a live event.
                unsafe { ffi::hb_del_timer(event) };
            }
            return None;
        }
        if event.delayed() == 0 {
            // SAFETY: a live event.
            unsafe { ffi::hb_add_timer(event, core.send_timeout) };
        }
        // SAFETY: a live event.
        let handled = unsafe { ffi::ngx_handle_write_event(event, core.send_lowat) };
        (handled != ffi::OK).then_some(End::Finalize(ffi::ERROR))
    }

    fn is_buffered(&self) -> bool {
        // SAFETY: alive.
        unsafe {
            let is_main = std::ptr::eq(self.r, (*self.r).main);
            (*self.r).buffered() != 0
                || !(*self.r).postponed.is_null()
                || (is_main && (*(*self.r).connection).buffered() != 0)
        }
    }

    /// Whether an `error_page` is there for this status.
    fn has_error_page(&self, status: u16) -> bool {
        // SAFETY: alive; what the core module keeps for a location, and in an array of this type.
        unsafe {
            let core = ffi::location_of::<ngx_http_core_loc_conf_t>(self.r, &raw const ffi::ngx_http_core_module);
            let Some(pages) = core.and_then(|core| core.error_pages.as_ref()) else { return false };
            let pages = std::slice::from_raw_parts(pages.elts.cast::<ffi::ngx_http_err_page_t>(), pages.nelts);
            let status = status as ngx_int_t;
            status >= 400 && (*self.r).error_page() == 0 && pages.iter().any(|page| page.status == status)
        }
    }

    /// The error page answers. Of the application's head only the challenge of a 401 is kept.
    fn intercept(&mut self, head: Head) -> End {
        let head = self.head.insert(head);
        let status = head.status() as ngx_int_t;
        if let Some((name, value)) =
            head.fields().find(|(name, _)| status == 401 && name.eq_ignore_ascii_case(b"www-authenticate"))
        {
            // SAFETY: alive; the head stays as long as this end does, which is as long as the request's pool.
            unsafe { push(&mut *self.r, name, value) };
        }
        End::Finalize(status)
    }

    /// Sends the head; the strings stay in it until the pool is destroyed.
    fn send_head(&mut self, head: Head) -> ngx_int_t {
        self.begun = true;
        let head = self.head.insert(head);
        // SAFETY: alive.
        unsafe {
            let Some(pool) = Pool::new((*self.r).pool) else { return ffi::ERROR };
            if set_head(&mut *self.r, head, pool).is_none() {
                return ffi::ERROR;
            }
            ffi::ngx_http_send_header(self.r)
        }
    }

    /// Hands blocks to nginx, with a flush, or as the end.
    fn send(&mut self, contents: Vec<Content>, ranges: Vec<(u64, u64)>, complete: bool) -> ngx_int_t {
        // SAFETY: alive.
        let (pool, is_main) = unsafe { (Pool::new((*self.r).pool), std::ptr::eq(self.r, (*self.r).main)) };
        let Some(pool) = pool else { return ffi::ERROR };
        let mut ranges = ranges.into_iter();
        let mut first: *mut ngx_chain_t = null_mut();
        let mut last: Option<NonNull<ngx_chain_t>> = None;
        for content in contents {
            let Some(mut buf) = self.buffer(pool) else { return ffi::ERROR };
            // SAFETY: a buffer of our own.
            let raw = unsafe { buf.as_mut() };
            let size = match &content {
                Content::Block(block) => {
                    let range = block.as_bytes().as_ptr_range();
                    (raw.pos, raw.last) = (range.start.cast_mut(), range.end.cast_mut());
                    (raw.start, raw.end) = (raw.pos, raw.last);
                    raw.set_memory(1);
                    block.as_bytes().len()
                }
                Content::File(file) => {
                    let (Some(mut place), Some((offset, length))) = (pool.zeroed::<ffi::ngx_file_t>(), ranges.next())
                    else {
                        return ffi::ERROR;
                    };
                    // SAFETY: freshly made; the log of a connection lives as long as it.
                    unsafe {
                        place.as_mut().fd = file.as_raw_fd();
                        place.as_mut().log = (*(*self.r).connection).log;
                        place.as_mut().name = ffi::string(b"wsgi.file_wrapper");
                    }
                    raw.file = place.as_ptr();
                    (raw.file_pos, raw.file_last) = (offset as i64, (offset + length) as i64);
                    raw.set_in_file(1);
                    0
                }
            };
            self.handed.push_back(Handed { buf, size, told: 0, _content: content });
            let Some(mut link) = pool.link() else { return ffi::ERROR };
            // SAFETY: freshly taken, as the one before was.
            unsafe {
                *link.as_mut() = ngx_chain_t { buf: buf.as_ptr(), next: null_mut() };
                match last {
                    Some(mut last) => last.as_mut().next = link.as_ptr(),
                    None => first = link.as_ptr(),
                }
            }
            last = Some(link);
        }
        let Some(last) = last else {
            // SAFETY: alive; the flag is nginx's own for the end of a response.
            return unsafe { ffi::ngx_http_send_special(self.r, ffi::NGX_HTTP_LAST as usize) };
        };
        // SAFETY: a link and a buffer of our own.
        let buf = unsafe { &mut *last.as_ref().buf };
        if complete {
            buf.set_last_buf(u32::from(is_main));
            buf.set_last_in_chain(1);
        } else {
            buf.set_flush(1);
        }
        // SAFETY: alive; nginx's filters keep buffers but copy the links between them, so that these are free again.
        unsafe {
            let result = ffi::ngx_http_output_filter(self.r, first);
            pool.give_back(first, last);
            result
        }
    }

    fn buffer(&mut self, pool: Pool) -> Option<NonNull<ngx_buf_t>> {
        let Some(buf) = self.spare.pop() else { return pool.zeroed() };
        // SAFETY: a buffer of our own that nginx has no use for any more; zeroed is how it began.
        unsafe { buf.write_bytes(0, 1) };
        Some(buf)
    }

    /// Frees what has left, and tells the worker.
    fn account(&mut self) {
        let mut taken = 0;
        while let Some(front) = self.handed.front_mut() {
            // SAFETY: a buffer of our own.
            let rest = unsafe { ffi::hb_buf_size(front.buf.as_ptr()) };
            let left = front.size.saturating_sub(usize::try_from(rest).unwrap_or(0));
            if rest != 0 {
                if front.size > 0 {
                    taken += left.saturating_sub(front.told);
                    front.told = front.told.max(left);
                }
                break;
            }
            taken += front.size.saturating_sub(front.told);
            self.spare.push(front.buf);
            self.handed.pop_front();
        }
        if taken > 0 {
            self.peer.taken_by_client(taken);
        }
    }
}

impl End {
    /// # Safety
    /// `r` must be alive; nothing may refer to its [`LoopEnd`].
    pub unsafe fn perform(self, r: *mut ngx_http_request_t) {
        // SAFETY: the caller's.
        unsafe {
            match self {
                End::Finalize(result) => ffi::ngx_http_finalize_request(r, result),
                End::Break => {
                    let c = &mut *(*r).connection;
                    if is_delimited_by_close(r) {
                        // Otherwise the client would take the end of the connection for the end of the response.
                        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                        libc::setsockopt(
                            c.fd,
                            libc::SOL_SOCKET,
                            libc::SO_LINGER,
                            (&raw const linger).cast(),
                            size_of_val(&linger) as libc::socklen_t,
                        );
                    }
                    c.set_error(1);
                    ffi::ngx_http_finalize_request(r, ffi::ERROR);
                }
            }
        }
    }
}

/// # Safety
/// `r` must be alive, and its head sent.
unsafe fn is_delimited_by_close(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: the caller's.
    unsafe { (*r).chunked() == 0 && (*r).headers_out.content_length_n < 0 && ffi::hb_is_http2(r) == 0 }
}

/// Fills nginx's head. Fields that nginx knows are also put where its filters look for them, so that it neither adds a
/// second one nor misses the application's. `None`: out of memory.
fn set_head(r: &mut ngx_http_request_t, head: &Head, pool: Pool) -> Option<()> {
    let status = head.status();
    r.headers_out.status = status.into();
    if !head.reason().is_empty() && (status, head.reason()) != (200, b"OK") {
        r.headers_out.status_line = pool.joined(&[status.to_string().as_bytes(), b" ", head.reason()])?;
    }
    r.headers_out.content_length_n = head.content_length().and_then(|length| i64::try_from(length).ok()).unwrap_or(-1);
    // Conditions and ranges are the application's to answer.
    r.set_disable_not_modified(1);
    r.set_allow_ranges(0);
    for (name, value) in head.fields() {
        if name.eq_ignore_ascii_case(b"content-type") {
            set_content_type(r, value);
            continue;
        }
        push(r, name, value)?;
    }
    if !head.allows_body() {
        r.set_header_only(1);
    }
    if status == 204 {
        r.headers_out.content_type = ffi::string(b"");
        r.headers_out.content_type.len = 0;
        r.headers_out.content_length_n = -1;
    }
    Some(())
}

/// Adds a field to nginx's list; name and value must stay as long as the request's pool.
fn push(r: &mut ngx_http_request_t, name: &[u8], value: &[u8]) -> Option<()> {
    // SAFETY: the list of the response's headers.
    let mut place =
        NonNull::new(unsafe { ffi::ngx_list_push(&raw mut r.headers_out.headers) })?.cast::<ngx_table_elt_t>();
    // SAFETY: room for one element; zeroed is a valid one.
    let field = unsafe {
        place.write_bytes(0, 1);
        place.as_mut()
    };
    field.hash = 1;
    field.key = ffi::string(name);
    field.value = ffi::string(value);
    index(r, field, name, value);
    Some(())
}

/// The header leaves byte for byte as given: nginx appends a charset only where `content_type_len` is the whole length.
fn set_content_type(r: &mut ngx_http_request_t, value: &[u8]) {
    let out = &mut r.headers_out;
    out.content_type = ffi::string(value);
    out.content_type_len = value.len();
    out.content_type_lowcase = null_mut();
    if let Some(end) = value.iter().position(|byte| *byte == b';') {
        let (kind, parameters) = value.split_at(end);
        out.content_type_len = kind.trim_ascii_end().len();
        let charset = parameters.split(|byte| *byte == b';').find_map(|parameter| {
            let (name, value) = parameter.trim_ascii().split_at_checked(8)?;
            name.eq_ignore_ascii_case(b"charset=").then_some(value)
        });
        if let Some(charset) = charset {
            out.charset =
                ffi::string(charset.strip_prefix(b"\"").and_then(|c| c.strip_suffix(b"\"")).unwrap_or(charset));
        }
    }
}

fn index(r: &mut ngx_http_request_t, field: *mut ngx_table_elt_t, name: &[u8], value: &[u8]) {
    let mut lowered = [0_u8; 16];
    let Some(lowered) = lowered.get_mut(..name.len()) else { return };
    lowered.copy_from_slice(name);
    lowered.make_ascii_lowercase();
    let request: *mut ngx_http_request_t = r;
    let out = &mut r.headers_out;
    match &*lowered {
        b"server" => out.server = single(out.server, field),
        b"date" => out.date = single(out.date, field),
        b"etag" => out.etag = single(out.etag, field),
        b"expires" => out.expires = single(out.expires, field),
        b"last-modified" => {
            out.last_modified = single(out.last_modified, field);
            // SAFETY: reads the value's bytes.
            let time = unsafe { ffi::ngx_parse_http_time(value.as_ptr().cast_mut(), value.len()) };
            out.last_modified_time = time;
        }
        b"content-encoding" => out.content_encoding = field,
        b"content-range" => out.content_range = single(out.content_range, field),
        b"accept-ranges" => out.accept_ranges = single(out.accept_ranges, field),
        // nginx would make an absolute URL of a path.
        b"location" if !value.starts_with(b"/") => out.location = field,
        // SAFETY: alive; an element of the response's list.
        b"cache-control" => unsafe { ffi::hb_add_cache_control(request, field) },
        // SAFETY: as above.
        b"www-authenticate" => unsafe { ffi::hb_set_www_authenticate(request, field) },
        _ => {}
    }
}

/// Of a field that may stand once the last one counts; nginx leaves out elements without a hash.
fn single(before: *mut ngx_table_elt_t, field: *mut ngx_table_elt_t) -> *mut ngx_table_elt_t {
    // SAFETY: null, or an element of the same list.
    if let Some(before) = unsafe { before.as_mut() } {
        before.hash = 0;
    }
    field
}
