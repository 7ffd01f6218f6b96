//! Apache httpd, as the command runs it.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use highball::settings::{DEFAULT_CALLABLE, Place, Target};

use crate::arguments::Mode;
use crate::failure::Failure;
use crate::group::{GROUP, SOCKETS};
use crate::server::{self, Server, quoted};
use crate::site::Site;

pub struct Apache;

/// Where distributions keep httpd's own modules.
const MODULES: &[&str] =
    &["/usr/lib/apache2/modules", "/usr/lib64/httpd/modules", "/usr/lib/httpd/modules", "/usr/local/apache2/modules"];

/// Threads of a process at least: with fewer threads than connections the event MPM closes idle ones, under the
/// hands of clients that keep them.
const SPARE_THREADS: u16 = 64;

/// The script that imports a module's application.
const SCRIPT: &str = "application.wsgi";

impl Server for Apache {
    fn name(&self) -> &'static str {
        "apache"
    }

    fn module(&self) -> &'static str {
        "libmod_highball.so"
    }

    fn program(&self) -> Result<PathBuf, Failure> {
        server::find_program(&["apache2", "httpd"]).ok_or_else(|| {
            Failure::new("Apache httpd is not installed", "apt-get install apache2-bin, or use --server nginx")
        })
    }

    fn configure(&self, site: &Site, directory: &Path) -> Result<Vec<OsString>, Failure> {
        let modules = MODULES.iter().map(Path::new).find(|path| path.join("mod_mpm_event.so").is_file());
        let modules = modules.ok_or_else(|| {
            Failure::new(
                format!("httpd's own modules (mod_mpm_event.so) are in none of {}", MODULES.join(", ")),
                "apt-get install apache2-bin",
            )
        })?;
        let (script, callable) = script(&site.target, directory)?;
        let file = directory.join("httpd.conf");
        server::write(&file, &configuration(site, directory, modules, &script, &callable))?;
        let arguments: [&std::ffi::OsStr; 5] =
            ["-f".as_ref(), file.as_os_str(), "-d".as_ref(), directory.as_os_str(), "-DFOREGROUND".as_ref()];
        Ok(arguments.map(OsString::from).into())
    }

    fn test(&self) -> &'static [&'static str] {
        &["-t"]
    }

    fn graceful(&self) -> libc::c_int {
        libc::SIGWINCH
    }

    fn in_words_of(&self, site: &Site, directory: &Path, report: String) -> String {
        let Place::Module(module) = &site.target.place else { return report };
        let script = directory.join(SCRIPT);
        let mut named = Target::script(&script, &format!("{module}.{}", site.target.callable)).to_string();
        if site.target.factory {
            named = Target::script(&script, DEFAULT_CALLABLE).to_string();
        }
        report.replace(&format!("application \"{named}\""), &format!("application \"{}\"", site.target)).replace(
            &format!("script \"{}\" has no \"{module}.", script.display()),
            &format!("module \"{module}\" has no \""),
        )
    }
}

/// The script that Apache mounts, and the name of the callable in it. A module gets a script of ours.
fn script(target: &Target, directory: &Path) -> Result<(PathBuf, String), Failure> {
    let module = match &target.place {
        Place::Script(script) => return Ok((script.clone(), target.callable.clone())),
        Place::Module(module) => module,
    };
    let script = directory.join(SCRIPT);
    let name = format!("{module}.{}", target.callable);
    if target.factory {
        server::write(&script, &format!("import {module}\napplication = {name}()\n"))?;
        Ok((script, DEFAULT_CALLABLE.into()))
    } else {
        server::write(&script, &format!("import {module}\n"))?;
        Ok((script, name))
    }
}

fn configuration(site: &Site, directory: &Path, modules: &Path, script: &Path, callable: &str) -> String {
    let threads = if site.threads == 1 { 1 } else { site.threads.max(SPARE_THREADS) };
    let all = u32::from(threads) * u32::from(site.server_processes());
    let mut text = String::new();
    let mut line = |content: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        writeln!(text, "{content}").ok();
    };
    let wanted: &[&str] = if site.statics.is_empty() { &[] } else { &["alias", "mime"] };
    line(format_args!("ServerRoot {}", quoted(directory)));
    line(format_args!("DefaultRuntimeDir {}", quoted(directory)));
    line(format_args!("PidFile \"{}/httpd.pid\"", directory.display()));
    line(format_args!("ErrorLog /dev/stderr"));
    for name in ["mpm_event", "authz_core", "unixd"].iter().chain(wanted) {
        // What is not there as a file is built into the server.
        let path = modules.join(format!("mod_{name}.so"));
        if path.is_file() {
            line(format_args!("LoadModule {name}_module {}", quoted(&path)));
        }
    }
    line(format_args!("LoadModule wsgi_module {}", quoted(&site.module)));
    line(format_args!("LogLevel warn wsgi:notice"));
    if let Some(user) = &site.user {
        line(format_args!("User {}\nGroup {}", user.name, user.group));
    }
    line(format_args!("ServerName {}", server_name(site)));
    line(format_args!("Listen {}", site.address));
    line(format_args!("ServerLimit {0}\nStartServers {0}", site.server_processes()));
    line(format_args!("ThreadLimit {threads}\nThreadsPerChild {threads}\nMaxRequestWorkers {all}"));
    line(format_args!("MinSpareThreads 1\nMaxSpareThreads {all}\nMaxConnectionsPerChild 0"));
    line(format_args!("GracefulShutdownTimeout {}", site.graceful.as_secs().max(1)));
    line(format_args!("ServerTokens Prod\nTraceEnable Off\nAllowEncodedSlashes On"));
    line(format_args!("LimitRequestBody {}", site.max_body));
    let mut group = "%{GLOBAL}";
    match site.mode {
        Mode::Embedded => {
            if let Some(venv) = &site.venv {
                line(format_args!("WSGIPythonHome {}", quoted(venv)));
            }
            line(format_args!("WSGIPythonPath {}", quoted(&site.directory)));
        }
        Mode::Group => {
            group = GROUP;
            line(format_args!("WSGIDaemonProcess {GROUP} {}", site.group_options()));
            line(format_args!("WSGISocketPrefix \"{}/{SOCKETS}\"", directory.display()));
            // All files are watched: the script is not to be taken up twice.
            line(format_args!("WSGIScriptReloading {}", if site.reload { "Off" } else { "On" }));
        }
    }
    line(format_args!("WSGIPassAuthorization On\nWSGIChunkedRequest On"));
    if !site.statics.is_empty() {
        // mod_mime does not start without a file of types.
        let types =
            ["/etc/mime.types", "/etc/httpd/conf/mime.types"].into_iter().find(|path| Path::new(path).is_file());
        line(format_args!("TypesConfig {}", types.unwrap_or("/dev/null")));
    }
    for files in &site.statics {
        let files_in = files.directory.display();
        line(format_args!("Alias {} \"{files_in}/\"", files.path));
        line(format_args!("<Directory \"{files_in}\">\n    AllowOverride None\n    Require all granted\n</Directory>"));
    }
    line(format_args!(
        "WSGIScriptAlias {} {} process-group={group} application-group=%{{GLOBAL}} callable-object={callable}",
        site.mount.as_deref().unwrap_or("/"),
        quoted(script),
    ));
    let scripts = script.parent().unwrap_or(directory).display();
    line(format_args!("<Directory \"{scripts}\">\n    AllowOverride None\n    Require all granted\n</Directory>"));
    text
}

/// The address as a host name; without one httpd would ask the resolver.
fn server_name(site: &Site) -> String {
    let ip = site.address.ip();
    if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
}
