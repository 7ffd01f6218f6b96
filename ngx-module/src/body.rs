//! The request body. As nginx has buffered it: small ones copied, files by descriptor, large memory piece by piece. Or as
//! it arrives (`wsgi_request_buffering off`), whenever the worker asks for more. Event loop only.

use std::fs::File;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::null_mut;

use highball::exchange::BodyError;
use highball::request::BodyLength;
use highball::worker::relay::{Fed, Segment};

use crate::ffi::{self, called_by_nginx, ngx_chain_t, ngx_http_request_t, ngx_int_t};

/// Where the worker's next piece comes from.
pub enum Source {
    /// A body in memory that is too large to be copied at once.
    Memory {
        chain: *mut ngx_chain_t,
        offset: usize,
        first: *mut ngx_chain_t,
    },
    Stream(Stream),
}

/// A body that is read while the application runs.
#[derive(Default)]
pub struct Stream {
    begun: bool,
    /// The worker waits for what the client has not sent yet.
    wanted: bool,
    /// The status nginx would end the request with, as the body cannot be read.
    failed: Option<ngx_int_t>,
}

pub struct Body {
    pub length: BodyLength,
    pub segments: Vec<Segment>,
    pub source: Source,
}

impl Body {
    /// A body that is still to be read.
    ///
    /// # Safety
    /// `r` must be alive, and no subrequest.
    pub unsafe fn unread(r: *mut ngx_http_request_t) -> Body {
        // SAFETY: the caller's.
        let (headers, dropped) = unsafe { (&(*r).headers_in, (*r).discard_body() != 0) };
        let length = match u64::try_from(headers.content_length_n) {
            // nginx drops the body before it turns to an error page, and may still be at it.
            _ if dropped => BodyLength::Absent,
            // nginx calls an HTTP/2 body of unknown length chunked, too.
            _ if headers.chunked() != 0 => BodyLength::Unknown,
            Ok(length) => BodyLength::Known(length),
            Err(_) => BodyLength::Absent,
        };
        let segments = if length == BodyLength::Absent { Vec::new() } else { vec![Segment::Stream] };
        Body { length, segments, source: Source::Stream(Stream::default()) }
    }

    /// # Safety
    /// `r` must be alive, and its body read.
    pub unsafe fn of(r: *mut ngx_http_request_t) -> std::io::Result<Body> {
        // SAFETY: the caller's; a request's body is null or complete.
        let (r, chain) = unsafe { (&*r, (*r).request_body.as_ref().map_or(null_mut(), |body| body.bufs)) };
        let mut total = 0;
        let mut memory = 0;
        each(chain, |part| {
            total += part.length();
            if let Part::Memory(bytes) = part {
                memory += bytes.len();
            }
            Ok(())
        })?;
        let mut segments = Vec::new();
        each(chain, |part| {
            match part {
                Part::Memory(bytes) if memory <= COPIED => match segments.last_mut() {
                    Some(Segment::Memory(before)) => before.extend_from_slice(bytes),
                    _ => segments.push(Segment::Memory(bytes.to_vec())),
                },
                Part::Memory(bytes) => match segments.last_mut() {
                    Some(Segment::Loop { length }) => *length += bytes.len() as u64,
                    _ => segments.push(Segment::Loop { length: bytes.len() as u64 }),
                },
                Part::File { descriptor, offset, length } => {
                    // SAFETY: nginx keeps the file open as long as the request is alive.
                    let file = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()?;
                    segments.push(Segment::File { file: File::from(file), offset, length });
                }
            }
            Ok(())
        })?;
        let declared = r.headers_in.content_length_n;
        let is_main = std::ptr::eq(r, r.main);
        let length = match () {
            () if r.discard_body() != 0 => BodyLength::Absent,
            () if is_main && r.headers_in.chunked() != 0 => BodyLength::Unknown,
            // A subrequest has the body of its parent or none, whatever the headers say.
            () if !is_main => {
                if total > 0 {
                    BodyLength::Known(total)
                } else {
                    BodyLength::Absent
                }
            }
            () if declared >= 0 => BodyLength::Known(declared as u64),
            () if total > 0 => BodyLength::Unknown,
            () => BodyLength::Absent,
        };
        Ok(Body { length, segments, source: Source::Memory { chain, offset: 0, first: chain } })
    }
}

