//! The `highball` command: serves an application from a private nginx or Apache, and says where the modules are.
//!
//! `arguments` is what may be written, `site` what it means once checked, `nginx` and `apache` what each server is told,
//! `process` and `startup` the running server.

mod access;
mod apache;
mod arguments;
mod ask;
mod directory;
mod failure;
mod group;
mod log;
mod modules;
mod nginx;
mod port;
mod process;
mod serve;
mod server;
mod signals;
mod site;
mod startup;
mod supervise;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Action, Arguments};
use failure::Failure;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            error.print().ok();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match act(arguments.action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("highball: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn act(action: Action) -> Result<(), Failure> {
    match action {
        Action::Run(run) => serve::serve(&site::Site::check(run)?),
        Action::ModulePath { server } => modules::print(server),
        Action::Status { group, json, place } => ask::status(group, json, &place),
        Action::Stacks(which) => ask::ask(supervise::Command::Stacks, which),
        Action::Reload(which) => ask::ask(supervise::Command::Reload, which),
        Action::Stop(which) => ask::ask(supervise::Command::Stop, which),
        Action::Start(which) => ask::ask(supervise::Command::Start, which),
        Action::Supervise { supervisor, next_minder, .. } => supervise::run(match (supervisor, next_minder) {
            (true, _) => supervise::Role::Supervisor,
            (_, true) => supervise::Role::NextMinder,
            _ => supervise::Role::Minder,
        }),
    }
}
