//! With whose rights the application runs, and what these rights reach.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use highball::python::home;

use crate::failure::Failure;

/// The user of the server's workers, where that is another than who started the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub group: String,
    uid: libc::uid_t,
    gid: libc::gid_t,
}

impl User {
    /// Root's servers run their workers as www-data, or as nobody; everybody else's as themselves.
    pub fn of_workers() -> Result<Option<User>, Failure> {
        // SAFETY: geteuid() always succeeds.
        if unsafe { libc::geteuid() } != 0 {
            return Ok(None);
        }
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        ["www-data", "nobody"].iter().find_map(|name| User::find(name, &users, &groups)).map(Some).ok_or_else(|| {
            Failure::new(
                "there is neither a user www-data nor a user nobody for the server's workers",
                "add one, or start the command as an ordinary user",
            )
        })
    }

    /// The first directory on the way to `path`, itself included, that this user cannot enter.
    pub fn first_closed(user: Option<&User>, path: &Path) -> Option<PathBuf> {
        let closed = || home::first_closed_directory(path).map(|path| path.display().to_string());
        with_rights_of(user, closed).map(PathBuf::from)
    }

    fn find(name: &str, users: &str, groups: &str) -> Option<User> {
        let mut fields =
            users.lines().map(|line| line.split(':')).find(|fields| fields.clone().next() == Some(name))?;
        let uid = fields.nth(2)?.parse().ok()?;
        let gid: libc::gid_t = fields.next()?.parse().ok()?;
        let group = groups.lines().find(|line| line.split(':').nth(2) == Some(&gid.to_string()))?.split(':').next()?;
        Some(User { name: name.into(), group: group.into(), uid, gid })
    }

    /// Becomes this user, for good.
    fn become_it(&self) -> bool {
        let Ok(name) = CString::new(self.name.as_str()) else { return false };
        // SAFETY: a valid C string; the calls change only this process's own rights.
        unsafe {
            libc::initgroups(name.as_ptr(), self.gid) == 0 && libc::setgid(self.gid) == 0 && libc::setuid(self.uid) == 0
        }
    }
}

/// Who the workers run as, for a sentence.
pub fn named(user: Option<&User>) -> String {
    match user {
        Some(user) => format!("the user {} of the server's workers", user.name),
        None => "this user".into(),
    }
}

/// Runs `check` with the rights of `user`: in a child process, where they are not ours. What it says comes back.
/// The command must be single-threaded, as it is until its end.
pub fn with_rights_of(user: Option<&User>, check: impl FnOnce() -> Option<String>) -> Option<String> {
    let Some(user) = user else { return check() };
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return None;
    }
    let [reading, writing] = ends;
    // SAFETY: pipe2() gave us these descriptors, nobody else owns them.
    let (reading, writing) = unsafe { (OwnedFd::from_raw_fd(reading), OwnedFd::from_raw_fd(writing)) };
    // SAFETY: there is one thread, so the child is a whole copy of this process.
    match unsafe { libc::fork() } {
        -1 => None,
        0 => {
            let said = if user.become_it() { check() } else { None };
            File::from(writing).write_all(said.unwrap_or_default().as_bytes()).ok();
            // SAFETY: ends the child without running what the parent will run at its exit.
            unsafe { libc::_exit(0) }
        }
        child => {
            drop(writing);
            let mut said = Vec::new();
            File::from(reading).read_to_end(&mut said).ok();
            // SAFETY: `child` is ours and not waited for elsewhere; the status is not wanted.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            Some(String::from_utf8_lossy(&said).into_owned()).filter(|said| !said.is_empty())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_comes_with_the_name_of_its_group() {
        let users = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533::/:/usr/sbin/nologin\n";
        let groups = "root:x:0:\nnogroup:x:65533:\n";
        let user = User::find("nobody", users, groups).unwrap();
        assert_eq!((user.uid, user.group.as_str()), (65534, "nogroup"));
        assert_eq!(User::find("www-data", users, groups), None);
    }

    #[test]
    fn what_a_check_says_comes_back() {
        assert_eq!(with_rights_of(None, || Some("closed".into())), Some("closed".into()));
        assert_eq!(with_rights_of(None, || None), None);
    }
}
