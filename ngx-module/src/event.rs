//! Events of our own: at the end of a turn of the loop, and after a time.

use std::cell::UnsafeCell;
use std::time::Duration;

use crate::ffi::{self, ngx_event_t};
use crate::wake::Wake;

/// An event of ours, in nginx's queues by address.
pub struct Event(UnsafeCell<ngx_event_t>);

impl Event {
    pub fn new(wake: &Wake, log: *mut ffi::ngx_log_t, handler: unsafe extern "C" fn(event: *mut ngx_event_t)) -> Event {
        // SAFETY: an event is valid when zeroed.
        let mut event: ngx_event_t = unsafe { std::mem::zeroed() };
        event.handler = Some(handler);
        event.log = log;
        // For nginx's debug log only, which prints the descriptor of the connection it expects here.
        event.data = wake.connection.as_ptr().cast();
        event.set_cancelable(1);
        Event(UnsafeCell::new(event))
    }

    pub fn post(&self) {
        // SAFETY: stays where it is as long as the process; this thread only.
        unsafe {
            if (*self.0.get()).posted() == 0 {
                ffi::hb_post_event(self.0.get());
            }
        }
    }

    /// Unless it is armed already.
    pub fn arm(&self, time: Duration) {
        // SAFETY: as above.
        unsafe {
            if (*self.0.get()).timer_set() == 0 {
                ffi::hb_add_timer(self.0.get(), time.as_millis() as ffi::ngx_msec_t);
            }
        }
    }

    /// Whether the process may end although this timer is set.
    pub fn set_cancelable(&self, cancelable: bool) {
        // SAFETY: as above.
        unsafe { (*self.0.get()).set_cancelable(cancelable.into()) };
    }
}
