//! Event channels: how domains notify each other.
//!
//! Every domain has ports, which are bound to another domain's port, to an interrupt, or to nothing yet. Events are delivered to a virtual
//! CPU through memory that the guest shares, in the two-level ABI from the start, or in the FIFO ABI if the guest chooses it.

mod fifo;
mod guest;
mod hypercall;
mod two_level;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

pub use guest::{FifoEvents, TwoLevelEvents};

use crate::frame::Frame;
use crate::spec::event::{
    FIFO_PORTS, Port, TWO_LEVEL_PORTS, VCPU_VIRQS, VIRQS, fifo as abi, shared_info, vcpu_info,
};
use crate::spec::{DomId, Errno};
use fifo::Fifo;
use two_level::TwoLevel;

/// Tells a guest's virtual CPU that it has events.
pub trait Upcall: Send + Sync {
    /// Events of virtual CPU `vcpu` are pending. Called with locks of event channels held: it must not call them back.
    fn raise(&self, vcpu: usize);
}

/// What a domain brings along.
pub struct EventConfig {
    /// Virtual CPUs.
    pub vcpus: usize,
    /// The domain's shared info page.
    pub shared_info: Frame,
    /// Tells its virtual CPUs.
    pub upcall: Box<dyn Upcall>,
    /// It may deal with other domains' ports.
    pub privileged: bool,
    /// Physical interrupts that it may bind.
    pub pirqs: Vec<u32>,
    /// Ports that it may have.
    pub max_ports: u32,
}

impl std::fmt::Debug for EventConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventConfig")
            .field("vcpus", &self.vcpus)
            .finish_non_exhaustive()
    }
}

/// What a port is bound to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    /// Nothing: it is not in use.
    #[default]
    Closed,
    /// Nothing yet: this domain may connect.
    Unbound(DomId),
    /// Another domain's port.
    Interdomain(DomId, Port),
    /// A physical interrupt.
    Pirq(u32),
    /// A virtual interrupt.
    Virq(u32),
    /// Notifications of its own domain.
    Ipi,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    channel: Channel,
    vcpu: usize,
    priority: u8,
    /// FIFO: it has happened, but there was no word for it.
    early: bool,
    /// FIFO: the queue that it was put into last.
    queue: Option<(usize, u8)>,
}

/// Where a virtual CPU's info is.
#[derive(Clone, Debug)]
struct VcpuInfo {
    frame: Frame,
    offset: usize,
}

impl VcpuInfo {
    /// Selects a word of pending bits; whether an upcall is due.
    fn select(&self, bit: u64) -> bool {
        let select = self
            .frame
            .u64(self.offset.saturating_add(vcpu_info::PENDING_SELECT));
        select.is_some_and(|select| select.fetch_or(bit, Ordering::SeqCst) & bit == 0)
    }

    /// Marks that an upcall is due; false if it was already.
    fn mark(&self) -> bool {
        let byte = self
            .frame
            .u8(self.offset.saturating_add(vcpu_info::UPCALL_PENDING));
        byte.is_some_and(|byte| byte.swap(1, Ordering::SeqCst) == 0)
    }
}

#[derive(Debug)]
struct Ports {
    slots: Vec<Slot>,
    two_level: TwoLevel,
    fifo: Option<Fifo>,
    vcpus: Vec<Option<VcpuInfo>>,
}

struct Domain {
    id: DomId,
    privileged: bool,
    pirqs: Vec<u32>,
    max_ports: u32,
    upcall: Box<dyn Upcall>,
    ports: Mutex<Ports>,
}

impl Domain {
    fn lock(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self, ports: &Ports) -> u32 {
        let of_abi = if ports.fifo.is_some() {
            FIFO_PORTS
        } else {
            TWO_LEVEL_PORTS
        };
        self.max_ports.min(of_abi)
    }

