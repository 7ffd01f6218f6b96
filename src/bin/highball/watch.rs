//! `highball run --reload`: notices Python files that have changed, and has the process group start new processes.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use highball::settings::Place;

use crate::group;
use crate::site::Site;

pub struct Watch {
    places: Vec<PathBuf>,
    seen: HashMap<PathBuf, (SystemTime, u64)>,
    /// A file that has changed since the last look; others may follow it.
    changed: Option<PathBuf>,
    reload: Option<JoinHandle<()>>,
}

impl Watch {
    /// Of the directory of the application, and of that of its script.
    pub fn new(site: &Site) -> Watch {
        let mut places = vec![site.directory.clone()];
        if let Place::Script(script) = &site.target.place
            && let Some(directory) = script.parent().filter(|directory| !directory.starts_with(&site.directory))
        {
            places.push(directory.into());
        }
        let mut watch = Watch { places, seen: HashMap::new(), changed: None, reload: None };
        watch.seen = watch.scan();
        watch
    }

    /// Looks once. What has changed is taken up when it has stayed the same for two looks, and the last reload is over.
    pub fn look(&mut self, directory: &Path) {
        if self.reload.as_ref().is_some_and(|reload| !reload.is_finished()) {
            return;
        }
        let found = self.scan();
        if found != self.seen {
            let differs = |path: &&PathBuf| found.get(*path) != self.seen.get(*path);
            self.changed = found.keys().chain(self.seen.keys()).find(differs).cloned();
            self.seen = found;
            return;
        }
        let Some(changed) = self.changed.take() else { return };
        eprintln!("highball: {} has changed; starting new processes", changed.display());
        let directory = directory.to_path_buf();
        self.reload = Some(thread::spawn(move || match group::reload(&directory) {
            Ok(()) => eprintln!("highball: the new code serves"),
            Err(failure) => eprintln!("highball: the old code goes on serving: {failure}"),
        }));
    }

    fn scan(&self) -> HashMap<PathBuf, (SystemTime, u64)> {
        let mut found = HashMap::new();
        self.places.iter().for_each(|place| scan(place, DEEPEST, &mut found));
        found
    }
}

fn scan(directory: &Path, depth: u32, found: &mut HashMap<PathBuf, (SystemTime, u64)>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.as_encoded_bytes();
        let is = |test: fn(&Metadata) -> bool| entry.metadata().is_ok_and(|metadata| test(&metadata));
        if name.ends_with(b".py") || name.ends_with(b".wsgi") {
            if let Ok(metadata) = std::fs::metadata(&path) {
                let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.insert(path, (modified, metadata.len()));
            }
        } else if depth > 0 && !name.starts_with(b".") && !IGNORED.contains(&name) && is(Metadata::is_dir) {
            // Environments change while packages are installed, not while code is written.
            if !path.join("pyvenv.cfg").exists() {
                scan(&path, depth - 1, found);
            }
        }
    }
}

/// Between two looks.
pub const MOMENT: Duration = Duration::from_millis(300);

const IGNORED: [&[u8]; 2] = [b"__pycache__", b"node_modules"];

const DEEPEST: u32 = 16;
