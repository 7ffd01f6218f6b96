//! Starting a worker's process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Uid, User, getgrouplist};

use highball::group::launch;
use highball::group::state::Group;
use highball::group::worker::{BOOT, CONTROL, EXTENSION, LIFE, LISTENER, PAGE, SETTINGS};

/// What a worker finds at its start, besides its output.
pub struct Given<'a> {
    pub settings: BorrowedFd<'a>,
    pub control: BorrowedFd<'a>,
    pub listener: BorrowedFd<'a>,
    pub life: BorrowedFd<'a>,
    pub page: BorrowedFd<'a>,
    pub extension: BorrowedFd<'a>,
}

/// Starts the worker; its pid. `server` is whom the server's processes run as.
pub fn start(group: &Group, server: (u32, u32), given: &Given<'_>, output: OwnedFd) -> io::Result<u32> {
    let (uid, gid) = group.user.as_ref().map_or(server, |user| (user.uid, user.gid));
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let python = python(group);
    let mut command = Command::new(&python);
    command.args(["-I", "-X", "utf8", "-c", BOOT]).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("LANG", group.lang.as_deref().unwrap_or("C.UTF-8"));
    if let Some(locale) = &group.locale {
        command.env("LC_ALL", locale);
    }
    if let Some(user) = &user {
        command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
    }
    command.envs(&group.environ);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    launch::give(
        &mut command,
        &[
            (given.settings, SETTINGS),
            (given.control, CONTROL),
            (given.listener, LISTENER),
            (given.life, LIFE),
            (given.page, PAGE),
            (given.extension, EXTENSION),
        ],
    );
    let home = user.as_ref().map_or_else(|| PathBuf::from("/"), |user| user.dir.clone());
    let identity = Identity {
        change: Uid::effective().is_root().then_some((uid, gid)),
        groups: groups(group, user.as_ref(), gid),
        umask: group.umask,
        home: c_path(group.home.as_deref().unwrap_or(&home)),
        strict: group.home.is_some(),
    };
    // SAFETY: `enter` makes system calls only; its memory was made before the fork.
    unsafe { command.pre_exec(move || identity.enter()) };
    let child = command.spawn().map_err(|error| {
        let what = match (&group.home, error.kind()) {
            (Some(home), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) if python.exists() => {
                format!("its working directory \"{}\" (home=) or \"{}\"", home.display(), python.display())
            }
            _ => format!("\"{}\"", python.display()),
        };
        io::Error::new(error.kind(), format!("{what} cannot be used: {error}"))
    })?;
    Ok(child.id())
}

/// The interpreter's executable.
fn python(group: &Group) -> PathBuf {
    match (&group.python, &group.python_home) {
        (Some(python), _) => python.clone(),
        (None, Some(home)) => {
            let names = ["bin/python", "bin/python3"].map(|name| home.join(name));
            let found = names.iter().find(|name| name.exists()).cloned();
            found.unwrap_or_else(|| home.join("bin/python"))
        }
        (None, None) => "/usr/bin/python3".into(),
    }
}

fn groups(group: &Group, user: Option<&User>, gid: u32) -> Vec<libc::gid_t> {
    if let Some(groups) = &group.supplementary_groups {
        return groups.clone();
    }
    let name = user.and_then(|user| CString::new(user.name.as_str()).ok());
    let found = name.and_then(|name| getgrouplist(&name, Gid::from_raw(gid)).ok());
    found.map_or_else(|| vec![gid], |groups| groups.into_iter().map(Gid::as_raw).collect())
}

struct Identity {
    change: Option<(u32, u32)>,
    groups: Vec<libc::gid_t>,
    umask: Option<u32>,
    home: CString,
    strict: bool,
}

impl Identity {
    /// In the new process, before Python begins.
    fn enter(&self) -> io::Result<()> {
        // SAFETY: plain system calls that may be made between fork and exec.
        unsafe {
            libc::setsid();
            if let Some((uid, gid)) = self.change
                && (libc::setgroups(self.groups.len(), self.groups.as_ptr()) != 0
                    || libc::setgid(gid) != 0
                    || libc::setuid(uid) != 0)
            {
                return Err(io::Error::last_os_error());
            }
            if let Some(umask) = self.umask {
                libc::umask(umask as libc::mode_t);
            }
            if libc::chdir(self.home.as_ptr()) != 0 && (self.strict || libc::chdir(c"/".as_ptr()) != 0) {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// A listening socket, which only whom the server's processes run as can connect to.
pub fn listen(path: &Path, server: (u32, u32), backlog: u32) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    std::fs::remove_file(path).ok();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(path)?);
    rustix::process::umask(before);
    bound?;
    if Uid::effective().is_root() {
        std::os::unix::fs::chown(path, Some(server.0), Some(server.1))?;
    }
    rustix::net::listen(socket.as_fd(), i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
}
