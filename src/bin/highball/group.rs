//! `highball run --mode group`: how the start of the process group went, as its supervisor tells it.
#![forbid(unsafe_code)]

use std::path::Path;

use serde_json::Value;

use crate::ask;
use crate::startup::Told;
use crate::supervise::{Command, Question};

/// The name of the group.
pub const GROUP: &str = "app";

/// Where its sockets are, in the directory of the run.
pub const SOCKETS: &str = "sockets";

/// `None` while it is not known yet.
pub fn told(directory: &Path, processes: u16) -> Option<Told> {
    let entries = std::fs::read_dir(directory.join(SOCKETS)).ok()?;
    let socket = entries.flatten().map(|entry| entry.path().join("control.sock")).find(|path| path.exists())?;
    let question = Question { command: Command::Status, group: Some(GROUP.into()) };
    let status = ask::put(&socket, &question).ok()?.status;
    let group = status.as_array()?.first()?;
    if let Some(trouble) = group["trouble"].as_str() {
        return Some(Told::Failed(trouble.into()));
    }
    let workers = group["workers"].as_array()?;
    let reports = workers.iter().filter_map(|worker| worker["reports"].as_array()).flatten();
    if let Some(report) = reports.filter_map(Value::as_str).next() {
        return Some(Told::Failed(report.into()));
    }
    let serving = workers.iter().filter(|worker| worker["state"] == "serving").count();
    (serving >= processes.into()).then_some(Told::Ready)
}
