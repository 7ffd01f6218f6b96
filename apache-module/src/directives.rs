//! Sets what a directive says. Names, places and numbers of arguments come from the core's table.

use std::ffi::{OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::null;

use highball::directives::{Context, Directive, Id, find};
use highball::error::{Code, Report};
use highball::group::options;
use highball::log::Level;
use highball::settings::{Target, did_you_mean};

use crate::choice::{GLOBAL, variable};
use crate::ffi::pattern::Pattern;
use crate::ffi::{
    self, GLOBAL_ONLY, Pool, ap_check_cmd_context, ap_getword_conf, ap_server_root_relative, cmd_parms, entry, text,
};
use crate::log;
use crate::settings::{Alias, DirectorySettings, ServerSettings};

entry! {
    /// Every directive of this module, by the name it was written with; gives the error message or null.
    fn set(command: *mut cmd_parms, directory: *mut c_void, arguments: *const c_char) -> *const c_char,
        else c"HB0901 a fault in Highball itself".as_ptr(),
    {
        // SAFETY: httpd's, for the time of this call.
        let line = unsafe { Line::new(command, directory) };
        match line.set(arguments) {
            Ok(()) => null(),
            Err(report) => line.pool.string(report.to_string().as_bytes()),
        }
    }
}

/// One directive as it is read.
struct Line {
    command: *mut cmd_parms,
    directory: *mut DirectorySettings,
    pool: Pool,
    name: String,
}

impl Line {
    /// # Safety
    /// Both are what httpd gave to the command's function, which is still running.
    unsafe fn new(command: *mut cmd_parms, directory: *mut c_void) -> Line {
        // SAFETY: as above.
        let (pool, name) = unsafe { ((*command).pool, (*(*command).cmd).name) };
        let name = String::from_utf8_lossy(text(name)).into_owned();
        Line { command, directory: directory.cast(), pool: Pool::new(pool), name }
    }

    fn set(&self, arguments: *const c_char) -> Result<(), Report> {
        let directive = find(&self.name).ok_or_else(|| not_built(&self.name))?;
        self.check_place(directive)?;
        let words = self.words(arguments);
        let (fewest, most) = directive.arguments;
        if !(fewest..=most).contains(&words.len()) {
            let cause = format!("\"{}\" does not take {} argument(s)", self.name, words.len());
            return Err(
                Report::new(Code::DirectiveValue, cause).remedy(format!("write {} {}", self.name, directive.syntax))
            );
        }
        let word = words.first().map(String::as_str).unwrap_or_default();
        let flag = || flag(word).ok_or_else(|| self.wrong(word, "write On or Off"));
        // SAFETY: httpd gave the settings of the section that is being read, made by `create_directory`.
        let directory = unsafe { &mut *self.directory };
        match directive.id {
            Id::ScriptAlias | Id::ScriptAliasMatch => {
                let alias = self.alias(&words, directive.id == Id::ScriptAliasMatch)?;
                self.server()?.aliases.push(alias);
            }
            Id::PythonHome => self.server()?.home = Some(self.home(word)?),
            Id::PythonPath => {
                let paths = words.iter().flat_map(|word| word.split(':')).filter(|path| !path.is_empty());
                let paths = paths.map(|path| self.relative(path)).collect::<Result<Vec<_>, _>>()?;
                self.server()?.path.extend(paths);
            }
            Id::RestrictEmbedded => self.server()?.restrict_embedded = flag()?,
            Id::ApplicationGroup => {
                self.global(word, "application-group")?;
                directory.global = true;
                if self.in_section() {
                    self.server()?.application_group_in_section = true;
                }
            }
            Id::DaemonProcess => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let declared = options::parse(&self.name, &words)?;
                declared.notices.iter().for_each(|notice| self.notice(notice));
                self.server()?.groups.push(declared);
            }
            Id::ProcessGroup => {
                let group = self.process_group(word)?;
                directory.process_group = self.pool.string(group.as_bytes());
                if self.in_section() {
                    let server = self.server()?;
                    server.process_group_in_section = true;
                    server.grouped_sections.extend(self.directory_section());
                }
            }
            Id::RestrictProcess => {
                let names = words.iter().map(|word| self.fixed_group(word)).collect::<Result<Vec<_>, _>>()?;
                if self.in_section() {
                    self.server()?.allowed_in_sections.extend_from_slice(&names);
                }
                directory.allowed_groups = self.pool.keep(names);
            }
            Id::SocketPrefix => self.server()?.socket_prefix = Some(self.relative(word)?),
            Id::ScriptReloading => directory.script_reloading = Some(flag()?),
            Id::PassAuthorization => directory.pass_authorization = Some(flag()?),
            Id::ChunkedRequest => directory.chunked_request = Some(flag()?),
            Id::InterceptErrors => directory.error_override = Some(flag()?),
            Id::CallableObject => {
                self.callable(word)?;
                directory.callable = self.pool.string(word.as_bytes());
            }
            Id::Pass
            | Id::Mount
            | Id::Param
            | Id::Threads
            | Id::RequestBuffering
            | Id::ResponseBuffer
            | Id::NotBuilt => return Err(not_built(&self.name)),
        }
        Ok(())
    }

    fn check_place(&self, directive: &Directive) -> Result<(), Report> {
        if directive.contexts != [Context::Main] {
            return Ok(());
        }
        // SAFETY: httpd's, for the time of this call.
        match ffi::some_text(unsafe { ap_check_cmd_context(self.command, GLOBAL_ONLY as _) }) {
            None => Ok(()),
            Some(message) => Err(Report::new(Code::DirectiveValue, String::from_utf8_lossy(message))
                .remedy("write it once, outside any section")),
        }
    }

    /// As httpd reads them: white space separates, quotes hold together.
    fn words(&self, mut arguments: *const c_char) -> Vec<String> {
        let mut words = Vec::new();
        while !text(arguments).is_empty() {
            // SAFETY: moves the pointer forward within its C string.
            let word = unsafe { ap_getword_conf(self.pool.as_ptr(), &mut arguments) };
            words.push(String::from_utf8_lossy(text(word)).into_owned());
        }
        words
    }

    fn alias(&self, words: &[String], is_pattern: bool) -> Result<Alias, Report> {
        let [location, target, options @ ..] = words else { return Err(self.wrong("", "name a URL path and a file")) };
        if !is_pattern && !location.starts_with('/') {
            return Err(self.wrong(location, "the URL path begins with a slash"));
        }
        let pattern = match is_pattern {
            true => Some(Pattern::new(self.pool, location).ok_or_else(|| self.wrong(location, "see pcre2pattern(3)"))?),
            false => None,
        };
        let target = self.relative(target)?.into_os_string().into_encoded_bytes();
        let mut alias = Alias { location: location.as_bytes().into(), pattern, target, ..Alias::default() };
        for option in options {
            let (name, value) = option.split_once('=').ok_or_else(|| self.unknown_option(option))?;
            match name {
                "application-group" => {
                    self.global(value, name)?;
                    alias.global_application = true;
                }
                "process-group" => {
                    alias.process_group = Some(self.process_group(value)?);
                }
                "callable-object" => alias.callable = Some(self.callable(value)?),
                "pass-authorization" => {
                    let flag = flag(value).ok_or_else(|| self.wrong(option, "write pass-authorization=On or Off"))?;
                    alias.pass_authorization = Some(flag);
                }
                _ => return Err(self.unknown_option(name)),
            }
        }
        Ok(alias)
    }

    fn unknown_option(&self, option: &str) -> Report {
        let report = Report::new(Code::DirectiveValue, format!("\"{}\" has no option \"{option}\"", self.name));
        match did_you_mean(option, OPTIONS.iter().copied()) {
            Some(name) => report.remedy(format!("did you mean \"{name}\"?")),
            None => report.remedy(format!("its options are {}", OPTIONS.join(", "))),
        }
    }

    /// The name of a group, or the variable that has it; empty for the server's own processes.
    fn process_group(&self, value: &str) -> Result<String, Report> {
        if variable(value).is_some() { Ok(value.into()) } else { self.fixed_group(value) }
    }

    /// The name of a group; empty for the server's own processes.
    fn fixed_group(&self, value: &str) -> Result<String, Report> {
        if value.is_empty() || value == GLOBAL {
            return Ok(String::new());
        }
        if value.starts_with("%{") {
            let cause = format!("\"{}\" has the value \"{value}\", which is not supported", self.name);
            let remedy = match self.name.eq_ignore_ascii_case("WSGIRestrictProcess") {
                true => format!("write names of groups, or {GLOBAL}"),
                false => format!("write a group's name, {GLOBAL}, or %{{ENV:name}} with a variable that SetEnvIf sets"),
            };
            return Err(Report::new(Code::DirectiveNotBuilt, cause).remedy(remedy));
        }
        self.server()?.named_groups.push((self.name.clone(), value.into()));
        Ok(value.into())
    }

    /// Says something that is no error, where the configuration is read for good or tested.
    fn notice(&self, text: &str) {
        // SAFETY: httpd's, for the time of this call.
        log::server(unsafe { (*self.command).server }, Level::Notice, &format!("{}: {text}", self.name));
    }

    /// Checks that a group is the only one there is.
    fn global(&self, value: &str, what: &str) -> Result<(), Report> {
        if value.is_empty() || value == GLOBAL {
            return Ok(());
        }
        let cause = format!("\"{}\" names the {what} \"{value}\", and only {GLOBAL} is supported yet", self.name);
        Err(Report::new(Code::DirectiveNotBuilt, cause)
            .remedy(format!("write {GLOBAL}: applications run inside Apache's own processes, in one interpreter")))
    }

    fn callable(&self, name: &str) -> Result<String, Report> {
        match Target::parse(&format!("/script:{name}")) {
            Ok(_) => Ok(name.into()),
            Err(_) => Err(self.wrong(name, "name a callable of the script, as a Python name")),
        }
    }

    fn home(&self, value: &str) -> Result<PathBuf, Report> {
        if value.contains(':') {
            return Err(self.wrong(value, "name one directory: a virtual environment or the prefix of an installation"));
        }
        self.relative(value)
    }

    /// A path as written, or below ServerRoot.
    fn relative(&self, path: &str) -> Result<PathBuf, Report> {
        let path_text = ffi::c_string(path);
        // SAFETY: the pool and the string are alive; gives null for a path it cannot make sense of.
        let found = unsafe { ap_server_root_relative(self.pool.as_ptr(), path_text.as_ptr()) };
        match ffi::some_text(found) {
            Some(found) => Ok(OsStr::from_bytes(found).into()),
            None => Err(self.wrong(path, "name a file or directory by its path")),
        }
    }

    /// The server the line stands in.
    fn server(&self) -> Result<&'static mut ServerSettings, Report> {
        // SAFETY: httpd's, for the time of this call.
        ServerSettings::of_mut(unsafe { (*self.command).server })
            .ok_or_else(|| Report::new(Code::Panic, "the server has no settings of this module"))
    }

    /// Whether the line stands in `<Directory>` or the like, or in `.htaccess`.
    fn in_section(&self) -> bool {
        // SAFETY: httpd's, for the time of this call.
        !unsafe { (*self.command).path }.is_null()
    }

    /// The directory whose `<Directory>` the line stands in.
    fn directory_section(&self) -> Option<PathBuf> {
        // SAFETY: httpd's, for the time of this call.
        let (path, section) = unsafe { ((*self.command).path, (*self.command).directive.as_ref()?.parent.as_ref()?) };
        text(section.directive).eq_ignore_ascii_case(b"<Directory").then(|| OsStr::from_bytes(text(path)).into())
    }

    fn wrong(&self, value: &str, remedy: &str) -> Report {
        Report::new(Code::DirectiveValue, format!("\"{}\" has the value \"{value}\"", self.name)).remedy(remedy)
    }
}

