//! The directives, from the core's table: one setter, the configuration of `http` and of locations, and its checks.

use std::ffi::{CStr, c_char, c_void};
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::rc::Rc;

use highball::directives::{Context, DIRECTIVES, Directive, Id, find};
use highball::error::{Code, Report};
use highball::group::request::Answerer;
use highball::group::{choice, options, state};
use highball::python::home;
use highball::settings::{Place, Target, did_you_mean, parse_size};
use highball::worker::relay::BOUND;

use crate::choice::{Choice, Chosen, OFF, Runs};
use crate::ffi::{self, Pool, called_by_nginx, ngx_command_t, ngx_conf_t, ngx_http_complex_value_t};
use crate::mounts::{Grouped, MainConf, Pass, Passed};
use crate::{handler, layout, module};

/// Of a location; of the blocks around it, what it inherits.
#[derive(Default)]
pub struct LocationConf {
    pass: Option<Pass>,
    pub mount: Option<Vec<u8>>,
    pub params: Option<Rc<Vec<Param>>>,
    shared: Option<bool>,
    script_reloading: Option<bool>,
    pub authorization: Option<Authorization>,
    request_buffering: Option<bool>,
    response_buffer: Option<usize>,
    intercept_errors: Option<bool>,
    process_group: Option<Choice>,
    allowed_groups: Option<Rc<Vec<String>>>,
    /// Set when the location is complete.
    pub runs: Option<Runs>,
    pub script: Option<Vec<u8>>,
}

pub struct Param {
    pub name: Vec<u8>,
    pub value: ngx_http_complex_value_t,
}

/// Whether the application sees the Authorization header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorization {
    Pass,
    Withhold,
    /// Unless nginx itself checks passwords here.
    Auto,
}

/// nginx's table of our directives.
pub struct Commands([ngx_command_t; COUNT + 1]);

impl Commands {
    pub const fn as_ptr(&self) -> *const ngx_command_t {
        self.0.as_ptr()
    }
}

// SAFETY: nginx only reads it.
unsafe impl Sync for Commands {}

pub static COMMANDS: Commands = Commands(commands());

static NAMES: [[u8; LONGEST]; COUNT] = names();

const LONGEST: usize = 40;

const COUNT: usize = {
    let (mut index, mut count) = (0, 0);
    while index < DIRECTIVES.len() {
        if row(index).nginx.is_some() {
            count += 1;
        }
        index += 1;
    }
    count
};

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn row(index: usize) -> &'static Directive {
    &DIRECTIVES[index]
}

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn names() -> [[u8; LONGEST]; COUNT] {
    let mut names = [[0; LONGEST]; COUNT];
    let (mut index, mut count) = (0, 0);
    while index < DIRECTIVES.len() {
        if let Some(name) = row(index).nginx {
            let mut at = 0;
            while at < name.len() {
                names[count][at] = name.as_bytes()[at];
                at += 1;
            }
            count += 1;
        }
        index += 1;
    }
    names
}

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn commands() -> [ngx_command_t; COUNT + 1] {
    const END: ngx_command_t = ngx_command_t {
        name: ffi::ngx_str_t { len: 0, data: null_mut() },
        type_: 0,
        set: None,
        conf: 0,
        offset: 0,
        post: null_mut(),
    };
    let mut commands = [END; COUNT + 1];
    let (mut index, mut count) = (0, 0);
    while index < DIRECTIVES.len() {
        let directive = row(index);
        if let Some(name) = directive.nginx {
            let main = matches!(directive.contexts, [Context::Main]);
            commands[count] = ngx_command_t {
                name: ffi::ngx_str_t { len: name.len(), data: NAMES[count].as_ptr().cast_mut() },
                type_: (contexts(directive) | arguments(directive)) as usize,
                set: Some(set),
                conf: if main {
                    std::mem::offset_of!(ffi::ngx_http_conf_ctx_t, main_conf)
                } else {
                    std::mem::offset_of!(ffi::ngx_http_conf_ctx_t, loc_conf)
                },
                offset: 0,
                post: null_mut(),
            };
            count += 1;
        }
        index += 1;
    }
    commands
}

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn contexts(directive: &Directive) -> i32 {
    let (mut flags, mut index) = (0, 0);
    while index < directive.contexts.len() {
        flags |= match directive.contexts[index] {
            Context::Main => ffi::NGX_HTTP_MAIN_CONF,
            Context::Server => ffi::NGX_HTTP_SRV_CONF,
            Context::Location => ffi::NGX_HTTP_LOC_CONF,
            Context::If => ffi::NGX_HTTP_LIF_CONF,
            Context::Htaccess => 0,
        };
        index += 1;
    }
    flags
}

