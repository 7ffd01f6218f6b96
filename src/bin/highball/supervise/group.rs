//! One process group: which workers it should have, and what is done about those it has.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use highball::group::client::socket_path;
use highball::group::control::{FromWorker, LogLevel, ToWorker, WorkerState};
use highball::group::state;
use highball::settings::Target;

use super::control::Answer;
use super::death::{self, Ended};
use super::log::Log;
use super::worker::{Common, Facts, Worker};
use super::{is_over, limits};

pub struct Group {
    pub name: String,
    /// What the workers in their places are.
    pub wish: Rc<Wish>,
    /// What the server wants: the same, unless the workers for it are on their way, or did not serve.
    pub wanted: Rc<Wish>,
    pub generation: u64,
    pub slots: Vec<Slot>,
    /// A new generation on its way.
    pub next: Option<Next>,
    /// Workers that leave.
    pub leaving: Vec<Worker>,
    /// `highball stop`.
    pub stopped: bool,
    /// It is not wanted any more.
    pub over: bool,
    /// Why the last new generation failed.
    pub trouble: Option<String>,
    /// Who waited for a generation that nobody wants any more.
    forsaken: Vec<u64>,
    /// The last change of a script that new processes were started for.
    pub tried: Option<(String, Instant)>,
}

#[derive(Default)]
pub struct Slot {
    pub worker: Option<Worker>,
    /// Takes the worker's place once it is ready.
    pub replacement: Option<Worker>,
    /// Why the worker is to be replaced.
    pub retired: Option<String>,
    /// Of a worker that died: connections wait there.
    pub listener: Option<OwnedFd>,
    /// Nothing is started here before then, as what was started died at once.
    pub not_before: Option<Instant>,
    pub delay: Duration,
}

pub struct Next {
    workers: Vec<Worker>,
    wish: Rc<Wish>,
    /// Who waits for the outcome.
    clients: Vec<u64>,
}

/// What a group needs of its supervisor.
pub struct World<'a> {
    pub common: Common<'a>,
    pub directory: &'a Path,
    pub log: &'a Log,
    pub incarnations: &'a mut u64,
    pub answers: &'a mut Vec<(u64, Answer)>,
    pub out_of_memory: bool,
}

/// What a group should be.
pub struct Wish {
    pub settings: state::Group,
    /// Of the settings, and of what else a worker is started with.
    pub hash: String,
    pub key_hash: String,
}

impl Wish {
    fn slots(&self) -> Vec<Slot> {
        (0..self.settings.processes).map(|_| Slot::default()).collect()
    }
}

impl Group {
    pub fn new(name: &str, wish: Wish) -> Group {
        let wish = Rc::new(wish);
        Group {
            name: name.into(),
            slots: wish.slots(),
            wanted: wish.clone(),
            wish,
            generation: 1,
            next: None,
            leaving: Vec::new(),
            stopped: false,
            over: false,
            trouble: None,
            forsaken: Vec::new(),
            tried: None,
        }
    }

    /// A worker of a former supervisor's. What was not in its place yet is ended.
    pub fn adopt(&mut self, mut worker: Worker, directory: &Path) {
        self.generation = self.generation.max(worker.facts.generation);
        let place = socket_path(directory, &self.name, worker.facts.slot);
        let slot = self.slots.get_mut(worker.facts.slot as usize);
        match slot {
            Some(slot) if !worker.leaving && worker.facts.path == place && slot.worker.is_none() => {
                if worker.facts.ready {
                    // It may not have been told.
                    worker.say(&ToWorker::Serve);
                    worker.state = WorkerState::Serving;
                    worker.deadline = None;
                }
                slot.worker = Some(worker);
            }
            _ => {
                if !worker.leaving {
                    worker.drain(Duration::ZERO);
                }
                self.leaving.push(worker);
            }
        }
    }

    /// After workers were adopted: those with other settings than wanted are replaced.
    pub fn settle(&mut self, world: &mut World<'_>) {
        let workers = self.slots.iter().filter_map(|slot| slot.worker.as_ref());
        let old = workers.map(|worker| &worker.facts).find(|facts| facts.hash != self.wanted.hash);
        if let Some(Facts { settings, hash, .. }) = old.cloned() {
            self.wish = Rc::new(Wish { settings, hash, key_hash: self.wanted.key_hash.clone() });
            self.renew(self.wanted.clone(), None, world);
        }
    }

