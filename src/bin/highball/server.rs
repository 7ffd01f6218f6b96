//! What the command has to know of a server. One implementation each in `nginx` and `apache`.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::apache::Apache;
use crate::arguments::ServerKind;
use crate::failure::Failure;
use crate::nginx::Nginx;
use crate::site::Site;

pub trait Server {
    fn name(&self) -> &'static str;

    /// File name of the module.
    fn module(&self) -> &'static str;

    /// The server's executable.
    fn program(&self) -> Result<PathBuf, Failure>;

    /// Writes the configuration into `directory`, and returns the arguments that make the server use it and stay in
    /// the foreground.
    fn configure(&self, site: &Site, directory: &Path) -> Result<Vec<OsString>, Failure>;

    /// The further arguments that only test the configuration.
    fn test(&self) -> &'static [&'static str];

    /// The signal that lets requests end first.
    fn graceful(&self) -> libc::c_int;

    /// A report of the module in the words of the command line: without files that are only ours.
    fn in_words_of(&self, _site: &Site, _directory: &Path, report: String) -> String {
        report
    }
}

pub fn of(kind: ServerKind) -> &'static dyn Server {
    match kind {
        ServerKind::Nginx => &Nginx,
        ServerKind::Apache => &Apache,
    }
}

/// The first of these programs on PATH, or where servers are kept.
pub fn find_program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).filter(|path| path.is_absolute()).collect();
    directories.extend(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    names.iter().flat_map(|name| directories.iter().map(move |path| path.join(name))).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Writes a file any user may read.
pub fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o644))).map_err(
        |error| {
            Failure::new(
                format!("\"{}\" cannot be written: {error}", path.display()),
                "look at the space and the rights in that directory, or set TMPDIR to another",
            )
        },
    )
}

/// A path as both servers read it between double quotes. [`Site`] has refused what would not survive there.
pub fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}