impl Source {
    /// The next piece for a worker that has asked for it; `None` while the client has not sent it.
    ///
    /// # Safety
    /// The request must be alive.
    pub unsafe fn next(&mut self, r: *mut ngx_http_request_t) -> Option<Fed> {
        match self {
            // SAFETY: the caller's.
            Source::Memory { chain, offset, .. } => Some(unsafe { next_in_memory(chain, offset) }),
            Source::Stream(stream) => {
                // SAFETY: the caller's.
                let fed = unsafe { stream.next(r) };
                stream.wanted = fed.is_none();
                fed
            }
        }
    }

    /// More has arrived, or the time for it is over: what the worker waits for.
    ///
    /// # Safety
    /// The request must be alive.
    pub unsafe fn arrived(&mut self, r: *mut ngx_http_request_t) -> Option<Fed> {
        let wanted = matches!(self, Source::Stream(Stream { wanted: true, .. }));
        // SAFETY: the caller's.
        if wanted { unsafe { self.next(r) } } else { None }
    }

    /// The body is to be given once more; false where some of it was given and is gone.
    pub fn rewind(&mut self) -> bool {
        match self {
            Source::Memory { chain, offset, first } => {
                (*chain, *offset) = (*first, 0);
                true
            }
            Source::Stream(stream) => !stream.begun,
        }
    }

    /// The status for a request whose application failed, if that was for want of its body.
    pub fn failure(&self) -> Option<ngx_int_t> {
        match self {
            Source::Memory { .. } => None,
            Source::Stream(stream) => stream.failed,
        }
    }

    /// The worker has ended: what it did not read is left to nginx, so that the connection can be kept.
    ///
    /// # Safety
    /// The request must be alive.
    pub unsafe fn discard(&mut self, r: *mut ngx_http_request_t) {
        if let Source::Stream(stream) = self
            && !std::mem::replace(&mut stream.begun, true)
        {
            // SAFETY: the caller's; nothing of the body was read.
            unsafe {
                // A client that waits for "100 Continue" may send the body, or not.
                if !(*r).headers_in.expect.is_null() || ffi::ngx_http_discard_request_body(r) != ffi::OK {
                    (*r).set_keepalive(0);
                }
            }
        }
    }
}

impl Stream {
    unsafe fn next(&mut self, r: *mut ngx_http_request_t) -> Option<Fed> {
        if self.failed.is_some() {
            return Some(Fed::Failed(BodyError::Truncated));
        }
        // SAFETY: alive; what nginx's own proxy does with `proxy_request_buffering off`.
        unsafe {
            if !std::mem::replace(&mut self.begun, true) {
                let (reads, writes) = ((*r).read_event_handler, (*r).write_event_handler);
                (*r).set_request_body_no_buffering(1);
                let result = ffi::ngx_http_read_client_request_body(r, Some(on_begun));
                (*r).read_event_handler = reads;
                (*r).write_event_handler = writes;
                if result >= ffi::NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t {
                    return Some(self.fail(r, result));
                }
                // The handler of this module has a reference already.
                let main = &mut *(*r).main;
                main.set_count(main.count() - 1);
                // Of an HTTP/2 body that is there as a whole nginx would tell later, through a handler of its own.
                if result == ffi::NGX_AGAIN as ngx_int_t && (*r).request_body_no_buffering() == 0 {
                    (*r).set_request_body_no_buffering(1);
                    (*r).set_reading_body(1);
                }
            }
            loop {
                let piece = take(r);
                if !piece.is_empty() {
                    // The client is not late while nobody asks it for more.
                    ffi::hb_del_timer((*(*r).connection).read);
                    return Some(Fed::Piece(piece));
                }
                if (*r).reading_body() == 0 {
                    return Some(Fed::End);
                }
                let result = ffi::ngx_http_read_unbuffered_request_body(r);
                if result == ffi::ERROR || result >= ffi::NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t {
                    return Some(self.fail(r, result));
                }
                if result == ffi::NGX_AGAIN as ngx_int_t && (*(*r).request_body).bufs.is_null() {
                    return None;
                }
            }
        }
    }

