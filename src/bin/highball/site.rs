//! What is to be served, checked before anything is started.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use highball::python::home;
use highball::settings::{Place, Target};

use crate::access::{self, User};
use crate::arguments::{Mode, Run};
use crate::failure::Failure;
use crate::server::{self, Server};
use crate::{modules, port};

pub struct Site {
    pub target: Target,
    /// The working directory, and the first on `sys.path`.
    pub directory: PathBuf,
    pub venv: Option<PathBuf>,
    pub address: SocketAddr,
    pub server: &'static dyn Server,
    pub program: PathBuf,
    pub module: PathBuf,
    pub user: Option<User>,
    pub mode: Mode,
    /// Changed Python files are taken up.
    pub reload: bool,
    pub processes: u16,
    pub threads: u16,
    /// Without a slash at its end; `None` is the root.
    pub mount: Option<String>,
    pub statics: Vec<Static>,
    /// 0: no limit.
    pub max_body: u64,
    pub graceful: Duration,
}

/// Files the server answers itself.
pub struct Static {
    /// With a slash at both ends.
    pub path: String,
    pub directory: PathBuf,
}

impl Site {
    pub fn check(run: Run) -> Result<Site, Failure> {
        let target = Target::parse(&run.application)?;
        let server = server::of(run.server);
        let program = server.program()?;
        let module = modules::find(run.server)?;
        let user = User::of_workers()?;
        let rights = user.as_ref();

        let directory = existing(&run.chdir, "--chdir")?;
        open_to(rights, &directory)?;
        let venv = match run.venv {
            Some(venv) => Some(existing(&venv, "--venv")?),
            None => active_venv()?,
        };
        check_python(rights, venv.as_deref())?;
        if let Place::Script(script) = &target.place {
            check_script(rights, script)?;
        }
        let mount = run.mount.as_deref().map(url_path).transpose()?.filter(|path| !path.is_empty());
        let statics = run.statics.iter().map(|text| Static::parse(rights, text)).collect::<Result<_, _>>()?;
        for path in [&module, &directory].into_iter().chain(&venv) {
            writable_in_a_configuration(path)?;
        }
        Ok(Site {
            target,
            directory,
            venv,
            address: port::check(run.bind)?,
            server,
            program,
            module,
            user,
            mode: mode(run.mode, run.reload)?,
            reload: run.reload,
            processes: run.processes,
            threads: run.threads,
            mount,
            statics,
            max_body: run.max_body,
            graceful: run.graceful_timeout,
        })
    }

    /// Processes of the server itself: in a process group it is the group's that count.
    pub fn server_processes(&self) -> u16 {
        match self.mode {
            Mode::Embedded => self.processes,
            Mode::Group => 1,
        }
    }

    /// The options of the process group, each quoted as both servers read it.
    pub fn group_options(&self) -> String {
        let mut options = vec![format!("processes={} threads={}", self.processes, self.threads)];
        let mut add = |name: &str, value: &str| options.push(format!("\"{name}={}\"", escaped(value)));
        if let Some(venv) = &self.venv {
            add("python-home", &venv.to_string_lossy());
        }
        add("python-path", &self.directory.to_string_lossy());
        add("home", &self.directory.to_string_lossy());
        let graceful = format!("{}ms", self.graceful.as_millis().max(1));
        add("graceful-timeout", &graceful);
        add("shutdown-timeout", &graceful);
        for (name, value) in std::env::vars() {
            let is_plain = name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
            // nginx takes no longer words.
            if is_plain && value.len() < 2000 && !value.chars().any(char::is_control) {
                add("environ", &format!("{name}={value}"));
            }
        }
        options.join(" ")
    }

    pub fn url(&self) -> String {
        format!("http://{}{}/", self.address, self.mount.as_deref().unwrap_or_default())
    }
}

impl Static {
    fn parse(user: Option<&User>, text: &str) -> Result<Static, Failure> {
        let (path, directory) = text.split_once('=').ok_or_else(|| {
            Failure::new(format!("--static {text} has no directory"), "write it as --static /static/=DIR")
        })?;
        let path = format!("{}/", url_path(path)?);
        let directory = existing(Path::new(directory), "--static")?;
        open_to(user, &directory)?;
        writable_in_a_configuration(&directory)?;
        Ok(Static { path, directory })
    }
}

fn mode(asked: Option<Mode>, reload: bool) -> Result<Mode, Failure> {
    match (asked, reload) {
        (Some(Mode::Embedded), true) => Err(Failure::new(
            "--reload replaces the application's processes, and with --mode embedded they are the server's own",
            "write --mode group, or leave one of the two out",
        )),
        (Some(mode), _) => Ok(mode),
        (None, true) => Ok(Mode::Group),
        (None, false) => Ok(Mode::Embedded),
    }
}

/// Within double quotes, of nginx and of Apache.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn existing(path: &Path, option: &str) -> Result<PathBuf, Failure> {
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::new(format!("{option} {}: {error}", path.display()), "give a directory"))?;
    match absolute.metadata() {
        Ok(file) if file.is_dir() => Ok(absolute),
        Ok(_) => Err(Failure::new(
            format!("{option} \"{}\" is not a directory", absolute.display()),
            "give the directory it is in",
        )),
        Err(error) => Err(Failure::new(
            format!("{option} \"{}\" cannot be used: {error}", absolute.display()),
            "give a directory that exists",
        )),
    }
}

