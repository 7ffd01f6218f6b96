//! Why the command ends with status 1: one sentence with the cause, one with the remedy.
#![forbid(unsafe_code)]

use std::fmt;

use highball::error::Report;

#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    pub fn new(cause: impl fmt::Display, remedy: impl fmt::Display) -> Failure {
        Failure(format!("{cause}; {remedy}"))
    }

    /// A failure as told by somebody else, with its remedy.
    pub fn told(text: impl Into<String>) -> Failure {
        Failure(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Failure {
        Failure(report.to_string())
    }
}
