//! `highball run --mode group`: how the start of the process group went, as its supervisor tells it.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::ask;
use crate::failure::Failure;
use crate::startup::Told;
use crate::supervise::{Command, Question};

/// The name of the group.
pub const GROUP: &str = "app";

/// Where its sockets are, in the directory of the run.
pub const SOCKETS: &str = "sockets";

/// Has new processes take over; an error where they cannot.
pub fn reload(directory: &Path) -> Result<(), Failure> {
    let socket = socket(directory).ok_or_else(|| Failure::told("its supervisor is not there"))?;
    let answer = ask::put(&socket, &Question { command: Command::Reload, group: Some(GROUP.into()) })?;
    if answer.ok { Ok(()) } else { Err(Failure::told(answer.text)) }
}

fn socket(directory: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory.join(SOCKETS)).ok()?;
    entries.flatten().map(|entry| entry.path().join("control.sock")).find(|path| path.exists())
}

/// `None` while it is not known yet.
pub fn told(directory: &Path, processes: u16) -> Option<Told> {
    let question = Question { command: Command::Status, group: Some(GROUP.into()) };
    let status = ask::put(&socket(directory)?, &question).ok()?.status;
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
