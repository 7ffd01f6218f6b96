//! A server master and its supervisor: starting it, finding it again at a reload, and its orders.
//!
//! Called by the master alone, which has one thread. A server process calls [`forget`] once.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::frame::VERSION;
use super::socket;
use super::state::{DesiredState, canonical, hexadecimal};

/// Where the supervisor finds its end of the order socket, and the life pipe.
pub const ORDERS: RawFd = 3;
pub const LIFE: RawFd = 4;

/// Names the master's descriptors, over reloads that unload the module: order socket, its inode, life pipe.
const VARIABLE: &str = "HIGHBALL_SUPERVISOR";

/// The same where the module stays: nginx gives its processes another environment.
static KNOWN: Mutex<Option<String>> = Mutex::new(None);

/// The first of the numbers that the master's descriptors get, beyond those of most servers.
const FIRST: RawFd = 100;

/// The answer to an order is waited for no longer than this: it is given before anything is done.
const PATIENCE: Duration = Duration::from_secs(10);

const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("the supervisor \"{}\" cannot be started: {error}", command.display())]
    Start { command: PathBuf, error: io::Error },
    #[error("the supervisor does not answer: {0}")]
    Silent(io::Error),
    #[error("the supervisor is of another version of Highball")]
    Version,
    #[error("the supervisor refuses the configuration: {0}")]
    Refused(String),
}

/// The master's end of the order socket. Stays open when this is dropped: it lives as long as the master.
pub struct Supervisor {
    orders: RawFd,
    /// The master's end of the life pipe.
    life: RawFd,
}

impl Supervisor {
    /// The supervisor this master has started before, if it is there.
    pub fn find() -> Option<Supervisor> {
        let supervisor = Supervisor::known()?;
        let ready = wait(supervisor.socket(), PollFlags::OUT, Duration::ZERO).ok()?;
        (!ready.intersects(PollFlags::HUP | PollFlags::ERR)).then_some(supervisor)
    }

    /// The descriptors of the supervisor this master has started before, whether it is still there or not.
    fn known() -> Option<Supervisor> {
        let written = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let written = written.or_else(|| std::env::var(VARIABLE).ok())?;
        let mut numbers = written.split(':').map(str::parse::<u64>);
        let (orders, inode, life) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let (orders, life) = (RawFd::try_from(orders).ok()?, RawFd::try_from(life).ok()?);
        let metadata = Path::new("/proc/self/fd").join(orders.to_string()).metadata().ok()?;
        let is_ours = metadata.file_type().is_socket() && metadata.ino() == inode;
        is_ours.then_some(Supervisor { orders, life })
    }

    /// Starts one. `command` is the file of the `highball` command.
    pub fn start(command: &Path) -> Result<Supervisor, LaunchError> {
        Supervisor::try_start(command).map_err(|error| LaunchError::Start { command: command.into(), error })
    }

