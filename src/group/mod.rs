//! Process groups: applications in processes of their own. The contract between the parts is
//! `docs/process-groups-protocol.md`.

#[cfg(feature = "embed")]
pub mod choice;
#[cfg(feature = "embed")]
pub mod client;
pub mod control;
pub mod frame;
pub mod launch;
pub mod message;
pub mod options;
mod outgoing;
pub mod page;
mod reader;
pub mod request;
pub mod socket;
pub mod state;
#[cfg(feature = "embed")]
pub mod wanted;
pub mod worker;
