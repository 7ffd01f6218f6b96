//! Process groups: links to workers on the event loop, which request goes where, and what becomes of it when a worker
//! leaves or dies. Event loop only.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::{Duration, Instant};

use highball::group::client::{
    self, LONGEST_NOT_HERE, Link, LinkError, MOST_NOT_HERE, NOT_HERE, Refusal, Said, Settings, choose,
    most_outstanding, socket_path,
};
use highball::group::message::Ending;
use highball::log::Level;
use highball::worker::relay::Message;

use crate::event::Event;
use crate::ffi::{self, called_by_nginx, ngx_connection_t, ngx_event_t};
use crate::log;
use crate::process::Process;
use crate::stream::Stream;
use crate::wake::Wake;

pub struct Groups {
    groups: RefCell<Vec<Rc<Group>>>,
    links: RefCell<HashMap<usize, Rc<Wired>>>,
    last: Cell<usize>,
    /// Links with frames to write at the end of this turn.
    unwritten: RefCell<Vec<Rc<Wired>>>,
    write: Event,
    /// While requests wait.
    timer: Event,
    /// While workers take nothing of what is sent to them.
    stuck: Event,
    /// While requests wait for workers that have their applications.
    later: Event,
}

pub struct Group {
    settings: Settings,
    slots: RefCell<Vec<Slot>>,
    turn: Cell<usize>,
    queue: RefCell<VecDeque<Queued>>,
    /// Requests whose application no worker had that was asked: they are sent again, a moment later.
    later: RefCell<Vec<Rc<Stream>>>,
}

#[derive(Default)]
struct Slot {
    wired: Option<Rc<Wired>>,
    /// No worker could be reached there, until then.
    down_until: Option<Instant>,
}

struct Queued {
    since: Instant,
    stream: Rc<Stream>,
}

/// A link and the connection that nginx watches it with.
pub struct Wired {
    number: usize,
    group: Rc<Group>,
    slot: usize,
    pub link: RefCell<Link>,
    connection: NonNull<ngx_connection_t>,
    streams: RefCell<HashMap<u32, Rc<Stream>>>,
    unwritten: Cell<bool>,
}

impl Groups {
    pub fn new(settings: &[Settings], wake: &Wake, log: *mut ffi::ngx_log_t) -> Groups {
        let groups = Groups {
            groups: RefCell::default(),
            links: RefCell::default(),
            last: Cell::new(0),
            unwritten: RefCell::default(),
            write: Event::new(wake, log, on_write_all),
            timer: Event::new(wake, log, on_timer),
            stuck: Event::new(wake, log, on_stuck),
            later: Event::new(wake, log, on_later),
        };
        groups.update(settings);
        groups
    }

    /// Takes over new settings: a process without a master lives through reloads.
    pub fn update(&self, settings: &[Settings]) {
        let known = self.groups.take();
        let same = |new: &Settings| known.iter().find(|group| group.settings == *new).cloned();
        self.groups.replace(settings.iter().map(|new| same(new).unwrap_or_else(|| Group::new(new.clone()))).collect());
    }

    pub fn find(&self, name: &str) -> Option<Rc<Group>> {
        self.groups.borrow().iter().find(|group| group.settings.name == name).cloned()
    }

    pub fn with_names<R>(&self, ask: impl FnOnce(&mut dyn Iterator<Item = &str>) -> R) -> R {
        ask(&mut self.groups.borrow().iter().map(|group| group.settings.name.as_str()))
    }

    /// Sends a request to a worker, or has it wait for one.
    pub fn submit(&self, process: &Process, stream: &Rc<Stream>) {
        let group = stream.group.clone();
        group.queue.borrow_mut().push_back(Queued::new(stream.clone()));
        self.dispatch(&group);
        let waiting = group.queue.borrow().len();
        if waiting > group.settings.queue_size {
            let refused = group.queue.borrow_mut().pop_back();
            if let Some(refused) = refused {
                self.refuse(process, &refused.stream, Refusal::QueueFull);
            }
        }
    }

