//! The device side of a split virtqueue (virtio 1.3 §2.7).

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, Permissions};
use zerocopy::transmute;

use super::StartError;
use crate::chain::{Builder, Chain};
use crate::config::QueueConfig;
use crate::error::{Error, Rule};
use crate::mapping::{Anchor, Area, NoMemory, Slice, Storage, View};
use crate::spec::split::{self, Descriptor};
use crate::spec::{DescriptorFlags, Features};
use crate::state::{SplitState, StateError};

/// The three areas of a ring.
struct Ring<A: GuestAddressSpace> {
    desc: Area<A, 16>,
    avail: Area<A, 2>,
    used: Area<A, 4>,
}

impl<A: GuestAddressSpace> Ring<A> {
    fn map(space: &A, config: &QueueConfig) -> Result<Self, NoMemory> {
        let view = View::new(space);
        let size = usize::try_from(config.size).unwrap_or(usize::MAX);
        let event_idx = config.features.contains(Features::EVENT_IDX);
        let desc_len = split::descriptor_table_len(size);
        Ok(Self {
            desc: Area::map(&view, config.desc.0, desc_len, Permissions::Read)?,
            avail: Area::map(
                &view,
                config.avail.0,
                split::avail_len(size, event_idx),
                Permissions::Read,
            )?,
            used: Area::map(
                &view,
                config.used.0,
                split::used_len(size, event_idx),
                Permissions::Write,
            )?,
        })
    }

    /// Reads a descriptor, each of its words once.
    fn descriptor(&self, index: u16) -> Descriptor {
        let offset = usize::from(index) * size_of::<Descriptor>();
        let words = [
            self.desc.load::<AtomicU64>(offset, Ordering::Relaxed),
            self.desc.load::<AtomicU64>(offset + 8, Ordering::Relaxed),
        ];
        transmute!(words)
    }

    fn load_avail(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.avail.load::<AtomicU16>(offset, order))
    }

    fn store_used(&self, offset: usize, value: u16, order: Ordering) {
        self.used.store::<AtomicU16>(offset, value.to_le(), order);
    }
}

pub(super) struct SplitQueue<A: GuestAddressSpace> {
    space: A,
    config: QueueConfig,
    size: u16,
    /// The ring, as long as it is mapped.
    ring: Option<Ring<A>>,
    broken: bool,
    /// Index of the next entry of the available ring.
    next_avail: u16,
    /// The driver's index, as last read.
    avail_idx: u16,
    /// Index of the next entry of the used ring.
    next_used: u16,
    /// `next_used` when `needs_interrupt` was last asked; none if that is not known.
    signalled: Option<u16>,
    /// For each head, when it was popped; 0 if it is not in flight.
    in_flight: Box<[u64]>,
    /// Chains popped so far.
    popped: u64,
    /// Heads in flight that are to be popped again, the next one last: those of a saved state below those put back.
    resumed: Vec<u16>,
    /// How many of `resumed` were put back.
    put_back: usize,
    /// Room of chains that were pushed.
    storage: Vec<Storage<A::M>>,
}

impl<A: GuestAddressSpace> SplitQueue<A> {
    pub(super) fn new(
        space: A,
        config: &QueueConfig,
        size: u16,
        state: Option<&SplitState>,
    ) -> Result<Self, StartError> {
        let ring = Ring::map(&space, config)?;
        let mut queue = Self {
            space,
            config: *config,
            size,
            ring: Some(ring),
            broken: false,
            next_avail: 0,
            avail_idx: 0,
            next_used: 0,
            signalled: Some(0),
            in_flight: vec![0; usize::from(size)].into(),
            popped: 0,
            resumed: Vec::new(),
            put_back: 0,
            storage: Vec::new(),
        };
        if let Some(state) = state {
            queue.restore(state)?;
        }
        Ok(queue)
    }

    fn restore(&mut self, state: &SplitState) -> Result<(), StateError> {
        let SplitState {
            next_avail,
            next_used,
            in_flight,
        } = state;
        if usize::from(next_avail.wrapping_sub(*next_used)) != in_flight.len() {
            return Err(StateError::Count {
                next_avail: *next_avail,
                next_used: *next_used,
                in_flight: in_flight.len(),
            });
        }
        for &head in in_flight {
            let slot = self.in_flight.get_mut(usize::from(head));
            let slot = slot.ok_or(StateError::Head {
                head,
                size: self.size,
            })?;
            if *slot != 0 {
                return Err(StateError::Twice(head));
            }
            self.popped += 1;
            *slot = self.popped;
        }
        self.next_avail = *next_avail;
        self.avail_idx = *next_avail;
        self.next_used = *next_used;
        self.signalled = None;
        self.resumed = in_flight.iter().rev().copied().collect();
        Ok(())
    }

