//! The running server.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::failure::Failure;
use crate::signals;
use crate::site::Site;
use crate::startup::Startup;

pub struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

/// Lets the server read its configuration and nothing else.
pub fn test_configuration(site: &Site, arguments: &[OsString]) -> Result<(), Failure> {
    let output =
        command(site, arguments).args(site.server.test()).output().map_err(|error| cannot_start(site, &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    let remedy = if said.contains("version") || said.contains("compatible") || said.contains("signature") {
        "the module was built for another version of the server: run make clean build with the server that is installed now"
    } else if said.contains("libpython") {
        "the Python that the module was built with is gone: install it, or run make build with another PYTHON="
    } else {
        "see the message of the server"
    };
    Err(Failure::new(format!("{} refuses the module or its configuration: {said}", site.server.name()), remedy))
}

impl Process {
    pub fn start(site: &Site, arguments: &[OsString], startup: &Startup) -> Result<(Process, ChildStderr), Failure> {
        let mut command = command(site, arguments);
        let parent = std::process::id();
        let inherited = startup.inherited();
        command.env(highball::startup::VARIABLE, inherited.to_string()).stderr(Stdio::piped());
        let before_exec = move || {
            signals::unblock();
            // SAFETY: these calls may be made between fork and exec, and change only the child.
            unsafe {
                // When this command is killed the server ends too. It asks for the death of the thread that forked,
                // which is the main one.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                if libc::getppid() != parent as libc::pid_t {
                    libc::_exit(1);
                }
                libc::fcntl(inherited, libc::F_SETFD, 0);
            }
            Ok(())
        };
        // SAFETY: `before_exec` allocates nothing and takes no lock.
        unsafe { command.pre_exec(before_exec) };
        let mut child = command.spawn().map_err(|error| cannot_start(site, &error))?;
        let Some(log) = child.stderr.take() else {
            return Err(Failure::new("the server has no stderr", "start again"));
        };
        Ok((Process { child, ended: None }, log))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the server ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Sends a signal to the server's first process.
    pub fn signal(&mut self, signal: libc::c_int) {
        if self.ended().is_none() {
            // SAFETY: the child is not waited for yet, so the number is still its own.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
    }

    /// Sends a signal to everything the server has started and that has not left its process group.
    pub fn signal_all(&mut self, signal: libc::c_int) {
        self.ended();
        // SAFETY: the group was made by us for this child; its number is kept as long as a member lives.
        unsafe { libc::kill(-(self.child.id() as libc::pid_t), signal) };
    }

    /// From here on the server's children become ours when it goes, so that we can wait for them.
    pub fn adopt(&self) {
        // SAFETY: changes an attribute of this process only.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    }

    /// Ends what is left when the server itself is gone.
    pub fn clear(&mut self) {
        self.signal_all(libc::SIGTERM);
        for _ in 0..20 {
            if !self.has_members() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.signal_all(libc::SIGKILL);
        self.has_members();
    }

    fn has_members(&self) -> bool {
        let group = -(self.child.id() as libc::pid_t);
        // SAFETY: the server itself has been waited for, so these are children it left; signal 0 only asks.
        unsafe {
            while libc::waitpid(group, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            libc::kill(group, 0) == 0
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.signal_all(libc::SIGKILL);
            self.child.wait().ok();
        }
    }
}

/// `exit status 1`, `signal 9`.
pub fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn command(site: &Site, arguments: &[OsString]) -> Command {
    let mut command = Command::new(&site.program);
    command.args(arguments).current_dir(&site.directory).stdin(Stdio::null()).process_group(0);
    // Listening sockets of an nginx that started us are not this one's.
    command.env_remove("NGINX");
    command
}

fn cannot_start(site: &Site, error: &std::io::Error) -> Failure {
    Failure::new(format!("{} cannot be started: {error}", site.program.display()), "see that it can be executed")
}