    /// Takes over what is wanted now; equal settings leave everything as it is.
    pub fn want(&mut self, wish: Wish, world: &mut World<'_>) {
        self.over = false;
        self.wanted = wish.into();
        let coming = self.next.as_ref().map_or(&self.wish, |next| &next.wish);
        if coming.hash != self.wanted.hash {
            self.renew(self.wanted.clone(), None, world);
        }
    }

    /// Starts a new generation; where nothing serves, at once in place of what is there.
    pub fn renew(&mut self, wish: Rc<Wish>, client: Option<u64>, world: &mut World<'_>) {
        let mut clients: Vec<u64> = client.into_iter().collect();
        if let Some(next) = self.next.take() {
            clients.extend(next.clients);
            self.dismiss(next.workers);
        }
        self.generation += 1;
        let serves = self
            .slots
            .iter()
            .filter_map(|slot| slot.worker.as_ref())
            .any(|worker| worker.state == WorkerState::Serving);
        if !serves || self.stopped {
            let old = std::mem::take(&mut self.slots);
            self.slots = wish.slots();
            let workers = old.into_iter().flat_map(|slot| slot.worker.into_iter().chain(slot.replacement)).collect();
            self.dismiss(workers);
            self.wish = wish;
            for client in clients {
                let text = format!("no process of \"{}\" served; new ones are being started", self.name);
                world.answers.push((client, Answer::done(text)));
            }
            return self.tick(world);
        }
        let mut workers = Vec::new();
        for slot in 0..wish.settings.processes {
            match self.start(slot, &wish, None, world) {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    self.dismiss(workers);
                    return self.generation_failed(&format!("a process cannot be started: {error}"), clients, world);
                }
            }
        }
        self.next = Some(Next { workers, wish, clients });
    }

    /// New workers that are not needed after all.
    fn dismiss(&mut self, workers: Vec<Worker>) {
        for mut worker in workers {
            worker.drain(Duration::ZERO);
            worker.kill(Signal::TERM);
            self.leaving.push(worker);
        }
    }

    fn generation_failed(&mut self, why: &str, clients: Vec<u64>, world: &mut World<'_>) {
        let text = format!("the new processes of group \"{}\" do not serve, the old ones stay: {why}", self.name);
        world.log.write(LogLevel::Error, 0, &text, "");
        clients.into_iter().for_each(|client| world.answers.push((client, Answer::failed(text.clone()))));
        self.trouble = Some(why.into());
    }

    pub fn start(
        &self,
        slot: u32,
        wish: &Wish,
        listener: Option<OwnedFd>,
        world: &mut World<'_>,
    ) -> io::Result<Worker> {
        *world.incarnations += 1;
        let incarnation = *world.incarnations;
        let place = socket_path(world.directory, &self.name, slot);
        let path = if listener.is_some() {
            place.clone()
        } else {
            PathBuf::from(format!("{}.{incarnation}", place.display()))
        };
        let settings = limits::with_jitter(&wish.settings);
        let facts = Facts {
            group: self.name.clone(),
            slot,
            incarnation,
            generation: self.generation,
            pid: 0,
            path,
            leaving: false,
            ready: false,
            settings,
            hash: wish.hash.clone(),
        };
        Worker::start(facts, wish.key_hash.clone(), listener, &place, &world.common)
    }

    /// All workers, wherever they stand.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        let slots = self.slots.iter().flat_map(|slot| slot.worker.iter().chain(&slot.replacement));
        slots.chain(self.next.iter().flat_map(|next| &next.workers)).chain(&self.leaving)
    }

    pub fn workers_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        let slots = self.slots.iter_mut().flat_map(|slot| slot.worker.iter_mut().chain(&mut slot.replacement));
        slots.chain(self.next.iter_mut().flat_map(|next| &mut next.workers)).chain(&mut self.leaving)
    }

    pub fn find(&mut self, incarnation: u64) -> Option<&mut Worker> {
        self.workers_mut().find(|worker| worker.facts.incarnation == incarnation)
    }

    pub fn is_gone(&self) -> bool {
        self.over && self.workers().next().is_none()
    }

    /// Whether something is on its way.
    pub fn is_restless(&self) -> bool {
        if self.stopped || self.over {
            return !self.leaving.is_empty();
        }
        let serves = |slot: &Slot| slot.worker.as_ref().is_some_and(|worker| worker.state == WorkerState::Serving);
        let settled = |slot: &Slot| serves(slot) && slot.replacement.is_none() && slot.retired.is_none();
        self.next.is_some() || !self.leaving.is_empty() || !self.slots.iter().all(settled)
    }

    /// What a worker says.
    pub fn hear(&mut self, incarnation: u64, world: &mut World<'_>) {
        let Some(worker) = self.find(incarnation) else { return };
        let pid = worker.facts.pid;
        for packet in worker.hear() {
            match packet {
                FromWorker::Log { level, text } => world.log.write(level, pid, &text, &place_of(&self.name, pid)),
                FromWorker::Hello { version, python, state, .. } => {
                    if version != highball::group::frame::VERSION {
                        let text = "a worker's extension is of another version than the supervisor; restart the server";
                        world.log.write(LogLevel::Crit, pid, text, &place_of(&self.name, pid));
                    }
                    if let Some(worker) = self.find(incarnation) {
                        worker.python = python;
                        // To a new supervisor: what it was before it asked.
                        match state {
                            WorkerState::Ready => self.ready(incarnation, world),
                            WorkerState::Serving => {
                                worker.state = state;
                                worker.deadline = None;
                            }
                            _ => {}
                        }
                    }
                }
                FromWorker::Ready { failed } => {
                    for (_, report) in &failed {
                        world.log.write(LogLevel::Error, pid, report, &place_of(&self.name, pid));
                    }
                    if let Some(worker) = self.find(incarnation) {
                        worker.failed = failed;
                    }
                    self.ready(incarnation, world);
                }
                FromWorker::Failed { report } => {
                    world.log.write(LogLevel::Crit, pid, &report, &place_of(&self.name, pid));
                    if let Some(worker) = self.find(incarnation) {
                        worker.report = Some(report.clone());
                    }
                    self.trouble = Some(report);
                }
                FromWorker::Retire { reason, case } => self.retire(incarnation, reason, &case, world),
                FromWorker::Stacks { text } => {
                    world.log.write(LogLevel::Notice, pid, &text, &place_of(&self.name, pid))
                }
                FromWorker::Drained => {}
            }
        }
    }

    fn ready(&mut self, incarnation: u64, world: &mut World<'_>) {
        if let Some(worker) = self.find(incarnation) {
            if worker.state != WorkerState::Starting || worker.leaving {
                return;
            }
            worker.state = WorkerState::Ready;
            worker.deadline = None;
            worker.facts.ready = true;
            worker.keep(world.common.minder);
        }
        let graceful = Duration::from_millis(self.wish.settings.graceful_timeout);
        let is =
            |worker: &Option<Worker>| worker.as_ref().is_some_and(|worker| worker.facts.incarnation == incarnation);
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let place = socket_path(world.directory, &self.name, number as u32);
            if is(&slot.worker) || is(&slot.replacement) {
                let mut old = None;
                if is(&slot.replacement) {
                    old = std::mem::replace(&mut slot.worker, slot.replacement.take());
                    slot.retired = None;
                }
                slot.delay = Duration::ZERO;
                if let Some(worker) = &mut slot.worker {
                    if let Err(error) = worker.serve(&place) {
                        world.log.write(LogLevel::Crit, 0, &format!("\"{}\": {error}", place.display()), "");
                    }
                    worker.keep(world.common.minder);
                }
                if let Some(mut old) = old {
                    old.drain(graceful);
                    old.keep(world.common.minder);
                    self.leaving.push(old);
                }
                return;
            }
        }
        let all_ready = |next: &Next| next.workers.iter().all(|worker| worker.state == WorkerState::Ready);
        if self.next.as_ref().is_some_and(all_ready)
            && let Some(next) = self.next.take()
        {
            self.switch(next, graceful, world);
        }
    }

    /// The new generation takes over.
    fn switch(&mut self, next: Next, graceful: Duration, world: &mut World<'_>) {
        // An application that the old processes have and the new ones could not load is no new code, it is a mistake.
        let failed: Vec<&(String, String)> = next.workers.iter().flat_map(|worker| &worker.failed).collect();
        let had = |name: &str| {
            let olds = self.slots.iter().filter_map(|slot| slot.worker.as_ref());
            olds.into_iter().any(|old| {
                let mut known =
                    old.facts.settings.applications.iter().filter_map(|one| Target::parse(&one.target).ok());
                let knows = known.any(|target| target.to_string() == name);
                knows && !old.failed.iter().any(|(failed, _)| failed == name)
            })
        };
        if let Some((_, report)) = failed.iter().find(|(name, _)| had(name)) {
            let report = report.clone();
            self.dismiss(next.workers);
            return self.generation_failed(&report, next.clients, world);
        }
        let count = next.workers.len();
        let olds = std::mem::take(&mut self.slots);
        for mut worker in next.workers {
            let place = socket_path(world.directory, &self.name, worker.facts.slot);
            if let Err(error) = worker.serve(&place) {
                world.log.write(LogLevel::Crit, 0, &format!("\"{}\": {error}", place.display()), "");
            }
            worker.keep(world.common.minder);
            self.slots.push(Slot { worker: Some(worker), ..Slot::default() });
        }
        for (number, slot) in olds.into_iter().enumerate() {
            if number >= count {
                std::fs::remove_file(socket_path(world.directory, &self.name, number as u32)).ok();
            }
            for mut old in slot.worker.into_iter().chain(slot.replacement) {
                old.drain(graceful);
                old.keep(world.common.minder);
                self.leaving.push(old);
            }
        }
        self.wish = next.wish;
        self.trouble = None;
        let text = format!("process group \"{}\": {count} new processes serve, the old ones leave", self.name);
        world.log.write(LogLevel::Notice, 0, &text, "");
        next.clients.into_iter().for_each(|client| world.answers.push((client, Answer::done(text.clone()))));
    }

    /// A process has ended.
    pub fn died(&mut self, incarnation: u64, ended: Ended, world: &mut World<'_>) {
        self.read_output(incarnation, true, world.log);
        self.hear(incarnation, world);
        let Some(worker) = self.find(incarnation) else { return };
        let pid = worker.facts.pid;
        let how = ended.in_words(world.out_of_memory && !worker.killed);
        let running = death::running(&worker.page);
        let (leaving, killed, ready) = (worker.leaving, worker.killed, worker.facts.ready);
        let report = worker.report.clone();
        super::keep::drop_kept(world.common.minder, &worker.name()).ok();
        let mut text = format!("a process of the group {how}");
        if !ready {
            text.push_str(" before it was ready");
        }
        if !running.is_empty() {
            text.push_str(&format!("; it was running: {}", running.join(", ")));
        }
        let orderly = leaving && (matches!(ended, Ended::Exit(0) | Ended::Unseen) || killed);
        let level = if orderly { LogLevel::Info } else { LogLevel::Error };
        world.log.write(level, pid, &text, &place_of(&self.name, pid));

        if let Some(at) = self.leaving.iter().position(|worker| worker.facts.incarnation == incarnation) {
            let worker = self.leaving.swap_remove(at);
            let place = socket_path(world.directory, &self.name, worker.facts.slot);
            if worker.facts.path != place {
                std::fs::remove_file(&worker.facts.path).ok();
            }
            return;
        }
        if self
            .next
            .as_ref()
            .is_some_and(|next| next.workers.iter().any(|worker| worker.facts.incarnation == incarnation))
            && let Some(next) = self.next.take()
        {
            let (dead, others) = next.workers.into_iter().partition(|worker| worker.facts.incarnation == incarnation);
            forget_sockets(dead);
            self.dismiss(others);
            return self.generation_failed(&report.unwrap_or(text), next.clients, world);
        }
        for slot in &mut self.slots {
            if slot.replacement.as_ref().is_some_and(|worker| worker.facts.incarnation == incarnation) {
                forget_sockets(slot.replacement.take().into_iter().collect());
                slot.not_before = Some(Instant::now() + LONGEST_DELAY);
                return;
            }
            if slot.worker.as_ref().is_some_and(|worker| worker.facts.incarnation == incarnation)
                && let Some(worker) = slot.worker.take()
            {
                if !ready {
                    slot.delay = (slot.delay * 2).clamp(SHORTEST_DELAY, LONGEST_DELAY);
                    slot.not_before = Some(Instant::now() + slot.delay);
                }
                let place = socket_path(world.directory, &self.name, worker.facts.slot);
                if worker.facts.path == place {
                    slot.listener = Some(worker.into_listener());
                } else {
                    std::fs::remove_file(&worker.facts.path).ok();
                }
                if let Some(replacement) = &mut slot.replacement {
                    // Ready or not, it is the next one.
                    replacement.leaving = false;
                    slot.worker = slot.replacement.take();
                    slot.listener = None;
                }
                slot.retired = None;
                return;
            }
        }
    }

    /// Starts what is missing, ends what takes too long, replaces what is too old.
    pub fn tick(&mut self, world: &mut World<'_>) {
        for client in self.forsaken.drain(..) {
            let text = format!("process group \"{}\" was stopped before its new processes served", self.name);
            world.answers.push((client, Answer::failed(text)));
        }
        for worker in &mut self.leaving {
            if is_over(worker.deadline) {
                worker.kill(Signal::KILL);
                worker.deadline = None;
            }
        }
        if self.over || self.stopped {
            return;
        }
        self.end_late_starters(world);
        for number in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(number) else { continue };
            if slot.worker.is_some() || slot.not_before.is_some_and(|moment| moment > Instant::now()) {
                continue;
            }
            let listener = slot.listener.take();
            let started = self.start(number as u32, &self.wish, listener, world);
            let Some(slot) = self.slots.get_mut(number) else { continue };
            match started {
                Ok(worker) => slot.worker = Some(worker),
                Err(error) => {
                    slot.delay = (slot.delay * 2).clamp(SHORTEST_DELAY, LONGEST_DELAY);
                    slot.not_before = Some(Instant::now() + slot.delay);
                    let text = format!("HB0204 a process of the group cannot be started: {error}");
                    self.trouble = Some(text.clone());
                    world.log.write(LogLevel::Crit, 0, &text, &format!(", process group: \"{}\"", self.name));
                }
            }
        }
        self.recycle(world);
    }

    /// Everything ends, within `shutdown-timeout` or, for a group that is only not wanted any more, `graceful-timeout`.
    pub fn end(&mut self, server_ends: bool, directory: &Path) {
        self.over = true;
        self.empty(server_ends, directory);
    }

    /// `highball stop`.
    pub fn stop(&mut self, directory: &Path) {
        self.stopped = true;
        self.empty(false, directory);
    }

    fn empty(&mut self, server_ends: bool, directory: &Path) {
        let settings = &self.wish.settings;
        let within =
            Duration::from_millis(if server_ends { settings.shutdown_timeout } else { settings.graceful_timeout });
        if let Some(next) = self.next.take() {
            self.dismiss(next.workers);
            self.forsaken.extend(next.clients);
        }
        for (number, slot) in self.slots.iter_mut().enumerate() {
            std::fs::remove_file(socket_path(directory, &self.name, number as u32)).ok();
            slot.listener = None;
            for mut worker in slot.worker.take().into_iter().chain(slot.replacement.take()) {
                if worker.state == WorkerState::Starting {
                    worker.kill(Signal::TERM);
                }
                worker.drain(within);
                self.leaving.push(worker);
            }
        }
        if server_ends {
            // What is given up then has a moment for unwinding; the server waits two seconds longer than this time.
            let limit = Instant::now() + within + UNWIND;
            for worker in &mut self.leaving {
                worker.deadline = Some(limit);
            }
        }
    }

    pub fn reload(&mut self, client: u64, world: &mut World<'_>) {
        self.stopped = false;
        self.renew(self.wanted.clone(), Some(client), world);
    }

    pub fn ask_for_stacks(&self) {
        for worker in self.workers() {
            worker.say(&ToWorker::Stacks);
        }
    }
}

/// Of workers that never came to their places.
fn forget_sockets(workers: Vec<Worker>) {
    for worker in workers {
        std::fs::remove_file(&worker.facts.path).ok();
    }
}

pub fn place_of(group: &str, pid: u32) -> String {
    format!(", process group: \"{group}\", pid: {pid}")
}

const UNWIND: Duration = Duration::from_millis(1500);
const SHORTEST_DELAY: Duration = Duration::from_millis(100);
pub const LONGEST_DELAY: Duration = Duration::from_secs(5);