    /// Binds the lowest port that is free.
    fn bind(&self, ports: &mut Ports, channel: Channel, vcpu: usize) -> Result<Port, Errno> {
        if vcpu >= ports.vcpus.len() {
            return Err(Errno::NoEnt);
        }
        let used = |slot: &Slot| slot.channel != Channel::Closed;
        let free = ports.slots.iter().skip(1).position(|slot| !used(slot));
        let index = free.map_or(ports.slots.len().max(1), |index| index + 1);
        let port = u32::try_from(index)
            .ok()
            .filter(|&port| port < self.limit(ports));
        let port = port.map(Port).ok_or(Errno::NoSpc)?;
        if index >= ports.slots.len() {
            ports.slots.resize(index + 1, Slot::default());
        }
        let slot = ports.slot(port)?;
        *slot = Slot {
            channel,
            vcpu,
            priority: abi::DEFAULT_PRIORITY,
            early: false,
            queue: slot.queue,
        };
        Ok(port)
    }

    /// Lets an event happen.
    fn deliver(&self, ports: &mut Ports, port: Port) {
        if let Some(vcpu) = ports.set_pending(port) {
            self.notify(ports, vcpu);
        }
    }

    fn notify(&self, ports: &Ports, vcpu: usize) {
        if ports.info(vcpu).is_some_and(VcpuInfo::mark) {
            self.upcall.raise(vcpu);
        }
    }
}

impl Ports {
    fn slot(&mut self, port: Port) -> Result<&mut Slot, Errno> {
        let index = usize::try_from(port.0).map_err(|_| Errno::Inval)?;
        self.slots
            .get_mut(index)
            .filter(|_| index != 0)
            .ok_or(Errno::Inval)
    }

    /// A port that is in use.
    fn bound(&mut self, port: Port) -> Result<&mut Slot, Errno> {
        let slot = self.slot(port)?;
        if slot.channel == Channel::Closed {
            return Err(Errno::Inval);
        }
        Ok(slot)
    }

    fn info(&self, vcpu: usize) -> Option<&VcpuInfo> {
        self.vcpus.get(vcpu)?.as_ref()
    }

    fn find(&self, wanted: impl Fn(&Slot) -> bool) -> Option<Port> {
        let index = self.slots.iter().position(wanted)?;
        u32::try_from(index).ok().map(Port)
    }

    /// Marks an event; the virtual CPU for which an upcall is due.
    fn set_pending(&mut self, port: Port) -> Option<usize> {
        let slot = self.slots.get_mut(usize::try_from(port.0).ok()?)?;
        let vcpu = slot.vcpu;
        let due = match &mut self.fifo {
            Some(fifo) => {
                let set = fifo.set_pending(port, (vcpu, slot.priority), &mut slot.queue);
                slot.early = set.is_none();
                set.unwrap_or(false)
            }
            None => self
                .two_level
                .set_pending(port, self.vcpus.get(vcpu)?.as_ref()?),
        };
        due.then_some(vcpu)
    }

    fn clear_pending(&self, port: Port) {
        match &self.fifo {
            Some(fifo) => fifo.clear_pending(port),
            None => self.two_level.clear_pending(port),
        }
    }
}

/// The event channels of all domains.
#[derive(Default)]
pub struct EventChannels {
    domains: RwLock<HashMap<DomId, Arc<Domain>>>,
}

impl std::fmt::Debug for EventChannels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventChannels").finish_non_exhaustive()
    }
}

