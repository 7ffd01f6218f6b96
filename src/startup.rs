//! Tells whoever started the server privately (`highball run`) how the application's start went.
//!
//! `HIGHBALL_STARTUP_FD` names an inherited Unix datagram socket; without it nothing happens. A message is `ready`, or
//! `failed`, a line break and the report. nginx keeps the variable only with `env HIGHBALL_STARTUP_FD;`.
#![cfg_attr(not(feature = "embed"), allow(dead_code))]

use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixDatagram;

use crate::error::Report;

pub const VARIABLE: &str = "HIGHBALL_STARTUP_FD";

/// Sends how it went. A starter that has gone, or does not listen, is no fault of ours.
pub(crate) fn tell(result: Result<(), &Report>) {
    let Some(descriptor) = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()) else {
        return;
    };
    // SAFETY: the descriptor is the starter's, open for the life of this process, and not closed here.
    let socket = ManuallyDrop::new(unsafe { UnixDatagram::from_raw_fd(descriptor) });
    let message = match result {
        Ok(()) => "ready".to_string(),
        Err(report) => format!("failed\n{report}"),
    };
    socket.send(message.as_bytes()).ok();
}
