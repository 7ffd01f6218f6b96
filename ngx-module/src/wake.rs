//! The event loop's alarm clock: an eventfd which nginx watches as if it were a connection.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::ffi::{self, ngx_connection_t, ngx_event_handler_pt, ngx_log_t};

pub struct Wake {
    pub connection: NonNull<ngx_connection_t>,
    descriptor: Arc<File>,
}

impl Wake {
    /// `handler` is called on the event loop after each wake-up.
    pub fn new(log: *mut ngx_log_t, handler: ngx_event_handler_pt) -> Result<Wake, String> {
        // SAFETY: no memory is passed.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(format!("eventfd() failed: {}", std::io::Error::last_os_error()));
        }
        // SAFETY: just opened, and nobody else's.
        let descriptor = Arc::new(unsafe { File::from_raw_fd(descriptor) });
        // SAFETY: called in a process with an event loop; the descriptor stays open as long as the process.
        let connection = NonNull::new(unsafe { ffi::ngx_get_connection(descriptor.as_raw_fd(), log) })
            .ok_or_else(|| "no connection is left; raise worker_connections".to_string())?;
        // SAFETY: freshly taken; its events are never null.
        unsafe {
            let c = &mut *connection.as_ptr();
            let read = &mut *c.read;
            read.handler = handler;
            read.log = log;
            // As the channel to the master: nginx does not count it as a connection left open.
            read.set_channel(1);
            (*c.write).log = log;
            if ffi::hb_add_read_event(c) != ffi::OK {
                ffi::ngx_free_connection(c);
                return Err("the event loop does not take an eventfd".into());
            }
        }
        Ok(Wake { connection, descriptor })
    }

    /// For other threads.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let descriptor = self.descriptor.clone();
        // The counter cannot overflow within the life of a process.
        move || drop((&*descriptor).write_all(&1_u64.to_ne_bytes()))
    }

    /// Where events are told by level the counter is read; by edge, every write is an event of its own.
    pub fn clear(&self) {
        // SAFETY: a plain number of nginx's.
        if unsafe { ffi::ngx_event_flags } & ffi::NGX_USE_CLEAR_EVENT as usize == 0 {
            (&*self.descriptor).read_exact(&mut [0; 8]).ok();
        }
    }
}
