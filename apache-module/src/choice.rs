//! Which process group a request goes to: one that the configuration names, or one that a variable of the request does.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use highball::error::{Code, Report};
use highball::group::choice;
use highball::group::client::direct::Group;

use crate::ffi::rec::Rec;
use crate::group;
use crate::settings::{Alias, DirectorySettings};

/// What the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<'a> {
    /// `%{GLOBAL}`: the server's own processes.
    Here,
    Named(&'a str),
    /// `%{ENV:name}`: looked up for each request.
    Variable(&'a str),
}

impl<'a> Choice<'a> {
    /// Of a request, or of a mount as far as the configuration tells.
    pub fn of(alias: Option<&'a Alias>, settings: &DirectorySettings) -> Choice<'a> {
        let written = alias.and_then(|alias| alias.process_group.as_deref()).or(settings.process_group());
        Choice::parse(written.unwrap_or_default())
    }

    fn parse(written: &'a str) -> Choice<'a> {
        match (written, variable(written)) {
            ("", _) => Choice::Here,
            (_, Some(name)) => Choice::Variable(name),
            (name, None) => Choice::Named(name),
        }
    }

    /// Unless it is looked up.
    fn name(self) -> Option<&'a str> {
        match self {
            Choice::Here => Some(""),
            Choice::Named(name) => Some(name),
            Choice::Variable(_) => None,
        }
    }
}

/// Where the requests of a mount may go, as far as the configuration tells.
pub struct Reach<'a> {
    pub choice: Choice<'a>,
    /// Every group that some list allows; `None` is any.
    pub allowed: Option<Vec<String>>,
    /// Whether applications may run in the server's own processes at all.
    pub embedded: bool,
}

impl Reach<'_> {
    /// Whether requests of both may run in the same process.
    pub fn meets(&self, other: &Reach<'_>) -> bool {
        let both_may = |name: &str| self.may(name) && other.may(name);
        match (self.choice.name().or(other.choice.name()), self.allowed.as_ref().or(other.allowed.as_ref())) {
            (Some(name), _) => both_may(name),
            (None, Some(names)) => names.iter().any(|name| both_may(name)),
            (None, None) => true,
        }
    }

    fn may(&self, name: &str) -> bool {
        match self.choice.name() {
            Some(own) => own == name,
            None => {
                (self.embedded || !name.is_empty())
                    && choice::check("", name.as_bytes(), self.allowed.as_deref()).is_ok()
            }
        }
    }
}

/// The name in `%{ENV:name}`.
pub fn variable(written: &str) -> Option<&str> {
    written.strip_prefix("%{ENV:")?.strip_suffix('}').filter(|name| !name.is_empty())
}

/// The group that answers a request: `None` where the server's own process does.
pub fn group(rec: Rec, alias: Option<&Alias>, settings: &DirectorySettings) -> Result<Option<&'static Group>, Report> {
    let choice = Choice::of(alias, settings);
    let name = match choice {
        Choice::Here => b"",
        Choice::Named(name) => name.as_bytes(),
        Choice::Variable(name) => rec.variable(name).or_else(|| of_server(name)).ok_or_else(|| unset(name))?,
    };
    let name = if name == GLOBAL.as_bytes() { b"" } else { name };
    choice::check("WSGIRestrictProcess", name, settings.allowed_groups())?;
    match (std::str::from_utf8(name).ok().and_then(group::find), choice) {
        (_, _) if name.is_empty() => Ok(None),
        (Some(group), _) => Ok(Some(group)),
        (None, Choice::Variable(_)) => Err(choice::unknown("WSGIProcessGroup", name, group::names())),
        (None, _) => {
            let name = String::from_utf8_lossy(name);
            let cause = format!("the process group \"{name}\" is not there");
            Err(Report::new(Code::PythonUnavailable, cause).remedy("see why in the log, where the server started"))
        }
    }
}

/// Keeps the environment as it is before any application runs in this process: one that does may set its own there, at any
/// time, and it is not for that to say where requests go.
pub fn begin() {
    ENVIRONMENT.get_or_init(|| std::env::vars_os().collect());
}

/// What the server's environment has under a name.
fn of_server(name: &str) -> Option<&'static [u8]> {
    ENVIRONMENT.get()?.get(OsStr::new(name)).map(|value| value.as_bytes())
}

fn unset(name: &str) -> Report {
    let cause =
        format!("the process group is to be that in the variable \"{name}\", and this request has none of that name");
    Report::new(Code::GroupUnknown, cause).remedy(format!(
        "set it for every request, with SetEnv, SetEnvIf or RewriteRule; to {GLOBAL} for Apache's own processes"
    ))
}

/// In a server process.
static ENVIRONMENT: OnceLock<HashMap<OsString, OsString>> = OnceLock::new();

pub const GLOBAL: &str = "%{GLOBAL}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_a_group_or_a_variable() {
        assert_eq!(Choice::parse(""), Choice::Here);
        assert_eq!(Choice::parse("blog"), Choice::Named("blog"));
        assert_eq!(Choice::parse("%{ENV:GROUP}"), Choice::Variable("GROUP"));
        for wrong in ["%{ENV:}", "%{ENV:a", "%{SERVER}", "ENV:a", "%{env:a}"] {
            assert_eq!(variable(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn mounts_that_may_meet_are_told_from_those_that_cannot() {
        let reach = |choice, names: Option<&[&str]>| Reach {
            choice,
            allowed: names.map(|names| names.iter().map(|name| name.to_string()).collect()),
            embedded: true,
        };
        let fixed = |name: &'static str| reach(if name.is_empty() { Choice::Here } else { Choice::Named(name) }, None);
        let any = |names| reach(Choice::Variable("X"), names);
        let both = |one: &Reach<'_>, other: &Reach<'_>| {
            assert_eq!(one.meets(other), other.meets(one));
            one.meets(other)
        };
        assert!(both(&fixed("one"), &fixed("one")) && !both(&fixed("one"), &fixed("")));
        assert!(both(&any(None), &any(None)) && both(&any(None), &any(Some(&["two"]))));
        assert!(both(&any(None), &fixed("one")) && both(&any(None), &fixed("")));
        assert!(both(&any(Some(&["one"])), &fixed("one")) && !both(&any(Some(&["two"])), &fixed("one")));
        assert!(both(&any(None), &any(Some(&[""]))) && !both(&any(Some(&["one"])), &any(Some(&["two"]))));
        let elsewhere = Reach { embedded: false, ..any(None) };
        assert!(both(&elsewhere, &fixed("one")) && !both(&elsewhere, &fixed("")));
        assert!(!both(&elsewhere, &any(Some(&[""]))));
    }
}
