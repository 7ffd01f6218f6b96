//! Which applications a configuration names, where they run, and whether they may share an interpreter.

use std::path::PathBuf;
use std::sync::Arc;

use highball::error::{Code, Report};
use highball::group::state;
use highball::group::wanted::Wanted;
use highball::python::Application;
use highball::settings::{ApplicationSettings, Target};

/// Of an `http` block.
#[derive(Default)]
pub struct MainConf {
    pub home: Option<PathBuf>,
    pub path: Vec<PathBuf>,
    pub threads: Option<usize>,
    /// The process groups, with their applications once the configuration is complete.
    pub groups: Wanted,
    pub socket_prefix: Option<PathBuf>,
    pub grouped: Vec<Grouped>,
    mounts: Vec<Mount>,
    /// How many `wsgi_pass` there were so far.
    pub passes: usize,
}

/// An application that some location passes requests to, in a process group.
pub struct Grouped {
    pub group: String,
    pub target: Target,
    pub script_reloading: bool,
    pub shared: bool,
    pub place: String,
}

/// The same in nginx's own processes.
struct Mount {
    application: Arc<Application>,
    target: Target,
    script_reloading: bool,
    shared: bool,
    /// File and line.
    place: String,
    /// In the order of the configuration.
    number: usize,
}

impl MainConf {
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or(DEFAULT_THREADS)
    }

    pub fn applications(&self) -> impl Iterator<Item = &Arc<Application>> {
        self.mounts.iter().map(|mount| &mount.application)
    }

    pub fn application(
        &mut self,
        target: &Target,
        script_reloading: bool,
        shared: bool,
        place: &str,
        number: usize,
    ) -> Arc<Application> {
        let same = |mount: &&mut Mount| mount.target == *target && mount.script_reloading == script_reloading;
        if let Some(mount) = self.mounts.iter_mut().find(same) {
            mount.shared &= shared;
            return mount.application.clone();
        }
        let application = Application::new(ApplicationSettings { target: target.clone(), script_reloading });
        self.mounts.push(Mount {
            application: application.clone(),
            target: target.clone(),
            script_reloading,
            shared,
            place: place.into(),
            number,
        });
        application
    }

    /// Groups are declared, and get their applications.
    pub fn complete(&mut self) -> Result<(), Report> {
        for one in &self.grouped {
            self.groups.check(&format!("wsgi_process_group ({})", one.place), &one.group)?;
            let differs = |other: &&Grouped| other.group == one.group && other.target != one.target;
            if let Some(other) = self.grouped.iter().find(differs).filter(|_| !one.shared) {
                return Err(sharing(&other.target, &other.place, &one.target, &one.place).remedy(
                    "give each a process group of its own; or, if they get along, write \"wsgi_application_group global;\" for both",
                ));
            }
        }
        for one in &self.grouped {
            self.groups.add_application(&one.group, state::Application::new(&one.target, one.script_reloading));
        }
        Ok(())
    }

    /// Two applications in one interpreter can serve each other's settings: refused unless written down for both.
    pub fn check(&self) -> Result<(), Report> {
        let Some(first) = self.mounts.first() else { return Ok(()) };
        let Some(second) = self.mounts.iter().find(|mount| mount.target != first.target) else { return Ok(()) };
        let Some(alone) = self.mounts.iter().find(|mount| !mount.shared) else { return Ok(()) };
        let mut pair = [alone, if alone.target == first.target { second } else { first }];
        pair.sort_by_key(|mount| mount.number);
        let [other, alone] = pair;
        Err(sharing(&other.target, &other.place, &alone.target, &alone.place).remedy(
            "if they get along, say so for both with \"wsgi_application_group global;\" (in the http block); if not, give one \
             of them processes of its own: wsgi_daemon_process and wsgi_process_group",
        ))
    }
}

fn sharing(one: &Target, place: &str, other: &Target, other_place: &str) -> Report {
    let cause = format!(
        "\"{one}\" ({place}) and \"{other}\" ({other_place}) would share one Python interpreter, where each could get the \
         other's modules and settings"
    );
    Report::new(Code::SecondApplication, cause)
}

const DEFAULT_THREADS: usize = 16;
