//! Highball's core: HTTP facts and PEP 3333, without a server.
//!
//! Hosts (`ngx-module`, `apache-module`) fill a [`request::Request`], implement [`exchange::Exchange`] and call
//! [`python`]. Nothing here names a symbol of nginx or Apache; only `python` names one of CPython.

pub mod directives;
pub mod environ;
pub mod error;
pub mod exchange;
pub mod framing;
pub mod group;
pub mod log;
pub mod python;
pub mod refusal;
pub mod request;
pub mod response;
pub mod run;
pub mod settings;
pub mod startup;
pub mod uri;
pub mod worker;
