//! One worker process.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use highball::group::control::{FromWorker, LONGEST, ToWorker, WorkerState};
use highball::group::frame::VERSION;
use highball::group::page::{self, Page};
use highball::group::socket;
use highball::group::state::{Group, WorkerSettings};

use super::keep::{Kept, Thing};
use super::output::Output;
use super::{spawn, time};

pub struct Worker {
    pub facts: Facts,
    process: OwnedFd,
    control: OwnedFd,
    listener: OwnedFd,
    page_file: OwnedFd,
    pub page: Page,
    pub output: Output,
    pub state: WorkerState,
    pub since: Instant,
    /// It is to be ready, or gone, by then.
    pub deadline: Option<Instant>,
    /// It is to be replaced then (restart-interval).
    pub recycled_at: Option<Instant>,
    /// It has been asked to leave, or another takes its place.
    pub leaving: bool,
    /// Since when its process is gone, where how that came is still to be seen.
    pub gone: Option<Instant>,
    /// Since when its end of the control socket is closed.
    pub silent: Option<Instant>,
    /// A signal of the supervisor's ends it.
    pub killed: bool,
    /// Applications that failed to load, with their reports.
    pub failed: Vec<(String, String)>,
    /// The last words of one that cannot serve.
    pub report: Option<String>,
    pub resident: u64,
    pub python: String,
}

/// What a later supervisor must know.
#[derive(Clone, Serialize, Deserialize)]
pub struct Facts {
    pub group: String,
    pub slot: u32,
    pub incarnation: u64,
    pub generation: u64,
    pub pid: u32,
    /// Where its socket is now.
    pub path: PathBuf,
    pub leaving: bool,
    /// It has been ready.
    pub ready: bool,
    /// Its own, with the jitter applied.
    pub settings: Group,
    /// Of what it was started with.
    pub hash: String,
}

/// What all workers of a supervisor share.
pub struct Common<'a> {
    pub server_software: &'a str,
    pub extension: &'a Path,
    /// The same, open since the supervisor started: what is at the path may be replaced.
    pub extension_file: BorrowedFd<'a>,
    pub server: (u32, u32),
    pub life: BorrowedFd<'a>,
    pub minder: BorrowedFd<'a>,
}

impl Worker {
    /// Starts one. `listener`: of one that died in the same place; otherwise a new socket is made at `facts.path`.
    pub fn start(
        mut facts: Facts,
        key_hash: String,
        listener: Option<OwnedFd>,
        socket: &Path,
        common: &Common<'_>,
    ) -> io::Result<Worker> {
        let group = facts.settings.clone();
        let listener = match listener {
            Some(listener) => listener,
            None => spawn::listen(&facts.path, common.server, group.listen_backlog)?,
        };
        let settings = WorkerSettings {
            version: VERSION,
            extension: common.extension.into(),
            name: facts.group.clone(),
            slot: facts.slot,
            incarnation: facts.incarnation,
            server_software: common.server_software.into(),
            key_hash,
            socket: socket.into(),
            group,
        };
        let memory = socket::sealed(&serde_json::to_vec(&settings)?)?;
        let (control, theirs) = socket::packets()?;
        let page_file = page::create(facts.settings.threads)?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let given = spawn::Given {
            settings: memory.as_fd(),
            control: theirs.as_fd(),
            listener: listener.as_fd(),
            life: common.life,
            page: page_file.as_fd(),
            extension: common.extension_file,
        };
        facts.pid = spawn::start(&facts.settings, common.server, &given, write)?;
        let pid = i32::try_from(facts.pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        // It is a child, and not waited for yet: the number is its own.
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let worker = Worker::assemble(facts, [control, listener, page_file, read, process])?;
        worker.keep(common.minder);
        Ok(worker)
    }

    /// Takes over one that a former supervisor has started; it is asked who it is.
    pub fn take_over(kept: Kept) -> io::Result<Worker> {
        let facts: Facts = serde_json::from_slice(&kept.text)?;
        let files = <[OwnedFd; 5]>::try_from(kept.files).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let leaving = facts.leaving;
        let mut worker = Worker::assemble(facts, files)?;
        worker.leaving = leaving;
        worker.say(&ToWorker::Hello);
        Ok(worker)
    }

    fn assemble(facts: Facts, [control, listener, page_file, output, process]: [OwnedFd; 5]) -> io::Result<Worker> {
        let now = Instant::now();
        rustix::io::ioctl_fionbio(&output, true)?;
        Ok(Worker {
            process,
            page: Page::map(page_file.as_fd(), false)?,
            deadline: time(facts.settings.startup_timeout).map(|time| now + time),
            recycled_at: time(facts.settings.restart_interval).map(|time| now + time),
            facts,
            control,
            listener,
            page_file,
            output: Output::new(output),
            state: WorkerState::Starting,
            since: now,
            leaving: false,
            gone: None,
            silent: None,
            killed: false,
            failed: Vec::new(),
            report: None,
            resident: 0,
            python: String::new(),
        })
    }

    /// Leaves what a later supervisor needs with the minder.
    pub fn keep(&self, minder: BorrowedFd<'_>) {
        // A minder that has died gets everything again.
        self.thing().keep(minder).ok();
    }

    pub fn thing(&self) -> Thing<'_> {
        let files = vec![
            self.control.as_fd(),
            self.listener.as_fd(),
            self.page_file.as_fd(),
            self.output.pipe(),
            self.process.as_fd(),
        ];
        Thing { name: self.name(), text: serde_json::to_vec(&self.facts).unwrap_or_default(), files }
    }