    fn refuse(&self, process: &Process, stream: &Stream, refusal: Refusal) {
        stream.queued.set(false);
        let report = refusal.report(&stream.group.settings);
        process.log_of(stream.key, Level::Error, &report.to_string(), &stream.request);
        process.refuse(stream.key, refusal.status());
    }

    /// Gives waiting requests to workers that have room.
    fn dispatch(&self, group: &Rc<Group>) {
        loop {
            let Some(stream) = group.queue.borrow().front().map(|queued| queued.stream.clone()) else { return };
            if stream.gone.get() {
                group.queue.borrow_mut().pop_front();
                continue;
            }
            let Some(wired) = group.choose() else { break };
            group.queue.borrow_mut().pop_front();
            stream.queued.set(false);
            self.send(&wired, &stream);
        }
        self.connect(group);
        self.timer.arm(RETRY);
    }

    fn send(&self, wired: &Rc<Wired>, stream: &Rc<Stream>) {
        let has_body = !stream.upload.borrow().parts.is_empty();
        let Some(number) = wired.link.borrow_mut().open(&stream.answerer, &stream.request, has_body) else {
            if let Some(process) = Process::current() {
                self.refuse(process, stream, Refusal::TooLong);
            }
            return;
        };
        stream.at.replace(Some((wired.clone(), number)));
        wired.streams.borrow_mut().insert(number, stream.clone());
        self.write_later(wired);
        if let Some(process) = Process::current() {
            process.pump(stream.key);
        }
    }

    /// Connects to the workers of a group that there is no link to.
    fn connect(&self, group: &Rc<Group>) {
        let now = Instant::now();
        let count = group.slots.borrow().len();
        for number in 0..count {
            let wanted = group
                .slots
                .borrow()
                .get(number)
                .is_some_and(|slot| slot.wired.is_none() && slot.down_until.is_none_or(|until| until <= now));
            if !wanted {
                continue;
            }
            let wired = self.connect_to(group, number);
            if let Some(slot) = group.slots.borrow_mut().get_mut(number) {
                slot.down_until = wired.is_none().then(|| now + RETRY);
                slot.wired = wired;
            }
        }
    }

    fn connect_to(&self, group: &Rc<Group>, slot: usize) -> Option<Rc<Wired>> {
        let path = socket_path(&group.settings.directory, &group.settings.name, u32::try_from(slot).ok()?);
        let link = Link::connect(&path, &group.settings.key).ok()?;
        // SAFETY: event loop; the descriptor is open, and closed together with the connection.
        let connection =
            NonNull::new(unsafe { ffi::ngx_get_connection(link.socket().ok()?.as_raw_fd(), log::of_process()) })?;
        let number = self.last.get() + 1;
        self.last.set(number);
        // SAFETY: freshly taken; its events are never null.
        unsafe {
            let c = &mut *connection.as_ptr();
            c.data = std::ptr::without_provenance_mut(number);
            let (read, write) = (&mut *c.read, &mut *c.write);
            read.handler = Some(on_readable);
            write.handler = Some(on_writable);
            (read.log, write.log) = (c.log, c.log);
            // As the channel to the master: nginx does not count it as a connection left open.
            read.set_channel(1);
            write.set_channel(1);
            if ffi::hb_add_read_event(c) != ffi::OK {
                ffi::ngx_free_connection(c);
                return None;
            }
        }
        let wired = Rc::new(Wired {
            number,
            group: group.clone(),
            slot,
            link: RefCell::new(link),
            connection,
            streams: RefCell::default(),
            unwritten: Cell::new(false),
        });
        self.links.borrow_mut().insert(number, wired.clone());
        Some(wired)
    }

    /// Has a link written at the end of this turn of the loop.
    pub fn write_later(&self, wired: &Rc<Wired>) {
        if !wired.unwritten.replace(true) {
            self.unwritten.borrow_mut().push(wired.clone());
            self.write.post();
        }
    }

    fn write_all(&self, process: &Process) {
        for wired in self.unwritten.take() {
            wired.unwritten.set(false);
            self.write(process, &wired);
        }
    }

