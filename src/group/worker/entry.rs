//! What the boot script calls.

use std::sync::{Arc, OnceLock};

use super::process::{Boot, Worker, WorkerHost, read_settings};
use crate::group::control::FromWorker;
use crate::python::Interpreter;
use crate::python::extension::{Extension, Start, export};

static WORKER: OnceLock<Arc<Worker>> = OnceLock::new();

struct Entry;

impl Extension for Entry {
    fn serve(start: Start) -> Result<(), String> {
        let settings = read_settings(&start.settings).map_err(|report| report.to_string())?;
        let boot = Boot { python: start.python.clone(), prefix: start.prefix.clone(), wake: start.wake };
        let worker = Worker::new(settings, boot).map_err(|error| format!("the worker cannot start: {error}"))?;
        WORKER.set(worker.clone()).ok();
        worker.hello();
        let started = Interpreter::start(&worker.interpreter_settings(), Arc::new(WorkerHost(worker.clone())));
        let interpreter = started.map_err(|report| fail(&worker, report.to_string()))?;
        let no_threads = |error| fail(&worker, format!("threads cannot be started: {error}"));
        worker.attend(interpreter.clone()).map_err(no_threads)?;
        let failed = worker.load();
        start.ready(&interpreter);
        worker.start().map_err(no_threads)?;
        worker.ready(failed);
        Ok(())
    }

    fn drain() {
        if let Some(worker) = WORKER.get() {
            worker.drain(worker.shutdown_timeout());
        }
    }

    fn is_over() -> bool {
        WORKER.get().is_none_or(|worker| worker.is_over())
    }

    fn stop() -> bool {
        WORKER.get().is_none_or(|worker| worker.join())
    }
}

/// Says that this worker cannot serve.
fn fail(worker: &Worker, report: String) -> String {
    worker.supervisor.say(&FromWorker::Failed { report: report.clone() });
    report
}

export!(Entry);