impl EventChannels {
    /// No domains.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a domain, without ports.
    ///
    /// # Errors
    ///
    /// [`Errno::Exist`]: it is there. [`Errno::Inval`]: its identifier is reserved.
    pub fn create(&self, id: DomId, config: EventConfig) -> Result<(), Errno> {
        if id >= DomId::FIRST_RESERVED {
            return Err(Errno::Inval);
        }
        let info = |vcpu: usize| {
            (vcpu < shared_info::VCPUS).then(|| VcpuInfo {
                frame: config.shared_info.clone(),
                offset: vcpu * vcpu_info::SIZE,
            })
        };
        let ports = Ports {
            slots: Vec::new(),
            vcpus: (0..config.vcpus).map(info).collect(),
            two_level: TwoLevel {
                shared_info: config.shared_info,
            },
            fifo: None,
        };
        let domain = Domain {
            id,
            privileged: config.privileged,
            pirqs: config.pirqs,
            max_ports: config.max_ports,
            upcall: config.upcall,
            ports: Mutex::new(ports),
        };
        let mut domains = self.domains.write().unwrap_or_else(PoisonError::into_inner);
        if domains.contains_key(&id) {
            return Err(Errno::Exist);
        }
        domains.insert(id, Arc::new(domain));
        Ok(())
    }

    /// Closes all of a domain's ports and forgets it. False if it is not there.
    pub fn destroy(&self, id: DomId) -> bool {
        if let Some(caller) = self.caller(id) {
            // It may ask this of itself.
            let _closed = caller.reset(DomId::SELF);
        }
        let mut domains = self.domains.write().unwrap_or_else(PoisonError::into_inner);
        domains.remove(&id).is_some()
    }

    /// The operations that a domain can ask for.
    pub fn caller(&self, id: DomId) -> Option<EventCaller<'_>> {
        let domain = self.find(id)?;
        Some(EventCaller {
            channels: self,
            domain,
        })
    }

    fn find(&self, id: DomId) -> Option<Arc<Domain>> {
        let domains = self.domains.read().unwrap_or_else(PoisonError::into_inner);
        domains.get(&id).cloned()
    }
}

/// A domain that asks for something.
pub struct EventCaller<'c> {
    channels: &'c EventChannels,
    domain: Arc<Domain>,
}

impl std::fmt::Debug for EventCaller<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EventCaller").field(&self.domain.id).finish()
    }
}

