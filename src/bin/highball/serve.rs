//! From start to end: the server in the foreground, until it is asked to stop, fails to start, or dies.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::arguments::Mode;
use crate::directory::Directory;
use crate::failure::Failure;
use crate::group;
use crate::log::Log;
use crate::port;
use crate::process::{self, Process};
use crate::signals::Signals;
use crate::site::Site;
use crate::startup::{Startup, Told};
use crate::watch::{self, Watch};

pub fn serve(site: &Site) -> Result<(), Failure> {
    let signals = Signals::take()?;
    let directory = Directory::make(site.user.as_ref())?;
    let arguments = site.server.configure(site, directory.path())?;
    process::test_configuration(site, &arguments)?;
    let startup = Startup::make()?;
    let (process, log) = Process::start(site, &arguments, &startup)?;
    Run { site, directory: directory.path(), signals, startup, process, log: Log::new(log), log_open: true, stops: 0 }
        .drive()
}

struct Run<'a> {
    site: &'a Site,
    directory: &'a Path,
    signals: Signals,
    startup: Startup,
    process: Process,
    log: Log,
    log_open: bool,
    /// How often somebody has said stop.
    stops: u32,
}

/// How long a server may take to end after the graceful limit, which it keeps itself.
const AFTER_LIMIT: Duration = Duration::from_millis(500);
/// How long a server may take between SIGTERM and SIGKILL.
const AFTER_TERM: Duration = Duration::from_secs(1);
/// Some send a signal to the process and to its group: that is one word, not two.
const SAME_WORD: Duration = Duration::from_millis(500);
const STILL_LOADING: Duration = Duration::from_secs(10);
const FIRST_WORDS: Duration = Duration::from_millis(100);
const ACCEPTING: Duration = Duration::from_secs(5);

impl Run<'_> {
    fn drive(mut self) -> Result<(), Failure> {
        if let Some(result) = self.start() {
            self.stop(false);
            self.farewell();
            return result;
        }
        let result = self.run();
        if result.is_ok() {
            self.stop(true);
        }
        self.farewell();
        result
    }

    /// Waits until the application is there. `Some`: it will not be.
    fn start(&mut self) -> Option<Result<(), Failure>> {
        let begun = Instant::now();
        let mut patient = true;
        loop {
            let told = match self.site.mode {
                Mode::Embedded => self.wait(Duration::from_secs(1)),
                Mode::Group => {
                    self.wait(FIRST_WORDS);
                    group::told(self.directory, self.site.processes)
                }
            };
            match told {
                Some(Told::Ready) => break,
                Some(Told::Failed(report)) => {
                    self.log.release_without(&report);
                    let report = self.site.server.in_words_of(self.site, self.directory, report);
                    return Some(Err(Failure::told(report)));
                }
                None => {}
            }
            if self.stops > 0 {
                self.log.release();
                return Some(Ok(()));
            }
            if let Some(status) = self.process.ended() {
                self.drain();
                self.log.release();
                return Some(Err(Failure::new(
                    format!("{} ended ({}) before it was ready", self.site.server.name(), process::how(status)),
                    "its messages are above",
                )));
            }
            if patient && begun.elapsed() > STILL_LOADING {
                patient = false;
                self.log.release();
                eprintln!("highball: still loading {}", self.site.target);
            }
        }
        let begun = Instant::now();
        while !port::accepts(self.site.address) {
            if begun.elapsed() > ACCEPTING || self.process.ended().is_some() {
                self.drain();
                self.log.release();
                return Some(Err(Failure::new(
                    format!("{} does not accept connections on {}", self.site.server.name(), self.site.address),
                    "see its messages above, and whether something filters that port",
                )));
            }
            self.wait(Duration::from_millis(50));
        }
        // What the server says of its start comes now, and should not come after the line below.
        let accepted = Instant::now();
        while accepted.elapsed() < FIRST_WORDS {
            self.wait(FIRST_WORDS / 4);
        }
        self.log.release();
        let Site { target, server, .. } = self.site;
        let mut out = std::io::stdout().lock();
        let line = format!("serving {target} on {} ({}, pid {})", self.site.url(), server.name(), self.process.id());
        writeln!(out, "highball: {line}").and_then(|()| out.flush()).ok();
        None
    }

    /// Until somebody says stop, or the server dies.
    fn run(&mut self) -> Result<(), Failure> {
        let mut watch = self.site.reload.then(|| Watch::new(self.site));
        let longest = if watch.is_some() { watch::MOMENT } else { Duration::from_secs(60) };
        loop {
            self.wait(if self.stops > 0 { Duration::ZERO } else { longest });
            if let Some(watch) = &mut watch {
                watch.look(self.directory);
            }
            if self.stops > 0 {
                return Ok(());
            }
            if let Some(status) = self.process.ended() {
                self.drain();
                return Err(Failure::new(
                    format!("{} ended by itself ({})", self.site.server.name(), process::how(status)),
                    "its messages are above; start again",
                ));
            }
        }
    }

    /// Ends the server: gracefully within the limit, else, or at the second word, at once.
    fn stop(&mut self, graceful: bool) {
        self.process.adopt();
        let begun = Instant::now();
        let term_at = if graceful {
            self.process.signal(self.site.server.graceful());
            Instant::now() + self.site.graceful + AFTER_LIMIT
        } else {
            Instant::now()
        };
        let mut first_word = self.stops;
        let mut term_sent = None;
        while self.process.ended().is_none() {
            let now = Instant::now();
            match term_sent {
                None if now >= term_at => {
                    self.process.signal(libc::SIGTERM);
                    term_sent = Some(now);
                }
                Some(sent) if now.duration_since(sent) > AFTER_TERM => self.process.signal_all(libc::SIGKILL),
                _ => {}
            }
            self.wait(Duration::from_millis(200));
            if begun.elapsed() < SAME_WORD {
                first_word = self.stops;
            } else if self.stops > first_word && term_sent.is_none() {
                self.process.signal(libc::SIGTERM);
                term_sent = Some(Instant::now());
            }
        }
    }

    fn farewell(&mut self) {
        self.process.clear();
        self.drain();
        self.log.release();
    }

    /// What the server wrote last.
    fn drain(&mut self) {
        while self.log_open && readable(self.log.descriptor()) {
            self.log_open = self.log.take();
        }
    }

    /// Waits for something to happen, at most `limit`. What the module has told is the caller's.
    fn wait(&mut self, limit: Duration) -> Option<Told> {
        let log = if self.log_open { self.log.descriptor() } else { -1 };
        let mut ready = [self.signals.descriptor(), self.startup.descriptor(), log].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        let milliseconds = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `ready` is an array of that many pollfd; a negative descriptor is skipped.
        unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, milliseconds) };
        let [_, _, log] = ready;
        if self.log_open && log.revents != 0 {
            self.log_open = self.log.take();
        }
        while let Some(signal) = self.signals.next() {
            self.stops += u32::from(signal != libc::SIGCHLD);
        }
        self.startup.next()
    }
}

fn readable(descriptor: libc::c_int) -> bool {
    let mut ready = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut ready, 1, 0) > 0 }
}
