//! The worker: the process of a group, the application's own Python with this library loaded into it.
//!
//! Threads: Python's main thread imports the applications, then waits for signals. `threads=` threads of ours run requests
//! ([`threads`]), one listens to the supervisor ([`supervisor`]), one watches the clock ([`watch`]) without ever waiting for
//! the interpreter, and one does for it what needs the interpreter.

#![cfg_attr(feature = "embed", allow(dead_code, reason = "the servers' build has it for its tests, and for BOOT"))]

mod applications;
mod connection;
mod descriptors;
#[cfg(not(feature = "embed"))]
mod entry;
mod exchange;
mod poller;
#[cfg(feature = "embed")]
#[doc(hidden)]
pub mod probe;
mod process;
mod stream;
mod supervisor;
mod threads;
mod title;
mod watch;
mod wire;

/// What a worker's Python is started with: `python -I -X utf8 -c BOOT`.
pub const BOOT: &str = include_str!("boot.py");

/// Where a worker finds its descriptors.
pub const SETTINGS: i32 = 3;
pub const CONTROL: i32 = 4;
pub const LISTENER: i32 = 5;
pub const LIFE: i32 = 6;
pub const PAGE: i32 = 7;
pub const EXTENSION: i32 = 8;