impl EventCaller<'_> {
    /// The domain named `id`, which may be [`DomId::SELF`].
    fn resolve(&self, id: DomId) -> Result<Arc<Domain>, Errno> {
        if id == DomId::SELF || id == self.domain.id {
            return Ok(Arc::clone(&self.domain));
        }
        self.channels.find(id).ok_or(Errno::Srch)
    }

    /// A domain with whose ports the caller may deal.
    fn target(&self, id: DomId) -> Result<Arc<Domain>, Errno> {
        let target = self.resolve(id)?;
        if target.id != self.domain.id && !self.domain.privileged {
            return Err(Errno::Perm);
        }
        Ok(target)
    }

    fn id(&self, id: DomId) -> DomId {
        if id == DomId::SELF {
            self.domain.id
        } else {
            id
        }
    }

    /// Makes a port of `domain` to which `remote` may connect.
    ///
    /// # Errors
    ///
    /// [`Errno::Srch`], [`Errno::Perm`], or [`Errno::NoSpc`]: no port is left.
    pub fn alloc_unbound(&self, domain: DomId, remote: DomId) -> Result<Port, Errno> {
        let target = self.target(domain)?;
        let channel = Channel::Unbound(self.id(remote));
        target.bind(&mut target.lock(), channel, 0)
    }

    /// Connects a new port to an unbound one that accepts the caller. The new port has an event at once, as some may have been lost.
    ///
    /// # Errors
    ///
    /// [`Errno::Srch`], [`Errno::NoSpc`], or [`Errno::Inval`]: that port does not accept the caller.
    pub fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, Errno> {
        let other = self.resolve(remote)?;
        let both = lock(&self.domain, &other);
        let (mut local, mut far) = both;
        let accepted = Channel::Unbound(self.domain.id);
        let far_ports = far.as_mut().unwrap_or(&mut local);
        if far_ports.slot(remote_port)?.channel != accepted {
            return Err(Errno::Inval);
        }
        let channel = Channel::Interdomain(other.id, remote_port);
        let port = self.domain.bind(&mut local, channel, 0)?;
        let far_ports = far.as_mut().unwrap_or(&mut local);
        far_ports.slot(remote_port)?.channel = Channel::Interdomain(self.domain.id, port);
        drop(far);
        self.domain.deliver(&mut local, port);
        Ok(port)
    }

    /// Binds a new port to a virtual interrupt.
    ///
    /// # Errors
    ///
    /// [`Errno::Inval`]: no such interrupt, or one that is not a virtual CPU's own asked for on another than the first.
    /// [`Errno::NoEnt`]: no such virtual CPU. [`Errno::Exist`]: it is bound. [`Errno::NoSpc`].
    pub fn bind_virq(&self, virq: u32, vcpu: usize) -> Result<Port, Errno> {
        let of_vcpu = VCPU_VIRQS.contains(&virq);
        if virq >= VIRQS || (!of_vcpu && vcpu != 0) {
            return Err(Errno::Inval);
        }
        let mut ports = self.domain.lock();
        if vcpu >= ports.vcpus.len() {
            return Err(Errno::NoEnt);
        }
        let bound = ports
            .find(|slot| slot.channel == Channel::Virq(virq) && (!of_vcpu || slot.vcpu == vcpu));
        if bound.is_some() {
            return Err(Errno::Exist);
        }
        self.domain.bind(&mut ports, Channel::Virq(virq), vcpu)
    }

    /// Binds a new port to a physical interrupt.
    ///
    /// # Errors
    ///
    /// [`Errno::Perm`]: it is not the domain's. [`Errno::Exist`]: it is bound. [`Errno::NoSpc`].
    pub fn bind_pirq(&self, pirq: u32) -> Result<Port, Errno> {
        if !self.domain.pirqs.contains(&pirq) {
            return Err(Errno::Perm);
        }
        let mut ports = self.domain.lock();
        if ports
            .find(|slot| slot.channel == Channel::Pirq(pirq))
            .is_some()
        {
            return Err(Errno::Exist);
        }
        self.domain.bind(&mut ports, Channel::Pirq(pirq), 0)
    }

    /// Makes a port by which the domain notifies one of its virtual CPUs.
    ///
    /// # Errors
    ///
    /// [`Errno::NoEnt`]: no such virtual CPU. [`Errno::NoSpc`].
    pub fn bind_ipi(&self, vcpu: usize) -> Result<Port, Errno> {
        self.domain
            .bind(&mut self.domain.lock(), Channel::Ipi, vcpu)
    }

    /// Closes a port. The other end of a connection waits for the caller again.
    ///
    /// # Errors
    ///
    /// [`Errno::Inval`]: it is not in use.
    pub fn close(&self, port: Port) -> Result<(), Errno> {
        self.close_of(&self.domain, port)
    }

    fn close_of(&self, domain: &Arc<Domain>, port: Port) -> Result<(), Errno> {
        // Again if the port was bound to something else meanwhile.
        loop {
            let channel = domain.lock().bound(port)?.channel;
            let other = match channel {
                Channel::Interdomain(far, _) if far != domain.id => self.channels.find(far),
                _ => None,
            };
            let (mut local, mut far) = match &other {
                Some(other) => lock(domain, other),
                None => (domain.lock(), None),
            };
            if local.bound(port)?.channel != channel {
                continue;
            }
            local.slot(port)?.channel = Channel::Closed;
            local.clear_pending(port);
            if let Channel::Interdomain(id, far_port) = channel {
                let far = far
                    .as_mut()
                    .or_else(|| (id == domain.id).then_some(&mut local));
                // A domain that is not there any more has no other end.
                if let Some(far) = far {
                    far.slot(far_port)?.channel = Channel::Unbound(domain.id);
                }
            }
            return Ok(());
        }
    }

    /// Notifies the other end. A port to which nobody has connected drops the event.
    ///
    /// # Errors
    ///
    /// [`Errno::Inval`]: the port is not in use, or bound to an interrupt.
    pub fn send(&self, port: Port) -> Result<(), Errno> {
        let mut ports = self.domain.lock();
        match ports.bound(port)?.channel {
            Channel::Ipi => self.domain.deliver(&mut ports, port),
            Channel::Unbound(_) => {}
            Channel::Interdomain(far, far_port) => {
                drop(ports);
                let other = self.resolve(far)?;
                let mut ports = other.lock();
                // It may have been closed meanwhile.
                if ports.slot(far_port)?.channel == Channel::Interdomain(self.domain.id, port) {
                    other.deliver(&mut ports, far_port);
                }
            }
            _ => return Err(Errno::Inval),
        }
        Ok(())
    }

    /// What a port is bound to, and the virtual CPU that it notifies.
    ///
    /// # Errors
    ///
    /// [`Errno::Srch`], [`Errno::Perm`], or [`Errno::Inval`]: there is no such port.
    pub fn status(&self, domain: DomId, port: Port) -> Result<(Channel, usize), Errno> {
        let target = self.target(domain)?;
        let mut ports = target.lock();
        let slot = ports.slot(port)?;
        Ok((slot.channel, slot.vcpu))
    }

    /// Chooses the virtual CPU that a port notifies.
    ///
    /// # Errors
    ///
    /// [`Errno::NoEnt`]: no such virtual CPU. [`Errno::Inval`]: the port is not in use, or its virtual CPU is fixed.
    pub fn bind_vcpu(&self, port: Port, vcpu: usize) -> Result<(), Errno> {
        let mut ports = self.domain.lock();
        if vcpu >= ports.vcpus.len() {
            return Err(Errno::NoEnt);
        }
        let slot = ports.bound(port)?;
        match slot.channel {
            Channel::Ipi => return Err(Errno::Inval),
            Channel::Virq(virq) if VCPU_VIRQS.contains(&virq) => return Err(Errno::Inval),
            _ => slot.vcpu = vcpu,
        }
        Ok(())
    }

    /// Unmasks a port. If it is pending it is delivered.
    ///
    /// # Errors
    ///
    /// [`Errno::Inval`]: it is not in use.
    pub fn unmask(&self, port: Port) -> Result<(), Errno> {
        let mut ports = self.domain.lock();
        let vcpu = ports.bound(port)?.vcpu;
        let pending = ports.fifo.as_ref().map(|fifo| fifo.unmask(port));
        match pending {
            Some(true) => self.domain.deliver(&mut ports, port),
            Some(false) => {}
            None => {
                let info = ports.info(vcpu);
                if info.is_some_and(|info| ports.two_level.unmask(port, info)) {
                    self.domain.notify(&ports, vcpu);
                }
            }
        }
        Ok(())
    }

    /// Closes all ports of a domain, which has the two-level ABI again.
    ///
    /// # Errors
    ///
    /// [`Errno::Srch`], [`Errno::Perm`].
    pub fn reset(&self, domain: DomId) -> Result<(), Errno> {
        let target = self.target(domain)?;
        let count = u32::try_from(target.lock().slots.len()).unwrap_or(u32::MAX);
        for port in (1..count).map(Port) {
            // Most are closed.
            let _closed = self.close_of(&target, port);
        }
        let mut ports = target.lock();
        ports.fifo = None;
        ports.slots.iter_mut().for_each(|slot| slot.queue = None);
        Ok(())
    }

    /// Puts a virtual CPU's info elsewhere than into the shared info page.
    ///
    /// # Errors
    ///
    /// [`Errno::NoEnt`]: no such virtual CPU. [`Errno::Inval`]: it does not fit at `offset`.
    pub fn place_vcpu_info(&self, vcpu: usize, frame: Frame, offset: usize) -> Result<(), Errno> {
        let fits = offset
            .checked_add(vcpu_info::SIZE)
            .is_some_and(|end| end <= 4096);
        if !fits || !offset.is_multiple_of(8) {
            return Err(Errno::Inval);
        }
        let mut ports = self.domain.lock();
        *ports.vcpus.get_mut(vcpu).ok_or(Errno::NoEnt)? = Some(VcpuInfo { frame, offset });
        Ok(())
    }

    /// Chooses the FIFO ABI, or adds another virtual CPU's queues. Events that are pending stay so.
    ///
    /// # Errors
    ///
    /// [`Errno::NoEnt`]: no such virtual CPU. [`Errno::Inval`]: it has queues, or they do not fit at `offset`.
    pub fn init_control(&self, vcpu: usize, frame: Frame, offset: usize) -> Result<(), Errno> {
        let mut ports = self.domain.lock();
        let mut fifo = ports
            .fifo
            .take()
            .unwrap_or_else(|| Fifo::new(ports.vcpus.len()));
        let first = fifo.ports() == 0;
        let result = fifo.set_control(vcpu, frame, offset);
        if result.is_ok() && first {
            let two_level = ports.two_level.clone();
            for (slot, port) in ports
                .slots
                .iter_mut()
                .zip(0..)
                .map(|(slot, port)| (slot, Port(port)))
            {
                slot.early |= slot.channel != Channel::Closed && two_level.is_pending(port);
            }
        }
        // Without any queues the domain keeps the two-level ABI.
        ports.fifo = (result.is_ok() || !first).then_some(fifo);
        result
    }

    /// Adds a page of event words.
    ///
    /// # Errors
    ///
    /// [`Errno::OpNotSupp`]: the ABI has none. [`Errno::NoSpc`]: there are enough.
    pub fn expand_array(&self, frame: Frame) -> Result<(), Errno> {
        let mut ports = self.domain.lock();
        ports.fifo.as_mut().ok_or(Errno::OpNotSupp)?.expand(frame)?;
        let early = ports.slots.iter().zip(0..).filter(|(slot, _)| slot.early);
        let early: Vec<_> = early.map(|(_, port)| Port(port)).collect();
        for port in early {
            self.domain.deliver(&mut ports, port);
        }
        Ok(())
    }

    /// Sets the priority of a port, from its next event on.
    ///
    /// # Errors
    ///
    /// [`Errno::Inval`]: there is no such priority or the port is not in use. [`Errno::NoSys`]: the ABI has no priorities.
    pub fn set_priority(&self, port: Port, priority: u32) -> Result<(), Errno> {
        let priority = u8::try_from(priority)
            .ok()
            .filter(|&priority| priority < abi::PRIORITIES);
        let mut ports = self.domain.lock();
        if ports.fifo.is_none() {
            return Err(Errno::NoSys);
        }
        ports.bound(port)?.priority = priority.ok_or(Errno::Inval)?;
        Ok(())
    }

    /// Lets a virtual interrupt of the domain happen; false if no port is bound to it.
    pub fn raise_virq(&self, virq: u32, vcpu: usize) -> bool {
        let of_vcpu = VCPU_VIRQS.contains(&virq);
        self.raise(|slot| slot.channel == Channel::Virq(virq) && (!of_vcpu || slot.vcpu == vcpu))
    }

    /// Lets a physical interrupt of the domain happen; false if no port is bound to it.
    pub fn raise_pirq(&self, pirq: u32) -> bool {
        self.raise(|slot| slot.channel == Channel::Pirq(pirq))
    }

    fn raise(&self, wanted: impl Fn(&Slot) -> bool) -> bool {
        let mut ports = self.domain.lock();
        let port = ports.find(wanted);
        if let Some(port) = port {
            self.domain.deliver(&mut ports, port);
        }
        port.is_some()
    }
}

/// Locks both in the order of the domains; the second is none where it is the first.
fn lock<'a>(
    local: &'a Domain,
    other: &'a Domain,
) -> (MutexGuard<'a, Ports>, Option<MutexGuard<'a, Ports>>) {
    if local.id == other.id {
        (local.lock(), None)
    } else if local.id < other.id {
        let local = local.lock();
        (local, Some(other.lock()))
    } else {
        let other = other.lock();
        (local.lock(), Some(other))
    }
}
