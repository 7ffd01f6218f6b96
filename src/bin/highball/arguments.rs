//! The command line.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use highball::settings::{self, parse_time};

/// Python web applications inside nginx and Apache httpd.
#[derive(Parser)]
#[command(name = "highball", version)]
pub struct Arguments {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Subcommand)]
pub enum Action {
    /// Serve an application from a private server, in the foreground, until Ctrl-C or SIGTERM.
    Run(Run),
    /// Print where the modules are, for load_module and LoadModule.
    ModulePath {
        /// Print the path of this server's module only.
        server: Option<ServerKind>,
    },
    /// Show the process groups of running servers.
    Status {
        /// One group only.
        group: Option<String>,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Sockets,
    },
    /// Write the Python stacks of a group's processes to the server's error log.
    Stacks(Which),
    /// Start new processes of a group, and let the old ones finish once they serve.
    Reload(Which),
    /// Let the processes of a group finish, and start none until "start".
    Stop(Which),
    /// Start a group that was stopped.
    Start(Which),
    /// Internal: what watches the workers of process groups; started by the servers.
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        minder: bool,
        #[arg(long)]
        supervisor: bool,
        #[arg(long)]
        next_minder: bool,
    },
}

#[derive(Args)]
pub struct Which {
    /// The name of the process group.
    pub group: String,
    #[command(flatten)]
    pub place: Sockets,
}

#[derive(Args)]
pub struct Sockets {
    /// Where wsgi_socket_prefix or WSGISocketPrefix says the sockets are, if that is not the default.
    #[arg(long, value_name = "DIR")]
    pub socket_prefix: Option<PathBuf>,
}

#[derive(Args)]
pub struct Run {
    /// module:callable, module:factory() or /path/app.wsgi[:callable]
    pub application: String,
    /// Directory to run in; modules are found there.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub chdir: PathBuf,
    /// Virtual environment with the application's packages [default: $VIRTUAL_ENV, if set]
    #[arg(long, value_name = "DIR")]
    pub venv: Option<PathBuf>,
    /// Address and port, or a port of 127.0.0.1. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000", value_parser = parse_address)]
    pub bind: SocketAddr,
    #[arg(long, value_enum, default_value_t = ServerKind::Nginx)]
    pub server: ServerKind,
    /// Where Python runs: inside the server's own processes, or in a process group of its own.
    /// [default: embedded; with --reload, group]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Start new processes when a Python file below --chdir changes; the old ones serve until the new ones can.
    #[arg(long)]
    pub reload: bool,
    /// Worker processes, each with the application.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub processes: u16,
    /// Requests that each process runs at once, at least; 1 means one at a time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
    /// Path the application is mounted at.
    #[arg(long, value_name = "/PREFIX")]
    pub mount: Option<String>,
    /// Files the server answers itself, as /static/=DIR. May be given several times.
    #[arg(long = "static", value_name = "/PATH/=DIR")]
    pub statics: Vec<String>,
    /// Largest request body, with k, m or g; 0 sets no limit.
    #[arg(long, value_name = "SIZE", default_value = "1g", value_parser = parse_size)]
    pub max_body: u64,
    /// How long requests may go on after SIGTERM or Ctrl-C.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_limit)]
    pub graceful_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ServerKind {
    Nginx,
    Apache,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Embedded,
    Group,
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse() {
        return Ok(SocketAddr::new(local, port));
    }
    let named = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    if let Some(port) = named {
        return Ok(SocketAddr::new(local, port));
    }
    text.parse().map_err(|_| "write ADDRESS:PORT, as 127.0.0.1:8000, [::1]:8000 or 0.0.0.0:8000".into())
}

fn parse_size(text: &str) -> Result<u64, String> {
    settings::parse_size(text).ok_or_else(|| "write a number of bytes, or one with k, m or g, as 20m".into())
}

fn parse_limit(text: &str) -> Result<Duration, String> {
    parse_time(text)
        .filter(|time| *time <= Duration::from_secs(86_400))
        .ok_or_else(|| "write a time of at most a day, as 10s, 500ms or 2m".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_bare_port_is_one_of_loopback() {
        for text in ["8001", ":8001", "localhost:8001", "127.0.0.1:8001"] {
            assert_eq!(parse_address(text).unwrap().to_string(), "127.0.0.1:8001", "{text}");
        }
        assert_eq!(parse_address("[::1]:80").unwrap().to_string(), "[::1]:80");
        for text in ["", "example.org:80", "127.0.0.1", "127.0.0.1:99999", "::1:80:"] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }
}
