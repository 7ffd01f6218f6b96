//! `wsgi_daemon_process` and `WSGIDaemonProcess`: a group's name and its options, the same on both hosts.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use nix::unistd::{self, Gid, Uid};

use super::state::{Group, User};
use crate::error::{Code, Report};
use crate::settings::{did_you_mean, parse_size, parse_time};

/// A group as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    pub group: Group,
    /// Requests that may wait in one server process for a free worker.
    pub queue_size: usize,
    /// What the operator should know of this line.
    pub notices: Vec<String>,
}

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Taken,
    /// Of mod_wsgi, and without meaning here: accepted, with a notice.
    Meaningless(&'static str),
    /// Of mod_wsgi, and not supported yet.
    Refused,
}

pub struct DaemonOption {
    pub name: &'static str,
    /// What the value is, and its default.
    pub syntax: &'static str,
    pub default: &'static str,
    pub fate: Fate,
    pub text: &'static str,
}

const fn taken(name: &'static str, syntax: &'static str, default: &'static str, text: &'static str) -> DaemonOption {
    DaemonOption { name, syntax, default, fate: Fate::Taken, text }
}

const fn meaningless(name: &'static str, why: &'static str) -> DaemonOption {
    DaemonOption { name, syntax: "", default: "", fate: Fate::Meaningless(why), text: why }
}

const fn refused(name: &'static str) -> DaemonOption {
    DaemonOption { name, syntax: "", default: "", fate: Fate::Refused, text: "" }
}

/// Every option, in the order of the reference page.
pub static OPTIONS: &[DaemonOption] = &[
    taken(
        "processes",
        "number",
        "1",
        "Worker processes. Written at all, even as 1, it makes `wsgi.multiprocess` true, as with mod_wsgi.",
    ),
    taken("threads", "number", "15", "Requests that each of them runs at once."),
    taken(
        "user",
        "name or #uid",
        "the server's",
        "Whom the processes run as; needs a server that was started by root.",
    ),
    taken("group", "name or #gid", "the user's", "Their group."),
    taken("supplementary-groups", "names, joined by commas", "from the user database", "Their other groups."),
    taken("umask", "octal number", "inherited", "The mask of the files they make."),
    taken("home", "directory", "the user's", "Their working directory."),
    taken(
        "python",
        "file",
        "python-home's",
        "The interpreter's executable: any Python from 3.10 on, whatever Highball was built with.",
    ),
    taken(
        "python-home",
        "directory",
        "the system's Python",
        "A virtual environment, or the prefix of an installation.",
    ),
    taken("python-path", "directories, joined by colons", "none", "Put at the front of `sys.path`."),
    taken("python-eggs", "directory", "none", "`PYTHON_EGG_CACHE`."),
    taken("environ", "NAME=value", "none", "A variable of the processes' environment; may be repeated."),
    taken("lang", "locale", "C.UTF-8", "`LANG`."),
    taken("locale", "locale", "none", "`LC_ALL`."),
    taken(
        "display-name",
        "text",
        "name and applications",
        "The processes' title; `%{GROUP}` stands for `(wsgi:name)`.",
    ),
    taken("startup-timeout", "time", "60s", "New processes must have imported their applications by then."),
    taken("queue-timeout", "time", "45s", "A request that waited longer for a free thread is answered 504."),
    taken("queue-size", "number", "1000", "Requests that may wait in one server process; beyond them: 503."),
    taken(
        "request-timeout",
        "time",
        "0: none",
        "A request that takes longer is answered 504, exactly then, whatever else the process runs.",
    ),
    taken(
        "interrupt-timeout",
        "time",
        "5s",
        "So long the exception that is raised then in its thread has to end it; after that the process is replaced.",
    ),
    taken("deadlock-timeout", "time", "300s", "A process whose interpreter is held so long is ended and replaced."),
    taken(
        "socket-timeout",
        "time",
        "60s",
        "A process that takes nothing of what a server process sends it for so long is given up by it: requests that had begun get status 502. How long an answer may take is request-timeout.",
    ),
    taken("graceful-timeout", "time", "15s", "So long a process that is replaced has for the requests it runs."),
    taken(
        "shutdown-timeout",
        "time",
        "5s",
        "So long a process has to end, exit functions included, when the server stops.",
    ),
    taken("maximum-requests", "number", "0: none", "After about so many requests a process is replaced (± 10 %)."),
    taken("restart-interval", "time", "0: none", "After about this time a process is replaced (± 10 %)."),
    taken("memory-limit", "size", "0: none", "A process with more resident memory is replaced, its requests answered."),
    taken("memory-limit-hard", "size", "0: none", "A process with more resident memory is ended at once."),
    taken("listen-backlog", "number", "100", "Connections that may wait at a process's socket."),
    meaningless("connect-timeout", "a connection is made at once or not at all; queue-timeout bounds the wait"),
    meaningless("send-buffer-size", "the socket's own size is enough"),
    meaningless("receive-buffer-size", "the socket's own size is enough"),
    meaningless("header-buffer-size", "headers of any size the server itself allows are taken"),
    meaningless("response-buffer-size", "nothing is gathered between process and server"),
    meaningless("response-flush-delay", "each block leaves at once"),
    meaningless("response-socket-timeout", "the server's own time-out for clients holds"),
    meaningless("socket-user", "the sockets belong to whom the server's processes run as"),
    meaningless("server-metrics", "highball status shows them"),
    meaningless("eviction-timeout", "graceful-timeout holds for every replacement"),
    refused("chroot"),
    refused("cpu-priority"),
    refused("cpu-time-limit"),
    refused("inactivity-timeout"),
    refused("script-group"),
    refused("script-user"),
    refused("stack-size"),
    refused("switch-interval"),
    refused("virtual-memory-limit"),
];