    fn write(&self, process: &Process, wired: &Rc<Wired>) {
        let was_full = wired.link.borrow().is_full();
        let flushed = wired.link.borrow_mut().flush();
        match flushed {
            // SAFETY: the connection is watched as long as the link is kept.
            Ok(true) if was_full => unsafe {
                ffi::hb_has_room(wired.connection.as_ptr());
            },
            Ok(true) => {}
            Ok(false) => {
                self.stuck.arm(LONG_RETRY);
                // SAFETY: as above.
                unsafe { ffi::hb_await_room(wired.connection.as_ptr()) };
            }
            Err(error) => {
                // What it had answered before it went.
                self.read(process, wired, true);
                if self.links.borrow().contains_key(&wired.number) {
                    self.broken(process, wired, &error.into());
                }
            }
        }
    }

    fn read(&self, process: &Process, wired: &Rc<Wired>, to_end: bool) {
        let mut said = Vec::new();
        let mut buffer = process.scratch.take();
        buffer.resize(SCRATCH, 0);
        let read = wired.link.borrow_mut().read(&mut buffer, to_end, |stream, what| said.push((stream, what)));
        process.scratch.replace(buffer);
        let mut said = said.into_iter().peekable();
        let mut messages = Vec::new();
        while let Some((number, first)) = said.next() {
            let mut ending = None;
            let mut asked = false;
            let mut next = Some(first);
            while let Some(what) = next.take() {
                match what {
                    Said::Head(head) => messages.push(Message::Head(head)),
                    Said::Block(bytes) => messages.push(Message::Block(highball::exchange::Block::Copied(bytes))),
                    Said::File(file) => messages.push(Message::File(file)),
                    Said::Log(level, text) => messages.push(Message::Log(level, text)),
                    Said::Read => asked = true,
                    Said::Finish(how) => {
                        ending = Some(how);
                        if let Ending::Outcome(outcome) = how {
                            messages.push(Message::Finish(outcome));
                        }
                    }
                }
                next = said.next_if(|(other, _)| *other == number).map(|(_, what)| what);
            }
            let stream = wired.streams.borrow().get(&number).cloned();
            let Some(stream) = stream else { continue };
            if ending.is_some() {
                wired.streams.borrow_mut().remove(&number);
                stream.at.replace(None);
            }
            if asked {
                stream.upload.borrow_mut().held = false;
                process.pump(stream.key);
            }
            process.deliver_of_group(stream.key, &stream.request, &mut messages, ending);
            messages.clear();
            if ending == Some(Ending::NotHere) {
                self.try_later(process, stream);
            }
        }
        match read {
            // SAFETY: the connection is watched as long as the link is kept.
            Ok(true) if wired.link.borrow().has_more() => unsafe {
                ffi::hb_post_next_event((*wired.connection.as_ptr()).read);
            },
            Ok(true) => {}
            Ok(false) => {
                return self.broken(process, wired, &std::io::Error::from(std::io::ErrorKind::ConnectionReset).into());
            }
            Err(error) => return self.broken(process, wired, &error),
        }
        if wired.link.borrow().is_leaving() {
            self.part(wired);
            if wired.streams.borrow().is_empty() {
                self.close(wired);
            }
        }
        self.dispatch_if_any(&wired.group);
    }

    /// The worker does not have the application; over a reload, another has it, or will.
    fn try_later(&self, process: &Process, stream: Rc<Stream>) {
        if stream.gone.get() {
            process.land(stream.key);
            return;
        }
        let group = stream.group.clone();
        let longest = group.settings.queue_timeout.min(LONGEST_NOT_HERE);
        let again = stream.since.elapsed() < longest && group.later.borrow().len() < MOST_NOT_HERE;
        if again && process.rewind(stream.key) && stream.upload.borrow_mut().rewind() {
            stream.queued.set(true);
            group.later.borrow_mut().push(stream);
            self.later.arm(NOT_HERE);
        } else {
            self.refuse(process, &stream, Refusal::NotHere);
        }
    }