    fn try_start(command: &Path) -> io::Result<Supervisor> {
        // Workers of one that has died with its minder end when the server processes that know them have.
        if let Some(dead) = Supervisor::known() {
            dead.abandon();
        }
        let (ours, theirs) = socket::packets()?;
        rustix::net::sockopt::set_socket_passcred(&theirs, true)?;
        let (life, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut child = Command::new(command);
        child.args(["supervise", "--minder"]).env_clear().current_dir("/");
        child.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8");
        child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // What nobody sees end is nobody's child: the process in the middle is, and it is waited for here.
        start_detached(child, &[(theirs.as_fd(), ORDERS), (life.as_fd(), LIFE)])?;
        let orders = rustix::io::fcntl_dupfd_cloexec(&ours, FIRST)?;
        let end = rustix::io::fcntl_dupfd_cloexec(&end, FIRST)?;
        let inode = File::from(orders.try_clone()?).metadata()?.ino();
        let (orders, life) = (leak(orders), leak(end));
        let written = format!("{orders}:{inode}:{life}");
        *KNOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(written.clone());
        // SAFETY: the master has one thread.
        unsafe { std::env::set_var(VARIABLE, written) };
        Ok(Supervisor { orders, life })
    }

    /// Says what is wanted from now on. Returns where the sockets of the workers are. `log` is the server's error log.
    pub fn order(&self, state: &DesiredState, log: BorrowedFd<'_>) -> Result<PathBuf, LaunchError> {
        let text = canonical(state);
        let memory = socket::sealed(&text).map_err(LaunchError::Silent)?;
        let packet = format!("highball {VERSION} state {}", text.len());
        let answer = self.ask(packet.as_bytes(), &[memory.as_fd(), log]).map_err(LaunchError::Silent)?;
        match answer.strip_prefix(&format!("highball {VERSION} ")) {
            Some("no version") | None => Err(LaunchError::Version),
            Some(rest) => match rest.split_once(' ') {
                Some(("ok", directory)) => Ok(directory.into()),
                _ => Err(LaunchError::Refused(rest.trim_start_matches("no ").into())),
            },
        }
    }

    /// Says good-bye, and waits until everything has ended, at most so long. Exit functions of applications run meanwhile.
    pub fn bye(self, longest: Duration) -> io::Result<()> {
        socket::send(self.socket(), b"highball 1 bye", &[])?;
        let deadline = Instant::now() + longest;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if wait(self.socket(), PollFlags::IN, left)?.is_empty() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match socket::receive(self.socket(), &mut buffer) {
                Ok(received) if received.bytes == 0 => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Leaves it to the server processes there are: it serves them, and ends when the last of them has.
    fn abandon(self) {
        forget();
        // SAFETY: made in `try_start`, by this process or by what it was before, and known to nobody any more.
        drop(unsafe { OwnedFd::from_raw_fd(self.life) });
    }

    fn ask(&self, packet: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<String> {
        let mut buffer = [0; 4096];
        // The answer to an order that was given twice.
        while socket::receive(self.socket(), &mut buffer).is_ok_and(|received| received.bytes > 0) {}
        let deadline = Instant::now() + PATIENCE;
        // A supervisor that is killed takes along what it had not answered: the next one is asked again.
        loop {
            socket::send(self.socket(), packet, files)?;
            if !wait(self.socket(), PollFlags::IN, AGAIN)?.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let received = socket::receive(self.socket(), &mut buffer)?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(String::from_utf8_lossy(buffer.get(..received.bytes).unwrap_or_default()).into_owned())
    }

    fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor was made in `try_start` or checked in `find`, and is closed by `forget` alone.
        unsafe { BorrowedFd::borrow_raw(self.orders) }
    }
}

/// Tells the supervisor of this master what is wanted from now on, and starts one where there is none. Returns where the
/// sockets are; `None` where nothing is wanted and no supervisor is there.
pub fn arrange(command: &Path, state: &DesiredState, log: BorrowedFd<'_>) -> Result<Option<PathBuf>, LaunchError> {
    if let Some(supervisor) = Supervisor::find() {
        match supervisor.order(state, log) {
            // A package was upgraded meanwhile.
            Err(LaunchError::Version) => supervisor.abandon(),
            answer => return answer.map(Some),
        }
    }
    if state.groups.is_empty() {
        return Ok(None);
    }
    Supervisor::start(command)?.order(state, log).map(Some)
}

/// What server processes prove themselves with: the same as long as the master lives.
pub fn secret() -> io::Result<&'static str> {
    static SECRET: OnceLock<String> = OnceLock::new();
    if let Some(secret) = SECRET.get() {
        return Ok(secret);
    }
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(SECRET.get_or_init(|| hexadecimal(&bytes)))
}

/// A file in the directory of the library this code is in.
pub fn beside_module(name: &str) -> io::Result<PathBuf> {
    // SAFETY: `Dl_info` is valid when zeroed; any address may be asked for; the name lives as long as the library.
    let module = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(beside_module as *const libc::c_void, &mut info) == 0 || info.dli_fname.is_null() {
            return Err(io::ErrorKind::NotFound.into());
        }
        PathBuf::from(OsStr::from_bytes(CStr::from_ptr(info.dli_fname).to_bytes()))
    };
    Ok(module.canonicalize()?.with_file_name(name))
}

/// Whether nobody but root can change this file: it is about to be run as root.
pub fn is_roots_own(file: &Path) -> Result<(), String> {
    for place in file.ancestors() {
        let metadata = place.metadata().map_err(|error| format!("\"{}\" cannot be read: {error}", place.display()))?;
        // In a sticky directory nobody can take away what is another's.
        let others = if metadata.is_dir() && metadata.mode() & 0o1000 != 0 { 0 } else { 0o022 };
        if metadata.uid() != 0 || metadata.mode() & others != 0 {
            return Err(format!("\"{}\" can be changed by others than root", place.display()));
        }
    }
    Ok(())
}

/// Closes this process's copy of the order socket, and forgets it: a server process at its start, so that it could give
/// no orders, and a master before it starts another supervisor. The life pipe stays: it says that the server lives.
pub fn forget() {
    if let Some(supervisor) = Supervisor::known() {
        // SAFETY: ours, and found by nobody any more.
        drop(unsafe { OwnedFd::from_raw_fd(supervisor.orders) });
    }
    *KNOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
    // SAFETY: a server process at its start has one thread, as its master has.
    unsafe { std::env::remove_var(VARIABLE) };
}

/// Starts a command as a child of nobody, in a session of its own, with these descriptors at these numbers and no others.
pub fn start_detached(mut command: Command, files: &[(BorrowedFd<'_>, RawFd)]) -> io::Result<()> {
    let before = block_signals();
    give(&mut command, files);
    let between = || {
        // SAFETY: setsid(), fork() and _exit() may be called between fork and exec.
        unsafe {
            libc::setsid();
            match libc::fork() {
                0 => Ok(()),
                -1 => Err(io::Error::last_os_error()),
                _ => libc::_exit(0),
            }
        }
    };
    // SAFETY: `between` allocates nothing and takes no lock.
    unsafe { command.pre_exec(between) };
    // A server's own SIGCHLD handler must not take it away.
    let done = command.spawn().and_then(|mut child| child.wait());
    restore_signals(&before);
    done.map(drop)
}

/// Has a command start with these descriptors at these numbers, every other one from 3 up closed, and its signals as in
/// a fresh program.
pub fn give(command: &mut Command, files: &[(BorrowedFd<'_>, RawFd)]) {
    let files: Vec<(RawFd, RawFd)> = files.iter().map(|(file, number)| (file.as_raw_fd(), *number)).collect();
    let place = move || {
        let mut moved = [-1; socket::MOST];
        // SAFETY: plain calls that may be made between fork and exec.
        unsafe {
            // First out of the way: one's number may be another's place.
            for ((from, _), slot) in files.iter().zip(&mut moved) {
                *slot = libc::fcntl(*from, libc::F_DUPFD, FIRST);
                if *slot < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
                for number in 3..4096 {
                    libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC);
                }
            }
            for ((_, to), from) in files.iter().zip(moved) {
                if libc::dup2(from, *to) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            for signal in 1..32 {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: `place` allocates nothing and takes no lock.
    unsafe { command.pre_exec(place) };
}

fn block_signals() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data; the calls change this thread's mask only.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, &mut before);
        before
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: `before` was filled by sigprocmask().
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
}

fn leak(file: OwnedFd) -> RawFd {
    std::os::fd::IntoRawFd::into_raw_fd(file)
}

fn wait(file: BorrowedFd<'_>, events: PollFlags, longest: Duration) -> io::Result<PollFlags> {
    let mut files = [PollFd::new(&file, events)];
    let longest = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: longest.subsec_nanos().into() };
    loop {
        match rustix::event::poll(&mut files, Some(&longest)) {
            Ok(_) => {
                let [file] = files;
                return Ok(file.revents());
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