/// Reads `name key=value …`. `directive` is the name it was written under.
pub fn parse(directive: &str, words: &[&str]) -> Result<Declared, Report> {
    let [name, options @ ..] = words else {
        return Err(wrong(directive, "the group's name is missing", "write a name, then options as key=value"));
    };
    if !is_name(name) {
        let cause = format!("\"{name}\" is no name for a process group");
        return Err(wrong(
            directive,
            &cause,
            "use letters, digits, \"-\", \"_\" and \".\", at most 64, a letter or digit first",
        ));
    }
    let mut parser = Parser {
        directive,
        declared: Declared { name: (*name).into(), group: Group::default(), queue_size: 1000, notices: Vec::new() },
        user: None,
        primary: None,
    };
    let mut seen: Vec<&str> = Vec::new();
    for option in options {
        let (key, value) = option.split_once('=').ok_or_else(|| {
            wrong(
                directive,
                &format!("\"{option}\" is no option"),
                "write options as key=value, without spaces round the =",
            )
        })?;
        if key != "environ" && seen.contains(&key) {
            return Err(wrong(directive, &format!("\"{key}\" stands there twice"), "keep one of them"));
        }
        seen.push(key);
        parser.option(key, value)?;
    }
    parser.end()
}

/// Whether this may name a group: it becomes a part of a file's name.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= 64 && name.chars().all(plain) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

struct Parser<'a> {
    directive: &'a str,
    declared: Declared,
    user: Option<unistd::User>,
    primary: Option<u32>,
}

