//! What `highball status` shows of a group.
#![forbid(unsafe_code)]

use serde_json::json;

use highball::group::control::WorkerState;
use highball::group::page::Phase;

use super::group::Group;

impl Group {
    /// For `highball status`.
    pub fn status(&mut self) -> serde_json::Value {
        let now = clock();
        let workers: Vec<serde_json::Value> = self
            .workers_mut()
            .map(|worker| {
                let resident = worker.measure();
                let entries = (0..worker.page.threads()).filter_map(|thread| worker.page.entry(thread));
                let running: Vec<serde_json::Value> = entries
                    .filter(|entry| entry.phase != Phase::Idle)
                    .map(|entry| {
                        json!({
                            "request": String::from_utf8_lossy(&entry.text),
                            "phase": phase(entry.phase),
                            "seconds": now.saturating_sub(entry.begun) as f64 / 1000.0,
                        })
                    })
                    .collect();
                let (begun, finished) = worker.page.requests();
                json!({
                    "pid": worker.facts.pid,
                    "slot": worker.facts.slot,
                    "generation": worker.facts.generation,
                    "state": if worker.leaving { WorkerState::Draining } else { worker.state },
                    "python": worker.python,
                    "threads": worker.page.threads(),
                    "busy": running.len(),
                    "requests": begun,
                    "finished": finished,
                    "memory": resident,
                    "seconds": worker.since.elapsed().as_secs(),
                    "running": running,
                    "reports": worker.failed.iter().map(|(_, report)| report.clone()).collect::<Vec<_>>(),
                    "failed": worker.failed.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "group": self.name,
            "generation": self.generation,
            "stopped": self.stopped,
            "applications": self.wish.settings.applications.iter().map(|one| one.target.clone()).collect::<Vec<_>>(),
            "processes": self.wish.settings.processes,
            "trouble": self.trouble,
            "workers": workers,
        })
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "idle",
        Phase::Loading => "loading",
        Phase::Application => "application",
        Phase::Sending => "sending",
        Phase::Reading => "reading",
    }
}

/// The page's clock: CLOCK_MONOTONIC in milliseconds.
fn clock() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}
