//! The content handler: from nginx's request to a job for the pool. Event loop only.

use std::ffi::c_void;
use std::ptr::NonNull;

use highball::error::Code;
use highball::log::Level;
use highball::refusal::refusal;
use highball::worker::relay::{Relay, Segment};

use crate::body::Body;
use crate::choice::Place;
use crate::directives::LocationConf;
use crate::ffi::{self, Pool, called_by_nginx, ngx_http_request_t, ngx_int_t};
use crate::mounts::MainConf;
use crate::peer::Peer;
use crate::process::{self, Process};
use crate::response::LoopEnd;
use crate::starter::Job;
use crate::stream::Stream;
use crate::{arrange, layout, log, module, request};

const BAD_REQUEST: ngx_int_t = ffi::NGX_HTTP_BAD_REQUEST as ngx_int_t;
const NOT_FOUND: ngx_int_t = ffi::NGX_HTTP_NOT_FOUND as ngx_int_t;
const INTERNAL: ngx_int_t = ffi::NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

called_by_nginx! {
    /// Answers a request of a location with `wsgi_pass`, once its body is there.
    pub fn handle(r: *mut ngx_http_request_t) -> ngx_int_t, INTERNAL; {
        if !layout::fits(r) {
            return INTERNAL;
        }
        // SAFETY: nginx passes a live request; the configuration is ours.
        let (conf, uri) = unsafe { (ffi::location_of::<LocationConf>(r, module()), ffi::bytes((*r).uri)) };
        let Some(conf) = conf else { return INTERNAL };
        if request::path_below(uri, conf).is_none() {
            return NOT_FOUND;
        }
        if process_for(r).is_none() {
            return INTERNAL;
        }
        // SAFETY: as above.
        if !conf.buffers_requests() && unsafe { std::ptr::eq((*r).main, r) } {
            // SAFETY: as above; the reference that reading the body would take.
            unsafe { (*r).set_count((*r).count() + 1) };
            begin_with(r, |r| {
                // SAFETY: alive, and the main request.
                Ok(unsafe { Body::unread(r) })
            });
            return ffi::DONE;
        }
        // SAFETY: as above.
        let result = unsafe { ffi::ngx_http_read_client_request_body(r, Some(begin)) };
        if result >= ffi::NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t { result } else { ffi::DONE }
    }

    fn begin(r: *mut ngx_http_request_t) -> (), (); {
        begin_with(r, |r| {
            // SAFETY: alive, and its body is there.
            unsafe { Body::of(r) }
        });
    }

    fn on_readable(r: *mut ngx_http_request_t) -> (), (); {
        if let Some(mut end) = end_of(r) {
            // SAFETY: alive, as it is in the request's context.
            unsafe { end.as_mut() }.readable();
        }
    }

    fn on_writable(r: *mut ngx_http_request_t) -> (), (); {
        let Some(mut end) = end_of(r) else { return };
        // SAFETY: alive, as it is in the request's context.
        let end = unsafe { end.as_mut() };
        let key = end.peer.key();
        if let Some(how) = end.writable()
            && let Some(process) = Process::current()
        {
            process.end_request(key, how);
        }
    }

    /// nginx frees the request, or has given it up.
    fn on_over(end: *mut c_void) -> (), (); {
        let Some(mut end) = NonNull::new(end.cast::<LoopEnd>()) else { return };
        // SAFETY: the end that was registered with this handler; its pool is still there.
        let (r, key) = unsafe { (end.as_ref().request(), end.as_ref().peer.key()) };
        let Some(r) = r else { return };
        if let Some(process) = Process::current() {
            process.request_over(key, process::is_broken_by_shutdown(r.as_ptr()));
        }
        // SAFETY: as above.
        unsafe { end.as_mut() }.detach();
    }
}

fn begin_with(r: *mut ngx_http_request_t, body: impl FnOnce(*mut ngx_http_request_t) -> std::io::Result<Body>) {
    let launched = body(r).map_err(|error| {
        log::process(Level::Error, &format!("dup() of a request body's file failed: {error}"));
        INTERNAL
    });
    if let Err(status) = launched.and_then(|body| launch(r, body)) {
        // SAFETY: alive, and this handler's own to end.
        unsafe { ffi::ngx_http_finalize_request(r, status) };
    }
}

