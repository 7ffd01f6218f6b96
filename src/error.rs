//! What can go wrong, each with a stable code, its cause and its remedy.
#![forbid(unsafe_code)]

use std::fmt;

/// Stable codes: searchable in logs, listed with cause and action in `docs/errors.md`. Never re-used.
macro_rules! codes {
    ($($name:ident = $number:literal $text:literal;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $(#[doc = $text] $name = $number,)* }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// What the code says, in a few words.
            pub fn text(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }
        }
    };
}

codes! {
    ApplicationName = 101 "the application's name cannot be understood";
    DirectiveNotBuilt = 102 "this directive is not supported yet";
    DirectiveValue = 103 "a directive's value is wrong";
    SecondApplication = 104 "two applications would share one interpreter";
    LayoutDiffers = 105 "the module was built for another nginx than the one that runs";
    HomeMissing = 201 "the Python home does not exist";
    HomeUnreadable = 202 "the server's user cannot read the Python home";
    HomeVersion = 203 "the virtual environment belongs to another Python version";
    PythonStart = 204 "Python did not start";
    ScriptMissing = 301 "the application's script does not exist";
    ScriptUnreadable = 302 "the server's user cannot read the application's script";
    ImportMissing = 303 "a module cannot be found";
    ImportSyntax = 304 "a file of the application has a syntax error";
    ImportRaised = 305 "the application raised while it was loaded";
    CallableMissing = 306 "the application's callable does not exist";
    CallableWrong = 307 "the application's callable cannot be called";
    LoadTimeout = 308 "the application is still being loaded";
    PythonUnavailable = 309 "Python is not running in this process";
    NotOfGroup = 310 "the process group does not have the application";
    GroupUnavailable = 311 "no process of the process group is free in time";
    GroupUnknown = 312 "no process group of that name is declared";
    GroupRefused = 313 "requests may not go to that process group";
    Raised = 401 "the application raised before its response began";
    RaisedLate = 402 "the application raised after its response began";
    BlockType = 403 "the application returned something that is not bytes";
    NotStarted = 404 "the application did not call start_response";
    HeadInvalid = 405 "the application gave an invalid status or header";
    BodyShort = 406 "the response is shorter than its Content-Length";
    BodyLong = 407 "the response is longer than its Content-Length";
    CloseRaised = 408 "close() of the response raised";
    Exit = 409 "the application tried to end the server";
    Retired = 410 "the request was given up because its server process had to end";
    TimedOut = 411 "the request took longer than allowed";
    Stuck = 412 "the worker process does not go on";
    GroupBusy = 413 "too many requests wait for the process group";
    ProcessEnded = 414 "a worker process ended while it had a request";
    RequestTooLong = 415 "the request's headers are too long for a process group";
    ClientGone = 501 "the client closed the connection";
    Panic = 901 "a fault in Highball itself";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HB{:04}", *self as u16)
    }
}

/// One failure, ready for the log: what failed and why, what to do, and the traceback where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub code: Code,
    pub cause: String,
    pub remedy: String,
    pub traceback: Option<String>,
}

impl Report {
    pub fn new(code: Code, cause: impl Into<String>) -> Report {
        Report { code, cause: cause.into(), remedy: String::new(), traceback: None }
    }

    pub fn remedy(mut self, remedy: impl Into<String>) -> Report {
        self.remedy = remedy.into();
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.cause)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        if let Some(traceback) = &self.traceback {
            write!(f, "\n{}", traceback.trim_end())?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::{Code, Report};

    #[test]
    fn a_report_names_code_cause_remedy_and_traceback() {
        let mut report = Report::new(Code::ImportMissing, "no module named \"flask\"").remedy("install it");
        report.traceback = Some("Traceback\n  x\n".into());
        assert_eq!(report.to_string(), "HB0303 no module named \"flask\"; install it\nTraceback\n  x");
    }

    #[test]
    fn codes_are_used_once() {
        let mut numbers: Vec<u16> = Code::ALL.iter().map(|code| *code as u16).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), Code::ALL.len());
    }
}
