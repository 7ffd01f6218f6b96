//! Whether the address can be listened on, and who does already.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::failure::Failure;

/// Takes the address for a moment. Gives it back with its port, where that was left to the kernel.
pub fn check(address: SocketAddr) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => Failure::new(
            format!("port {} is in use{}", address.port(), owner(address).unwrap_or_default()),
            "stop that one, or choose another port with --bind",
        ),
        ErrorKind::PermissionDenied => Failure::new(
            format!("port {} needs rights that this user does not have", address.port()),
            "choose one from 1024 on with --bind",
        ),
        ErrorKind::AddrNotAvailable => Failure::new(
            format!("this machine has no address {}", address.ip()),
            "choose 127.0.0.1, 0.0.0.0 or an address of this machine with --bind",
        ),
        _ => Failure::new(format!("{address} cannot be listened on: {error}"), "choose another address with --bind"),
    })?;
    listener
        .local_addr()
        .map_err(|error| Failure::new(format!("{address} cannot be asked for its port: {error}"), "give a port"))
}

/// Whether somebody accepts connections there.
pub fn accepts(address: SocketAddr) -> bool {
    let mut address = address;
    if address.ip().is_unspecified() {
        let local: std::net::IpAddr =
            if address.is_ipv4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1u16].into() };
        address.set_ip(local);
    }
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// ` by nginx (pid 17)`, where /proc tells.
fn owner(address: SocketAddr) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        std::fs::read_to_string(table).ok()?.lines().skip(1).find_map(|line| listening(line, address.port()))
    })?;
    let wanted = format!("socket:[{inode}]");
    let mut pids: Vec<u32> = std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .collect();
    pids.sort_unstable();
    let holds = |pid: &u32| {
        std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut descriptors| {
            descriptors.any(|entry| {
                entry.and_then(|entry| entry.path().read_link()).is_ok_and(|link| link.to_string_lossy() == wanted)
            })
        })
    };
    let pid = pids.into_iter().find(holds)?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!(" by {} (pid {pid})", name.trim()))
}

/// The inode of a line of /proc/net/tcp, if it is a listening socket of this port.
fn listening(line: &str, port: u16) -> Option<String> {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next()?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    (state == "0A" && local.rsplit_once(':')?.1 == format!("{port:04X}")).then(|| inode.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_owner() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let text = check(address).unwrap_err().to_string();
        assert!(text.contains(&address.port().to_string()), "{text}");
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    }

    #[test]
    fn port_zero_becomes_a_real_one() {
        assert_ne!(check("127.0.0.1:0".parse().unwrap()).unwrap().port(), 0);
    }
}