    unsafe fn fail(&mut self, r: *mut ngx_http_request_t, result: ngx_int_t) -> Fed {
        self.failed = Some(result);
        // SAFETY: alive.
        unsafe { (*r).set_keepalive(0) };
        Fed::Failed(match result as i32 {
            ffi::NGX_HTTP_REQUEST_ENTITY_TOO_LARGE => BodyError::TooLarge,
            ffi::NGX_HTTP_REQUEST_TIME_OUT => BodyError::TimedOut,
            _ => BodyError::Truncated,
        })
    }
}

/// What nginx has read since the last time. Its buffers are free again then.
///
/// # Safety
/// `r` must be alive, and reading its body without buffering.
unsafe fn take(r: *mut ngx_http_request_t) -> Vec<u8> {
    let mut bytes = Vec::new();
    // SAFETY: the body's chain belongs to the request, and its links to the request's pool, which keeps free ones.
    unsafe {
        let Some(body) = (*r).request_body.as_mut() else { return bytes };
        let mut chain = std::mem::replace(&mut body.bufs, null_mut());
        while let Some(link) = chain.as_mut() {
            if let Some(Part::Memory(part)) = part(link) {
                bytes.extend_from_slice(part);
            }
            (*link.buf).pos = (*link.buf).last;
            let next = link.next;
            link.next = (*(*r).pool).chain;
            (*(*r).pool).chain = chain;
            chain = next;
        }
    }
    bytes
}

called_by_nginx! {
    fn on_begun(_r: *mut ngx_http_request_t) -> (), (); {}
}

unsafe fn next_in_memory(chain: &mut *mut ngx_chain_t, offset: &mut usize) -> Fed {
    // SAFETY: the chain belongs to the request.
    while let Some(link) = unsafe { chain.as_ref() } {
        // SAFETY: as above.
        if let Some(Part::Memory(bytes)) = unsafe { part(link) }
            && let Some(rest) = bytes.get(*offset..).filter(|rest| !rest.is_empty())
        {
            let piece = rest.get(..COPIED).unwrap_or(rest);
            *offset += piece.len();
            return Fed::Piece(piece.to_vec());
        }
        *chain = link.next;
        *offset = 0;
    }
    Fed::End
}

enum Part<'a> {
    Memory(&'a [u8]),
    File { descriptor: RawFd, offset: u64, length: u64 },
}

impl Part<'_> {
    fn length(&self) -> u64 {
        match self {
            Part::Memory(bytes) => bytes.len() as u64,
            Part::File { length, .. } => *length,
        }
    }
}

fn each(mut chain: *mut ngx_chain_t, mut f: impl FnMut(Part<'_>) -> std::io::Result<()>) -> std::io::Result<()> {
    // SAFETY: a list of buffers that ends with null, alive by the caller of `Body::of`.
    while let Some(link) = unsafe { chain.as_ref() } {
        // SAFETY: as above.
        if let Some(part) = unsafe { part(link) } {
            f(part)?;
        }
        chain = link.next;
    }
    Ok(())
}

/// # Safety
/// The buffer of `link` must be alive.
unsafe fn part<'a>(link: &ngx_chain_t) -> Option<Part<'a>> {
    // SAFETY: the caller's; a buffer in memory holds what lies between `pos` and `last`.
    unsafe {
        let buf = &*link.buf;
        if buf.memory() != 0 || buf.temporary() != 0 || buf.mmap() != 0 {
            let length = usize::try_from(buf.last.offset_from(buf.pos)).ok().filter(|length| *length > 0)?;
            return Some(Part::Memory(std::slice::from_raw_parts(buf.pos, length)));
        }
        let file = buf.file.as_ref().filter(|_| buf.in_file() != 0)?;
        let length = u64::try_from(buf.file_last - buf.file_pos).ok()?;
        Some(Part::File { descriptor: file.fd, offset: u64::try_from(buf.file_pos).ok()?, length })
    }
}

/// How much of a body in memory is copied at once.
const COPIED: usize = 64 * 1024;
