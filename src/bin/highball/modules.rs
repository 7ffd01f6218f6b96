//! Where the modules lie: beside this executable, or installed as `../lib/highball` from it.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::arguments::ServerKind;
use crate::failure::Failure;
use crate::server;

/// The module of a server.
pub fn find(kind: ServerKind) -> Result<PathBuf, Failure> {
    let name = server::of(kind).module();
    let directories = directories()?;
    directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        let searched: Vec<String> = directories.iter().map(|path| format!("\"{}\"", path.display())).collect();
        Failure::new(
            format!("the module {name} is neither in {}", searched.join(" nor in ")),
            "build it with make build, and keep the modules beside the highball command or in ../lib/highball from it",
        )
    })
}

/// Prints the path of one module, or of both.
pub fn print(kind: Option<ServerKind>) -> Result<(), Failure> {
    let kinds = match kind {
        Some(kind) => vec![kind],
        None => vec![ServerKind::Nginx, ServerKind::Apache],
    };
    for kind in kinds {
        println!("{}", find(kind)?.display());
    }
    Ok(())
}

fn directories() -> Result<Vec<PathBuf>, Failure> {
    let executable = std::env::current_exe().and_then(|path| path.canonicalize()).map_err(|error| {
        Failure::new(format!("this executable cannot be found: {error}"), "start it by its path; /proc must be mounted")
    })?;
    let beside = executable.parent().map(PathBuf::from).unwrap_or_default();
    let installed = beside.parent().map(|prefix| prefix.join("lib/highball"));
    Ok([Some(beside), installed].into_iter().flatten().collect())
}
