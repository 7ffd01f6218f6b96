//! nginx, as the command runs it.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::arguments::Mode;
use crate::failure::Failure;
use crate::group::{GROUP, SOCKETS};
use crate::server::{self, Server, quoted};
use crate::site::Site;

pub struct Nginx;

impl Server for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn module(&self) -> &'static str {
        "libngx_http_highball_module.so"
    }

    fn program(&self) -> Result<PathBuf, Failure> {
        server::find_program(&["nginx"])
            .ok_or_else(|| Failure::new("nginx is not installed", "apt-get install nginx, or use --server apache"))
    }

    fn configure(&self, site: &Site, directory: &Path) -> Result<Vec<OsString>, Failure> {
        let file = directory.join("nginx.conf");
        server::write(&file, &configuration(site, directory, &temporary_paths(&site.program)))?;
        // -e: nginx would open its compiled-in log before it reads error_log.
        let arguments: [&std::ffi::OsStr; 6] =
            ["-e".as_ref(), "stderr".as_ref(), "-p".as_ref(), directory.as_os_str(), "-c".as_ref(), file.as_os_str()];
        Ok(arguments.map(OsString::from).into())
    }

    fn test(&self) -> &'static [&'static str] {
        &["-t", "-q"]
    }

    fn graceful(&self) -> libc::c_int {
        libc::SIGQUIT
    }
}

/// The modules of this nginx that want a directory of their own, which would else be the system's.
fn temporary_paths(program: &Path) -> Vec<&'static str> {
    let built = std::process::Command::new(program).arg("-V").output().map(|output| output.stderr).unwrap_or_default();
    let built = String::from_utf8_lossy(&built).into_owned();
    let mut names = vec!["client_body"];
    names.extend(
        ["proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .filter(|name| !built.contains(&format!("--without-http_{name}_module"))),
    );
    names
}

fn configuration(site: &Site, directory: &Path, temporary: &[&str]) -> String {
    let here = directory.display();
    let files = open_files();
    let mut text = String::new();
    let mut line = |content: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        writeln!(text, "{content}").ok();
    };
    line(format_args!("daemon off;"));
    if let Some(user) = &site.user {
        line(format_args!("user {} {};", user.name, user.group));
    }
    line(format_args!("worker_processes {};", site.server_processes()));
    line(format_args!("worker_rlimit_nofile {files};"));
    line(format_args!("worker_shutdown_timeout {}ms;", site.graceful.as_millis().max(1)));
    line(format_args!("pid \"{here}/nginx.pid\";"));
    line(format_args!("error_log stderr notice;"));
    // nginx empties the environment of its workers but for these.
    line(format_args!("env {};", highball::startup::VARIABLE));
    for name in environment() {
        line(format_args!("env {name};"));
    }
    line(format_args!("load_module {};", quoted(&site.module)));
    line(format_args!("events {{ worker_connections {}; }}", files.min(4096)));
    line(format_args!("http {{"));
    for types in ["/etc/nginx/mime.types", "/usr/local/nginx/conf/mime.types"] {
        if Path::new(types).is_file() {
            line(format_args!("    include {types};"));
            break;
        }
    }
    line(format_args!("    default_type application/octet-stream;"));
    line(format_args!("    access_log off;"));
    line(format_args!("    server_tokens off;"));
    line(format_args!("    sendfile on;"));
    line(format_args!("    client_max_body_size {};", site.max_body));
    for name in temporary {
        line(format_args!("    {name}_temp_path \"{here}/{name}\";"));
    }
    match site.mode {
        Mode::Embedded => {
            if let Some(venv) = &site.venv {
                line(format_args!("    wsgi_python_home {};", quoted(venv)));
            }
            line(format_args!("    wsgi_python_path {};", quoted(&site.directory)));
            line(format_args!("    wsgi_threads {};", site.threads));
        }
        Mode::Group => {
            line(format_args!("    wsgi_daemon_process {GROUP} {};", site.group_options()));
            line(format_args!("    wsgi_process_group {GROUP};"));
            line(format_args!("    wsgi_socket_prefix \"{here}/{SOCKETS}\";"));
            // All files are watched: the script is not to be taken up twice.
            line(format_args!("    wsgi_script_reloading {};", if site.reload { "off" } else { "on" }));
        }
    }
    line(format_args!("    server {{"));
    line(format_args!("        listen {};", site.address));
    line(format_args!("        server_name \"{}\";", site.address.ip()));
    for files in &site.statics {
        line(format_args!("        location ^~ {} {{ alias \"{}/\"; }}", files.path, files.directory.display()));
    }
    line(format_args!("        location / {{"));
    line(format_args!("            wsgi_pass \"{}\";", site.target));
    if let Some(mount) = &site.mount {
        line(format_args!("            wsgi_mount {mount};"));
    }
    line(format_args!("        }}\n    }}\n}}"));
    text
}

/// The names of this process's environment that nginx can be told.
fn environment() -> Vec<String> {
    let plain = |name: &String| {
        name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
            && !matches!(name.as_str(), "" | "NGINX" | highball::startup::VARIABLE)
    };
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(plain).collect()
}

/// How many files a worker may open without more rights than there are.
fn open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit() fills the structure it is given.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => limit.rlim_max.clamp(64, 65_536),
        _ => 1024,
    }
}
