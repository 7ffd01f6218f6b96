//! What a server wants of its supervisor, and what a worker is told: JSON, in sealed memory files.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::control::LogLevel;
use crate::settings::{Place, Target};

/// The whole of it. Groups that are equal in two states keep their workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredState {
    /// `nginx/1.22.1` and so on.
    pub server_software: String,
    pub log: Log,
    /// Whom the processes that connect to workers run as.
    pub server_uid: u32,
    pub server_gid: u32,
    /// `wsgi_socket_prefix`: where the directory of sockets is made; otherwise the default places.
    pub socket_prefix: Option<PathBuf>,
    /// 64 hexadecimal digits.
    pub secret: String,
    /// The extension that workers load.
    pub extension: PathBuf,
    pub groups: BTreeMap<String, Group>,
}

/// The server's error log. The order carries its descriptor; a path is opened again when it leads to another file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    /// The least severe level that is written.
    pub level: LogLevel,
    pub path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Nginx,
    Apache,
}

/// One process group. Times are in milliseconds, sizes in bytes; 0 or `None`: without a limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub processes: u32,
    /// `processes=` was written: `wsgi.multiprocess` is true then, even with 1.
    pub processes_given: bool,
    pub threads: u32,
    /// `None`: as the server's own processes.
    pub user: Option<User>,
    /// `None`: from the user database.
    pub supplementary_groups: Option<Vec<u32>>,
    pub umask: Option<u32>,
    /// The working directory; `None`: the user's home.
    pub home: Option<PathBuf>,
    /// The interpreter's executable, if named; else that of `python_home`, else the system's.
    pub python: Option<PathBuf>,
    pub python_home: Option<PathBuf>,
    pub python_path: Vec<PathBuf>,
    pub lang: Option<String>,
    pub locale: Option<String>,
    /// The process title; `%{GROUP}` stands for `(wsgi:name)`.
    pub display_name: Option<String>,
    pub environ: BTreeMap<String, String>,
    pub startup_timeout: u64,
    pub request_timeout: u64,
    pub interrupt_timeout: u64,
    pub queue_timeout: u64,
    pub socket_timeout: u64,
    pub graceful_timeout: u64,
    pub shutdown_timeout: u64,
    pub deadlock_timeout: u64,
    pub maximum_requests: u64,
    pub restart_interval: u64,
    /// Resident memory beyond which a process is replaced.
    pub memory_limit: u64,
    /// Resident memory beyond which it is ended at once.
    pub memory_limit_hard: u64,
    pub listen_backlog: u32,
    /// Bytes of blocks that may be on their way to a client, per request.
    pub response_buffer: u32,
    /// Imported before the group serves.
    pub applications: Vec<Application>,
    /// Requests may name these, too: each is imported at the first one that does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_demand: Vec<Application>,
    /// Directories and files in which scripts found at request time may lie.
    pub scripts: Vec<PathBuf>,
}

impl Default for Group {
    fn default() -> Group {
        Group {
            processes: 1,
            processes_given: false,
            threads: 15,
            user: None,
            supplementary_groups: None,
            umask: None,
            home: None,
            python: None,
            python_home: None,
            python_path: Vec::new(),
            lang: None,
            locale: None,
            display_name: None,
            environ: BTreeMap::new(),
            startup_timeout: 60_000,
            request_timeout: 0,
            interrupt_timeout: 5_000,
            queue_timeout: 45_000,
            socket_timeout: 60_000,
            graceful_timeout: 15_000,
            shutdown_timeout: 5_000,
            deadlock_timeout: 300_000,
            maximum_requests: 0,
            restart_interval: 0,
            memory_limit: 0,
            memory_limit_hard: 0,
            listen_backlog: 100,
            response_buffer: 64 * 1024,
            applications: Vec::new(),
            on_demand: Vec::new(),
            scripts: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// As [`Target::parse`] takes it.
    pub target: String,
    pub script_reloading: bool,
}

impl Application {
    pub fn new(target: &Target, script_reloading: bool) -> Application {
        // With the callable always there, so that a colon in a path cannot be taken for its own.
        let text = match &target.place {
            Place::Script(path) => format!("{}:{}", path.display(), target.callable),
            Place::Module(_) => target.to_string(),
        };
        Application { target: text, script_reloading }
    }

    /// How requests name it; never 0.
    pub fn identifier(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = hash(&[&canonical(self)]);
        u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
    }
}

/// What one worker is told at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSettings {
    pub version: u16,
    pub extension: PathBuf,
    pub name: String,
    pub slot: u32,
    pub incarnation: u64,
    pub server_software: String,
    /// SHA-256 of the group's key, 64 hexadecimal digits.
    pub key_hash: String,
    /// Where the listening socket can be found while it is this worker's.
    pub socket: PathBuf,
    /// Its limits are this incarnation's own, with the jitter applied.
    pub group: Group,
}

/// What server processes of this secret prove themselves with to the workers of a group.
pub fn key(secret: &str, group: &str) -> [u8; 32] {
    hash(&[secret.as_bytes(), b" ", group.as_bytes()])
}

/// What a worker knows of it.
pub fn key_hash(key: &[u8; 32]) -> String {
    hexadecimal(&hash(&[key]))
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// JSON with the fields in one order: equal values are equal bytes.
pub fn canonical(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_json_and_equal_groups_are_equal_bytes() {
        let mut group = Group { umask: Some(0o027), ..Group::default() };
        group.environ.insert("STAGE".into(), "test".into());
        group.applications.push(Application::new(&Target::parse("/srv/a:b.wsgi:app").unwrap(), true));
        let state = DesiredState {
            server_software: "nginx/1.22.1".into(),
            log: Log {
                format: LogFormat::Nginx,
                level: LogLevel::Notice,
                path: Some("/var/log/nginx/error.log".into()),
            },
            server_uid: 33,
            server_gid: 33,
            socket_prefix: None,
            secret: hexadecimal(&[7; 32]),
            extension: "/usr/lib/highball/worker.so".into(),
            groups: BTreeMap::from([("site".to_string(), group.clone())]),
        };
        let again: DesiredState = serde_json::from_slice(&canonical(&state)).unwrap();
        assert_eq!(again, state);
        assert_eq!(canonical(&again.groups["site"]), canonical(&group));
        assert!(serde_json::from_str::<Group>("{\"processes\":1}").is_err());
    }

    #[test]
    fn applications_are_told_apart_and_parsed_again() {
        let one = Application::new(&Target::parse("a:b").unwrap(), true);
        let two = Application::new(&Target::parse("a:b").unwrap(), false);
        assert_ne!(one.identifier(), two.identifier());
        for text in ["a.b:c()", "/srv/a:b.wsgi:app", "/srv/app.wsgi"] {
            let target = Target::parse(text).unwrap();
            assert_eq!(Target::parse(&Application::new(&target, true).target).unwrap(), target);
        }
    }

    #[test]
    fn a_worker_s_hash_does_not_give_the_key() {
        let key = key(&hexadecimal(&[1; 32]), "site");
        assert_ne!(hexadecimal(&key), key_hash(&key));
        assert_ne!(key, super::key(&hexadecimal(&[1; 32]), "other"));
    }
}
