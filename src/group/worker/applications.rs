//! Which applications a worker has.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::group::request::Answerer;
use crate::group::state::Group;
use crate::python::{Application, Interpreter, Status};
use crate::settings::{ApplicationSettings, Target};

pub struct Applications {
    /// By the identifier that requests name.
    listed: HashMap<u64, Arc<Application>>,
    /// Scripts found at request time lie in these directories, or are these files.
    allowed: Vec<PathBuf>,
    found: Mutex<HashMap<(Target, bool), Arc<Application>>>,
}

impl Applications {
    /// What cannot be understood is left out, with its reason.
    pub fn new(group: &Group) -> (Applications, Vec<(String, String)>) {
        let mut wrong = Vec::new();
        let mut listed = HashMap::new();
        for application in &group.applications {
            match Target::parse(&application.target) {
                Ok(target) => {
                    let settings = ApplicationSettings { target, script_reloading: application.script_reloading };
                    listed.insert(application.identifier(), Application::new(settings));
                }
                Err(report) => wrong.push((application.target.clone(), report.to_string())),
            }
        }
        (Applications { listed, allowed: group.scripts.clone(), found: Mutex::default() }, wrong)
    }

    /// Imports those that are listed; returns those that failed, with their reports. Detached.
    pub fn load(&self, interpreter: &Arc<Interpreter>) -> Vec<(String, String)> {
        let mut failed = Vec::new();
        for application in self.listed.values() {
            application.load(interpreter);
            if let Status::Failed(report) = application.status() {
                failed.push((application.name().to_string(), report.to_string()));
            }
        }
        failed
    }

    /// The one that is to answer; `None` if this group has no business with it.
    pub fn find(&self, answerer: &Answerer) -> Option<Arc<Application>> {
        let (target, script_reloading) = match answerer {
            Answerer::Listed(identifier) => return self.listed.get(identifier).cloned(),
            Answerer::Script { target, script_reloading } => (target, *script_reloading),
        };
        if !is_allowed(&self.allowed, target.script_path()) {
            return None;
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(application) = found.get(&(target.clone(), script_reloading)) {
            return Some(application.clone());
        }
        if found.len() >= MOST_SCRIPTS {
            return None;
        }
        let application = Application::new(ApplicationSettings { target: target.clone(), script_reloading });
        found.insert((target.clone(), script_reloading), application.clone());
        Some(application)
    }

    /// Of those that are listed.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.listed.values().map(|application| application.name()).collect();
        names.sort_unstable();
        names
    }
}

/// Whether the script lies below a directory, or is a file, of the list.
fn is_allowed(allowed: &[PathBuf], script: &Path) -> bool {
    let plain = script.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    plain && allowed.iter().any(|place| script.starts_with(place))
}

const MOST_SCRIPTS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_outside_the_listed_places_are_not_run() {
        let allowed = [PathBuf::from("/srv/scripts"), PathBuf::from("/srv/one.wsgi")];
        let is = |path: &str| is_allowed(&allowed, Path::new(path));
        assert!(is("/srv/scripts/a/b.wsgi") && is("/srv/one.wsgi"));
        for wrong in ["/srv/scripts/../secret.py", "/srv/scripts2/a.py", "/srv/two.wsgi", "/", "srv/scripts/a.py"] {
            assert!(!is(wrong), "{wrong}");
        }
    }
}
