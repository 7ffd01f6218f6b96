//! `highball status`, `stacks`, `reload`, `stop` and `start`: asks the supervisors of running servers.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::arguments::{Sockets, Which};
use crate::failure::Failure;
use crate::supervise::{Answer, Command, Question};

pub fn status(group: Option<String>, json: bool, place: &Sockets) -> Result<(), Failure> {
    let mut groups: Vec<Value> = Vec::new();
    for socket in answering(place)? {
        let question = Question { command: Command::Status, group: group.clone() };
        let answer = put(&socket, &question)?;
        groups.extend(answer.status.as_array().cloned().unwrap_or_default());
    }
    if groups.is_empty()
        && let Some(group) = group
    {
        return Err(Failure::new(format!("there is no process group \"{group}\""), "see highball status"));
    }
    if json {
        println!("{}", Value::from(groups));
    } else {
        groups.iter().for_each(print);
    }
    Ok(())
}

/// Asks the one server that has the group.
pub fn ask(command: Command, which: Which) -> Result<(), Failure> {
    let question = Question { command, group: Some(which.group) };
    let mut refused = None;
    for socket in answering(&which.place)? {
        let looked = put(&socket, &Question { command: Command::Status, ..question.clone() })?;
        if looked.ok {
            let answer = put(&socket, &question)?;
            return if answer.ok {
                println!("{}", answer.text);
                Ok(())
            } else {
                Err(Failure::told(answer.text))
            };
        }
        refused = Some(looked.text);
    }
    Err(Failure::told(refused.unwrap_or_else(|| "there is no process group".into())))
}

/// The control sockets on which somebody answers. One that was killed with its minder leaves its own behind.
fn answering(place: &Sockets) -> Result<Vec<PathBuf>, Failure> {
    let found = sockets(place)?;
    let is_stale = |path: &PathBuf| {
        UnixStream::connect(path).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    let (stale, living): (Vec<PathBuf>, Vec<PathBuf>) = found.into_iter().partition(is_stale);
    match stale.first() {
        Some(path) if living.is_empty() => {
            let cause = format!("\"{}\": nobody listens there any more", path.display());
            Err(Failure::new(cause, "reload the server: it starts another supervisor"))
        }
        _ => Ok(living),
    }
}

/// The control sockets of all supervisors that this user can see.
fn sockets(place: &Sockets) -> Result<Vec<PathBuf>, Failure> {
    let base = crate::supervise::base(place.socket_prefix.as_deref());
    let entries = std::fs::read_dir(&base).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.path().join("control.sock")).filter(|path| path.exists()).collect();
    found.sort();
    if found.is_empty() {
        let cause =
            format!("no server with process groups runs: there is no control socket below \"{}\"", base.display());
        return Err(Failure::new(cause, "ask as the user who started the server, or name its --socket-prefix"));
    }
    Ok(found)
}

pub fn put(socket: &Path, question: &Question) -> Result<Answer, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(format!("\"{}\": {error}", socket.display()), "only root, or who started the server, may ask")
    };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    let mut text = serde_json::to_vec(question).unwrap_or_default();
    text.push(b'\n');
    stream.write_all(&text).map_err(failed)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(failed)?;
    serde_json::from_str(&line).map_err(|error| failed(error.into()))
}

fn print(group: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let state = if group["stopped"] == true { ", stopped" } else { "" };
    println!("{}: generation {}{state}, {}", text(&group["group"]), group["generation"], list(&group["applications"]));
    if let Some(trouble) = group["trouble"].as_str() {
        println!("  the last new processes failed: {}", trouble.lines().next().unwrap_or_default());
    }
    println!("  {:>8} {:<9} {:>4} {:>9} {:>9} {:>8}  python", "pid", "state", "busy", "requests", "memory", "age");
    for worker in group["workers"].as_array().into_iter().flatten() {
        let memory = worker["memory"].as_u64().unwrap_or_default() >> 20;
        println!(
            "  {:>8} {:<9} {:>4} {:>9} {:>5} MiB {:>6} s  {}",
            worker["pid"],
            text(&worker["state"]),
            worker["busy"],
            worker["requests"],
            memory,
            worker["seconds"],
            text(&worker["python"]),
        );
        for running in worker["running"].as_array().into_iter().flatten() {
            let seconds = running["seconds"].as_f64().unwrap_or_default();
            println!("           {:>9.1} s {:<12} {}", seconds, text(&running["phase"]), text(&running["request"]));
        }
    }
}

fn list(values: &Value) -> String {
    values.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}
