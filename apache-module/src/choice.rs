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

    /// Whether a mount of the one and of the other may run in the same process group.
    pub fn meets(self, allowed: Option<&[String]>, other: Choice<'_>, other_allowed: Option<&[String]>) -> bool {
        let may = |name: &str, allowed: Option<&[String]>| choice::check("", name.as_bytes(), allowed).is_ok();
        match (self, other) {
            (Choice::Named(_) | Choice::Here, Choice::Named(_) | Choice::Here) => self == other,
            // Which applications share the server's own processes shows with their requests.
            (Choice::Here, Choice::Variable(_)) | (Choice::Variable(_), Choice::Here) => false,
            (Choice::Named(name), Choice::Variable(_)) => may(name, other_allowed),
            (Choice::Variable(_), Choice::Named(name)) => may(name, allowed),
            (Choice::Variable(_), Choice::Variable(_)) => match allowed {
                Some(names) => names.iter().any(|name| !name.is_empty() && may(name, other_allowed)),
                None => other_allowed.is_none_or(|names| names.iter().any(|name| !name.is_empty())),
            },
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
        let (one, any) = (Choice::Named("one"), Choice::Variable("X"));
        let list = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let (ones, twos, here) = (list(&["one"]), list(&["two"]), list(&[""]));
        assert!(one.meets(None, one, None) && !one.meets(None, Choice::Here, None));
        assert!(any.meets(None, one, None) && one.meets(None, any, Some(&ones)) && any.meets(None, any, None));
        assert!(!one.meets(None, any, Some(&twos)) && !any.meets(Some(&ones), any, Some(&twos)));
        assert!(!any.meets(None, Choice::Here, None) && !any.meets(None, any, Some(&here)));
        assert!(any.meets(None, any, Some(&twos)) && any.meets(Some(&ones), any, None));
    }
}
