//! Who runs an application: threads of a pool, and the pipe between such a thread and a host's event loop.
//!
//! Words: the *worker end* of a [`relay`] belongs to the thread that runs the application, the *loop end* to the host's
//! event loop. No server memory passes between them: the request may die on the loop at any time, and the worker end
//! then only says that the client is gone.

#[cfg(feature = "embed")]
pub mod mailbox;
#[cfg(feature = "embed")]
pub mod pool;
pub mod queue;
#[cfg(feature = "embed")]
pub mod relay;
