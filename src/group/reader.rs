//! Frames out of what a connection gives, with the descriptors that belong to them.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::group::frame::{self, Frame, Kind, Violation};
use crate::group::socket;

#[derive(Default)]
pub struct Reader {
    /// The beginning of a frame that is not all there yet.
    rest: Vec<u8>,
    files: VecDeque<OwnedFd>,
}

impl Reader {
    /// Gives each whole frame to `take`, with its descriptor where its kind has one.
    pub fn read(
        &mut self,
        bytes: &[u8],
        files: Vec<OwnedFd>,
        mut take: impl FnMut(&Frame<'_>, Option<OwnedFd>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        self.files.extend(files);
        let mut kept = std::mem::take(&mut self.rest);
        let mut all = bytes;
        if !kept.is_empty() {
            kept.extend_from_slice(bytes);
            all = &kept;
        }
        while let Some(frame) = frame::take(&mut all)? {
            let file = match frame.kind {
                Kind::BodyFile | Kind::File | Kind::Welcome => {
                    Some(self.files.pop_front().ok_or(Violation::Descriptor(frame.kind))?)
                }
                _ => None,
            };
            take(&frame, file)?;
        }
        // A descriptor comes with the first byte of its frame.
        let most = if all.is_empty() { 0 } else { socket::MOST };
        if self.files.len() > most {
            return Err(Violation::Descriptor(Kind::BodyFile));
        }
        self.rest = all.to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::group::message::{self, Part};

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn kinds(reader: &mut Reader, bytes: &[u8], files: Vec<OwnedFd>) -> Result<Vec<(Kind, bool)>, Violation> {
        let mut kinds = Vec::new();
        let read = reader.read(bytes, files, |frame, file| {
            kinds.push((frame.kind, file.is_some()));
            Ok(())
        });
        read.map(|()| kinds)
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, 1, Kind::Body, 0, b"abc");
        message::part(&mut bytes, 1, Kind::BodyFile, 0, Part { offset: 0, length: 1 });
        frame::put(&mut bytes, 1, Kind::Gone, 0, b"");
        for cut in 0..bytes.len() {
            let mut reader = Reader::default();
            let files = |here: bool| if here { vec![null()] } else { Vec::new() };
            let mut all = kinds(&mut reader, &bytes[..cut], files(cut > 11)).unwrap();
            all.extend(kinds(&mut reader, &bytes[cut..], files(cut <= 11)).unwrap());
            assert_eq!(all, [(Kind::Body, false), (Kind::BodyFile, true), (Kind::Gone, false)], "{cut}");
        }
    }

    #[test]
    fn descriptors_and_their_frames_need_each_other() {
        let wrong = Err(Violation::Descriptor(Kind::BodyFile));
        let mut bytes = Vec::new();
        frame::put(&mut bytes, 1, Kind::Gone, 0, b"");
        assert_eq!(kinds(&mut Reader::default(), &bytes, vec![null()]), wrong);
        assert_eq!(kinds(&mut Reader::default(), &bytes[..3], (0..17).map(|_| null()).collect()), wrong);
        bytes.clear();
        message::part(&mut bytes, 1, Kind::BodyFile, 0, Part { offset: 0, length: 1 });
        assert_eq!(kinds(&mut Reader::default(), &bytes, Vec::new()), wrong);
    }
}
