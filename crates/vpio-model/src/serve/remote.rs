use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::net::{SendFlags, send};
use sriov_vfio::vfio::{Interrupt, Region, RegionIndex, VfioDevice};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::socket::Connection;
use super::spec::{
    Answer, BARS, DENIED, DENIED_STOP, DONE, MEMORY, READ, READY, REFUSED, RESET, Request, VERSION,
    WRITE, Welcome, words,
};
use crate::bus::{DenialSink, number};
use crate::engine::{At, Denied};
use crate::language::{Access, Policy};
use crate::vfio::Counts;
use crate::vfio::counts::{Counters, count};
use crate::vfio::relay::Relay;

/// Why a shared device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// Nobody shares one there.
    #[error("{path}: no arbiter: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection failed.
    #[error("the arbiter: {0}")]
    Connection(#[from] io::Error),
    /// The arbiter speaks otherwise.
    #[error("the arbiter speaks version {0}, not {VERSION}")]
    Version(u32),
    /// A part of the guest's memory is private to this process.
    #[error("the guest's memory at {0:#x} is in no file")]
    Private(u64),
    /// The arbiter does not take the guest.
    #[error("the arbiter refuses the guest's memory: {0}")]
    Refused(String),
}

/// A device that an arbiter in another process lets this guest have at times.
///
/// It has a pin at most, and nothing of it can be mapped. Configuration space is a copy of the guest's own. That the arbiter went away is
/// an error of the device ([`Interrupt::Error`]).
pub struct Remote {
    connection: Mutex<Connection>,
    bell: Arc<UnixStream>,
    listener: Option<JoinHandle<()>>,
    targets: Arc<Mutex<Targets>>,
    resample: Mutex<Option<Relay>>,
    config: Mutex<Vec<u8>>,
    bars: [u64; BARS],
    pin: bool,
    address: String,
    model: String,
    sink: Arc<dyn DenialSink>,
    counters: Arc<Counters>,
}