fn launch(r: *mut ngx_http_request_t, body: Body) -> Result<(), ngx_int_t> {
    let process = process_for(r).ok_or(INTERNAL)?;
    // SAFETY: nginx passes a live request; the configuration is ours.
    let (conf, pool) = unsafe { (ffi::location_of::<LocationConf>(r, module()), Pool::new((*r).pool)) };
    let (conf, pool) = (conf.ok_or(INTERNAL)?, pool.ok_or(INTERNAL)?);
    // SAFETY: alive.
    let (connection, log) = unsafe { ((*(*r).connection).number, (*(*r).connection).log) };
    // SAFETY: alive.
    let request = unsafe { request::build(r, conf, body.length) };
    if let Some(refusal) = refusal(&request) {
        log::request(log::Source { log, connection }, Level::Info, &refusal.to_string(), &request);
        return Err(BAD_REQUEST);
    }
    let feeds = body.segments.iter().any(|segment| matches!(segment, Segment::Loop { .. } | Segment::Stream));
    let streams = body.segments.iter().any(|segment| matches!(segment, Segment::Stream));
    let runs = conf.runs.as_ref().ok_or(INTERNAL)?;
    let place = runs.place(r, &process.groups).map_err(|report| {
        let text = format!("{report}; the client got status 500");
        log::request(log::Source { log, connection }, Level::Error, &text, &request);
        INTERNAL
    })?;
    let (peer, job) = match place {
        Place::Group(group, answerer) => {
            // SAFETY: alive.
            let held = streams && !unsafe { (*r).headers_in.expect }.is_null();
            let stream = Stream::new(process.reserve(), group, answerer.clone(), request, body.segments, held);
            (Peer::Group(stream), None)
        }
        Place::Here(application) => {
            // SAFETY: alive; the configuration is ours.
            let main = unsafe { ffi::main_of::<MainConf>(r, module()) };
            main.and_then(|main| process.need_python(main)).ok_or(INTERNAL)?;
            let (mailbox, key, bound) = (process.mailbox.clone(), process.reserve(), conf.response_buffer());
            let (relay, worker) = Relay::new(request, body.segments, mailbox, key, bound);
            (Peer::Pool(relay), Some(Job { application: application.clone(), end: worker }))
        }
    };
    let end = LoopEnd::new(r, peer.clone(), body.source, feeds, conf.intercepts_errors());
    let end = pool.keep(end).ok_or(INTERNAL)?;
    // SAFETY: alive.
    unsafe {
        let cleanup = ffi::ngx_http_cleanup_add(r, 0).as_mut().ok_or(INTERNAL)?;
        cleanup.handler = Some(on_over);
        cleanup.data = end.as_ptr().cast();
        *(*r).ctx.add((*module()).ctx_index) = end.as_ptr().cast();
        if streams {
            (*r).read_event_handler = Some(on_readable);
        } else if std::ptr::eq(r, (*r).main) {
            (*r).read_event_handler = Some(ffi::ngx_http_test_reading);
        }
        (*r).write_event_handler = Some(on_writable);
    }
    process.launch(end, peer, connection, job);
    Ok(())
}

/// The end of a request that is still this handler's.
fn end_of(r: *mut ngx_http_request_t) -> Option<NonNull<LoopEnd>> {
    // SAFETY: alive; the context is null, or what `launch` put there, which lives as long as the request's pool.
    let end = unsafe { NonNull::new((*(*r).ctx.add((*module()).ctx_index)).cast::<LoopEnd>()) }?;
    // SAFETY: as above.
    let request = unsafe { end.as_ref() }.request();
    request.filter(|own| std::ptr::eq(own.as_ptr(), r)).map(|_| end)
}

/// Without a master a new configuration may bring the first application into a process that runs already.
fn process_for(r: *mut ngx_http_request_t) -> Option<&'static Process> {
    // SAFETY: alive; the configuration is ours.
    let conf = unsafe { ffi::main_of::<MainConf>(r, module()) };
    if let Some(process) = Process::current() {
        if arrange::has_changed()
            && let Some(conf) = conf
        {
            process.renew(conf);
        }
        return Some(process);
    }
    let started = conf.and_then(Process::start);
    if started.is_none() {
        log::process(Level::Error, &format!("{} Python is not running in this process", Code::PythonUnavailable));
    }
    started
}
