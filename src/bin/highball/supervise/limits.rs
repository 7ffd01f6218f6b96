//! Workers that take too long to start, and those that have reached a limit.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use rustix::process::Signal;

use highball::group::control::{LogLevel, WorkerState};
use highball::group::state;

use super::group::{Group, LONGEST_DELAY, World, place_of};
use super::log::Log;
use super::{death, is_over};

impl Group {
    pub fn end_late_starters(&mut self, world: &World<'_>) {
        let (name, limit) = (self.name.clone(), self.wish.settings.startup_timeout);
        for worker in self.workers_mut() {
            if worker.state == WorkerState::Starting && !worker.killed && !worker.leaving && is_over(worker.deadline) {
                let pid = worker.facts.pid;
                let text = format!(
                    "HB0308 a process of the group was not ready within {} s (startup-timeout); it is ended. It was loading: {}",
                    limit / 1000,
                    death::running(&worker.page).join(", ")
                );
                world.log.write(LogLevel::Error, pid, &text, &place_of(&name, pid));
                worker.report = Some(text);
                worker.kill(Signal::KILL);
            }
        }
    }

    /// A worker wants to be replaced.
    pub fn retire(&mut self, incarnation: u64, reason: String, case: &str, world: &mut World<'_>) {
        let slot = self.slots.iter_mut().find(|slot| {
            slot.worker.as_ref().is_some_and(|worker| worker.facts.incarnation == incarnation && !worker.leaving)
        });
        let Some(slot) = slot else { return };
        if slot.retired.is_some() {
            return;
        }
        // Its neighbours have the same script.
        if reason.starts_with("the script of application") {
            // Each of them sees the change; what has been tried is not tried again at once.
            let change = format!("{reason} {case}");
            let is_new = self.tried.as_ref().is_none_or(|(last, at)| *last != change || at.elapsed() >= AGAIN);
            if self.next.is_none() && is_new {
                self.tried = Some((change, Instant::now()));
                let text = format!("process group \"{}\": {reason}; new processes are started", self.name);
                world.log.write(LogLevel::Notice, 0, &text, "");
                self.renew(self.wanted.clone(), None, world);
            }
            return;
        }
        slot.retired = Some(reason);
    }

    /// Replaces, one at a time, workers that have reached a limit.
    pub fn recycle(&mut self, world: &mut World<'_>) {
        let busy = self.next.is_some() || self.slots.iter().any(|slot| slot.replacement.is_some());
        for number in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(number) else { continue };
            let Some(worker) = &mut slot.worker else { continue };
            if worker.state != WorkerState::Serving || worker.gone.is_some() {
                continue;
            }
            let limits = (worker.facts.settings.memory_limit, worker.facts.settings.memory_limit_hard);
            if limits != (0, 0) {
                let resident = worker.resident;
                let pid = worker.facts.pid;
                if limits.1 > 0 && resident > limits.1 && !worker.killed {
                    let text = format!(
                        "a process of the group has {} MiB of resident memory (memory-limit-hard); it is ended",
                        resident >> 20
                    );
                    world.log.write(LogLevel::Error, pid, &text, &place_of(&self.name, pid));
                    worker.kill(Signal::KILL);
                    continue;
                }
                if limits.0 > 0 && resident > limits.0 && slot.retired.is_none() {
                    slot.retired = Some(format!("memory-limit: {} MiB are resident", resident >> 20));
                }
            }
            // Whose process ends has a moment for that.
            if worker.silent.is_some_and(|since| since.elapsed() >= Duration::from_secs(1)) && slot.retired.is_none() {
                slot.retired = Some("it has closed its control socket".into());
            }
            if is_over(worker.recycled_at) && slot.retired.is_none() {
                slot.retired = Some("restart-interval".into());
            }
            let waits = slot.not_before.is_some_and(|moment| moment > Instant::now());
            let Some(reason) = slot.retired.clone().filter(|_| !busy && !waits) else { continue };
            let pid = worker.facts.pid;
            let text = format!("a process of the group is replaced ({reason})");
            world.log.write(LogLevel::Notice, pid, &text, &place_of(&self.name, pid));
            let started = self.start(number as u32, &self.wish, None, world);
            let Some(slot) = self.slots.get_mut(number) else { continue };
            match started {
                Ok(replacement) => slot.replacement = Some(replacement),
                Err(error) => {
                    slot.not_before = Some(Instant::now() + LONGEST_DELAY);
                    let text = format!("HB0204 its replacement cannot be started: {error}");
                    world.log.write(LogLevel::Crit, pid, &text, &place_of(&self.name, pid));
                }
            }
            return;
        }
    }

    /// Once a second.
    pub fn measure(&mut self, log: &Log) {
        let limited = self.wish.settings.memory_limit > 0 || self.wish.settings.memory_limit_hard > 0;
        for worker in self.workers_mut() {
            if limited {
                worker.measure();
            }
            if let Some(text) = worker.output.late() {
                log.write(LogLevel::Notice, worker.facts.pid, &text, &place_of(&worker.facts.group, worker.facts.pid));
            }
        }
    }
}

/// Every limit that replaces a worker, up to a tenth more or less: not all of them are to be replaced at once.
pub fn with_jitter(settings: &state::Group) -> state::Group {
    let mut settings = settings.clone();
    for limit in [&mut settings.maximum_requests, &mut settings.restart_interval, &mut settings.memory_limit] {
        *limit = (*limit as f64 * (0.9 + 0.2 * random())) as u64;
    }
    settings
}

/// From 0 up to 1.
fn random() -> f64 {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok();
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

/// A change of a script that led to nothing is tried again after so long.
const AGAIN: Duration = Duration::from_secs(30);