impl Parser<'_> {
    fn option(&mut self, key: &str, value: &str) -> Result<(), Report> {
        let Some(option) = OPTIONS.iter().find(|option| option.name == key) else {
            let report = Report::new(Code::DirectiveValue, format!("\"{}\" has no option \"{key}\"", self.directive));
            let taken = OPTIONS.iter().filter(|option| option.fate != Fate::Refused).map(|option| option.name);
            return Err(match did_you_mean(key, taken) {
                Some(near) => report.remedy(format!("did you mean \"{near}\"?")),
                None => report.remedy("its options are listed in docs/directives.md"),
            });
        };
        match option.fate {
            Fate::Taken => {}
            Fate::Meaningless(why) => {
                self.declared.notices.push(format!("\"{key}\" has no meaning here and is ignored: {why}"));
                return Ok(());
            }
            Fate::Refused => {
                let cause = format!("the option \"{key}\" of \"{}\" is not supported yet", self.directive);
                return Err(Report::new(Code::DirectiveNotBuilt, cause).remedy("remove it"));
            }
        }
        let check = Check { directive: self.directive };
        if value.contains('\0') || value.is_empty() {
            return Err(check.wrong(key, value, "it is empty"));
        }
        let group = &mut self.declared.group;
        match key {
            "processes" => {
                group.processes_given = true;
                group.processes = check.number(key, value, 1..=1024)?;
            }
            "threads" => group.threads = check.number(key, value, 1..=4096)?,
            "user" => self.user = Some(check.find_user(value)?),
            "group" => self.primary = Some(check.find_group(key, value)?),
            "supplementary-groups" => {
                let groups = value.split(',').map(|name| check.find_group(key, name)).collect::<Result<_, _>>()?;
                self.declared.group.supplementary_groups = Some(groups);
            }
            "umask" => {
                let mask = u32::from_str_radix(value, 8).ok().filter(|mask| *mask <= 0o777);
                group.umask = Some(mask.ok_or_else(|| check.wrong(key, value, "it is an octal number up to 777"))?);
            }
            "home" => group.home = Some(check.path(key, value)?),
            "python" => group.python = Some(check.path(key, value)?),
            "python-home" => group.python_home = Some(check.path(key, value)?),
            "python-path" => {
                let paths = value.split(':').filter(|path| !path.is_empty()).map(|path| check.path(key, path));
                self.declared.group.python_path = paths.collect::<Result<_, _>>()?;
            }
            "python-eggs" => self.variable("PYTHON_EGG_CACHE", value),
            "environ" => match value.split_once('=') {
                Some((name, value)) if !name.is_empty() => self.variable(name, value),
                _ => return Err(check.wrong(key, value, "write environ=NAME=value")),
            },
            "lang" => group.lang = Some(value.into()),
            "locale" => group.locale = Some(value.into()),
            "display-name" => group.display_name = Some(value.into()),
            "queue-size" => self.declared.queue_size = check.number(key, value, 0..=1_000_000)? as usize,
            "maximum-requests" => group.maximum_requests = check.number(key, value, 0..=u32::MAX)?.into(),
            "listen-backlog" => group.listen_backlog = check.number(key, value, 1..=65_535)?,
            "memory-limit" | "memory-limit-hard" => {
                let size = parse_size(value).filter(|size| *size == 0 || *size >= 1 << 20);
                let size = size.ok_or_else(|| check.wrong(key, value, "it is a size such as 512m, of 1m at least"))?;
                let group = &mut self.declared.group;
                *(if key == "memory-limit" { &mut group.memory_limit } else { &mut group.memory_limit_hard }) = size;
            }
            _ => {
                let time = parse_time(value).and_then(|time| u64::try_from(time.as_millis()).ok());
                let time = time.filter(|time| *time <= 366 * 86_400_000);
                let time = time.ok_or_else(|| check.wrong(key, value, "it is a time such as 500ms, 60s, 10m or 2h"))?;
                let group = &mut self.declared.group;
                *(match key {
                    "startup-timeout" => &mut group.startup_timeout,
                    "queue-timeout" => &mut group.queue_timeout,
                    "request-timeout" => &mut group.request_timeout,
                    "interrupt-timeout" => &mut group.interrupt_timeout,
                    "deadlock-timeout" => &mut group.deadlock_timeout,
                    "socket-timeout" => &mut group.socket_timeout,
                    "graceful-timeout" => &mut group.graceful_timeout,
                    "shutdown-timeout" => &mut group.shutdown_timeout,
                    _ => &mut group.restart_interval,
                }) = time;
            }
        }
        Ok(())
    }

    fn end(mut self) -> Result<Declared, Report> {
        let group = &mut self.declared.group;
        if group.memory_limit_hard != 0 && group.memory_limit_hard < group.memory_limit {
            let cause = "\"memory-limit-hard\" is below \"memory-limit\"";
            return Err(wrong(self.directive, cause, "raise it, or leave one of them out"));
        }
        if group.python.is_some() && group.python_home.is_some() {
            let cause = "\"python\" and \"python-home\" both name the interpreter";
            return Err(wrong(
                self.directive,
                cause,
                "keep one of them; python= of a virtual environment finds its packages",
            ));
        }
        let identity = self.user.is_some() || self.primary.is_some() || group.supplementary_groups.is_some();
        if identity && !Uid::effective().is_root() {
            let text =
                "\"user\", \"group\" and \"supplementary-groups\" need a server that root has started, and are ignored";
            self.declared.notices.push(text.into());
            group.supplementary_groups = None;
            return Ok(self.declared);
        }
        match (self.user, self.primary) {
            (Some(user), primary) => {
                let gid = primary.unwrap_or(user.gid.as_raw());
                group.user = Some(User { name: user.name, uid: user.uid.as_raw(), gid });
            }
            (None, None) => {}
            (None, Some(_)) => {
                return Err(wrong(self.directive, "\"group\" stands there without \"user\"", "write user= as well"));
            }
        }
        Ok(self.declared)
    }

    fn variable(&mut self, name: &str, value: &str) {
        self.declared.group.environ.insert(name.into(), value.into());
    }
}

/// Reads values of one directive.
#[derive(Clone, Copy)]
struct Check<'a> {
    directive: &'a str,
}

