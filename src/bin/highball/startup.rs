//! The socket on which the module tells how the application's start went.
#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;

use crate::failure::Failure;

pub struct Startup {
    ours: UnixDatagram,
    servers: UnixDatagram,
}

/// What a worker process said.
pub enum Told {
    Ready,
    /// The report: cause, remedy, traceback.
    Failed(String),
}

impl Startup {
    pub fn make() -> Result<Startup, Failure> {
        let made = UnixDatagram::pair().and_then(|(ours, servers)| {
            ours.set_nonblocking(true)?;
            Ok(Startup { ours, servers })
        });
        made.map_err(|error| Failure::new(format!("socketpair() failed: {error}"), "close some files or programs"))
    }

    /// The end that the server inherits.
    pub fn inherited(&self) -> RawFd {
        self.servers.as_raw_fd()
    }

    pub fn descriptor(&self) -> RawFd {
        self.ours.as_raw_fd()
    }

    pub fn next(&self) -> Option<Told> {
        let mut buffer = vec![0; 256 * 1024];
        let length = self.ours.recv(&mut buffer).ok()?;
        let text = String::from_utf8_lossy(buffer.get(..length)?).into_owned();
        match text.strip_prefix("failed\n") {
            Some(report) => Some(Told::Failed(report.into())),
            None => Some(Told::Ready),
        }
    }
}