    /// Sends those again whose application no worker has had, where nobody else waits for a worker.
    fn on_later(&self, process: &Process) {
        let groups = self.groups.borrow().clone();
        for group in groups {
            for stream in group.later.take() {
                if stream.gone.get() {
                    continue;
                }
                let wired = Some(()).filter(|()| group.queue.borrow().is_empty()).and_then(|()| group.choose());
                match wired {
                    Some(wired) => {
                        stream.queued.set(false);
                        self.send(&wired, &stream);
                    }
                    None if stream.since.elapsed() >= group.settings.queue_timeout => {
                        self.refuse(process, &stream, Refusal::NotHere);
                    }
                    None => group.later.borrow_mut().push(stream),
                }
            }
            if !group.later.borrow().is_empty() {
                self.connect(&group);
                self.later.arm(NOT_HERE);
            }
        }
    }

    fn dispatch_if_any(&self, group: &Rc<Group>) {
        if !group.queue.borrow().is_empty() {
            self.dispatch(group);
        }
    }

    /// No new requests go to this link.
    fn part(&self, wired: &Rc<Wired>) {
        if let Some(slot) = wired.group.slots.borrow_mut().get_mut(wired.slot)
            && slot.wired.as_ref().is_some_and(|own| Rc::ptr_eq(own, wired))
        {
            slot.wired = None;
        }
    }

    /// The link is closed on the other side, or of no use any more.
    fn broken(&self, process: &Process, wired: &Rc<Wired>, error: &LinkError) {
        let settings = &wired.group.settings;
        let of_its_own = !matches!(error, LinkError::Socket(_));
        if of_its_own {
            log::process(Level::Error, &client::closed(settings, error));
        }
        self.part(wired);
        let streams = wired.streams.take();
        let mut again = Vec::new();
        for (number, stream) in streams {
            stream.at.replace(None);
            // One that lives may still begin it.
            let untouched = !of_its_own && !wired.link.borrow().has_begun(number) && !process.has_begun(stream.key);
            if stream.gone.get() {
                process.land(stream.key);
            } else if untouched && process.rewind(stream.key) && stream.upload.borrow_mut().rewind() {
                again.push(stream);
            } else {
                process.log_of(stream.key, Level::Error, &client::ended(settings).to_string(), &stream.request);
                process.refuse(stream.key, 502);
            }
        }
        self.close(wired);
        if let Some(slot) = wired.group.slots.borrow_mut().get_mut(wired.slot)
            && of_its_own
        {
            slot.down_until = Some(Instant::now() + LONG_RETRY);
        }
        // They waited already: first come, first served.
        again.sort_by_key(|stream| std::cmp::Reverse(stream.key));
        for stream in again {
            wired.group.queue.borrow_mut().push_front(Queued::new(stream));
        }
        self.dispatch_if_any(&wired.group);
    }

    fn close(&self, wired: &Rc<Wired>) {
        if self.links.borrow_mut().remove(&wired.number).is_none() {
            return;
        }
        let socket = wired.link.borrow_mut().give_up_socket();
        if let Some(socket) = socket {
            // nginx closes the descriptor.
            let _ = socket.into_raw_fd();
            // SAFETY: taken in `connect_to`, given back once.
            unsafe { ffi::ngx_close_connection(wired.connection.as_ptr()) };
        }
    }

    /// Again and again while requests wait.
    fn on_timer(&self, process: &Process) {
        let groups = self.groups.borrow().clone();
        let mut waits = false;
        for group in groups {
            loop {
                let late = {
                    let mut queue = group.queue.borrow_mut();
                    let is_late =
                        queue.front().is_some_and(|queued| queued.since.elapsed() >= group.settings.queue_timeout);
                    if is_late { queue.pop_front() } else { None }
                };
                let Some(late) = late else { break };
                if !late.stream.gone.get() {
                    self.refuse(process, &late.stream, Refusal::TooLate);
                }
            }
            self.dispatch_if_any(&group);
            waits |= !group.queue.borrow().is_empty();
        }
        if waits {
            self.timer.arm(RETRY);
        }
    }