const fn arguments(directive: &Directive) -> i32 {
    match directive.arguments {
        _ if directive.flag => ffi::NGX_CONF_FLAG,
        (1, 1) => ffi::NGX_CONF_TAKE1,
        (2, 2) => ffi::NGX_CONF_TAKE2,
        _ => ffi::NGX_CONF_1MORE,
    }
}

called_by_nginx! {
    fn set(cf: *mut ngx_conf_t, command: *mut ngx_command_t, conf: *mut c_void) -> *mut c_char, ffi::CONF_ERROR; {
        // SAFETY: nginx passes the directive's words, which live as long as the configuration is read.
        let words: Vec<&[u8]> = unsafe {
            let args = &*(*cf).args;
            std::slice::from_raw_parts(args.elts.cast::<ffi::ngx_str_t>(), args.nelts).iter().map(|w| ffi::bytes(*w)).collect()
        };
        // SAFETY: one of our commands.
        let name = String::from_utf8_lossy(unsafe { ffi::bytes((*command).name) });
        let directive = Setting { cf, name: &name, values: words.get(1..).unwrap_or_default() };
        let done = match find(&name) {
            Some(row) => match row.contexts {
                // SAFETY: by `commands` the place of such a directive is the configuration of `http`.
                [Context::Main] => unsafe { conf.cast::<MainConf>().as_mut() }.map(|conf| directive.set_main(row.id, conf)),
                // SAFETY: and of any other that of a location.
                _ => unsafe { conf.cast::<LocationConf>().as_mut() }.map(|conf| directive.set_location(row.id, conf)),
            },
            None => None,
        };
        match done {
            Some(Ok(())) => ffi::CONF_OK,
            Some(Err(Refused::Duplicate)) => c"is duplicate".as_ptr().cast_mut(),
            Some(Err(Refused::Because(why))) => {
                tell(cf, ffi::NGX_LOG_EMERG, &why);
                ffi::CONF_ERROR
            }
            None => ffi::CONF_ERROR,
        }
    }

    pub fn create_main(cf: *mut ngx_conf_t) -> *mut c_void, null_mut(); {
        // SAFETY: the pool of the configuration.
        let pool = unsafe { Pool::new((*cf).pool) };
        pool.and_then(|pool| pool.keep(MainConf::default())).map_or(null_mut(), |conf| conf.as_ptr().cast())
    }

    pub fn create_location(cf: *mut ngx_conf_t) -> *mut c_void, null_mut(); {
        // SAFETY: the pool of the configuration.
        let pool = unsafe { Pool::new((*cf).pool) };
        pool.and_then(|pool| pool.keep(LocationConf::default())).map_or(null_mut(), |conf| conf.as_ptr().cast())
    }

    pub fn merge_location(cf: *mut ngx_conf_t, parent: *mut c_void, child: *mut c_void) -> *mut c_char, ffi::CONF_ERROR; {
        // SAFETY: both were made by `create_location`, and are different.
        match unsafe { (parent.cast::<LocationConf>().as_ref(), child.cast::<LocationConf>().as_mut()) } {
            (Some(parent), Some(child)) => {
                match child.merge(parent, cf) {
                    Ok(()) => ffi::CONF_OK,
                    Err(report) => {
                        tell(cf, ffi::NGX_LOG_EMERG, &report);
                        ffi::CONF_ERROR
                    }
                }
            }
            _ => ffi::CONF_ERROR,
        }
    }

    pub fn complete(cf: *mut ngx_conf_t) -> ffi::ngx_int_t, ffi::ERROR; {
        let checked = layout::check_configuration(cf).and_then(|()| {
            // SAFETY: called at the end of the `http` block.
            unsafe { ffi::conf_of::<MainConf>(cf, module(), true) }.map_or(Ok(()), |conf| conf.check().and_then(|()| conf.complete()))
        });
        match checked {
            Ok(()) => ffi::OK,
            Err(report) => {
                tell(cf, ffi::NGX_LOG_EMERG, &report);
                ffi::ERROR
            }
        }
    }
}