    pub(super) fn save(&self) -> SplitState {
        let mut in_flight: Vec<(u64, u16)> = (0u16..)
            .zip(&self.in_flight)
            .filter(|(_, when)| **when != 0)
            .map(|(head, when)| (*when, head))
            .collect();
        in_flight.sort_unstable();
        SplitState {
            next_avail: self.next_avail,
            next_used: self.next_used,
            in_flight: in_flight.into_iter().map(|(_, head)| head).collect(),
        }
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn unmap(&mut self) {
        self.ring = None;
    }

    fn has(&self, feature: Features) -> bool {
        self.config.features.contains(feature)
    }

    /// Maps the ring if it is not, and calls `f` with it. An error of the driver's breaks the queue.
    #[inline]
    fn with_ring<R>(
        &mut self,
        f: impl FnOnce(&mut Self, &Ring<A>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if self.broken {
            return Err(Error::Broken);
        }
        let result = match self.ring.take() {
            Some(ring) => Ok(ring),
            None => Ring::map(&self.space, &self.config).map_err(Error::Ring),
        };
        let result = result.and_then(|ring| {
            let result = f(self, &ring);
            self.ring = Some(ring);
            result
        });
        if let Err(Error::AvailIndex { .. } | Error::Chain { .. } | Error::Ring(_)) = result {
            self.broken = true;
        }
        result
    }

    pub(super) fn pop<H: Anchor<Memory = A::M>>(
        &mut self,
        memory: &H,
    ) -> Result<Option<Chain<H>>, Error> {
        self.with_ring(|queue, ring| {
            let head = match queue.resumed.pop() {
                Some(head) => {
                    queue.put_back = queue.put_back.saturating_sub(1);
                    head
                }
                None if queue.next_avail == queue.avail_idx && !queue.refresh(ring)? => {
                    return Ok(None);
                }
                None => {
                    let slot = usize::from(queue.next_avail & (queue.size - 1));
                    let head = ring.load_avail(split::avail_slot(slot), Ordering::Relaxed);
                    queue
                        .take(head)
                        .map_err(|rule| Error::Chain { head, rule })?;
                    head
                }
            };
            let storage = queue.storage.pop().unwrap_or_default();
            let chain = queue.walk(
                ring,
                head,
                Builder::new(memory.clone(), storage, queue.size),
            );
            chain.map(Some).map_err(|rule| Error::Chain { head, rule })
        })
    }

    /// Reads the driver's index and tells whether it is ahead of ours.
    fn refresh(&mut self, ring: &Ring<A>) -> Result<bool, Error> {
        // Acquire: entries and descriptors are read after the index that covers them.
        let index = ring.load_avail(split::IDX, Ordering::Acquire);
        if index.wrapping_sub(self.next_avail) > self.size {
            return Err(Error::AvailIndex {
                index,
                next: self.next_avail,
            });
        }
        self.avail_idx = index;
        Ok(index != self.next_avail)
    }

    /// Marks `head` as in flight and steps over its entry.
    fn take(&mut self, head: u16) -> Result<(), Rule> {
        let when = self
            .in_flight
            .get_mut(usize::from(head))
            .ok_or(Rule::Head)?;
        if *when != 0 {
            return Err(Rule::InFlight);
        }
        self.popped += 1;
        *when = self.popped;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    fn walk<H: Anchor>(
        &self,
        ring: &Ring<A>,
        head: u16,
        mut chain: Builder<H>,
    ) -> Result<Chain<H>, Rule> {
        let mut index = head;
        loop {
            let descriptor = ring.descriptor(index);
            let flags = DescriptorFlags::from_bits_retain(descriptor.flags.get());
            if flags.contains(DescriptorFlags::INDIRECT) {
                if !self.has(Features::INDIRECT_DESC) {
                    return Err(Rule::IndirectFeature);
                }
                if flags.contains(DescriptorFlags::NEXT) {
                    return Err(Rule::IndirectNext);
                }
                walk_table(&mut chain, descriptor.addr.get(), descriptor.len.get())?;
                break;
            }
            chain.add(
                descriptor.addr.get(),
                descriptor.len.get(),
                flags.contains(DescriptorFlags::WRITE),
            )?;
            if !flags.contains(DescriptorFlags::NEXT) {
                break;
            }
            index = descriptor.next.get();
            if index >= self.size {
                return Err(Rule::Next(index));
            }
        }
        Ok(chain.finish(head))
    }

    pub(super) fn push<H: Anchor<Memory = A::M>>(
        &mut self,
        chain: Chain<H>,
        written: u32,
    ) -> Result<(), Error> {
        self.with_ring(|queue, ring| {
            let (head, writable) = (chain.head(), chain.writable_len());
            if u64::from(written) > writable {
                return Err(Error::Written {
                    head,
                    written,
                    writable,
                });
            }
            match queue.in_flight.get_mut(usize::from(head)) {
                Some(when) if *when != 0 => *when = 0,
                _ => return Err(Error::NotInFlight(head)),
            }
            let slot = split::used_slot(usize::from(queue.next_used & (queue.size - 1)));
            ring.used
                .store::<AtomicU32>(slot, u32::from(head).to_le(), Ordering::Relaxed);
            ring.used
                .store::<AtomicU32>(slot + 4, written.to_le(), Ordering::Relaxed);
            queue.next_used = queue.next_used.wrapping_add(1);
            // Release: the driver sees the buffers and the entry before the index that covers them.
            ring.store_used(split::IDX, queue.next_used, Ordering::Release);
            queue.storage.push(chain.into_storage());
            Ok(())
        })
    }

    pub(super) fn put_back<H: Anchor<Memory = A::M>>(
        &mut self,
        chain: Chain<H>,
    ) -> Result<(), Error> {
        let head = chain.head();
        match self.in_flight.get(usize::from(head)) {
            Some(when) if *when != 0 => {}
            _ => return Err(Error::NotInFlight(head)),
        }
        self.resumed.push(head);
        self.put_back += 1;
        self.storage.push(chain.into_storage());
        Ok(())
    }

    pub(super) fn needs_interrupt(&mut self) -> Result<bool, Error> {
        self.with_ring(|queue, ring| {
            // The index is published before the driver's wish is read; the driver writes its wish before it reads the index.
            fence(Ordering::SeqCst);
            let new = queue.next_used;
            let old = queue.signalled.replace(new);
            if old == Some(new) {
                return Ok(false);
            }
            if !queue.has(Features::EVENT_IDX) {
                let flags = ring.load_avail(split::FLAGS, Ordering::Relaxed);
                return Ok(flags & split::AVAIL_F_NO_INTERRUPT == 0);
            }
            let event = ring.load_avail(
                split::avail_len(usize::from(queue.size), false),
                Ordering::Relaxed,
            );
            // §2.7.10: the event index lies among those passed since.
            Ok(old
                .is_none_or(|old| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)))
        })
    }

    pub(super) fn disable_kicks(&mut self) -> Result<(), Error> {
        self.with_ring(|queue, ring| {
            // With EVENT_IDX the index asked for lies behind and stays there.
            if !queue.has(Features::EVENT_IDX) {
                ring.store_used(split::FLAGS, split::USED_F_NO_NOTIFY, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    pub(super) fn enable_kicks(&mut self) -> Result<bool, Error> {
        self.with_ring(|queue, ring| {
            if queue.has(Features::EVENT_IDX) {
                let event = split::used_len(usize::from(queue.size), false);
                ring.store_used(event, queue.next_avail, Ordering::Relaxed);
            } else {
                ring.store_used(split::FLAGS, 0, Ordering::Relaxed);
            }
            // Our wish is published before the driver's index is read; the driver does the same in the other order.
            fence(Ordering::SeqCst);
            Ok(queue.refresh(ring)? || queue.resumed.len() > queue.put_back)
        })
    }
}

/// Walks an indirect table (§2.7.5.3).
fn walk_table<H: Anchor>(chain: &mut Builder<H>, addr: u64, len: u32) -> Result<(), Rule> {
    let entry = size_of::<Descriptor>() as u64;
    if len == 0 || !u64::from(len).is_multiple_of(entry) {
        return Err(Rule::IndirectLength(len));
    }
    let no_memory = NoMemory {
        addr,
        len: u64::from(len),
    };
    addr.checked_add(u64::from(len)).ok_or(no_memory)?;
    let memory = chain.anchor();
    let table = memory.memory();
    let whole = usize::try_from(len).ok().and_then(|len| {
        let mut slices = table
            .get_slices(GuestAddress(addr), len, Permissions::Read)
            .ok()?;
        slices.next()?.ok().filter(|slice| slice.len() == len)
    });
    let entries = u64::from(len) / entry;
    let mut index: u16 = 0;
    loop {
        if u64::from(index) >= entries {
            return Err(Rule::Next(index));
        }
        let offset = usize::from(index) * size_of::<Descriptor>();
        let descriptor = match &whole {
            Some(slice) => read_entry::<H::Memory>(slice, offset),
            None => table
                .read_obj::<u128>(GuestAddress(addr + offset as u64))
                .ok(),
        };
        let descriptor: Descriptor = transmute!(descriptor.ok_or(no_memory)?);
        let flags = DescriptorFlags::from_bits_retain(descriptor.flags.get());
        if flags.contains(DescriptorFlags::INDIRECT) {
            return Err(Rule::IndirectNested);
        }
        chain.add(
            descriptor.addr.get(),
            descriptor.len.get(),
            flags.contains(DescriptorFlags::WRITE),
        )?;
        if !flags.contains(DescriptorFlags::NEXT) {
            return Ok(());
        }
        index = descriptor.next.get();
    }
}

/// Reads an entry of a contiguous table. Tables need not be aligned, though all are.
fn read_entry<M: GuestMemory>(table: &Slice<'_, M>, offset: usize) -> Option<u128> {
    match (
        table.load::<u64>(offset, Ordering::Relaxed),
        table.load::<u64>(offset + 8, Ordering::Relaxed),
    ) {
        (Ok(first), Ok(second)) => Some(transmute!([first, second])),
        _ => table.read_obj(offset).ok(),
    }
}
