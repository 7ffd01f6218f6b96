//! The directory of the sockets.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Makes the directory of this supervisor below `prefix`, or below the default places. `open`: others connect to it.
pub fn make(prefix: Option<&Path>, name: u32, open: bool) -> io::Result<PathBuf> {
    let root = base(prefix);
    let mut made = PathBuf::new();
    for part in root.components() {
        made.push(part);
        make_one(&made, 0o711)?;
    }
    check(&root)?;
    clean(&root);
    let is_free = |path: &PathBuf| !entries(path).iter().any(|path| is_listened_on(path));
    // A number comes again, and the supervisor that has the directory need not have its first minder any more.
    let mut names = std::iter::once(name.to_string()).chain((1..100).map(|number| format!("{name}.{number}")));
    let directory = names.find_map(|name| Some(root.join(name)).filter(is_free)).ok_or(io::ErrorKind::AlreadyExists)?;
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    let mode = if open { 0o711 } else { 0o700 };
    make_one(&directory, mode)?;
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode))?;
    Ok(directory)
}

/// Where directories of supervisors are made.
pub fn base(prefix: Option<&Path>) -> PathBuf {
    let uid = rustix::process::geteuid();
    let user = PathBuf::from(format!("/run/user/{}", uid.as_raw()));
    match prefix {
        Some(prefix) => prefix.into(),
        None if uid.is_root() => "/run/highball".into(),
        None if user.is_dir() => user.join("highball"),
        None => format!("/tmp/highball-{}", uid.as_raw()).into(),
    }
}

fn make_one(directory: &Path, mode: u32) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Of a directory that is there, a parent may be closed to this user.
        Err(_) if directory.is_dir() => Ok(()),
        made => made,
    }
}

/// Ours, no link, and nobody else can put something in its place.
fn check(directory: &Path) -> io::Result<()> {
    let wrong = |why: &str| {
        let text =
            format!("\"{}\" {why}; name another with wsgi_socket_prefix (WSGISocketPrefix)", directory.display());
        io::Error::new(io::ErrorKind::PermissionDenied, text)
    };
    let metadata = std::fs::symlink_metadata(directory)?;
    let uid = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() {
        return Err(wrong("is no directory"));
    }
    if metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        return Err(wrong("can be changed by other users"));
    }
    Ok(())
}

/// Takes this supervisor's directory away, and what is left of others beside it.
pub fn remove(directory: &Path) {
    std::fs::remove_dir_all(directory).ok();
    if let Some(root) = directory.parent() {
        clean(root);
        // Where there is nothing else.
        std::fs::remove_dir(root).ok();
    }
}

/// Removes what supervisors have left that were killed together with their minders. Where somebody still listens on a
/// socket it stays: workers serve on until their server is gone.
fn clean(root: &Path) {
    for path in entries(root) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let pid = name.split('.').next().and_then(|pid| pid.parse::<u32>().ok());
        let uid = rustix::process::geteuid().as_raw();
        let ours = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == uid);
        if let Some(pid) = pid
            && ours
            && !runs(pid)
            && !entries(&path).iter().any(|path| is_listened_on(path))
        {
            std::fs::remove_dir_all(path).ok();
        }
    }
}

/// Whether a process is there and has not ended.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may contain anything, and ends with the last bracket.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn is_listened_on(path: &Path) -> bool {
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(socket) = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else {
        return true;
    };
    // Full, or another's: somebody is there.
    matches!(rustix::net::connect(&socket, &address), Ok(()) | Err(Errno::AGAIN | Errno::ACCESS | Errno::PERM))
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_the_dead_are_removed_unless_somebody_listens_there() {
        let root = std::env::temp_dir().join(format!("highball-test-{}", std::process::id()));
        let (dead, serving) = (root.join("4194301"), root.join("4194302"));
        for directory in [&dead, &serving] {
            std::fs::create_dir_all(directory).unwrap();
        }
        drop(std::os::unix::net::UnixListener::bind(dead.join("site.0.sock")).unwrap());
        let socket = std::os::unix::net::UnixListener::bind(serving.join("site.0.sock")).unwrap();
        clean(&root);
        assert_eq!((dead.exists(), serving.exists()), (false, true));
        drop(socket);
        clean(&root);
        assert!(!serving.exists());
        std::fs::remove_dir(root).unwrap();
    }
}
