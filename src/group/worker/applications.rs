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
    /// Those that are imported before any request.
    early: Vec<Arc<Application>>,
    /// Scripts found at request time lie in these directories, or are these files.
    allowed: Vec<PathBuf>,
    found: Mutex<HashMap<(Target, bool), Arc<Application>>>,
}

impl Applications {
    /// What cannot be understood is left out, with its reason.
    pub fn new(group: &Group) -> (Applications, Vec<(String, String)>) {
        let mut wrong = Vec::new();
        let mut listed = HashMap::new();
        let mut early = Vec::new();
        let at_once = group.applications.iter().map(|one| (one, true));
        for (named, is_early) in at_once.chain(group.on_demand.iter().map(|one| (one, false))) {
            let target = match Target::parse(&named.target) {
                Ok(target) => target,
                Err(report) => {
                    wrong.push((named.target.clone(), report.to_string()));
                    continue;
                }
            };
            let application =
                Application::new(ApplicationSettings { target, script_reloading: named.script_reloading });
            if is_early {
                early.push(application.clone());
            }
            listed.insert(named.identifier(), application);
        }
        (Applications { listed, early, allowed: group.scripts.clone(), found: Mutex::default() }, wrong)
    }

    /// Imports those that no request has to ask for; returns those that failed, with their reports. Detached.
    pub fn load(&self, interpreter: &Arc<Interpreter>) -> Vec<(String, String)> {
        let mut failed = Vec::new();
        for application in &self.early {
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

    /// Of those that are imported before any request.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.early.iter().map(|application| application.name()).collect();
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
