//! The supervisor's loop.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use highball::group::control::LogLevel;
use highball::group::frame::VERSION;
use highball::group::state::{DesiredState, canonical, hexadecimal, key, key_hash};
use highball::group::{launch, socket};

use super::control::{Answer, Command, Control, Question};
use super::death::Ended;
use super::group::{Group, Wish, World};
use super::keep::{self, Said, Thing};
use super::log::Log;
use super::worker::{Common, Worker};
use super::{MINDER, death, directory, is_over, minder, wait};
use crate::signals::Signals;

struct Supervisor {
    orders: Option<OwnedFd>,
    life: OwnedFd,
    minder: OwnedFd,
    own: Own,
    state: Option<DesiredState>,
    log: Option<Log>,
    /// The extension of this version, for all workers there will be.
    extension: Option<OwnedFd>,
    control: Option<Control>,
    groups: BTreeMap<String, Group>,
    incarnations: u64,
    /// Nothing is wanted any more, or the server ends.
    ending: bool,
    life_closed: bool,
    signals: Signals,
    /// Processes of which the minder has said how they ended.
    ended: BTreeMap<u32, i32>,
    /// When another minder is started, where that has failed.
    minder_at: Option<Instant>,
    out_of_memory_kills: u64,
    measured: Instant,
    /// Who waits for stacks, until when.
    stacks: Vec<(u64, Instant)>,
}

/// What a later supervisor must know besides the state.
#[derive(Default, Clone, Serialize, Deserialize)]
struct Own {
    directory: PathBuf,
    /// Who gives orders.
    uid: u32,
    pid: i32,
    ending: bool,
}

pub fn run(orders: OwnedFd, life: OwnedFd, minder_socket: OwnedFd, signals: Signals) -> io::Result<()> {
    let mut supervisor = Supervisor {
        orders: Some(orders),
        life,
        minder: minder_socket,
        own: Own::default(),
        state: None,
        log: None,
        extension: None,
        control: None,
        groups: BTreeMap::new(),
        incarnations: 0,
        ending: false,
        life_closed: false,
        signals,
        ended: BTreeMap::new(),
        minder_at: None,
        out_of_memory_kills: death::out_of_memory_kills(),
        measured: Instant::now(),
        stacks: Vec::new(),
    };
    supervisor.restore()?;
    loop {
        supervisor.turn()?;
        if supervisor.ending && supervisor.groups.values().all(Group::is_gone) {
            if !supervisor.own.directory.as_os_str().is_empty() {
                directory::remove(&supervisor.own.directory);
            }
            keep::over(&supervisor.minder).ok();
            return Ok(());
        }
    }
}

/// What woke the loop.
enum Woken {
    Signal,
    Orders,
    Life,
    Minder,
    Control,
    Client(u64),
    Says(String, u64),
    Writes(String, u64),
    Died(String, u64),
}