/// Whom to tell.
#[derive(Default)]
struct Targets {
    pin: Option<EventFd>,
    error: Option<EventFd>,
    /// The arbiter went away.
    alone: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    /// Connects to the arbiter that listens at `path`.
    ///
    /// # Errors
    ///
    /// There is none, or it does not take the guest.
    pub fn connect<B: Bitmap>(
        path: &Path,
        memory: &GuestMemoryMmap<B>,
        sink: Arc<dyn DenialSink>,
    ) -> Result<Self, RemoteError> {
        let connection = Connection::open(path).map_err(|source| RemoteError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::new(connection, memory, sink)
    }

    /// Joins by a connection. All of `memory` must be in files of memfd_create(2) that are sealed against shrinking; `sink` is told of
    /// what is denied.
    ///
    /// # Errors
    ///
    /// The arbiter does not take the guest.
    pub fn new<B: Bitmap>(
        connection: Connection,
        memory: &GuestMemoryMmap<B>,
        sink: Arc<dyn DenialSink>,
    ) -> Result<Self, RemoteError> {
        let gone = || io::Error::from(ErrorKind::UnexpectedEof);
        let (welcome, bell) = connection.receive::<Welcome>()?.ok_or_else(gone)?;
        if welcome.version.get() != VERSION {
            return Err(RemoteError::Version(welcome.version.get()));
        }
        let bell = Arc::new(UnixStream::from(bell.ok_or_else(gone)?));
        for region in memory.iter() {
            let start = region.start_addr().raw_value();
            let file = region.file_offset().ok_or(RemoteError::Private(start))?;
            let request = Request {
                kind: MEMORY.into(),
                address: start.into(),
                value: region.len().into(),
                offset: file.start().into(),
                ..Request::default()
            };
            connection.send(&request, Some(file.file().as_fd()))?;
            accepted(&connection)?;
        }
        let ready = Request {
            kind: READY.into(),
            ..Request::default()
        };
        connection.send(&ready, None)?;
        accepted(&connection)?;
        let (targets, counters) = (Arc::default(), Arc::default());
        let heard = (
            Arc::clone(&bell),
            Arc::clone(&targets),
            Arc::clone(&counters),
        );
        let listener = thread::Builder::new()
            .name("vpio bell".to_owned())
            .spawn(move || listen(&heard.0, &heard.1, &heard.2))?;
        Ok(Self {
            connection: Mutex::new(connection),
            bell,
            listener: Some(listener),
            targets,
            resample: Mutex::default(),
            config: Mutex::new(welcome.config.to_vec()),
            bars: welcome.bars.map(|size| size.get()),
            pin: welcome.pin != 0,
            address: words(&welcome.address),
            model: words(&welcome.model),
            sink,
            counters,
        })
    }

    /// Where the arbiter's machine has the device.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the model calls itself.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What happened until now. The arbiter sees each access of a shared device: all are hooked.
    pub fn counts(&self) -> Counts {
        self.counters.counts()
    }

    fn ask(&self, request: &Request) -> io::Result<Answer> {
        let connection = lock(&self.connection);
        connection.send(request, None)?;
        let (answer, _) = connection
            .receive::<Answer>()?
            .ok_or(ErrorKind::UnexpectedEof)?;
        Ok(answer)
    }

    fn access(
        &self,
        access: Access,
        (bar, offset): (u8, u64),
        width: usize,
        value: u64,
    ) -> io::Result<u64> {
        let width = u8::try_from(width).unwrap_or(u8::MAX);
        if !matches!(width, 1 | 2 | 4 | 8) {
            return Err(ErrorKind::InvalidInput.into());
        }
        count(&self.counters.accesses);
        count(&self.counters.hooked);
        let kind = match access {
            Access::Read => READ,
            Access::Write => WRITE,
        };
        let answer = self.ask(&Request {
            kind: kind.into(),
            bar,
            width,
            address: offset.into(),
            value: value.into(),
            ..Request::default()
        })?;
        let policy = match answer.status.get() {
            DONE => return Ok(answer.value.get()),
            DENIED => Policy::Ignore,
            DENIED_STOP => Policy::MachineCheck,
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        count(&self.counters.denied);
        let denied = Denied {
            policy,
            reason: words(&answer.reason).into(),
        };
        let at = At {
            space: bar,
            offset,
            width,
        };
        self.sink.denied(at, access, &denied);
        Err(ErrorKind::PermissionDenied.into())
    }

    /// A part of configuration space.
    fn with_config<T>(
        &self,
        offset: u64,
        length: usize,
        f: impl FnOnce(&mut [u8]) -> T,
    ) -> io::Result<T> {
        let mut config = lock(&self.config);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = config.get_mut(start..start.saturating_add(length));
        Ok(f(part.ok_or(ErrorKind::InvalidInput)?))
    }
}

/// Whether the arbiter takes what was last sent.
fn accepted(connection: &Connection) -> Result<(), RemoteError> {
    let gone = || io::Error::from(ErrorKind::UnexpectedEof);
    let (answer, _) = connection.receive::<Answer>()?.ok_or_else(gone)?;
    match answer.status.get() {
        DONE => Ok(()),
        REFUSED => Err(RemoteError::Refused(words(&answer.reason))),
        _ => Err(io::Error::from(ErrorKind::InvalidData).into()),
    }
}

/// The end of an interrupt.
fn ring(bell: &UnixStream) {
    // An arbiter that has not heard so many is told by those; one that went away has nothing to unmask.
    let _full = send(bell, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// Passes interrupts on, until the arbiter goes away.
fn listen(mut bell: &UnixStream, targets: &Mutex<Targets>, counters: &Counters) {
    let mut rings = [0; 64];
    while bell.read(&mut rings).is_ok_and(|count| count > 0) {
        count(&counters.interrupts);
        // Nobody but a full counter refuses.
        let _full = lock(targets).pin.as_ref().map(|pin| pin.write(1));
    }
    let mut targets = lock(targets);
    targets.alone = true;
    let _full = targets.error.as_ref().map(|error| error.write(1));
}

impl VfioDevice for Remote {
    fn region(&self, index: RegionIndex) -> Region {
        let size = match index {
            RegionIndex::Config => u64::try_from(lock(&self.config).len()).unwrap_or(0),
            RegionIndex::Bar(bar) => self.bars.get(usize::from(bar)).copied().unwrap_or(0),
        };
        Region {
            size,
            mappable: Vec::new(),
        }
    }

    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match index {
            RegionIndex::Config => {
                self.with_config(offset, data.len(), |part| data.copy_from_slice(part))
            }
            RegionIndex::Bar(bar) => {
                let value = self.access(Access::Read, (bar, offset), data.len(), 0)?;
                for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
                    *to = from;
                }
                Ok(())
            }
        }
    }

    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()> {
        match index {
            RegionIndex::Config => {
                self.with_config(offset, data.len(), |part| part.copy_from_slice(data))
            }
            RegionIndex::Bar(bar) => {
                let value = number(offset, data).map_or(0, |(_, value)| value);
                self.access(Access::Write, (bar, offset), data.len(), value)
                    .map(|_| ())
            }
        }
    }

    fn map(&self, _index: RegionIndex, _part: Range<u64>) -> io::Result<MmapRegion> {
        Err(ErrorKind::Unsupported.into())
    }

    fn vectors(&self, interrupt: Interrupt) -> u32 {
        match interrupt {
            Interrupt::Intx => self.pin.into(),
            Interrupt::Error => 1,
            Interrupt::Msi | Interrupt::Msix | Interrupt::Request => 0,
        }
    }

    fn grows(&self, _interrupt: Interrupt) -> bool {
        false
    }

    fn connect(
        &self,
        interrupt: Interrupt,
        first: u32,
        eventfds: &[Option<&EventFd>],
    ) -> io::Result<()> {
        let (0, [target], 1) = (first, eventfds, self.vectors(interrupt)) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let target = target.map(EventFd::try_clone).transpose()?;
        let mut targets = lock(&self.targets);
        if interrupt == Interrupt::Error {
            if let (true, Some(target)) = (targets.alone, &target) {
                target.write(1)?;
            }
            targets.error = target;
            return Ok(());
        }
        // What came while nobody listened comes again.
        targets.pin = target;
        ring(&self.bell);
        Ok(())
    }

    fn disconnect(&self, interrupt: Interrupt) -> io::Result<()> {
        let mut targets = lock(&self.targets);
        match interrupt {
            Interrupt::Error => targets.error = None,
            _ => targets.pin = None,
        }
        Ok(())
    }

    fn resample(&self, eventfd: &EventFd) -> io::Result<()> {
        let bell = Arc::clone(&self.bell);
        let relay = Relay::start(vec![eventfd.try_clone()?], false, move |_| ring(&bell))?;
        *lock(&self.resample) = Some(relay);
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        let answer = self.ask(&Request {
            kind: RESET.into(),
            ..Request::default()
        })?;
        match answer.status.get() {
            DONE => Ok(()),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The arbiter may have closed it; a thread that panicked has ended.
        let _closed = self.bell.shutdown(Shutdown::Both);
        let _panicked = self.listener.take().map(JoinHandle::join);
    }
}