    pub fn name(&self) -> String {
        format!("worker-{}", self.facts.incarnation)
    }

    /// Where it speaks, until it has closed that.
    pub fn control(&self) -> Option<BorrowedFd<'_>> {
        self.silent.is_none().then(|| self.control.as_fd())
    }

    /// Readable once the process has ended.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub fn into_listener(self) -> OwnedFd {
        self.listener
    }

    pub fn say(&self, packet: &ToWorker) {
        let text = serde_json::to_vec(packet).unwrap_or_default();
        socket::send(&self.control, &text, &[]).ok();
    }

    /// What it has said. Nothing of it is trusted: what cannot be read is as if not said.
    pub fn hear(&mut self) -> Vec<FromWorker> {
        let mut buffer = vec![0; LONGEST];
        let mut heard = Vec::new();
        for _ in 0..MOST {
            match socket::receive(&self.control, &mut buffer) {
                Ok(received) if received.bytes > 0 => {
                    heard.extend(
                        serde_json::from_slice::<FromWorker>(buffer.get(..received.bytes).unwrap_or_default()).ok(),
                    );
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Its end, or an application that has closed what is not its own.
                _ => {
                    self.silent = Some(Instant::now());
                    break;
                }
            }
        }
        heard
    }

    /// Its place leads to it from now on.
    pub fn serve(&mut self, place: &Path) -> io::Result<()> {
        if self.facts.path != place {
            std::fs::rename(&self.facts.path, place)?;
            self.facts.path = place.into();
        }
        self.state = WorkerState::Serving;
        self.deadline = None;
        self.say(&ToWorker::Serve);
        Ok(())
    }

    /// Answers what it has, then ends; it is killed if it does not.
    pub fn drain(&mut self, within: Duration) {
        self.leaving = true;
        self.facts.leaving = true;
        if self.silent.is_some() {
            // It drains then as well, for as long as it was told when it started.
            pidfd_send_signal(&self.process, Signal::TERM).ok();
        }
        self.say(&ToWorker::Drain { within: within.as_millis() as u64 });
        self.state = WorkerState::Draining;
        let ends = Instant::now() + within + GRACE + Duration::from_millis(self.facts.settings.shutdown_timeout);
        self.deadline = Some(self.deadline.filter(|_| self.killed).unwrap_or(ends));
    }

    pub fn kill(&mut self, signal: Signal) {
        self.killed = true;
        pidfd_send_signal(&self.process, signal).ok();
    }

    /// Resident memory in bytes, newly read.
    pub fn measure(&mut self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.facts.pid)).unwrap_or_default();
        let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default();
        self.resident = pages * rustix::param::page_size() as u64;
        self.resident
    }
}

/// Packets before others have their turn.
const MOST: usize = 64;

/// How long after its time a worker may still take to interrupt what it runs.
const GRACE: Duration = Duration::from_secs(3);
