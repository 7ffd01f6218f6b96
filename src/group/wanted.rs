//! What a configuration wants of process groups, gathered by a server's module: for its supervisor, and for its own
//! processes.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client;
use super::options::Declared;
use super::request::Answerer;
use super::state::{Application, DesiredState, Log, key};
use crate::error::{Code, Report};
use crate::settings::{Target, did_you_mean};

#[derive(Debug, Clone, Default)]
pub struct Wanted {
    declared: Vec<Declared>,
}

/// What the server is, for its supervisor.
pub struct Server {
    pub software: String,
    pub log: Log,
    /// Whom its processes run as.
    pub uid: u32,
    pub gid: u32,
    pub socket_prefix: Option<PathBuf>,
    pub extension: PathBuf,
}

impl Wanted {
    /// Adds a group; its name must be new.
    pub fn declare(&mut self, directive: &str, declared: Declared) -> Result<(), Report> {
        if self.find(&declared.name).is_some() {
            let cause = format!("\"{directive}\": the process group \"{}\" is declared twice", declared.name);
            return Err(Report::new(Code::DirectiveValue, cause).remedy("give one of them another name"));
        }
        self.declared.push(declared);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.declared.is_empty()
    }

    pub fn find(&self, name: &str) -> Option<&Declared> {
        self.declared.iter().find(|declared| declared.name == name)
    }

    /// Refuses a group that nobody declares.
    pub fn check(&self, directive: &str, name: &str) -> Result<(), Report> {
        if self.find(name).is_some() {
            return Ok(());
        }
        let cause = format!("\"{directive}\" names the process group \"{name}\", and no such group is declared");
        let near = did_you_mean(name, self.declared.iter().map(|declared| declared.name.as_str()));
        Err(Report::new(Code::DirectiveValue, cause).remedy(match near {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "declare it with wsgi_daemon_process (Apache: WSGIDaemonProcess)".into(),
        }))
    }

    /// The group has this application, and imports it before it serves.
    pub fn add_application(&mut self, group: &str, application: Application) {
        if let Some(declared) = self.find_mut(group)
            && !declared.group.applications.contains(&application)
        {
            declared.group.applications.push(application);
        }
    }

    /// Requests may be sent to the group for this application: it is imported with the first of them. After those the group
    /// has in any case.
    pub fn add_on_demand(&mut self, group: &str, application: Application) {
        if let Some(declared) = self.find_mut(group)
            && !declared.group.applications.contains(&application)
            && !declared.group.on_demand.contains(&application)
        {
            declared.group.on_demand.push(application);
        }
    }

    /// The group may run scripts that requests name, in this directory or of this file.
    pub fn add_scripts(&mut self, group: &str, path: &Path) {
        if let Some(declared) = self.find_mut(group)
            && !declared.group.scripts.iter().any(|known| known == path)
        {
            declared.group.scripts.push(path.into());
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.declared.iter().map(|declared| declared.name.as_str())
    }

    /// How long the supervisor may take to end.
    pub fn longest_end(&self) -> Duration {
        let longest = self.declared.iter().map(|declared| declared.group.shutdown_timeout).max().unwrap_or_default();
        Duration::from_millis(longest) + Duration::from_secs(2)
    }

    pub fn state(&self, server: Server, secret: &str) -> DesiredState {
        DesiredState {
            server_software: server.software,
            log: server.log,
            server_uid: server.uid,
            server_gid: server.gid,
            socket_prefix: server.socket_prefix,
            secret: secret.into(),
            extension: server.extension,
            groups: self.declared.iter().map(|declared| (declared.name.clone(), declared.group.clone())).collect(),
        }
    }

    /// What server processes need to reach the groups, with the directory the supervisor has named.
    pub fn clients(&self, directory: &Path, secret: &str) -> Vec<client::Settings> {
        let settings = |declared: &Declared| client::Settings {
            name: declared.name.clone(),
            processes: declared.group.processes,
            threads: declared.group.threads,
            queue_size: declared.queue_size,
            queue_timeout: some_time(declared.group.queue_timeout),
            socket_timeout: some_time(declared.group.socket_timeout),
            directory: directory.into(),
            key: key(secret, &declared.name),
            listed: declared.group.applications.iter().map(|one| (one.clone(), one.identifier())).collect(),
        };
        self.declared.iter().map(settings).collect()
    }

    fn find_mut(&mut self, name: &str) -> Option<&mut Declared> {
        self.declared.iter_mut().find(|declared| declared.name == name)
    }
}

/// How a request names its application.
pub fn answerer(listed: &HashMap<Application, u64>, target: Target, script_reloading: bool) -> Answerer {
    match listed.get(&Application::new(&target, script_reloading)) {
        Some(identifier) => Answerer::Listed(*identifier),
        None => Answerer::Script { target, script_reloading },
    }
}

/// Of milliseconds; 0 is no limit.
fn some_time(milliseconds: u64) -> Duration {
    if milliseconds == 0 { FOREVER } else { Duration::from_millis(milliseconds) }
}

const FOREVER: Duration = Duration::from_secs(365 * 86_400);
