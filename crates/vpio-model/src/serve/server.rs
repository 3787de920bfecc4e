use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use rustix::net::{SendFlags, send};
use sriov_vfio::vfio::{DmaSpace, Interrupt, RegionIndex, VfioDevice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::Places;
use super::session::{Session, SessionError};
use super::socket::Connection;
use super::spec::{BARS, CONFIG_BYTES, VERSION, Welcome, text};
use crate::arbiter::{self, Arbiter, GuestId, Handover, InputPolicy, Sharing};
use crate::engine::{At, Denied};
use crate::language::Access;
use crate::model::{self, Model};
use crate::vfio::relay::{self, Relay};
use crate::vfio::{Counts, GuestDma, ModelledError, regions::Regions};

/// Processes that may take part at a time.
const MAX_GUESTS: usize = 16;
/// Configuration space (PCI Local Bus 3.0, section 6.1).
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CAPABILITIES: usize = 0x34;
/// I/O space, memory space, bus master.
const COMMAND_BITS: u8 = 7;
/// There is a list of capabilities.
const STATUS_LIST: u8 = 1 << 4;

/// Why a device cannot be shared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// It is not the device of the model.
    #[error(transparent)]
    Model(#[from] ModelledError),
    /// It does not answer, or there is no thread to be had.
    #[error("the device cannot be shared: {0}")]
    Device(#[from] io::Error),
}

/// What whoever runs a server may want to know.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A guest takes part.
    Joined(GuestId),
    /// The device changed hands. No guest has it until this has been told.
    Turn(&'a Handover),
    /// The model denied a guest something. A reset is done already; a machine check is for the guest's process to do.
    Denied {
        /// The guest.
        guest: GuestId,
        /// Where.
        at: At,
        /// How.
        access: Access,
        /// Why.
        denied: &'a Denied,
    },
    /// A guest, or what never became one, went away.
    Left {
        /// The guest.
        guest: Option<GuestId>,
        /// What it did.
        counts: Counts,
        /// How often the device changed hands until now.
        turns: arbiter::Counts,
        /// Why its connection was ended, if it did not end it.
        why: Option<&'a SessionError>,
    },
    /// The device was not reset: nobody knows what it does, and all is denied from now on.
    Lost,
}

/// What guests are told of a device, beyond what it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Where this machine has it.
    pub address: String,
    /// Another revision than its own: with an old one, drivers use the ways of an old device.
    pub revision: Option<u8>,
}

/// Lets guests share a device. Guests that take part when it is dropped keep it alive.
pub struct Server {
    house: Arc<House>,
    _relay: Relay,
}

/// What the threads of a server share.
pub(super) struct House {
    pub arbiter: Mutex<Arbiter<Arc<GuestDma>, Arc<Regions>>>,
    pub model: Arc<Model>,
    pub physical: Arc<Regions>,
    pub space: Arc<dyn DmaSpace>,
    pub places: Mutex<Places>,
    pub welcome: Welcome,
    pub unmask: EventFd,
    /// By them, guests are told of interrupts.
    pub bells: Mutex<BTreeMap<GuestId, Arc<UnixStream>>>,
    guests: Mutex<usize>,
    observer: Box<dyn Fn(&Event<'_>) + Send + Sync>,
    lost: AtomicBool,
    start: Instant,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl House {
    pub fn tell(&self, event: &Event<'_>) {
        (self.observer)(event);
    }

    /// The end of an interrupt of this guest's device.
    pub fn unmask(&self, guest: GuestId) {
        if lock(&self.arbiter).owner() == Some(guest) {
            // A counter that is full is readable too.
            let _full = self.unmask.write(1);
        }
    }

    fn interrupt(&self) {
        let mut arbiter = lock(&self.arbiter);
        if let Some(owner) = arbiter.interrupt()
            && let Some(bell) = lock(&self.bells).get(&owner)
        {
            // A guest that has not heard so many is told by those.
            let _full = send(bell, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }

    fn tick(&self, switch: bool) {
        let mut arbiter = lock(&self.arbiter);
        // Not before: the device may just have been made ready for a guest, whose turn begins after that.
        let now = self.start.elapsed().as_millis();
        arbiter.tick(u64::try_from(now).unwrap_or(u64::MAX));
        if switch {
            arbiter.input_unseen();
        }
        drop(arbiter);
        if self.physical.is_lost() && !self.lost.swap(true, Ordering::Relaxed) {
            self.tell(&Event::Lost);
        }
    }
}

impl Server {
    /// Resets `device`, which is nobody else's, and is shown to the guests as `shown` says; in `space` are no other devices, and no memory. `model`
    /// should have been [checked](Model::check). Times of `sharing` are in milliseconds; with [`InputPolicy::Switch`], guests that do not ask
    /// for the device have their turns as well. `observer` is told what happens; it must not wait for anything.
    ///
    /// # Errors
    ///
    /// It is no such device, cannot be reset, or does not interrupt.
    pub fn new(
        shown: &Shown,
        device: &Arc<dyn VfioDevice>,
        space: Arc<dyn DmaSpace>,
        model: &Model,
        sharing: Sharing,
        observer: impl Fn(&Event<'_>) + Send + Sync + 'static,
    ) -> Result<Self, ServeError> {
        let regions = Regions::new(Arc::clone(device), model.spaces());
        let physical = Arc::new(regions.map_err(|space| ModelledError::Space {
            model: model.name().to_owned(),
            space: space.name.clone(),
            size: space.size,
        })?);
        let arbiter = Arbiter::new(Arc::clone(&physical), sharing);
        if physical.is_lost() {
            return Err(ModelledError::Reset.into());
        }
        let welcome = welcome(shown, &**device, model)?;
        let unmask = EventFd::new(EFD_NONBLOCK)?;
        let mut sources = Vec::new();
        if device.vectors(Interrupt::Intx) > 0 {
            let source = EventFd::new(EFD_NONBLOCK)?;
            device.connect(Interrupt::Intx, 0, &[Some(&source)])?;
            device.resample(&unmask)?;
            sources.push(source);
        }
        let house = Arc::new(House {
            arbiter: Mutex::new(arbiter),
            model: Arc::new(model.for_sharing(model::Sharing::Shared)),
            physical,
            space,
            places: Mutex::default(),
            welcome,
            unmask,
            bells: Mutex::default(),
            guests: Mutex::new(0),
            observer: Box::new(observer),
            lost: AtomicBool::new(false),
            start: Instant::now(),
        });
        let switch = sharing.input == InputPolicy::Switch;
        let shared = Arc::clone(&house);
        let relay = Relay::start(sources, true, move |event| match event {
            relay::Event::Interrupt(_) => shared.interrupt(),
            relay::Event::Tick => shared.tick(switch),
        })?;
        Ok(Self {
            house,
            _relay: relay,
        })
    }

    /// Lets a process take part, in a thread of its own.
    ///
    /// # Errors
    ///
    /// 16 take part already, or there is no thread to be had.
    pub fn admit(&self, connection: Connection) -> io::Result<()> {
        let mut guests = lock(&self.house.guests);
        if *guests == MAX_GUESTS {
            return Err(io::Error::other(format!("{MAX_GUESTS} guests take part")));
        }
        let house = Arc::clone(&self.house);
        thread::Builder::new()
            .name("vpio guest".to_owned())
            .spawn(move || {
                Session::run(&house, &connection);
                *lock(&house.guests) -= 1;
            })?;
        *guests += 1;
        Ok(())
    }

    /// How often the device changed hands.
    pub fn counts(&self) -> arbiter::Counts {
        lock(&self.house.arbiter).counts()
    }

    /// Who has the device.
    pub fn owner(&self) -> Option<GuestId> {
        lock(&self.house.arbiter).owner()
    }
}

/// What guests are told of the device, which decodes its BARs and masters the bus from now on.
fn welcome(shown: &Shown, device: &dyn VfioDevice, model: &Model) -> io::Result<Welcome> {
    let mut command = [0; 2];
    let at = u64::try_from(COMMAND).unwrap_or(0);
    device.read(RegionIndex::Config, at, &mut command)?;
    let [low, high] = command;
    device.write(RegionIndex::Config, at, &[low | COMMAND_BITS, high])?;
    let mut config = [0; CONFIG_BYTES];
    device.read(RegionIndex::Config, 0, &mut config)?;
    // What capabilities control is not a guest's: no message-signalled interrupts, no power management.
    if let Some(status) = config.get_mut(STATUS) {
        *status &= !STATUS_LIST;
    }
    if let Some(rest) = config.get_mut(CAPABILITIES) {
        *rest = 0;
    }
    if let Some((own, revision)) = config.get_mut(REVISION).zip(shown.revision) {
        *own = revision;
    }
    let mut bars = [0.into(); BARS];
    for (bar, number) in bars.iter_mut().zip(0..) {
        *bar = device.region(RegionIndex::Bar(number)).size.into();
    }
    Ok(Welcome {
        version: VERSION.into(),
        pin: device.vectors(Interrupt::Intx).min(1).into(),
        bars,
        config,
        address: text(&shown.address),
        model: text(model.name()),
    })
}