impl Supervisor {
    /// Takes over what a former supervisor has left with the minder.
    fn restore(&mut self) -> io::Result<()> {
        let mut workers: Vec<Worker> = Vec::new();
        loop {
            wait(&mut [PollFd::new(&self.minder, PollFlags::IN)], None)?;
            match keep::receive(&self.minder)? {
                None => {}
                Some(Said::Keep(kept)) if kept.name == "own" => self.own = serde_json::from_slice(&kept.text)?,
                Some(Said::Keep(kept)) if kept.name == "state" => {
                    let state: DesiredState = serde_json::from_slice(&kept.text)?;
                    let file = kept.files.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
                    self.log = Some(Log::new(state.log.clone(), file));
                    self.state = Some(state);
                }
                Some(Said::Keep(kept)) if kept.name == "extension" => self.extension = kept.files.into_iter().next(),
                Some(Said::Keep(kept)) => workers.extend(Worker::take_over(kept).ok()),
                Some(Said::All) => break,
                Some(Said::Drop(_) | Said::Over) => {}
                Some(Said::Ended { pid, status }) => drop(self.ended.insert(pid, status)),
                // A minder that dies in the middle of it: what has come is all there is.
                Some(Said::End) if self.state.is_some() => break,
                Some(Said::End) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let Some(state) = self.state.clone() else { return Ok(()) };
        self.open_extension(&state)?;
        self.groups = state.groups.keys().map(|name| (name.clone(), Group::new(name, wish(&state, name)))).collect();
        // Of two for one place the later one has it: the other was to leave.
        workers.sort_by_key(|worker| std::cmp::Reverse(worker.facts.incarnation));
        for worker in workers {
            self.incarnations = self.incarnations.max(worker.facts.incarnation);
            let name = worker.facts.group.clone();
            let group = self.groups.entry(name.clone()).or_insert_with(|| {
                let wish =
                    Wish { settings: worker.facts.settings.clone(), hash: String::new(), key_hash: String::new() };
                let mut group = Group::new(&name, wish);
                group.over = true;
                group
            });
            group.adopt(worker, &self.own.directory);
        }
        self.control = Control::new(&self.own.directory).ok();
        self.ending = self.own.ending || state.groups.is_empty();
        if self.own.ending {
            self.end();
        }
        if let Some(log) = &self.log {
            log.write(LogLevel::Notice, 0, "the supervisor of the process groups was killed; another one goes on", "");
        }
        self.each_group(|group, world| group.settle(world));
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let (mut files, mut meanings) = (Vec::new(), Vec::new());
        {
            let mut add = |file, meaning| {
                files.push(PollFd::from_borrowed_fd(file, PollFlags::IN));
                meanings.push(meaning);
            };
            add(self.signals.file(), Woken::Signal);
            if let Some(orders) = &self.orders {
                add(orders.as_fd(), Woken::Orders);
            }
            if !self.life_closed {
                add(self.life.as_fd(), Woken::Life);
            }
            if self.minder_at.is_none() {
                add(self.minder.as_fd(), Woken::Minder);
            }
            if let Some(control) = &self.control {
                add(control.listener(), Woken::Control);
                control.clients.iter().for_each(|client| add(client.stream(), Woken::Client(client.number)));
            }
            for group in self.groups.values() {
                for worker in group.workers() {
                    let id = || (group.name.clone(), worker.facts.incarnation);
                    if let Some(control) = worker.control() {
                        add(control, Woken::Says(id().0, id().1));
                    }
                    if worker.gone.is_none() {
                        add(worker.process(), Woken::Died(id().0, id().1));
                    }
                    if let Some(output) = worker.output.file() {
                        add(output, Woken::Writes(id().0, id().1));
                    }
                }
            }
        }
        let restless = self.ending || self.groups.values().any(Group::is_restless) || !self.stacks.is_empty();
        wait(&mut files, Some(if restless { SOON } else { SECOND }))?;
        let ready: Vec<bool> = files.iter().map(|file| !file.revents().is_empty()).collect();
        drop(files);
        for (meaning, ready) in meanings.into_iter().zip(ready) {
            if ready {
                self.act(meaning)?;
            }
        }
        if self.measured.elapsed() >= SECOND {
            self.measured = Instant::now();
            self.each_second();
        }
        self.bury();
        if is_over(self.minder_at) {
            self.start_minder();
        }
        self.each_group(|group, world| group.tick(world));
        self.groups.retain(|_, group| !group.is_gone());
        self.answer_stacks();
        Ok(())
    }

    fn act(&mut self, what: Woken) -> io::Result<()> {
        match what {
            Woken::Signal => {
                while self.signals.next().is_some() {}
                minder::reap_others(&self.pids());
            }
            Woken::Orders => self.obey(),
            Woken::Life => {
                self.life_closed = true;
                self.end();
            }
            Woken::Minder => match keep::receive(&self.minder) {
                Ok(Some(Said::End)) | Err(_) => self.start_minder(),
                Ok(Some(Said::Ended { pid, status })) => drop(self.ended.insert(pid, status)),
                Ok(_) => {}
            },
            Woken::Control => self.control.iter_mut().for_each(Control::accept),
            Woken::Client(number) => {
                let family = self.family();
                let question = self.control.as_mut().and_then(|control| control.read(number, &family));
                if let Some(question) = question {
                    self.answer(number, &question);
                }
            }
            Woken::Says(name, incarnation) => self.with_group(&name, |group, world| group.hear(incarnation, world)),
            Woken::Writes(name, incarnation) => {
                self.with_group(&name, |group, world| group.read_output(incarnation, false, world.log));
            }
            Woken::Died(name, incarnation) => self.with_group(&name, |group, _| {
                if let Some(worker) = group.find(incarnation) {
                    worker.gone = Some(Instant::now());
                }
            }),
        }
        Ok(())
    }

    /// Takes leave of processes that have ended, once it is known how.
    fn bury(&mut self) {
        let mut dead = Vec::new();
        for group in self.groups.values() {
            for worker in group.workers().filter(|worker| worker.gone.is_some()) {
                let told = self.ended.get(&worker.facts.pid).map(|status| Ended::of_status(*status));
                let waited = worker.gone.is_some_and(|gone| gone.elapsed() >= UNSEEN);
                let ended = Ended::of_child(worker.process()).or(told).or(waited.then_some(Ended::Unseen));
                dead.extend(ended.map(|ended| (group.name.clone(), worker.facts.incarnation, worker.facts.pid, ended)));
            }
        }
        for (name, incarnation, pid, ended) in dead {
            self.ended.remove(&pid);
            self.with_group(&name, |group, world| group.died(incarnation, ended, world));
        }
        // Of others nobody asks.
        let pids = self.pids();
        self.ended.retain(|pid, _| pids.contains(pid));
    }

    /// An order of the server's master.
    fn obey(&mut self) {
        let Some(orders) = &self.orders else { return };
        let mut buffer = [0; 512];
        let received = match socket::receive(orders, &mut buffer) {
            Ok(received) if received.bytes > 0 => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // The master is gone; as long as its processes live, so do the groups.
            _ => return self.orders = None,
        };
        let Some((pid, uid)) = received.sender else { return };
        let is_first = self.own.pid == 0;
        let owner_lives = Path::new("/proc").join(self.own.pid.to_string()).exists();
        if !is_first && (uid != self.own.uid || (pid != self.own.pid && owner_lives)) {
            return;
        }
        (self.own.pid, self.own.uid) = (pid, uid);
        let text = String::from_utf8_lossy(buffer.get(..received.bytes).unwrap_or_default()).into_owned();
        let answer = match text.strip_prefix(&format!("highball {VERSION} ")) {
            Some("bye") => return self.end(),
            Some(order) if order.starts_with("state ") => match self.take_state(received.files) {
                Ok(()) => format!("highball {VERSION} ok {}", self.own.directory.display()),
                Err(error) => format!("highball {VERSION} no {error}"),
            },
            _ if text.ends_with(" bye") => return self.end(),
            _ => format!("highball {VERSION} no version"),
        };
        if let Some(orders) = &self.orders {
            socket::send(orders, answer.as_bytes(), &[]).ok();
        }
    }

    fn take_state(&mut self, files: Vec<OwnedFd>) -> io::Result<()> {
        let mut files = files.into_iter();
        let (Some(memory), Some(log)) = (files.next(), files.next()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let text = socket::content(memory, LONGEST_STATE)?;
        let state: DesiredState = serde_json::from_slice(&text)?;
        if self.own.ending {
            return Err(io::Error::other("everything is about to end"));
        }
        for name in state.groups.keys() {
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) || name == "control" {
                let text = format!("\"{name}\" cannot be the name of a process group");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
        if self.own.directory.as_os_str().is_empty() {
            let open = state.server_uid != rustix::process::geteuid().as_raw();
            // The minder that the server's master has started is this process's parent.
            let minder = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32);
            self.own.directory = directory::make(state.socket_prefix.as_deref(), minder, open)?;
        }
        self.open_extension(&state)?;
        if self.control.is_none() {
            self.control = Some(Control::new(&self.own.directory)?);
        }
        self.log = Some(Log::new(state.log.clone(), log));
        self.state = Some(state.clone());
        self.keep_own();
        for (name, group) in &mut self.groups {
            if !state.groups.contains_key(name) && !group.over {
                group.end(false, &self.own.directory);
            }
        }
        for name in state.groups.keys() {
            let wish = wish(&state, name);
            if !self.groups.contains_key(name) {
                self.groups.insert(name.clone(), Group::new(name, wish));
            } else {
                self.with_group(name, |group, world| group.want(wish, world));
            }
        }
        // Groups may come back before the last one has gone.
        self.ending = state.groups.is_empty();
        Ok(())
    }

    fn open_extension(&mut self, state: &DesiredState) -> io::Result<()> {
        if self.extension.is_none() {
            let open = File::open(&state.extension).map_err(|error| {
                io::Error::new(error.kind(), format!("\"{}\" cannot be read: {error}", state.extension.display()))
            });
            self.extension = Some(open?.into());
        }
        Ok(())
    }

    fn keep_own(&self) {
        self.own_things().iter().for_each(|thing| drop(thing.keep(&self.minder)));
    }

    fn own_things(&self) -> Vec<Thing<'_>> {
        let text = serde_json::to_vec(&self.own).unwrap_or_default();
        let mut things = vec![Thing { name: "own".into(), text, files: Vec::new() }];
        if let Some(extension) = &self.extension {
            things.push(Thing { name: "extension".into(), text: Vec::new(), files: vec![extension.as_fd()] });
        }
        if let (Some(state), Some(log)) = (&self.state, &self.log) {
            things.push(Thing { name: "state".into(), text: canonical(state), files: vec![log.file().as_fd()] });
        }
        things
    }

    /// The minder has died: another is started, and gets everything.
    fn start_minder(&mut self) {
        let (level, text) = match self.try_to_start_minder() {
            Ok(()) => (LogLevel::Notice, "the minder of the supervisor was killed; another one is there".to_string()),
            Err(error) => (LogLevel::Crit, format!("another minder of the supervisor cannot be started: {error}")),
        };
        self.minder_at = (level == LogLevel::Crit).then(|| Instant::now() + SECOND);
        if let Some(log) = &self.log {
            log.write(level, 0, &text, "");
        }
    }

    fn try_to_start_minder(&mut self) -> io::Result<()> {
        let orders = self.orders.as_ref().map_or(self.life.as_fd(), AsFd::as_fd);
        let mut things = self.own_things();
        things.extend(self.groups.values().flat_map(Group::workers).map(Worker::thing));
        self.minder = keep::hand_over(&things, |theirs| {
            let files = [(orders, launch::ORDERS), (self.life.as_fd(), launch::LIFE), (theirs.as_fd(), MINDER)];
            minder::spawn("--next-minder", &files)
        })?;
        Ok(())
    }

    fn end(&mut self) {
        self.ending = true;
        self.own.ending = true;
        self.keep_own();
        let directory = self.own.directory.clone();
        self.groups.values_mut().for_each(|group| group.end(true, &directory));
    }

    fn each_second(&mut self) {
        let kills = death::out_of_memory_kills();
        self.out_of_memory_kills = kills;
        if let Some(log) = &mut self.log {
            log.follow();
        }
        if let Some(log) = &self.log {
            self.groups.values_mut().for_each(|group| group.measure(log));
        }
        if let Some(control) = &mut self.control {
            control.tidy();
        }
    }

    fn answer(&mut self, client: u64, question: &Question) {
        let name = question.group.clone().unwrap_or_default();
        if question.command == Command::Status {
            let only = |group: &&mut Group| question.group.is_none() || group.name == name;
            let status: Vec<serde_json::Value> =
                self.groups.values_mut().filter(only).map(|group| group.status()).collect();
            let ok = question.group.is_none() || !status.is_empty();
            let text = if ok { String::new() } else { self.unknown(&name) };
            return self.reply(client, &Answer { ok, text, status: status.into() });
        }
        if self.groups.get(&name).is_none_or(|group| group.over) {
            let text = self.unknown(&name);
            return self.reply(client, &Answer::failed(text));
        }
        match question.command {
            Command::Status => {}
            Command::Reload => self.with_group(&name, |group, world| group.reload(client, world)),
            Command::Stop => {
                self.with_group(&name, |group, world| group.stop(world.directory));
                self.reply(
                    client,
                    &Answer::done(format!("process group \"{name}\" is stopped; its processes finish what they have")),
                );
            }
            Command::Start => {
                self.with_group(&name, |group, _| group.stopped = false);
                self.reply(client, &Answer::done(format!("process group \"{name}\" is started")));
            }
            Command::Stacks => {
                if let Some(group) = self.groups.get(&name) {
                    group.ask_for_stacks();
                }
                self.stacks.push((client, Instant::now() + STACKS));
            }
        }
    }

    fn unknown(&self, name: &str) -> String {
        let names: Vec<&str> = self.groups.keys().map(String::as_str).collect();
        format!("there is no process group \"{name}\"; there are: {}", names.join(", "))
    }

    fn reply(&mut self, client: u64, answer: &Answer) {
        if let Some(control) = &mut self.control {
            control.answer(client, answer);
        }
    }

    fn answer_stacks(&mut self) {
        let now = Instant::now();
        let (late, rest) =
            std::mem::take(&mut self.stacks).into_iter().partition::<Vec<_>, _>(|(_, until)| *until <= now);
        self.stacks = rest;
        for (client, _) in late {
            self.reply(client, &Answer::done("the stacks are in the server's error log"));
        }
    }

    /// Processes that applications may descend from.
    fn family(&self) -> Vec<u32> {
        let mut family = self.pids();
        family.push(std::process::id());
        family.extend(rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32).filter(|pid| *pid > 1));
        family
    }

    fn pids(&self) -> Vec<u32> {
        self.groups.values().flat_map(Group::workers).map(|worker| worker.facts.pid).collect()
    }

    fn with_group(&mut self, name: &str, act: impl FnOnce(&mut Group, &mut World<'_>)) {
        let mut act = Some(act);
        self.each(|group, world| {
            if group.name == name
                && let Some(act) = act.take()
            {
                act(group, world);
            }
        });
    }

    fn each_group(&mut self, act: impl FnMut(&mut Group, &mut World<'_>)) {
        self.each(act);
    }

    fn each(&mut self, mut act: impl FnMut(&mut Group, &mut World<'_>)) {
        let (Some(state), Some(log), Some(extension)) = (&self.state, &self.log, &self.extension) else { return };
        let mut answers = Vec::new();
        let mut world = World {
            common: Common {
                server_software: &state.server_software,
                extension: &state.extension,
                extension_file: extension.as_fd(),
                server: (state.server_uid, state.server_gid),
                life: self.life.as_fd(),
                minder: self.minder.as_fd(),
            },
            directory: &self.own.directory,
            log,
            incarnations: &mut self.incarnations,
            answers: &mut answers,
            out_of_memory: death::out_of_memory_kills() > self.out_of_memory_kills,
        };
        self.groups.values_mut().for_each(|group| act(group, &mut world));
        for (client, answer) in answers {
            self.reply(client, &answer);
        }
    }
}

/// What a group should be, with a hash of all that makes a worker another one.
fn wish(state: &DesiredState, name: &str) -> Wish {
    let settings = state.groups.get(name).cloned().unwrap_or_default();
    let key = key(&state.secret, name);
    let all =
        (&settings, &state.server_software, &state.extension, state.server_uid, state.server_gid, hexadecimal(&key));
    Wish { hash: key_hash(&digest(&canonical(&all))), key_hash: key_hash(&key), settings }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    key(&String::from_utf8_lossy(bytes), "")
}

/// How long somebody may take to say how a process has ended that was not this one's child.
const UNSEEN: Duration = Duration::from_millis(500);

const SECOND: Duration = Duration::from_secs(1);

/// While something is on its way.
const SOON: Duration = Duration::from_millis(50);

/// How long workers have to write their stacks.
const STACKS: Duration = Duration::from_millis(2500);

const LONGEST_STATE: u64 = 64 * 1024 * 1024;
