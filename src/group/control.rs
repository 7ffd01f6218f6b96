//! Packets between a supervisor and a worker: one JSON object each.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::log::Level;

/// Bytes of the longest packet.
pub const LONGEST: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromWorker {
    /// First, and again when a new supervisor asks with [`ToWorker::Hello`].
    Hello { version: u16, pid: u32, python: String, prefix: String, state: WorkerState },
    /// All applications were imported, but those that failed: target and report.
    Ready { failed: Vec<(String, String)> },
    /// The worker cannot serve at all, and ends.
    Failed { report: String },
    /// A record outside any request.
    Log { level: LogLevel, text: String },
    /// It wants to be replaced, for this reason.
    /// `case` tells apart what the reason does not: each version of a script is one.
    Retire {
        reason: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        case: String,
    },
    /// The answer to [`ToWorker::Stacks`].
    Stacks { text: String },
    /// All connections are closed; it ends.
    Drained,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToWorker {
    /// A new supervisor asks who this is.
    Hello,
    /// The slot is the worker's: it accepts connections.
    Serve,
    /// Answer what is there, for so many milliseconds, then end.
    Drain {
        within: u64,
    },
    Stacks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Starting,
    Ready,
    Serving,
    Draining,
}

/// As [`Level`]: the more severe, the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    Crit,
    Error,
    Warn,
    Notice,
    Info,
    Debug,
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> LogLevel {
        match level {
            Level::Crit => LogLevel::Crit,
            Level::Error => LogLevel::Error,
            Level::Warn => LogLevel::Warn,
            Level::Notice => LogLevel::Notice,
            Level::Info => LogLevel::Info,
            Level::Debug => LogLevel::Debug,
        }
    }
}

impl From<LogLevel> for Level {
    fn from(level: LogLevel) -> Level {
        match level {
            LogLevel::Crit => Level::Crit,
            LogLevel::Error => Level::Error,
            LogLevel::Warn => Level::Warn,
            LogLevel::Notice => Level::Notice,
            LogLevel::Info => Level::Info,
            LogLevel::Debug => Level::Debug,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_objects_with_a_name() {
        let packet = FromWorker::Retire { reason: "maximum-requests".into(), case: String::new() };
        let text = serde_json::to_string(&packet).unwrap();
        assert_eq!(text, r#"{"say":"retire","reason":"maximum-requests"}"#);
        assert_eq!(serde_json::from_str::<FromWorker>(&text).unwrap(), packet);
        assert_eq!(
            serde_json::from_str::<ToWorker>(r#"{"do":"drain","within":5}"#).unwrap(),
            ToWorker::Drain { within: 5 }
        );
        assert!(serde_json::from_str::<ToWorker>(r#"{"do":"else"}"#).is_err());
    }
}
