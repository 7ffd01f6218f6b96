//! The process group of a request, where it is chosen for each one: what a server says when it may not be that one.
//!
//! The empty name stands for the server's own processes (`off`, `%{GLOBAL}`).
#![forbid(unsafe_code)]

use super::options::is_name;
use crate::error::{Code, Report};
use crate::settings::did_you_mean;

/// Whether a request may go to the group; `None` allows any. `directive` names the list.
pub fn check(directive: &str, name: &[u8], allowed: Option<&[String]>) -> Result<(), Report> {
    let is_in = |allowed: &&[String]| allowed.iter().any(|one| one.as_bytes() == name);
    let Some(allowed) = allowed.filter(|allowed| !is_in(allowed)) else { return Ok(()) };
    let cause = match name {
        b"" => "this would run in the server's own processes".into(),
        name => format!("this would go to {}", shown(name)),
    };
    let places: Vec<String> = allowed.iter().map(|name| place(name)).collect();
    let cause = format!("{cause}, and \"{directive}\" allows {} alone", places.join(", "));
    Err(Report::new(Code::GroupRefused, cause).remedy("add it to the list, or choose another"))
}

/// There is no group of the name that was chosen. `directive` is what chose it.
pub fn unknown<'a>(directive: &str, name: &[u8], declared: impl Iterator<Item = &'a str>) -> Report {
    let cause = format!("\"{directive}\" chose {} for this request, and no such group is declared", shown(name));
    let near = did_you_mean(&String::from_utf8_lossy(name.get(..64).unwrap_or(name)), declared);
    Report::new(Code::GroupUnknown, cause).remedy(match near {
        Some(near) => format!("did you mean \"{near}\"? What chooses it has to name a group in every case"),
        None => "what chooses it has to name a declared group in every case".into(),
    })
}

/// The name may be a client's own words: what cannot be a name is not written to the log.
fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(name) if is_name(name) => format!("the process group \"{name}\""),
        _ => format!("what cannot be a process group's name ({} bytes)", name.len()),
    }
}

fn place(name: &str) -> String {
    if name.is_empty() { "the server's own processes".into() } else { format!("\"{name}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_allows_what_is_in_it_and_none_allows_all() {
        let list = ["one".to_string(), String::new()];
        assert!(check("X", b"two", None).is_ok());
        assert!(check("X", b"one", Some(&list)).is_ok() && check("X", b"", Some(&list)).is_ok());
        let report = check("X", b"two", Some(&list)).unwrap_err();
        assert_eq!(report.code, Code::GroupRefused);
        assert_eq!(
            report.cause,
            "this would go to the process group \"two\", and \"X\" allows \"one\", the server's own processes alone"
        );
        assert!(check("X", b"", Some(&list[..1])).is_err());
    }

    #[test]
    fn what_cannot_be_a_name_is_not_shown() {
        let report = unknown("X", b"blo", ["blog"].into_iter());
        assert!(report.cause.contains("\"blo\"") && report.remedy.contains("\"blog\""), "{report}");
        for secret in [&b"Basic dTpw"[..], b"\xff", &[b'a'; 65]] {
            for report in [unknown("X", secret, ["blog"].into_iter()), check("X", secret, Some(&[])).unwrap_err()] {
                assert!(report.cause.contains(&format!("({} bytes)", secret.len())), "{report}");
            }
        }
    }
}