/// One directive as written.
struct Setting<'a> {
    cf: *mut ngx_conf_t,
    name: &'a str,
    values: &'a [&'a [u8]],
}

enum Refused {
    Duplicate,
    Because(String),
}

impl From<Report> for Refused {
    fn from(report: Report) -> Refused {
        Refused::Because(report.to_string())
    }
}

impl Setting<'_> {
    fn set_main(&self, id: Id, conf: &mut MainConf) -> Result<(), Refused> {
        match id {
            Id::Threads => {
                let number = self.text(0)?.parse().ok().filter(|number| (1..=1024).contains(number));
                once(&mut conf.threads, number.ok_or_else(|| self.wrong("is not a number from 1 to 1024"))?)
            }
            Id::PythonHome => {
                let directory = self.directory(0)?;
                if let Err(report) = home::executable(&directory) {
                    tell(self.cf, ffi::NGX_LOG_WARN, &format!("\"{}\": {report}", self.name));
                }
                once(&mut conf.home, directory)
            }
            Id::PythonPath => {
                for index in 0..self.values.len() {
                    conf.path.push(self.directory(index)?);
                }
                Ok(())
            }
            Id::SocketPrefix => once(&mut conf.socket_prefix, self.directory(0)?),
            _ => Err(self.unknown()),
        }
    }

    fn daemon_process(&self) -> Result<(), Refused> {
        let words = (0..self.values.len()).map(|index| self.text(index)).collect::<Result<Vec<_>, _>>()?;
        if words.first() == Some(&OFF) {
            return Err(
                self.wrong("is no name for a process group: wsgi_process_group takes it for nginx's own processes")
            );
        }
        let declared = options::parse(self.name, &words)?;
        for notice in &declared.notices {
            tell(self.cf, ffi::NGX_LOG_NOTICE, &format!("\"{}\": {notice}", self.name));
        }
        // SAFETY: within `http`.
        let main = unsafe { ffi::conf_of::<MainConf>(self.cf, module(), true) }.ok_or_else(|| self.unknown())?;
        Ok(main.groups.declare(self.name, declared)?)
    }

    fn set_location(&self, id: Id, conf: &mut LocationConf) -> Result<(), Refused> {
        match id {
            Id::Pass => self.pass(conf),
            Id::Mount => once(&mut conf.mount, self.mount()?),
            Id::Param => self.param(conf),
            Id::ApplicationGroup => match self.text(0)? {
                "global" => once(&mut conf.shared, true),
                _ => Err(self.wrong("is not an interpreter: the only one yet is \"global\"")),
            },
            Id::DaemonProcess => self.daemon_process(),
            Id::ProcessGroup => once(&mut conf.process_group, self.process_group()?),
            Id::RestrictProcess => once(&mut conf.allowed_groups, Rc::new(self.restricted()?)),
            Id::ScriptReloading => once(&mut conf.script_reloading, self.flag()?),
            Id::RequestBuffering => once(&mut conf.request_buffering, self.flag()?),
            Id::InterceptErrors => once(&mut conf.intercept_errors, self.flag()?),
            Id::ResponseBuffer => {
                let size = parse_size(self.text(0)?).filter(|size| (1024..=1 << 30).contains(size));
                let size = size.ok_or_else(|| self.wrong("is not a size from 1k to 1g"))?;
                once(&mut conf.response_buffer, size as usize)
            }
            Id::PassAuthorization => {
                let value = match self.text(0)? {
                    "on" => Authorization::Pass,
                    "off" => Authorization::Withhold,
                    "auto" => Authorization::Auto,
                    _ => return Err(self.wrong("is none of \"on\", \"off\" and \"auto\"")),
                };
                once(&mut conf.authorization, value)
            }
            _ => Err(self.unknown()),
        }
    }

    fn pass(&self, conf: &mut LocationConf) -> Result<(), Refused> {
        let target =
            Target::parse(self.text(0)?).map_err(|report| Refused::Because(format!("\"{}\": {report}", self.name)))?;
        if let Place::Script(path) = &target.place
            && let Err(error) = std::fs::metadata(path)
        {
            let report = Report::new(Code::ScriptMissing, format!("stat() \"{}\" failed: {error}", path.display()))
                .remedy("correct the path; until then requests for this application are answered 500");
            tell(self.cf, ffi::NGX_LOG_WARN, &format!("\"{}\": {report}", self.name));
        }
        // SAFETY: within `http`.
        let number = unsafe { ffi::conf_of::<MainConf>(self.cf, module(), true) }.map_or(0, |main| {
            main.passes += 1;
            main.passes
        });
        once(&mut conf.pass, Pass { target, place: place(self.cf), number })?;
        // SAFETY: this directive stands in a location only.
        if let Some(core) = unsafe { core_location(self.cf) } {
            core.handler = Some(handler::handle);
            // SAFETY: a name lives as long as the configuration.
            if unsafe { ffi::bytes(core.name) }.ends_with(b"/") {
                core.set_auto_redirect(1);
            }
        }
        Ok(())
    }

    /// Without its last slash; empty for the root.
    fn mount(&self) -> Result<Vec<u8>, Refused> {
        let value = self.values.first().copied().unwrap_or_default();
        let path = value.strip_suffix(b"/").unwrap_or(value);
        let clean = path.split(|byte| *byte == b'/').skip(1).all(|part| !matches!(part, b"" | b"." | b".."));
        if !value.starts_with(b"/") || !clean || path.iter().any(|byte| byte.is_ascii_control()) {
            return Err(self.wrong("is not a path of whole segments, such as \"/blog\""));
        }
        Ok(path.to_vec())
    }

    fn param(&self, conf: &mut LocationConf) -> Result<(), Refused> {
        let (Some(name), Some(value)) = (self.values.first(), self.values.get(1)) else { return Err(self.unknown()) };
        if name.is_empty() || name.starts_with(b"wsgi.") || !name.iter().all(|byte| byte.is_ascii_graphic()) {
            return Err(self
                .wrong("is not a name of yours to set in environ; names beginning with \"wsgi.\" are the gateway's"));
        }
        let param = Param { name: name.to_vec(), value: self.complex(value)? };
        match conf.params.as_mut().and_then(Rc::get_mut) {
            Some(params) => params.push(param),
            None => conf.params = Some(Rc::new(vec![param])),
        }
        Ok(())
    }

    /// One name, or text with variables that make one for each request.
    fn process_group(&self) -> Result<Choice, Refused> {
        let text = self.text(0)?;
        match text {
            OFF => Ok(Choice::Named(String::new())),
            name if !name.contains('$') => Ok(Choice::Named(name.into())),
            text => Ok(Choice::Variable(self.complex(text.as_bytes())?)),
        }
    }

    fn restricted(&self) -> Result<Vec<String>, Refused> {
        // SAFETY: within `http`.
        let main = unsafe { ffi::conf_of::<MainConf>(self.cf, module(), true) }.ok_or_else(|| self.unknown())?;
        let mut names = Vec::new();
        for index in 0..self.values.len() {
            let name = self.text(index)?;
            if name == OFF {
                names.push(String::new());
            } else {
                main.restricted.push((place(self.cf), name.into()));
                names.push(name.into());
            }
        }
        Ok(names)
    }

    /// A text that may have variables.
    fn complex(&self, text: &[u8]) -> Result<ngx_http_complex_value_t, Refused> {
        let mut source = ffi::string(text);
        // SAFETY: zeroed is what nginx itself starts from.
        let (mut complex, mut compile): (ngx_http_complex_value_t, ffi::ngx_http_compile_complex_value_t) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        compile.cf = self.cf;
        compile.value = &raw mut source;
        compile.complex_value = &raw mut complex;
        // SAFETY: all three live during the call; what it keeps is the text, which belongs to the configuration's pool.
        if unsafe { ffi::ngx_http_compile_complex_value(&raw mut compile) } != ffi::OK {
            return Err(self.wrong("has a value that nginx cannot use, see above"));
        }
        Ok(complex)
    }

    fn flag(&self) -> Result<bool, Refused> {
        match self.text(0)? {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(self.wrong("is neither \"on\" nor \"off\"")),
        }
    }

    fn text(&self, index: usize) -> Result<&str, Refused> {
        let bytes = self.values.get(index).copied().unwrap_or_default();
        std::str::from_utf8(bytes).map_err(|_| self.wrong("is not UTF-8"))
    }

    fn directory(&self, index: usize) -> Result<PathBuf, Refused> {
        let value = self.values.get(index).copied().unwrap_or_default();
        let path = Path::new(std::ffi::OsStr::from_bytes(value));
        if !path.is_absolute() || value.contains(&0) {
            return Err(Refused::Because(self.refusal(value, "is not an absolute path; write it from the root on")));
        }
        Ok(path.to_path_buf())
    }

    fn wrong(&self, why: &str) -> Refused {
        let value = self.values.first().copied().unwrap_or_default();
        let mut text = self.refusal(value, why);
        let known = ["global", "on", "off", "auto"];
        if let Some(near) = did_you_mean(&String::from_utf8_lossy(value), known.into_iter())
            && why.contains(near)
        {
            text.push_str(&format!("; did you mean \"{near}\"?"));
        }
        Refused::Because(text)
    }

    fn refusal(&self, value: &[u8], why: &str) -> String {
        format!("{} \"{}\": the value \"{}\" {why}", Code::DirectiveValue, self.name, String::from_utf8_lossy(value))
    }

    fn unknown(&self) -> Refused {
        Refused::Because(format!("{} \"{}\" is not supported here", Code::DirectiveNotBuilt, self.name))
    }
}

