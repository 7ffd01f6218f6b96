//! The one room of the core that knows CPython.
//!
//! Words: a thread is *attached* when it holds a thread state and may touch Python objects ([`Attached`]), otherwise
//! *detached*. Nothing here waits for a client, a lock or another thread while attached.
//!
//! How a host uses it:
//!
//! 1. [`Interpreter::start`], once per server process. The thread that does it becomes Python's main thread.
//! 2. [`Application::new`] for each mounted application (no Python needed), [`Application::load`] to import it.
//! 3. On a request thread: `interpreter.attach(|attached| serve(attached, &application, exchange))`.
//! 4. [`Interpreter::stop`] before the process ends.

mod application;
mod call;
mod environ_dict;
mod errors;
#[cfg(not(feature = "embed"))]
pub mod extension;
mod file_wrapper;
pub mod home;
mod input;
mod interpreter;
mod object;
mod session;
mod stack;
#[cfg(feature = "embed")]
mod start;
mod start_response;
mod thread;
mod traceback;
mod types;

pub use application::{Application, Status};
pub use call::serve;
pub use interpreter::{Host, Interpreter, Interruption};
pub use thread::{Attached, ThreadId, current as current_thread};
