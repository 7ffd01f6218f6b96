//! Checks a Python home before Python starts with it: what would abort the interpreter becomes one clear line.
//!
//! A virtual environment is a directory with `pyvenv.cfg` (PEP 405); anything else is the prefix of an installation.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Code, Report};
use crate::settings::PYTHON_VERSION;

/// The `python` to start as: its place tells CPython where its library is.
pub fn executable(home: &Path) -> Result<PathBuf, Report> {
    let home = directory(home);
    let shown = home.display();
    if let Some(closed) = first_closed_directory(&home) {
        return Err(unreadable(&home, &closed));
    }
    if !home.is_dir() {
        return Err(Report::new(Code::HomeMissing, format!("the Python home \"{shown}\" does not exist"))
            .remedy("name a virtual environment (its directory) or the prefix of a Python installation"));
    }
    let settings = home.join("pyvenv.cfg");
    if settings.exists() {
        let text = std::fs::read_to_string(&settings).map_err(|_| unreadable(&home, &settings))?;
        check_environment(&home, &text)?;
    } else if !home.join(format!("lib/python{PYTHON_VERSION}")).is_dir() {
        return Err(Report::new(
            Code::HomeVersion,
            format!(
                "\"{shown}\" is no virtual environment (it has no pyvenv.cfg) and holds no Python {PYTHON_VERSION}"
            ),
        )
        .remedy(format!("make one with python{PYTHON_VERSION} -m venv {shown}")));
    }
    ["bin/python", "bin/python3", &format!("bin/python{PYTHON_VERSION}")]
        .iter()
        .map(|name| home.join(name))
        .find(|path| path.exists())
        .ok_or_else(|| {
            Report::new(Code::HomeMissing, format!("\"{shown}\" has no bin/python that works")).remedy(format!(
                "its base Python may be gone; make it anew with python{PYTHON_VERSION} -m venv {shown}"
            ))
        })
}

/// A home given as its `bin/python`, or its `bin`, means the directory above.
fn directory(home: &Path) -> PathBuf {
    let name = home.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let above = |path: &Path| path.parent().map(Path::to_path_buf);
    if name.starts_with("python") && home.is_file() {
        return above(home).and_then(|bin| above(&bin)).unwrap_or_else(|| home.into());
    }
    if name == "bin" && home.join("python3").exists() {
        return above(home).unwrap_or_else(|| home.into());
    }
    home.into()
}

fn check_environment(home: &Path, text: &str) -> Result<(), Report> {
    let shown = home.display();
    let version = setting(text, "version").or_else(|| setting(text, "version_info")).unwrap_or_default();
    let minor: Vec<&str> = version.split('.').take(2).collect();
    if !version.is_empty() && minor.join(".") != PYTHON_VERSION {
        return Err(Report::new(
            Code::HomeVersion,
            format!("the virtual environment \"{shown}\" is for Python {version}, and this module runs Python {PYTHON_VERSION}"),
        )
        .remedy(format!(
            "make it anew with python{PYTHON_VERSION} -m venv {shown}, or build Highball with PYTHON= for that Python"
        )));
    }
    let Some(base) = setting(text, "home").map(PathBuf::from) else { return Ok(()) };
    if let Some(closed) = first_closed_directory(&base) {
        return Err(unreadable(&base, &closed));
    }
    if !base.is_dir() {
        return Err(Report::new(
            Code::HomeMissing,
            format!(
                "the Python that the virtual environment \"{shown}\" was made with is gone: \"{}\"",
                base.display()
            ),
        )
        .remedy(format!("make it anew with python{PYTHON_VERSION} -m venv {shown}")));
    }
    Ok(())
}

/// A value of `pyvenv.cfg`: `key = value` lines.
fn setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case(key))
        .map(|(_, value)| value.trim())
}

/// The first directory on the way to `path` (and `path` itself) that this process may not enter.
pub fn first_closed_directory(path: &Path) -> Option<PathBuf> {
    let mut way: Vec<&Path> = path.ancestors().collect();
    way.reverse();
    way.into_iter().find(|directory| directory.is_dir() && !may_enter(directory)).map(Path::to_path_buf)
}

fn may_enter(directory: &Path) -> bool {
    let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else { return false };
    // SAFETY: a valid C string; access() only looks.
    unsafe { libc::access(path.as_ptr(), libc::X_OK) == 0 }
}

fn unreadable(home: &Path, closed: &Path) -> Report {
    // SAFETY: geteuid() always succeeds.
    let user = unsafe { libc::geteuid() };
    Report::new(
        Code::HomeUnreadable,
        format!(
            "the server's user (uid {user}) cannot enter \"{}\" on the way to \"{}\"",
            closed.display(),
            home.display()
        ),
    )
    .remedy(format!(
        "allow it with chmod o+x {}, or move the environment to a directory others can enter",
        closed.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_environment_are_found_in_any_spelling() {
        let text = "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11.2\n";
        assert_eq!(setting(text, "version"), Some("3.11.2"));
        assert_eq!(setting("Version_Info=3.12.1.final.0", "version_info"), Some("3.12.1.final.0"));
    }

    #[test]
    fn an_environment_of_another_version_is_named_with_both() {
        let report = check_environment(Path::new("/srv/venv"), "home = /usr/bin\nversion = 2.7.18\n").unwrap_err();
        assert_eq!(report.code, Code::HomeVersion);
        assert!(report.cause.contains("2.7.18") && report.cause.contains(PYTHON_VERSION), "{}", report.cause);
    }

    #[test]
    fn a_missing_home_is_named() {
        let report = executable(Path::new("/nonexistent/venv")).unwrap_err();
        assert_eq!(report.code, Code::HomeMissing);
        assert!(report.cause.contains("/nonexistent/venv"));
    }
}
