//! Bytes and descriptors over Unix sockets, and memory as files.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// So many descriptors travel with one message at most.
pub const MOST: usize = 16;

/// What was received at once.
#[derive(Default)]
pub struct Received {
    /// Bytes that were filled; 0 is the end of the other side.
    pub bytes: usize,
    pub files: Vec<OwnedFd>,
    /// Who sent it, where the socket was asked to say so: pid and uid.
    pub sender: Option<(i32, u32)>,
}

/// Two connected sockets that keep packets apart.
pub fn packets() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends bytes, and descriptors with the first of them. Does not wait: a full socket is `WouldBlock`.
pub fn send(socket: impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?)
}

/// Receives what is there. Does not wait: nothing there is `WouldBlock`. A packet longer than `buffer`, or with more
/// descriptors than [`MOST`], is refused.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut received = Received { bytes: message.bytes, ..Received::default() };
    for control in control.drain() {
        match control {
            RecvAncillaryMessage::ScmRights(files) => received.files.extend(files),
            RecvAncillaryMessage::ScmCredentials(sender) => {
                received.sender = Some((sender.pid.as_raw_nonzero().get(), sender.uid.as_raw()));
            }
            _ => {}
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than allowed"));
    }
    Ok(received)
}

/// A file in memory with this content, which nobody can change.
pub fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("highball", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(file);
    file.write_all(content)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// The content of a file from its beginning, whatever its position; longer than `longest` is refused.
pub fn content(file: OwnedFd, longest: u64) -> io::Result<Vec<u8>> {
    let file = File::from(file);
    if file.metadata()?.len() > longest {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than allowed"));
    }
    let mut content = Vec::new();
    let mut reader = FromStart { file: &file, at: 0 };
    reader.by_ref().take(longest).read_to_end(&mut content)?;
    Ok(content)
}

struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_carry_descriptors() {
        let (one, other) = packets().unwrap();
        let file = sealed(b"content").unwrap();
        send(&one, b"abc", &[file.as_fd(), file.as_fd()]).unwrap();
        let mut buffer = [0; 8];
        let received = receive(&other, &mut buffer).unwrap();
        assert_eq!((&buffer[..received.bytes], received.files.len()), (&b"abc"[..], 2));
        for file in received.files {
            assert_eq!(content(file, 100).unwrap(), b"content");
        }
        assert_eq!(receive(&other, &mut buffer).map(drop).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        send(&one, b"too long a packet", &[]).unwrap();
        assert_eq!(receive(&other, &mut buffer).map(drop).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(one);
        assert_eq!(receive(&other, &mut buffer).unwrap().bytes, 0);
    }

    #[test]
    fn sealed_files_stay_as_they_are() {
        let file = File::from(sealed(b"x").unwrap());
        assert!(file.write_at(b"y", 0).is_err());
        assert!(content(file.into(), 0).is_err());
    }
}
