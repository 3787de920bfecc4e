//! The guest of another VMM, as a domain of its own: each of the two can map pages that the other grants it, and connect event channels.
//!
//! Whoever grants has the last word: its VMM checks and counts each use of its pages by its own table. The memory of each guest is a file that
//! both VMMs map, so each must trust the other VMM, but no guest.

mod link;
mod pages;

use std::collections::HashMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use grant_table::event::{EventCaller, EventConfig};
use grant_table::frame::Frame;
use grant_table::guest::Access;
use grant_table::hypervisor::{Destruction, DomainConfig, Memory};
use grant_table::spec::event::{Port, TWO_LEVEL_PORTS};
use grant_table::spec::grant::{GrantRef, MapFlags, MapGrantRef, Refusal, UnmapGrantRef};
use grant_table::spec::{DomId, Errno, PAGE_SIZE};
use vm_memory::{Address as _, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::events::Dropped;
use super::host::{GuestChannel, Host, Server, Wake};
use super::{GUEST, PEER, XenError};
use link::{Link, Message, kind};
use pages::Pages;

/// Where the other VMM's uses of pages are, which only it knows. Not 0, which would be nowhere.
const ELSEWHERE: u64 = PAGE_SIZE as u64;
/// Uses that are ended together when the other VMM has gone.
const BUDGET: usize = 1024;

/// The memory of the other guest, which is not here: it grants nothing by this VMM, and what it maps the other one shows it.
#[derive(Debug)]
struct Elsewhere;

impl Memory for Elsewhere {
    fn frame(&self, _number: u64) -> Option<(Frame, Access)> {
        None
    }

    fn map(&self, _address: u64, _frame: Frame, _access: Access) -> Result<(), Refusal> {
        Ok(())
    }

    fn unmap(&self, _address: u64, _frame: u64, _replacement: u64) -> Result<(), Refusal> {
        Ok(())
    }

    fn take(&self, _number: u64) -> Result<Frame, Refusal> {
        Err(Refusal::BadPage)
    }

    fn give(&self, _frame: Frame, _place: &mut dyn FnMut() -> Option<u64>) -> bool {
        false
    }
}

/// An event channel to the other guest.
struct Channel {
    /// This guest's port.
    port: Port,
    /// What the other VMM calls it.
    theirs: u64,
    /// Raises the other guest's events here.
    _server: Server,
}

struct Shared {
    host: Arc<Host>,
    /// By which to ask the other VMM; none until it is there, and after it has gone.
    calls: Mutex<Option<Link>>,
    pages: Mutex<Pages>,
    /// By the port of the other guest's that it has here.
    channels: Mutex<HashMap<u32, Channel>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The other guest.
pub(super) struct Peer {
    shared: Arc<Shared>,
    server: Mutex<Option<Server>>,
}

/// How the two VMMs meet.
enum Meeting {
    /// The other one was there before.
    Found { calls: Link, served: Link },
    /// It will come.
    Waiting(Rendezvous),
}

/// Where the other VMM is waited for.
struct Rendezvous {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        // Nobody else is to come.
        let _removed = std::fs::remove_file(&self.path);
    }
}

impl Meeting {
    fn at(path: &Path) -> io::Result<Self> {
        let connect = || UnixStream::connect(path).map(Link);
        match connect() {
            Ok(calls) => Ok(Self::Found {
                calls,
                served: connect()?,
            }),
            Err(_) => Ok(Self::Waiting(Rendezvous {
                listener: UnixListener::bind(path)?,
                path: path.to_owned(),
            })),
        }
    }

    /// The connections for questions and for those of the other VMM; none if the thread is to end before.
    fn links(self, wake: &Wake) -> io::Result<Option<(Link, Link)>> {
        match self {
            Self::Found { calls, served } => Ok(Some((calls, served))),
            Self::Waiting(Rendezvous { ref listener, .. }) => {
                let accept = || match wake.wait_or(listener)? {
                    true => listener.accept().map(|(stream, _)| Some(Link(stream))),
                    false => Ok(None),
                };
                // What it asks by comes first.
                Ok(accept()?
                    .zip(accept()?)
                    .map(|(served, calls)| (calls, served)))
            }
        }
    }
}

impl Peer {
    /// A guest whose VMM is met at `path`, or comes there later.
    pub fn new(host: Arc<Host>, path: &Path) -> Result<Self, XenError> {
        let failed = |source| XenError::Peer {
            path: path.to_owned(),
            source,
        };
        host.grants
            .create(PEER, DomainConfig::default(), Elsewhere)?;
        host.events.create(
            PEER,
            EventConfig {
                vcpus: 1,
                shared_info: Frame::allocate(),
                upcall: Box::new(Dropped),
                privileged: false,
                pirqs: Vec::new(),
                max_ports: TWO_LEVEL_PORTS,
            },
        )?;
        let meeting = Meeting::at(path).map_err(failed)?;
        let shared = Arc::new(Shared {
            pages: Mutex::new(Pages::new(host.vm.clone())),
            host,
            calls: Mutex::default(),
            channels: Mutex::default(),
        });
        let own = shared.clone();
        let serve = move |wake: &Wake| {
            // Without the other VMM there is nobody to tell why.
            let _ended = own.run(meeting, wake);
            own.part();
        };
        let wake = Wake::new().map_err(failed)?;
        let server = Server::spawn("xen-peer".to_owned(), wake, serve).map_err(failed)?;
        Ok(Self {
            shared,
            server: Mutex::new(Some(server)),
        })
    }

    /// Ends all that serves the other guest.
    pub fn stop(&self) {
        *lock(&self.server) = None;
    }

    /// Maps a page of the other guest's for this one.
    pub fn map(&self, op: &mut MapGrantRef) {
        let mapped = self.shared.map(op);
        op.status = Refusal::status(mapped.map(|handle| op.handle = handle));
    }

    /// Ends that.
    pub fn unmap(&self, op: &mut UnmapGrantRef) {
        op.status = Refusal::status(self.shared.unmap(op));
    }

    /// Whether a mapping is one of the other guest's pages.
    pub fn has_mapped(&self, handle: u32) -> bool {
        lock(&self.shared.pages).knows(handle)
    }

    /// Connects a new port of this guest's, which calls, to the other guest's port `theirs`.
    pub fn bind(&self, guest: &EventCaller<'_>, theirs: Port) -> Result<Port, Errno> {
        self.shared.bind(guest, theirs)
    }

    /// This guest has closed a port.
    pub fn closed(&self, port: Port) {
        self.shared.closed(port);
    }
}

impl Shared {
    /// Asks the other VMM.
    fn ask(
        &self,
        kind: u32,
        values: [u64; 3],
        file: Option<&std::fs::File>,
    ) -> Option<(Message, Option<std::fs::File>)> {
        lock(&self.calls).as_ref()?.ask(kind, values, file).ok()
    }

    fn map(&self, op: &MapGrantRef) -> Result<u32, Refusal> {
        let flags = MapFlags::from_bits_retain(op.flags);
        if flags.difference(MapFlags::READONLY) != MapFlags::HOST {
            return Err(Refusal::General);
        }
        if !op.host_address.is_multiple_of(PAGE_SIZE as u64) {
            return Err(Refusal::BadVirtualAddress);
        }
        let access = match flags.contains(MapFlags::READONLY) {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        let mut pages = lock(&self.pages);
        if pages.is_full() {
            return Err(Refusal::NoDeviceSpace);
        }
        let question = [op.reference.0.into(), op.flags.into(), 0];
        let answer = self.ask(kind::MAP, question, None);
        let (Message { status, values, .. }, _) = answer.ok_or(Refusal::BadDomain)?;
        if status != 0 {
            return Err(Refusal::from_status(i16::try_from(status).unwrap_or(-1)));
        }
        let [theirs, number, _] = values;
        let handle = pages.show(number, op.host_address, access, theirs);
        if handle.is_none() {
            // Nobody has seen it.
            let _ended = self.ask(kind::UNMAP, [theirs, 0, 0], None);
        }
        handle.ok_or(Refusal::BadVirtualAddress)
    }

    fn unmap(&self, op: &UnmapGrantRef) -> Result<(), Refusal> {
        let hidden = lock(&self.pages).hide(op.handle, op.host_address);
        let theirs = hidden.ok_or(Refusal::BadHandle)?;
        // Where there is no other VMM any more its guest has gone with it.
        let _ended = self.ask(kind::UNMAP, [theirs, 0, 0], None);
        Ok(())
    }

    fn bind(&self, guest: &EventCaller<'_>, theirs: Port) -> Result<Port, Errno> {
        let caller = self.host.events.caller(PEER).ok_or(Errno::Srch)?;
        let local = caller.alloc_unbound(DomId::SELF, GUEST)?;
        let bound = self.connect(guest, theirs, local);
        if bound.is_err() {
            // It may be closed already.
            let _closed = caller.close(local);
        }
        bound
    }

    fn connect(&self, guest: &EventCaller<'_>, theirs: Port, local: Port) -> Result<Port, Errno> {
        let outgoing = Wake::new().map_err(|_| Errno::NoSpc)?;
        let question = [theirs.0.into(), local.0.into(), 0];
        let answer = self.ask(kind::BIND, question, Some(outgoing.kick()));
        let (Message { status, values, .. }, file) = answer.ok_or(Errno::Srch)?;
        let file = file.filter(|_| status == 0).ok_or(Errno::Inval)?;
        let [name, ..] = values;
        let connected = guest.bind_interdomain(PEER, local).and_then(|port| {
            let channel = GuestChannel::of(self.host.clone(), PEER, (local, port), &outgoing);
            let channel = channel.map_err(|_| Errno::NoSpc)?;
            self.keep(channel, name, Wake::of(file))?;
            Ok(port)
        });
        if connected.is_err() {
            let _closed = self.ask(kind::CLOSE, [name, 0, 0], None);
        }
        connected
    }

    /// Raises the other guest's events, of which `incoming` tells.
    fn keep(&self, channel: GuestChannel, theirs: u64, incoming: Arc<Wake>) -> Result<(), Errno> {
        let (port, local) = (channel.remote(), channel.local());
        let serve = move |wake: &Wake| {
            while wake.wait() {
                channel.notify();
            }
        };
        let name = format!("xen-peer{}", local.0);
        let server = Server::spawn(name, incoming, serve).map_err(|_| Errno::NoSpc)?;
        let channel = Channel {
            port,
            theirs,
            _server: server,
        };
        lock(&self.channels).insert(local.0, channel);
        Ok(())
    }

    fn closed(&self, port: Port) {
        let gone = {
            let mut channels = lock(&self.channels);
            let found = channels.iter().find(|(_, channel)| channel.port == port);
            let local = found.map(|(local, _)| *local);
            local.and_then(|local| channels.remove(&local))
        };
        if let Some(Channel { theirs, .. }) = gone {
            let _closed = self.ask(kind::CLOSE, [theirs, 0, 0], None);
        }
    }

    /// Meets the other VMM and serves its guest until one of the two ends.
    fn run(&self, meeting: Meeting, wake: &Wake) -> io::Result<()> {
        let Some((calls, served)) = meeting.links(wake)? else {
            return Ok(());
        };
        for region in self.host.vm.memory().iter() {
            let place = region.file_offset().ok_or(io::ErrorKind::NotFound)?;
            let values = [region.start_addr().raw_value(), region.len(), place.start()];
            let message = Message {
                kind: kind::MEMORY,
                status: 0,
                values,
            };
            calls.send(&message, Some(place.file()))?;
        }
        let ready = Message {
            kind: kind::READY,
            ..Message::default()
        };
        calls.send(&ready, None)?;
        let mut calls = Some(calls);
        while wake.wait_or(&served)? {
            let (question, file) = served.receive()?;
            let [first, second, _] = question.values;
            let (result, file) = match (question.kind, file) {
                (kind::MEMORY, Some(file)) => {
                    lock(&self.pages).add(question.values, file)?;
                    continue;
                }
                (kind::READY, _) => {
                    *lock(&self.calls) = calls.take();
                    continue;
                }
                (kind::MAP, _) => (self.grant(first, second), None),
                (kind::UNMAP, _) => (self.end(first), None),
                (kind::BIND, Some(file)) => match self.accept(first, second, file) {
                    Ok((name, file)) => (Ok([name, 0, 0]), Some(file)),
                    Err(status) => (Err(status), None),
                },
                (kind::CLOSE, _) => {
                    let name = u32::try_from(first).unwrap_or(u32::MAX);
                    let gone = lock(&self.channels).remove(&name);
                    drop(gone);
                    (Ok([0; 3]), None)
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            let answer = Message {
                kind: question.kind,
                status: result.err().unwrap_or(0),
                values: result.unwrap_or_default(),
            };
            served.send(&answer, file.as_ref().map(|wake| wake.kick()))?;
        }
        Ok(())
    }

    /// The other guest uses a page that this one grants.
    fn grant(&self, reference: u64, flags: u64) -> Result<[u64; 3], i32> {
        let [a, b, c, d, ..] = flags.to_le_bytes();
        let mut op = [MapGrantRef {
            host_address: ELSEWHERE,
            flags: u32::from_le_bytes([a, b, c, d]),
            reference: GrantRef(u32::try_from(reference).unwrap_or(u32::MAX)),
            domain: GUEST,
            status: Refusal::BadDomain as i16,
            ..MapGrantRef::default()
        }];
        if let Some(caller) = self.host.grants.caller(PEER, 0) {
            caller.map(&mut op);
        }
        let [op] = op;
        match op.status {
            0 => Ok([op.handle.into(), op.device_address / PAGE_SIZE as u64, 0]),
            status => Err(status.into()),
        }
    }

    /// It does not any more.
    fn end(&self, handle: u64) -> Result<[u64; 3], i32> {
        let mut op = [UnmapGrantRef {
            host_address: ELSEWHERE,
            handle: u32::try_from(handle).unwrap_or(u32::MAX),
            ..UnmapGrantRef::default()
        }];
        if let Some(caller) = self.host.grants.caller(PEER, 0) {
            caller.unmap(&mut op);
        }
        let [UnmapGrantRef { status, .. }] = op;
        match status {
            0 => Ok([0; 3]),
            status => Err(status.into()),
        }
    }

    /// The other guest connects to a port of this one's.
    fn accept(&self, port: u64, theirs: u64, file: std::fs::File) -> Result<(u64, Arc<Wake>), i32> {
        let refused = |errno: Errno| i32::try_from(errno.result()).unwrap_or(-1);
        let port = Port(u32::try_from(port).unwrap_or(u32::MAX));
        let failed = |_| refused(Errno::Inval);
        let outgoing = Wake::new().map_err(failed)?;
        let channel = GuestChannel::connect(self.host.clone(), PEER, Some(port), &outgoing);
        let channel = channel.map_err(failed)?;
        let name = channel.local().0.into();
        self.keep(channel, theirs, Wake::of(file))
            .map_err(refused)?;
        Ok((name, outgoing))
    }

    /// The other VMM has gone, or this guest has: nothing of either is in use any more.
    fn part(&self) {
        *lock(&self.calls) = None;
        let channels = std::mem::take(&mut *lock(&self.channels));
        drop(channels);
        self.host.events.destroy(PEER);
        while let Ok(Destruction::Unfinished) = self.host.grants.destroy(PEER, BUDGET) {}
    }
}
