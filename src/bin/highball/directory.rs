//! The private directory of one run: configuration, pid file, bodies on their way. Removed at the end.

use std::ffi::CString;
use std::fs::Permissions;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::access::User;
use crate::failure::Failure;

pub struct Directory(PathBuf);

impl Directory {
    /// Makes one that the workers' user can enter: below TMPDIR, or where that is closed to it, below /tmp.
    pub fn make(user: Option<&User>) -> Result<Directory, Failure> {
        let mut parents = vec![std::env::temp_dir(), "/tmp".into(), "/var/tmp".into()];
        parents.retain(|parent| parent.is_absolute() && User::first_closed(user, parent).is_none());
        let mut why = String::from("none of them can be entered");
        for parent in parents {
            match make_below(&parent) {
                Ok(path) => return Ok(Directory(path)),
                Err(error) => why = format!("\"{}\": {error}", parent.display()),
            }
        }
        Err(Failure::new(
            format!("no temporary directory can be made in TMPDIR, /tmp or /var/tmp: {why}"),
            "set TMPDIR to a directory with room that every user can enter",
        ))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("highball: \"{}\" could not be removed: {error}; remove it by hand", self.0.display());
        }
    }
}

fn make_below(parent: &Path) -> std::io::Result<PathBuf> {
    let template = CString::new(parent.join("highball-XXXXXX").as_os_str().as_bytes())?.into_raw();
    // SAFETY: `template` is a C string of our own that ends in XXXXXX; mkdtemp() writes there only.
    let made = unsafe { !libc::mkdtemp(template).is_null() };
    let error = std::io::Error::last_os_error();
    // SAFETY: `template` came from into_raw() above, with its length unchanged.
    let name = unsafe { CString::from_raw(template) };
    if !made {
        return Err(error);
    }
    let path = PathBuf::from(std::ffi::OsString::from_vec(name.into_bytes()));
    std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path)
}