impl LocationConf {
    /// Whether nginx reads the whole request body before the application is called.
    pub fn buffers_requests(&self) -> bool {
        self.request_buffering.unwrap_or(true)
    }

    /// Bytes of blocks that may wait for a client.
    pub fn response_buffer(&self) -> usize {
        self.response_buffer.unwrap_or(BOUND)
    }

    /// Whether `error_page` replaces what the application says of an error.
    pub fn intercepts_errors(&self) -> bool {
        self.intercept_errors == Some(true)
    }

    fn merge(&mut self, parent: &LocationConf, cf: *mut ngx_conf_t) -> Result<(), Report> {
        self.mount = self.mount.take().or_else(|| parent.mount.clone());
        self.params = self.params.take().or_else(|| parent.params.clone());
        self.shared = self.shared.or(parent.shared);
        self.script_reloading = self.script_reloading.or(parent.script_reloading);
        self.authorization = self.authorization.or(parent.authorization);
        self.request_buffering = self.request_buffering.or(parent.request_buffering);
        self.response_buffer = self.response_buffer.or(parent.response_buffer);
        self.intercept_errors = self.intercept_errors.or(parent.intercept_errors);
        self.process_group = self.process_group.take().or_else(|| parent.process_group.clone());
        self.allowed_groups = self.allowed_groups.take().or_else(|| parent.allowed_groups.clone());
        // SAFETY: within `http`.
        let (core, main) = unsafe { (core_location(cf), ffi::conf_of::<MainConf>(cf, module(), true)) };
        let (Some(core), Some(main)) = (core, main) else { return Ok(()) };
        // `if` and `limit_except` are parts of their location.
        if core.noname() != 0 && self.pass.is_none() {
            self.pass.clone_from(&parent.pass);
            if self.pass.is_some() && core.handler.is_none() && core.lmt_excpt() != 0 {
                core.handler = Some(handler::handle);
            }
        }
        let Some(pass) = &self.pass else { return Ok(()) };
        if let Place::Script(path) = &pass.target.place {
            self.script = Some(path.as_os_str().as_bytes().to_vec());
        }
        self.runs = Some(self.runs(pass, main)?);
        Ok(())
    }