/// The environment the caller's shell has activated. Says so: it was not asked for.
fn active_venv() -> Result<Option<PathBuf>, Failure> {
    let Some(venv) = std::env::var_os("VIRTUAL_ENV").filter(|venv| !venv.is_empty()) else { return Ok(None) };
    let venv = existing(Path::new(&venv), "VIRTUAL_ENV")?;
    eprintln!("highball: packages from {} (VIRTUAL_ENV)", venv.display());
    Ok(Some(venv))
}

/// Checks that the workers' user can use the environment, or the Python the modules are built with.
fn check_python(user: Option<&User>, venv: Option<&Path>) -> Result<(), Failure> {
    if let Some(venv) = venv {
        if !venv.join("pyvenv.cfg").exists() && User::first_closed(user, venv).is_none() {
            return Err(Failure::new(
                format!("\"{}\" is no virtual environment: it has no pyvenv.cfg", venv.display()),
                format!("make one with python{} -m venv DIR", highball::settings::PYTHON_VERSION),
            ));
        }
        let refused = || home::executable(venv).err().map(|report| report.to_string());
        return match access::with_rights_of(user, refused) {
            Some(report) => Err(Failure::told(report)),
            None => Ok(()),
        };
    }
    let Some(python) = option_env!("HIGHBALL_PYTHON").map(Path::new) else { return Ok(()) };
    match python.parent().and_then(|directory| User::first_closed(user, directory)) {
        Some(closed) => Err(Failure::new(
            format!(
                "{} cannot enter \"{}\", where Python is ({})",
                access::named(user),
                closed.display(),
                python.display()
            ),
            format!(
                "chmod o+x {}, or build the modules with a Python elsewhere (make PYTHON=/usr/bin/python3)",
                closed.display()
            ),
        )),
        None => Ok(()),
    }
}

fn check_script(user: Option<&User>, script: &Path) -> Result<(), Failure> {
    if let Some(directory) = script.parent() {
        if let Some(closed) = User::first_closed(user, directory) {
            return Err(shut(user, &closed, directory));
        }
        writable_in_a_configuration(directory)?;
    }
    writable_in_a_configuration(script)?;
    let refused = || std::fs::File::open(script).err().map(|error| error.to_string());
    match access::with_rights_of(user, refused) {
        Some(error) => Err(Failure::new(
            format!("the script \"{}\" cannot be read by {}: {error}", script.display(), access::named(user)),
            "see that it is there and readable (chmod o+r)",
        )),
        None => Ok(()),
    }
}

/// Refuses a directory that the workers' user cannot enter or list.
fn open_to(user: Option<&User>, directory: &Path) -> Result<(), Failure> {
    if let Some(closed) = User::first_closed(user, directory) {
        return Err(shut(user, &closed, directory));
    }
    match access::with_rights_of(user, || std::fs::read_dir(directory).err().map(|error| error.to_string())) {
        Some(error) => Err(Failure::new(
            format!("{} cannot list \"{}\": {error}", access::named(user), directory.display()),
            format!("chmod o+r {}", directory.display()),
        )),
        None => Ok(()),
    }
}

fn shut(user: Option<&User>, closed: &Path, wanted: &Path) -> Failure {
    Failure::new(
        format!("{} cannot enter \"{}\" on the way to \"{}\"", access::named(user), closed.display(), wanted.display()),
        format!("chmod o+x {}, or move the application to a directory that is open", closed.display()),
    )
}

/// A path of a URL with a slash at its start and none at its end; empty for the root.
fn url_path(text: &str) -> Result<String, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/@+".contains(&byte);
    let path = text.strip_suffix('/').unwrap_or(text);
    let segments_are_plain = path.split('/').skip(1).all(|segment| !matches!(segment, "" | "." | ".."));
    if !text.starts_with('/') || !text.bytes().all(plain) || !(path.is_empty() || segments_are_plain) {
        return Err(Failure::new(
            format!("\"{text}\" is not a path that can be mounted at"),
            "write it as /prefix or /a/b, of letters, digits and - . _ ~ @ +",
        ));
    }
    Ok(path.into())
}

/// Refuses what the servers' configuration languages would read as something else.
fn writable_in_a_configuration(path: &Path) -> Result<(), Failure> {
    let wrong = |character: char| character.is_control() || "\"\\$%:".contains(character);
    if path.to_str().is_none_or(|text| text.chars().any(wrong)) {
        return Err(Failure::new(
            format!("{path:?} has a character that has a meaning of its own in a server's configuration"),
            "use a path without quotes, backslashes, colons, $, % and control characters",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_lose_the_slash_at_their_end() {
        assert_eq!(url_path("/").unwrap(), "");
        assert_eq!(url_path("/blog/").unwrap(), "/blog");
        assert_eq!(url_path("/a/b.c").unwrap(), "/a/b.c");
        for wrong in ["", "blog", "/a//b", "/../x", "/a b", "/a;b", "/a\"", "//", "/{"] {
            assert!(url_path(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_that_would_break_out_of_quotes_are_refused() {
        assert!(writable_in_a_configuration(Path::new("/srv/my site;{}#")).is_ok());
        for wrong in ["/srv/\"x", "/srv/$x", "/srv/a\nb", "/srv/a\\", "/srv/a:b"] {
            assert!(writable_in_a_configuration(Path::new(wrong)).is_err(), "{wrong}");
        }
    }
}
