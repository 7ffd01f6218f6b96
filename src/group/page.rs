//! The page: what a worker's threads are doing, and which requests were begun; one per worker process.
//!
//! Written by the worker alone, read as hints by the supervisor and by server processes, who map it read-only. Its size
//! is sealed before anybody maps it: a worker cannot take it away under a reader.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Requests that can be marked at once, over all connections.
pub const SLOTS: u32 = 16 * 1024 - BEGUN as u32;

/// Bytes of text per thread.
pub const LONGEST_TEXT: usize = 220;

const WORD: usize = 4;
const BEGUN: usize = 16;
const THREADS: usize = 16 * 1024;
const PER_THREAD: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"HBPG");

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Idle = 0,
    Loading = 1,
    Application = 2,
    Sending = 3,
    Reading = 4,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub phase: Phase,
    /// Since when it is in this phase, and in this request: CLOCK_MONOTONIC, in ms.
    pub since: u64,
    pub begun: u64,
    /// Method and target.
    pub text: Vec<u8>,
}

/// A mapping of the page.
pub struct Page {
    words: NonNull<AtomicU32>,
    count: usize,
    writable: bool,
}

// SAFETY: the memory is only touched through atomics.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

/// Makes a page for so many threads, sealed at its size.
pub fn create(threads: u32) -> io::Result<OwnedFd> {
    // SAFETY: a literal name, flags of memfd_create(2).
    let file = unsafe { libc::memfd_create(c"highball-page".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let file = unsafe { OwnedFd::from_raw_fd(file) };
    let bytes = words(threads) * WORD;
    // SAFETY: plain calls on a descriptor of ours.
    let sized = unsafe {
        libc::ftruncate(file.as_raw_fd(), bytes as libc::off_t) == 0
            && libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS | libc::F_SEAL_SEAL) == 0
    };
    if sized { Ok(file) } else { Err(io::Error::last_os_error()) }
}

const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

fn words(threads: u32) -> usize {
    THREADS + PER_THREAD * threads as usize
}

impl Page {
    /// Maps a page; one that is not sealed, or has the wrong size for its own count of threads, is refused.
    pub fn map(file: BorrowedFd<'_>, writable: bool) -> io::Result<Page> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a page of Highball");
        // SAFETY: a plain call; -1 for what has no seals.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals & SEALS != SEALS || seals < 0 {
            return Err(wrong());
        }
        let bytes = std::fs::File::from(file.try_clone_to_owned()?).metadata()?.len();
        let count = usize::try_from(bytes).map_err(|_| wrong())? / WORD;
        if count < THREADS || !(count - THREADS).is_multiple_of(PER_THREAD) {
            return Err(wrong());
        }
        let access = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: the file has this many bytes and keeps them.
        let memory =
            unsafe { libc::mmap(null_mut(), count * WORD, access, libc::MAP_SHARED, file.as_fd().as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(memory.cast::<AtomicU32>()).ok_or_else(wrong)?;
        Ok(Page { words, count, writable })
    }

    /// A worker's first act: says that the page is in use.
    pub fn begin(&self) {
        self.store(1, 1);
        self.store(2, self.threads());
        self.store(3, SLOTS);
        self.store(0, MAGIC);
    }

    pub fn threads(&self) -> u32 {
        ((self.count - THREADS) / PER_THREAD) as u32
    }

    /// Requests begun and finished since the worker started.
    pub fn requests(&self) -> (u64, u64) {
        (self.load_wide(4), self.load_wide(6))
    }

    /// Marks the request as begun. Worker, before the application's first instruction.
    pub fn set_begun(&self, slot: u32, stream: u32) {
        if slot < SLOTS {
            self.store(BEGUN + slot as usize, stream);
        }
    }

    /// The stream of the last request begun in this slot.
    pub fn begun(&self, slot: u32) -> u32 {
        if slot < SLOTS { self.load(BEGUN + slot as usize) } else { 0 }
    }

    /// Counts a request as begun or finished.
    pub fn count(&self, finished: bool) {
        let at = if finished { 6 } else { 4 };
        if let (Some(low), Some(high)) = (self.word(at), self.word(at + 1))
            && self.writable
            && low.fetch_add(1, Ordering::Relaxed) == u32::MAX
        {
            high.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says what a thread does. That thread only.
    pub fn set(&self, thread: u32, entry: &Entry) {
        let Some(at) = self.place(thread) else { return };
        let sequence = self.load(at);
        self.store(at, sequence.wrapping_add(1));
        fence(Ordering::Release);
        self.store(at + 1, entry.phase as u32);
        self.store_wide(at + 2, entry.since);
        self.store_wide(at + 4, entry.begun);
        let text = entry.text.get(..entry.text.len().min(LONGEST_TEXT)).unwrap_or_default();
        self.store(at + 6, text.len() as u32);
        for (index, chunk) in text.chunks(WORD).enumerate() {
            let mut word = [0; WORD];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.store(at + 7 + index, u32::from_le_bytes(word));
        }
        fence(Ordering::Release);
        self.store(at, sequence.wrapping_add(2));
    }

    /// Changes only the phase. That thread only.
    pub fn set_phase(&self, thread: u32, phase: Phase, since: u64) {
        let Some(at) = self.place(thread) else { return };
        self.store_wide(at + 2, since);
        self.store(at + 1, phase as u32);
    }

    /// What a thread does; `None` while it is being written, again and again.
    pub fn entry(&self, thread: u32) -> Option<Entry> {
        let at = self.place(thread)?;
        for _ in 0..100 {
            let before = self.load(at);
            fence(Ordering::Acquire);
            let entry = Entry {
                phase: match self.load(at + 1) {
                    1 => Phase::Loading,
                    2 => Phase::Application,
                    3 => Phase::Sending,
                    4 => Phase::Reading,
                    _ => Phase::Idle,
                },
                since: self.load_wide(at + 2),
                begun: self.load_wide(at + 4),
                text: {
                    let length = (self.load(at + 6) as usize).min(LONGEST_TEXT);
                    let words = (0..length.div_ceil(WORD)).flat_map(|index| self.load(at + 7 + index).to_le_bytes());
                    words.take(length).collect()
                },
            };
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.load(at) == before {
                return Some(entry);
            }
        }
        None
    }

    fn place(&self, thread: u32) -> Option<usize> {
        (thread < self.threads()).then_some(THREADS + PER_THREAD * thread as usize)
    }

    fn word(&self, index: usize) -> Option<&AtomicU32> {
        // SAFETY: within the mapping, which lives as long as `self`.
        (index < self.count).then(|| unsafe { self.words.add(index).as_ref() })
    }

    fn load(&self, index: usize) -> u32 {
        self.word(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn load_wide(&self, index: usize) -> u64 {
        u64::from(self.load(index)) | u64::from(self.load(index + 1)) << 32
    }

    fn store(&self, index: usize, value: u32) {
        if let Some(word) = self.word(index).filter(|_| self.writable) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn store_wide(&self, index: usize, value: u64) {
        self.store(index, value as u32);
        self.store(index + 1, (value >> 32) as u32);
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, which nobody uses any more.
        unsafe { libc::munmap(self.words.as_ptr().cast::<c_void>(), self.count * WORD) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_what_the_worker_wrote_and_cannot_write() {
        let file = create(2).unwrap();
        let worker = Page::map(file.as_fd(), true).unwrap();
        let server = Page::map(file.as_fd(), false).unwrap();
        worker.begin();
        assert_eq!(server.threads(), 2);
        worker.set_begun(SLOTS - 1, 9);
        worker.set_begun(SLOTS, 9);
        assert_eq!((server.begun(SLOTS - 1), server.begun(SLOTS), server.begun(0)), (9, 0, 0));
        let entry = Entry { phase: Phase::Application, since: 1 << 40, begun: 3, text: b"GET /caf\xc3\xa9".to_vec() };
        worker.set(1, &entry);
        assert_eq!(server.entry(1), Some(entry));
        assert_eq!(server.entry(2), None);
        let long = Entry { phase: Phase::Idle, since: 0, begun: 0, text: vec![b'x'; 5000] };
        worker.set(1, &long);
        assert_eq!(server.entry(1).unwrap().text.len(), LONGEST_TEXT);
        assert_eq!(server.entry(0).unwrap().text, b"");
        server.set_begun(1, 1);
        assert_eq!(worker.begun(1), 0);
        worker.count(false);
        assert_eq!(server.requests(), (1, 0));
    }

    #[test]
    fn files_of_another_shape_are_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Page::map(null.as_fd(), false).is_err());
        let file = create(1).unwrap();
        // SAFETY: a plain call on a descriptor of ours.
        assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), 0) }, -1, "sealed");
    }
}