    fn runs(&self, pass: &Pass, main: &mut MainConf) -> Result<Runs, Report> {
        let script_reloading = self.script_reloading.unwrap_or(true);
        let settings = Passed { script_reloading, shared: self.shared == Some(true) };
        let allowed = self.allowed_groups.as_ref().map(|allowed| allowed.as_slice());
        let answerer = || Answerer::Listed(state::Application::new(&pass.target, script_reloading).identifier());
        let mut grouped = |group, allowed| main.grouped.push(Grouped { group, allowed, pass: pass.clone(), settings });
        let name = match &self.process_group {
            None => "",
            Some(Choice::Named(name)) => name.as_str(),
            Some(Choice::Variable(text)) => {
                grouped(None, self.allowed_groups.clone());
                let may_be_here = choice::check("", b"", allowed).is_ok();
                let application = may_be_here.then(|| main.application(pass, &settings, true));
                let allowed = self.allowed_groups.clone();
                return Ok(Runs::Chosen(Chosen { text: *text, allowed, answerer: answerer(), application }));
            }
        };
        choice::check(&format!("wsgi_restrict_process ({})", pass.place), name.as_bytes(), allowed)?;
        if name.is_empty() {
            return Ok(Runs::Here(main.application(pass, &settings, false)));
        }
        grouped(Some(name.into()), None);
        Ok(Runs::Group(name.into(), answerer()))
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Refused> {
    if slot.is_some() {
        return Err(Refused::Duplicate);
    }
    *slot = Some(value);
    Ok(())
}

/// # Safety
/// `cf` must be within `http`.
unsafe fn core_location<'a>(cf: *const ngx_conf_t) -> Option<&'a mut ffi::ngx_http_core_loc_conf_t> {
    // SAFETY: what nginx's own core keeps for a location.
    unsafe { ffi::conf_of(cf, &raw const ffi::ngx_http_core_module, false) }
}

/// File and line that are being read.
fn place(cf: *const ngx_conf_t) -> String {
    // SAFETY: a directive being read comes from a file, or from the command line, where the file has no name.
    unsafe {
        let Some(file) = (*cf).conf_file.as_ref() else { return String::new() };
        format!("{}:{}", String::from_utf8_lossy(ffi::bytes(file.file.name)), file.line)
    }
}

/// Writes to whoever reads the configuration; nginx adds file and line.
fn tell(cf: *mut ngx_conf_t, level: i32, text: &dyn Display) {
    const FORMAT: &CStr = c"%V";
    let text = highball::log::record(&text.to_string());
    let mut text = ffi::string(text.as_bytes());
    // SAFETY: the format takes one pointer to a string.
    unsafe { ffi::ngx_conf_log_error(level as usize, cf, 0, FORMAT.as_ptr(), &raw mut text) };
}