    /// Again and again while workers take nothing.
    fn on_stuck(&self, process: &Process) {
        let full: Vec<Rc<Wired>> =
            self.links.borrow().values().filter(|wired| wired.link.borrow().is_full()).cloned().collect();
        for wired in full {
            let timeout = wired.group.settings.socket_timeout;
            let patience = wired.link.borrow().patience(timeout);
            match patience {
                Some(Duration::ZERO) => self.broken(process, &wired, &LinkError::Stuck(timeout)),
                Some(patience) => self.stuck.arm(patience.clamp(RETRY, LONG_RETRY)),
                None => {}
            }
        }
    }

    /// The process ends.
    pub fn end(&self) {
        let links: Vec<Rc<Wired>> = self.links.borrow().values().cloned().collect();
        links.iter().for_each(|wired| self.close(wired));
    }
}

impl Group {
    fn new(settings: Settings) -> Rc<Group> {
        let slots = (0..settings.processes).map(|_| Slot::default()).collect();
        Rc::new(Group {
            settings,
            slots: RefCell::new(slots),
            turn: Cell::new(0),
            queue: RefCell::default(),
            later: RefCell::default(),
        })
    }
}

impl Group {
    /// The worker whose turn it is, if one has room.
    fn choose(&self) -> Option<Rc<Wired>> {
        let most = most_outstanding(self.settings.threads);
        let slots = self.slots.borrow();
        let outstanding = |slot| slots.get(slot).and_then(Slot::outstanding);
        let chosen = choose(slots.len(), most, self.turn.get(), outstanding)?;
        let wired = slots.get(chosen)?.wired.clone()?;
        self.turn.set(chosen + 1);
        Some(wired)
    }
}

impl Queued {
    fn new(stream: Rc<Stream>) -> Queued {
        stream.queued.set(true);
        Queued { since: stream.since, stream }
    }
}

impl Slot {
    /// Requests at its worker, if it takes any.
    fn outstanding(&self) -> Option<usize> {
        let link = self.wired.as_ref()?.link.borrow();
        link.is_ready().then(|| link.outstanding())
    }
}

called_by_nginx! {
    fn on_readable(event: *mut ngx_event_t) -> (), (); {
        // SAFETY: nginx's event of this call. It comes once: an end that is not read now is never heard of.
        let ends = unsafe { (*event).pending_eof() } != 0;
        with_link(event, |process, wired| process.groups.read(process, wired, ends));
    }

    fn on_writable(event: *mut ngx_event_t) -> (), (); {
        with_link(event, |process, wired| {
            if wired.link.borrow().is_full() {
                process.groups.write(process, wired);
            }
        });
    }

    fn on_write_all(_event: *mut ngx_event_t) -> (), (); {
        if let Some(process) = Process::current() {
            process.groups.write_all(process);
        }
    }

    fn on_timer(_event: *mut ngx_event_t) -> (), (); {
        if let Some(process) = Process::current() {
            process.groups.on_timer(process);
        }
    }

    fn on_later(_event: *mut ngx_event_t) -> (), (); {
        if let Some(process) = Process::current() {
            process.groups.on_later(process);
        }
    }

    fn on_stuck(_event: *mut ngx_event_t) -> (), (); {
        if let Some(process) = Process::current() {
            process.groups.on_stuck(process);
        }
    }
}

fn with_link(event: *mut ngx_event_t, run: impl FnOnce(&Process, &Rc<Wired>)) {
    // SAFETY: an event of a connection of ours, whose data is a number.
    let number = unsafe { (*(*event).data.cast::<ngx_connection_t>()).data.addr() };
    let Some(process) = Process::current() else { return };
    let wired = process.groups.links.borrow().get(&number).cloned();
    if let Some(wired) = wired {
        run(process, &wired);
    }
}

/// How soon a worker that could not be reached is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// The same for one that speaks wrongly.
const LONG_RETRY: Duration = Duration::from_secs(1);

const SCRATCH: usize = 128 * 1024;