fn flag(word: &str) -> Option<bool> {
    match word {
        word if word.eq_ignore_ascii_case("on") => Some(true),
        word if word.eq_ignore_ascii_case("off") => Some(false),
        _ => None,
    }
}

fn not_built(name: &str) -> Report {
    let remedy = match name {
        "WSGISocketRotation" | "WSGIAcceptMutex" => "remove it: it has no meaning here",
        "WSGIImportScript" => {
            "remove it and give WSGIScriptAlias process-group=%{GLOBAL} application-group=%{GLOBAL}: its script is then \
             loaded when a process starts"
        }
        "WSGIHandlerScript" | "WSGIDispatchScript" => "mount the application with WSGIScriptAlias",
        "WSGIAccessScript" | "WSGIAuthUserScript" | "WSGIAuthGroupScript" | "WSGIGroupAuthoritative" => {
            "use Apache's own authentication and authorization, or the application's"
        }
        "WSGITrustedProxies" | "WSGITrustedProxyHeaders" => "use mod_remoteip for the client's address",
        "WSGIEnableSendfile" => "remove it: EnableSendfile decides",
        _ => "remove it",
    };
    Report::new(Code::DirectiveNotBuilt, format!("\"{name}\" is not supported yet")).remedy(remedy)
}

const OPTIONS: &[&str] = &["application-group", "process-group", "callable-object", "pass-authorization"];
