//! What a configuration says, parsed into types that cannot hold a wrong value.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Code, Report};

/// Where an application is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    pub place: Place,
    /// The name of the callable in its module or script; may be dotted.
    pub callable: String,
    /// Whether the callable is called without arguments, once, to give the application (`module:factory()`).
    pub factory: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// A module, by its dotted name.
    Module(String),
    /// A file of Python code, by its absolute path; any file name.
    Script(PathBuf),
}

impl Target {
    /// Parses `module:callable`, `module:factory()`, `/path/app.wsgi` or `/path/app.wsgi:callable`.
    pub fn parse(text: &str) -> Result<Target, Report> {
        let wrong = |why: &str| {
            Report::new(Code::ApplicationName, format!("\"{text}\" does not name an application: {why}"))
                .remedy("write module:callable, module:factory() or /path/app.wsgi[:callable]")
        };
        if text.contains('\0') || text.trim() != text || text.is_empty() {
            return Err(wrong("it is empty or has stray white space"));
        }
        let (place, name) = match text.rsplit_once(':') {
            Some((place, name)) => (place, Some(name)),
            None => (text, None),
        };
        if place.starts_with('/') {
            let callable = name.unwrap_or(DEFAULT_CALLABLE);
            if !is_dotted_name(callable) {
                return Err(wrong("the part after the colon is not a Python name"));
            }
            return Ok(Target::script(place, callable));
        }
        if place.contains('/') {
            return Err(wrong("a script needs an absolute path"));
        }
        let name = name.ok_or_else(|| wrong("the callable is missing"))?;
        let (callable, factory) = match name.strip_suffix("()") {
            Some(callable) => (callable, true),
            None => (name, false),
        };
        if !is_dotted_name(place) {
            return Err(wrong("the part before the colon is not the name of a module"));
        }
        if !is_dotted_name(callable) {
            return Err(wrong("the part after the colon is not a Python name"));
        }
        Ok(Target { place: Place::Module(place.into()), callable: callable.into(), factory })
    }

    /// The script's path; empty for a module.
    pub fn script_path(&self) -> &Path {
        match &self.place {
            Place::Script(path) => path,
            Place::Module(_) => Path::new(""),
        }
    }

    pub fn script(path: impl AsRef<Path>, callable: &str) -> Target {
        Target { place: Place::Script(path.as_ref().into()), callable: callable.into(), factory: false }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Module(module) => write!(f, "{module}:{}", self.callable)?,
            // A colon in the path would pass for the one before a callable, white space at its end for a stray one.
            Place::Script(path) => {
                let text = path.to_string_lossy();
                let is_plain = self.callable == DEFAULT_CALLABLE && !text.contains(':') && text.trim() == text;
                match is_plain {
                    true => f.write_str(&text)?,
                    false => write!(f, "{text}:{}", self.callable)?,
                }
            }
        }
        if self.factory { f.write_str("()") } else { Ok(()) }
    }
}

/// The Python this was built for, as `3.11`.
pub const PYTHON_VERSION: &str = env!("HIGHBALL_PYTHON_VERSION");

/// mod_wsgi's default, and PEP 3333's own word.
pub const DEFAULT_CALLABLE: &str = "application";

/// One application as mounted.
#[derive(Debug, Clone)]
pub struct ApplicationSettings {
    pub target: Target,
    /// Whether a script is loaded again when its file has changed.
    pub script_reloading: bool,
}

/// The Python of one server process.
#[derive(Debug, Clone, Default)]
pub struct InterpreterSettings {
    /// A virtual environment, or the prefix of a Python installation.
    pub home: Option<PathBuf>,
    /// Directories put at the front of `sys.path`, in this order; `.pth` files in them are read.
    pub path: Vec<PathBuf>,
    pub server_software: String,
    /// `wsgi.multithread`, `wsgi.multiprocess` (PEP 3333, "environ Variables").
    pub multithread: bool,
    pub multiprocess: bool,
    /// Signals that the host's own threads handle: blocked in ours, and let through again in child processes.
    pub host_signals: Vec<i32>,
    /// The process is a worker of a process group: Python's signals and exit functions work as in any program.
    pub own_process: bool,
}

/// Parses a time: a number with `ms`, `s`, `m`, `h` or `d`; without a unit, seconds.
pub fn parse_time(text: &str) -> Option<Duration> {
    let (digits, unit) = split_unit(text)?;
    let scale = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    digits.checked_mul(scale).map(Duration::from_millis)
}

/// Parses a size in bytes: a number, or one with `k`, `m` or `g` in either case, in powers of 1024.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, unit) = split_unit(text)?;
    let shift = match unit {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        _ => return None,
    };
    digits.checked_mul(1 << shift).filter(|size| i64::try_from(*size).is_ok())
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit))
}

fn is_dotted_name(name: &str) -> bool {
    name.split('.').all(|part| {
        let mut characters = part.chars();
        characters.next().is_some_and(|first| first == '_' || first.is_alphabetic())
            && characters.all(|character| character == '_' || character.is_alphanumeric())
    })
}

/// The name among `known` that `wrong` was probably meant to be.
pub fn did_you_mean<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|name| (distance(&wrong.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 6)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Levenshtein distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.chars().enumerate() {
        let mut diagonal = index;
        let mut previous = index + 1;
        let mut next = vec![previous];
        for (to, above) in right.iter().zip(row.iter().skip(1)) {
            let cost = diagonal + usize::from(from != *to);
            previous = cost.min(above + 1).min(previous + 1);
            diagonal = *above;
            next.push(previous);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_modules_factories_and_scripts() {
        for text in [
            "app:application",
            "a.b.c:make.app",
            "mysite.wsgi:create()",
            "/srv/app.wsgi:app",
            "/srv/x y.py",
            "/srv/a:b.py:application",
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Target::parse("/srv/app.wsgi").unwrap().callable, "application");
        assert!(Target::parse("app:make()").unwrap().factory);
    }

    #[test]
    fn what_names_no_application_is_refused() {
        for text in
            ["", "app", "app:", ":app", "a b:c", "app:1x", "srv/app.py", "/srv/app.py:", "a:b\0", " a:b", "a..b:c"]
        {
            let error = Target::parse(text).unwrap_err();
            assert_eq!(error.code, Code::ApplicationName, "{text}");
        }
    }

    #[test]
    fn times_take_units() {
        assert_eq!(parse_time("60"), Some(Duration::from_secs(60)));
        assert_eq!(parse_time("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_time("2h"), Some(Duration::from_secs(7200)));
        for wrong in ["", "s", "-1", "1.5s", "10x", "1 s"] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_take_units() {
        assert_eq!(parse_size("10"), Some(10));
        assert_eq!(parse_size("2K"), Some(2048));
        assert_eq!(parse_size("1g"), Some(1 << 30));
        for wrong in ["", "k", "-1", "+1", "1.5m", "10x", "99999999999g", "9223372036854775808"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn near_names_are_suggested() {
        let known = ["process-group", "application-group"];
        assert_eq!(did_you_mean("proces-group", known.iter().copied()), Some("process-group"));
        assert_eq!(did_you_mean("colour", known.iter().copied()), None);
    }
}
