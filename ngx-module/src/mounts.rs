//! Which applications a configuration names, where they run, and whether they may share an interpreter.

use std::path::PathBuf;
use std::rc::Rc;
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
    /// Groups that `wsgi_restrict_process` names, with the place of the line.
    pub restricted: Vec<(String, String)>,
    mounts: Vec<Mount>,
    /// How many `wsgi_pass` there were so far.
    pub passes: usize,
}

/// One `wsgi_pass`.
#[derive(Clone)]
pub struct Pass {
    pub target: Target,
    /// File and line.
    pub place: String,
    /// In the order of the configuration.
    pub number: usize,
}

/// What else its location says.
#[derive(Clone, Copy)]
pub struct Passed {
    pub script_reloading: bool,
    pub shared: bool,
}

/// An application that some location passes requests to, in a process group.
pub struct Grouped {
    /// `None`: chosen for each request.
    pub group: Option<String>,
    /// Where the group is chosen, those that it may be.
    pub allowed: Option<Rc<Vec<String>>>,
    pub pass: Pass,
    pub settings: Passed,
}

/// The same in nginx's own processes.
struct Mount {
    application: Arc<Application>,
    pass: Pass,
    settings: Passed,
    /// Its location chooses groups: it is loaded once a request has chosen this process.
    on_demand: bool,
}

impl MainConf {
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or(DEFAULT_THREADS)
    }

    /// Those that are loaded when a process starts.
    pub fn applications(&self) -> impl Iterator<Item = &Arc<Application>> {
        self.mounts.iter().filter(|mount| !mount.on_demand).map(|mount| &mount.application)
    }

    /// Adds an application of nginx's own processes, unless it is there.
    pub fn application(&mut self, pass: &Pass, settings: &Passed, on_demand: bool) -> Arc<Application> {
        let script_reloading = settings.script_reloading;
        let same = |mount: &&mut Mount| {
            mount.pass.target == pass.target && mount.settings.script_reloading == script_reloading
        };
        if let Some(mount) = self.mounts.iter_mut().find(same) {
            mount.settings.shared &= settings.shared;
            mount.on_demand &= on_demand;
            return mount.application.clone();
        }
        let application = Application::new(ApplicationSettings { target: pass.target.clone(), script_reloading });
        let (pass, settings) = (pass.clone(), *settings);
        self.mounts.push(Mount { application: application.clone(), pass, settings, on_demand });
        application
    }

    /// Groups are declared, and get their applications.
    pub fn complete(&mut self) -> Result<(), Report> {
        for (place, name) in &self.restricted {
            self.groups.check(&format!("wsgi_restrict_process ({place})"), name)?;
        }
        for one in &self.grouped {
            match &one.group {
                Some(group) => self.groups.check(&format!("wsgi_process_group ({})", one.pass.place), group)?,
                None if self.groups.is_empty() => return Err(no_groups(&one.pass.place)),
                None => {}
            }
            let differs = |other: &&Grouped| {
                other.pass.target != one.pass.target && self.groups.names().any(|name| one.may(name) && other.may(name))
            };
            if let Some(other) = self.grouped.iter().find(differs).filter(|_| !one.settings.shared) {
                let remedy = match (&one.group, &other.group) {
                    (Some(_), Some(_)) => "give each a process group of its own",
                    _ => "name with wsgi_restrict_process the groups that each may be sent to",
                };
                let remedy =
                    format!("{remedy}; or, if they get along, write \"wsgi_application_group global;\" for both");
                return Err(sharing(&other.pass, &one.pass).remedy(remedy));
            }
        }
        // What a group has in any case comes first.
        let fixed = self.grouped.iter().filter_map(|one| Some((one, one.group.as_ref()?)));
        fixed.for_each(|(one, group)| self.groups.add_application(group, one.application()));
        let names: Vec<String> = self.groups.names().map(str::to_string).collect();
        for one in self.grouped.iter().filter(|one| one.group.is_none()) {
            let chosen = names.iter().filter(|name| one.may(name));
            chosen.for_each(|name| self.groups.add_on_demand(name, one.application()));
        }
        Ok(())
    }

    /// Two applications in one interpreter can serve each other's settings: refused unless written down for both.
    pub fn check(&self) -> Result<(), Report> {
        let Some(first) = self.mounts.first() else { return Ok(()) };
        let Some(second) = self.mounts.iter().find(|mount| mount.pass.target != first.pass.target) else {
            return Ok(());
        };
        let Some(alone) = self.mounts.iter().find(|mount| !mount.settings.shared) else { return Ok(()) };
        let mut pair = [alone, if alone.pass.target == first.pass.target { second } else { first }];
        pair.sort_by_key(|mount| mount.pass.number);
        let [other, alone] = pair;
        let apart = match other.on_demand || alone.on_demand {
            true => "have wsgi_restrict_process name groups alone where they are chosen for each request",
            false => "give one of them processes of its own: wsgi_daemon_process and wsgi_process_group",
        };
        Err(sharing(&other.pass, &alone.pass).remedy(format!(
            "if they get along, say so for both with \"wsgi_application_group global;\" (in the http block); if not, {apart}"
        )))
    }
}

impl Grouped {
    /// Whether its requests may go to this group.
    fn may(&self, name: &str) -> bool {
        match &self.group {
            Some(group) => group == name,
            None => self.allowed.as_ref().is_none_or(|allowed| allowed.iter().any(|one| one == name)),
        }
    }

    fn application(&self) -> state::Application {
        state::Application::new(&self.pass.target, self.settings.script_reloading)
    }
}

fn no_groups(place: &str) -> Report {
    let cause = format!("\"wsgi_process_group\" ({place}) chooses among process groups, and none is declared");
    Report::new(Code::DirectiveValue, cause).remedy("declare them with wsgi_daemon_process")
}

fn sharing(one: &Pass, other: &Pass) -> Report {
    let Pass { target: one, place, .. } = one;
    let Pass { target: other, place: other_place, .. } = other;
    let cause = format!(
        "\"{one}\" ({place}) and \"{other}\" ({other_place}) would share one Python interpreter, where each could get the \
         other's modules and settings"
    );
    Report::new(Code::SecondApplication, cause)
}

const DEFAULT_THREADS: usize = 16;