impl Check<'_> {
    fn find_user(self, value: &str) -> Result<unistd::User, Report> {
        let found = match value.strip_prefix('#') {
            Some(number) => {
                number.parse().ok().and_then(|uid| unistd::User::from_uid(Uid::from_raw(uid)).ok().flatten())
            }
            None => unistd::User::from_name(value).ok().flatten(),
        };
        let user = found.ok_or_else(|| self.wrong("user", value, "there is no such user"))?;
        if user.uid.is_root() {
            return Err(self.wrong("user", value, "applications do not run as root; name another user"));
        }
        Ok(user)
    }

    fn find_group(self, key: &str, value: &str) -> Result<u32, Report> {
        let found = match value.strip_prefix('#') {
            Some(number) => number.parse().ok().map(Gid::from_raw),
            None => unistd::Group::from_name(value).ok().flatten().map(|group| group.gid),
        };
        let gid = found.ok_or_else(|| self.wrong(key, value, "there is no such group"))?;
        if gid.as_raw() == 0 {
            return Err(self.wrong(key, value, "applications do not run in root's group; name another"));
        }
        Ok(gid.as_raw())
    }

    fn number(self, key: &str, value: &str, range: std::ops::RangeInclusive<u32>) -> Result<u32, Report> {
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        value
            .parse()
            .ok()
            .filter(|number| digits && range.contains(number))
            .ok_or_else(|| self.wrong(key, value, &format!("it is a number from {} to {}", range.start(), range.end())))
    }

    fn path(self, key: &str, value: &str) -> Result<PathBuf, Report> {
        if value.starts_with('/') {
            Ok(value.into())
        } else {
            Err(self.wrong(key, value, "it is an absolute path, from the root on"))
        }
    }

    fn wrong(self, key: &str, value: &str, remedy: &str) -> Report {
        wrong(self.directive, &format!("the value \"{value}\" of \"{key}\" is wrong"), remedy)
    }
}

fn wrong(directive: &str, cause: &str, remedy: &str) -> Report {
    Report::new(Code::DirectiveValue, format!("\"{directive}\": {cause}")).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(options: &str) -> Result<Declared, Report> {
        let words: Vec<&str> = std::iter::once("site").chain(options.split_whitespace()).collect();
        parse("wsgi_daemon_process", &words)
    }

    #[test]
    fn options_take_units() {
        let text = "processes=2 threads=4 request-timeout=60s graceful-timeout=1m memory-limit=512m umask=027 \
                    python-path=/a:/b environ=A=b=c environ=D= queue-size=0 maximum-requests=1000";
        let declared = declared(text).unwrap();
        let group = declared.group;
        assert_eq!((group.processes, group.processes_given, group.threads), (2, true, 4));
        assert_eq!((group.request_timeout, group.graceful_timeout, group.memory_limit), (60_000, 60_000, 512 << 20));
        assert_eq!((group.umask, group.python_path.len(), declared.queue_size), (Some(0o27), 2, 0));
        assert_eq!((group.environ["A"].as_str(), group.environ["D"].as_str()), ("b=c", ""));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_remedy() {
        for (text, part) in [
            ("threads=0", "from 1 to 4096"),
            ("threads=+4", "from 1 to 4096"),
            ("request-timeout=60x", "a time such as"),
            ("memory-limit=10", "of 1m at least"),
            ("python-path=lib", "an absolute path"),
            ("user=root", "do not run as root"),
            ("user=no-such-user-here", "no such user"),
            ("thread=4", "did you mean \"threads\"?"),
            ("threads=4 threads=5", "twice"),
            ("threads", "key=value"),
            ("umask=888", "octal"),
            ("environ=A", "environ=NAME=value"),
            ("memory-limit=2m memory-limit-hard=1m", "raise it"),
            ("python=/a/python python-home=/a", "keep one of them"),
            ("lang=", "empty"),
        ] {
            let report = declared(text).unwrap_err();
            assert!(report.to_string().contains(part), "{text}: {report}");
            assert_eq!(report.code, Code::DirectiveValue);
        }
        assert_eq!(declared("inactivity-timeout=5").unwrap_err().code, Code::DirectiveNotBuilt);
        for name in ["", "a/b", ".a", "a b", &"x".repeat(65)] {
            assert!(parse("wsgi_daemon_process", &[name]).is_err(), "{name}");
        }
    }

    #[test]
    fn what_has_become_meaningless_is_accepted_with_a_notice() {
        let declared = declared("header-buffer-size=65536 threads=3").unwrap();
        assert_eq!(declared.notices.len(), 1);
        assert_eq!(declared.group, Group { threads: 3, ..Group::default() });
    }
}
