//! The device side of a packed virtqueue (virtio 1.3 §2.8).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use vm_memory::{GuestAddressSpace, GuestMemory, Permissions};
use zerocopy::transmute;

use super::in_order::{InOrder, Pushed};
use super::resumed::Resumed;
use super::{Format, StartError};
use crate::chain::{Builder, Chain, ChainRoom};
use crate::config::QueueConfig;
use crate::error::{Error, Rule};
use crate::in_flight::{InFlightRegion, PackedEntry, PackedTracker, Recovered};
use crate::indirect;
use crate::mapping::{Anchor, Area, NoMemory, Regions, Room, View};
use crate::packed_position::Position;
use crate::spec::packed::{self, Descriptor, EventSuppression};
use crate::spec::{DescriptorFlags, Features};
use crate::state::{PackedChain, PackedPosition, PackedState, StateError};

/// The three areas of a ring.
pub(super) struct PackedRing<A: GuestAddressSpace> {
    desc: Area<A, 16>,
    regions: Regions<A>,
    driver_event: Area<A, 4>,
    device_event: Area<A, 4>,
}

impl<A: GuestAddressSpace> PackedRing<A> {
    /// Reads the [`Descriptor`] at a position, each of its words once: flags, ID and length before the address. As words it stays in
    /// registers.
    #[inline(always)]
    fn descriptor(&self, at: Position) -> [u64; 2] {
        // Acquire: the address, and the descriptors after this one, are read after the flags.
        self.desc
            .load_pair::<AtomicU64>(at.offset(), Ordering::Acquire)
    }

    /// Whether the descriptor at a position is available there.
    fn is_available(&self, at: Position) -> bool {
        let Descriptor { flags, .. } = transmute!(self.descriptor(at));
        at.is_available(flags.get())
    }
}

/// A chain that was popped.
#[derive(Clone, Copy, Default)]
struct InFlight {
    /// How many were popped before it, and itself; 0 if the ID is not in flight.
    when: u64,
    /// Its number of descriptors in the ring.
    slots: u16,
    /// The copy of its first descriptor.
    first: u16,
    /// The copy of its last.
    last: u16,
}

/// A copy of a descriptor in flight.
#[derive(Clone, Copy)]
struct Copied {
    /// The [`Descriptor`], as words: it is copied by words then.
    words: [u64; 2],
    /// The next of the same chain, or of the free copies. Chains take the first free ones and are put before them, so it does not
    /// change while the chain is in flight.
    next: u16,
}

impl Copied {
    #[inline(always)]
    fn descriptor(&self) -> Descriptor {
        transmute!(self.words)
    }

    fn entry(&self) -> PackedEntry {
        let Descriptor {
            addr,
            len,
            id,
            flags,
        } = self.descriptor();
        PackedEntry {
            addr: addr.get(),
            len: len.get(),
            id: id.get(),
            flags: flags.get(),
            next: self.next,
        }
    }
}

/// The device's positions in a packed ring.
pub(super) struct Packed<M: GuestMemory> {
    size: u16,
    features: Features,
    next_avail: Position,
    next_used: Position,
    /// The driver's view of `next_used`.
    published: Position,
    /// The first used descriptor that was staged: its offset, and the word that publishes it and those after it.
    staged: Option<(usize, u64)>,
    /// Slots published since `needs_interrupt` was last asked.
    unsignalled: u32,
    /// For each buffer ID.
    in_flight: Box<[InFlight]>,
    /// Copies of the descriptors in flight: those in the ring are overwritten by chains that are pushed earlier.
    copies: Box<[Copied]>,
    /// The first free copy; the queue size if there is none.
    free_copy: u16,
    /// There is neither `order` nor `tracker`.
    plain: bool,
    /// With `IN_ORDER`.
    order: Option<Box<InOrder>>,
    /// The used descriptor that is left out if another follows: its position, ID and length.
    silent: Option<(Position, u16, u32)>,
    /// Chains popped so far.
    popped: u64,
    resumed: Resumed,
    /// Where a successor finds what is in flight.
    tracker: Option<Box<PackedTracker>>,
    /// Room of chains that were pushed.
    #[expect(clippy::vec_box, reason = "a chain takes the box")]
    rooms: Vec<Box<ChainRoom<M>>>,
}

impl<M: GuestMemory> Packed<M> {
    fn restore(&mut self, state: &PackedState) -> Result<(), StateError> {
        let PackedState {
            next_avail,
            next_used,
            in_flight,
        } = state;
        for at in [next_avail, next_used] {
            if at.slot >= self.size {
                return Err(StateError::Slot {
                    slot: at.slot,
                    size: self.size,
                });
            }
        }
        let descriptors = in_flight.iter().map(|chain| chain.descriptors.len()).sum();
        let (next_avail, next_used) = (Position::from(*next_avail), Position::from(*next_used));
        let apart = next_used.distance(next_avail, self.size) as usize;
        if apart != descriptors || apart > usize::from(self.size) {
            return Err(StateError::Count {
                apart,
                in_flight: descriptors,
            });
        }
        for chain in in_flight {
            let head = chain.id;
            let first = self.free_copy;
            let mut last = Err(Rule::Head);
            for &(addr, len, flags) in &chain.descriptors {
                last = self.copy(transmute!(Descriptor {
                    addr: addr.into(),
                    len: len.into(),
                    id: head.into(),
                    flags: flags.into(),
                }));
            }
            let slots = u16::try_from(chain.descriptors.len()).unwrap_or(u16::MAX);
            match last.and_then(|last| self.begin(head, first, last, slots)) {
                Ok(()) => {}
                Err(Rule::InFlight) => return Err(StateError::Twice(head)),
                Err(_) => {
                    return Err(StateError::Head {
                        head,
                        size: self.size,
                    });
                }
            }
        }
        self.next_avail = next_avail;
        self.next_used = next_used;
        self.published = next_used;
        // The driver may have missed the last interrupt.
        self.unsignalled = u32::MAX;
        self.resumed = Resumed::new(in_flight.iter().map(|chain| chain.id));
        Ok(())
    }

    /// Keeps a copy in the first free place. There are as many as descriptors.
    #[inline(always)]
    fn copy(&mut self, words: [u64; 2]) -> Result<u16, Rule> {
        let index = self.free_copy;
        let copy = self.copies.get_mut(usize::from(index));
        let copy = copy.ok_or(Rule::TooLong)?;
        copy.words = words;
        self.free_copy = copy.next;
        Ok(index)
    }

    /// The copies of a chain from `first` on, by their numbers.
    #[inline(always)]
    fn copied(&self, first: u16, slots: u16) -> impl Iterator<Item = (u16, &Copied)> {
        let mut index = first;
        (0..slots).map_while(move |_| {
            let copy = self.copies.get(usize::from(index))?;
            Some((std::mem::replace(&mut index, copy.next), copy))
        })
    }

    /// Marks `id` as in flight, of which these are the first and the last copy.
    #[inline(always)]
    fn begin(&mut self, id: u16, first: u16, last: u16, slots: u16) -> Result<(), Rule> {
        let chain = self.in_flight.get_mut(usize::from(id));
        let chain = chain.ok_or(Rule::Head)?;
        if chain.when != 0 {
            return Err(Rule::InFlight);
        }
        self.popped += 1;
        *chain = InFlight {
            when: self.popped,
            slots,
            first,
            last,
        };
        if !self.plain && self.tracker.is_some() {
            self.track(first, slots);
        }
        Ok(())
    }

    /// A chain was popped for the first time.
    #[inline(never)]
    fn track(&mut self, first: u16, slots: u16) {
        if let Some(mut tracker) = self.tracker.take() {
            let chain = self
                .copied(first, slots)
                .map(|(at, copy)| (at, copy.entry()));
            tracker.begin(chain, self.free_copy);
            self.tracker = Some(tracker);
        }
    }

    /// Takes over what a region says. Its entries become the copies.
    fn adopt(&mut self, recovered: &Recovered) -> Result<(), StateError> {
        let Recovered {
            entries,
            free_head,
            next_used,
            chains,
        } = recovered;
        self.copies = entries
            .iter()
            .map(|entry| Copied {
                words: transmute!(Descriptor {
                    addr: entry.addr.into(),
                    len: entry.len.into(),
                    id: entry.id.into(),
                    flags: entry.flags.into(),
                }),
                next: entry.next,
            })
            .collect();
        self.free_copy = *free_head;
        let mut ids = Vec::new();
        for &(first, slots) in chains {
            let last = self.copied(first, slots).last();
            let (last, copy) = last.ok_or(StateError::Entry(first))?;
            let head = copy.descriptor().id.get();
            match self.begin(head, first, last, slots) {
                Ok(()) => ids.push(head),
                Err(Rule::InFlight) => return Err(StateError::Twice(head)),
                Err(_) => {
                    let size = self.size;
                    return Err(StateError::Head { head, size });
                }
            }
        }
        self.next_avail = recovered.next_avail(self.size).into();
        self.next_used = (*next_used).into();
        self.published = self.next_used;
        // The driver may have missed the last interrupt.
        self.unsignalled = u32::MAX;
        self.resumed = Resumed::new(ids.into_iter());
        Ok(())
    }

    /// What a region is to say.
    fn to_recover(&self) -> Recovered {
        let mut chains: Vec<&InFlight> = self.in_flight.iter().filter(|c| c.when != 0).collect();
        chains.sort_unstable_by_key(|chain| chain.when);
        Recovered {
            entries: self.copies.iter().map(Copied::entry).collect(),
            free_head: self.free_copy,
            next_used: self.next_used.into(),
            chains: chains.iter().map(|c| (c.first, c.slots)).collect(),
        }
    }

    #[inline(always)]
    fn empty_chain<H: Anchor<Memory = M>>(&mut self, head: u16, memory: &H) -> Chain<H> {
        let room = self.rooms.pop().unwrap_or_else(Room::new);
        Chain::new(head, memory.clone(), room)
    }

    /// Takes the chain that begins with the descriptor of these words, which is available, out of the ring. Its ID is in the last
    /// descriptor, so what is wrong with the buffers is said at the end.
    #[inline(never)]
    fn pop_many<H: Anchor<Memory = M>, A: GuestAddressSpace<M = M>>(
        &mut self,
        ring: &PackedRing<A>,
        mut addr: u64,
        mut rest: u64,
        memory: &H,
    ) -> Result<Chain<H>, Error> {
        let mut chain = self.empty_chain(0, memory);
        let mut buffers = Builder::new(&mut chain, &ring.regions, self.size);
        let mut valid = Ok(());
        let first = self.free_copy;
        let mut slots = 0;
        let mut at = self.next_avail;
        let head = loop {
            let descriptor: Descriptor = transmute!([addr, rest]);
            let (head, flags) = (descriptor.id.get(), descriptor.flags());
            let fail = |rule| Error::Chain { head, rule };
            let last = self.copy([addr, rest]).map_err(fail)?;
            slots += 1;
            at = at.step(1, self.size);
            let more = flags.contains(DescriptorFlags::NEXT);
            if more && flags.contains(DescriptorFlags::INDIRECT) {
                return Err(fail(Rule::IndirectNext));
            }
            if valid.is_ok() {
                valid = self.add(&mut buffers, descriptor);
            }
            if !more {
                self.begin(head, first, last, slots).map_err(fail)?;
                break head;
            }
            [addr, rest] = ring.descriptor(at);
        };
        self.next_avail = at;
        match valid.and_then(|()| buffers.finish()) {
            Ok(()) => Ok(chain.with_head(head)),
            Err(rule) => Err(Error::Chain { head, rule }),
        }
    }

    /// Appends what a descriptor, the last if it is indirect, stands for.
    #[inline(always)]
    fn add<H: Anchor<Memory = M>, A: GuestAddressSpace<M = M>>(
        &self,
        buffers: &mut Builder<'_, H, A>,
        descriptor: Descriptor,
    ) -> Result<(), Rule> {
        let (addr, len, flags) = (
            descriptor.addr.get(),
            descriptor.len.get(),
            descriptor.flags(),
        );
        if !flags.contains(DescriptorFlags::INDIRECT) {
            buffers.add(addr, len, flags.contains(DescriptorFlags::WRITE))
        } else if self.features.contains(Features::INDIRECT_DESC) {
            indirect::walk_sequence(buffers, addr, len)
        } else {
            Err(Rule::IndirectFeature)
        }
    }

    /// Pops a chain again.
    #[cold]
    #[inline(never)]
    fn pop_resumed<H: Anchor<Memory = M>, A: GuestAddressSpace<M = M>>(
        &mut self,
        ring: &PackedRing<A>,
        memory: &H,
    ) -> Result<Option<Chain<H>>, Error> {
        let Some(head) = self.resumed.pop() else {
            return Ok(None);
        };
        let chain = self.empty_chain(head, memory);
        self.walk(ring, chain).map(Some)
    }

    #[inline(never)]
    fn walk<H: Anchor<Memory = M>, A: GuestAddressSpace<M = M>>(
        &self,
        ring: &PackedRing<A>,
        mut chain: Chain<H>,
    ) -> Result<Chain<H>, Error> {
        let head = chain.head();
        match self.translate(ring, head, &mut chain) {
            Ok(()) => Ok(chain),
            Err(rule) => Err(Error::Chain { head, rule }),
        }
    }

    /// Translates the copies of a chain.
    fn translate<H: Anchor<Memory = M>, A: GuestAddressSpace<M = M>>(
        &self,
        ring: &PackedRing<A>,
        id: u16,
        chain: &mut Chain<H>,
    ) -> Result<(), Rule> {
        let mut buffers = Builder::new(chain, &ring.regions, self.size);
        let InFlight { first, slots, .. } =
            *self.in_flight.get(usize::from(id)).ok_or(Rule::Head)?;
        for (number, (_, copy)) in (1..).zip(self.copied(first, slots)) {
            let descriptor = copy.descriptor();
            if number != slots && descriptor.flags().contains(DescriptorFlags::INDIRECT) {
                return Err(Rule::IndirectNext);
            }
            self.add(&mut buffers, descriptor)?;
        }
        buffers.finish()
    }

    /// Lets the driver see what was staged.
    #[inline(always)]
    fn publish_staged<A: GuestAddressSpace>(&mut self, ring: &PackedRing<A>) {
        if let Some((offset, word)) = self.staged.take() {
            // Release: the driver sees the buffers and the later used descriptors before the first.
            ring.desc
                .store::<AtomicU64>(offset, word, Ordering::Release);
            let new = self.published.distance(self.next_used, self.size);
            self.unsignalled = self.unsignalled.saturating_add(new);
            self.published = self.next_used;
        }
    }

    /// Ends a chain, if those popped before it are ended, and those that have waited for it.
    #[inline(always)]
    fn end_in_turn<A: GuestAddressSpace>(
        &mut self,
        ring: &PackedRing<A>,
        when: u64,
        id: u16,
        (written, writable): (u32, u64),
    ) -> Result<(), Error> {
        let mut chain = Pushed {
            head: id,
            written,
            silent: false,
        };
        if let Some(order) = &mut self.order {
            // DPDK's driver looks for the descriptor of every chain that it wants the length of.
            chain.silent = writable == 0;
            if !order.passes(when, chain)? {
                return Ok(());
            }
        }
        self.end(ring, chain);
        while let Some(chain) = self.order.as_mut().and_then(|order| order.next()) {
            self.end(ring, chain);
        }
        Ok(())
    }

    /// Ends a chain. Used descriptors of chains that are `silent` are left out but for that of the last, which is in the slot of the
    /// first (§2.8.9).
    #[inline(always)]
    fn end<A: GuestAddressSpace>(&mut self, ring: &PackedRing<A>, chain: Pushed) {
        let Pushed {
            head: id,
            written,
            silent,
        } = chain;
        if self.tracker.is_some() {
            return self.end_tracked(ring, id, written);
        }
        let slots = self.forget(id);
        let at = self
            .silent
            .take()
            .map_or(self.next_used, |(first, ..)| first);
        self.next_used = self.next_used.step(slots, self.size);
        if silent {
            self.silent = Some((at, id, written));
        } else {
            self.write_used(ring, at, id, written);
        }
    }

    /// Forgets a chain in flight and returns its number of descriptors.
    #[inline(always)]
    fn forget(&mut self, id: u16) -> u16 {
        let Some(chain) = self.in_flight.get_mut(usize::from(id)) else {
            return 0;
        };
        let InFlight {
            slots, first, last, ..
        } = *chain;
        chain.when = 0;
        // The copies are linked already: the chain is put before the free ones.
        if let Some(last) = self.copies.get_mut(usize::from(last)) {
            last.next = self.free_copy;
            self.free_copy = first;
        }
        slots
    }

    /// Writes a used descriptor.
    #[inline(always)]
    fn write_used<A: GuestAddressSpace>(
        &mut self,
        ring: &PackedRing<A>,
        at: Position,
        id: u16,
        written: u32,
    ) {
        let mut flags = at.used_marks();
        flags.set(DescriptorFlags::WRITE, written != 0);
        let used = Descriptor {
            addr: 0.into(),
            len: written.into(),
            id: id.into(),
            flags: flags.bits().into(),
        };
        let [_, word]: [u64; 2] = transmute!(used);
        let offset = at.offset() + 8;
        if self.staged.is_none() {
            self.staged = Some((offset, word));
        } else {
            ring.desc
                .store::<AtomicU64>(offset, word, Ordering::Relaxed);
        }
    }

    /// Ends a chain and lets the driver see it, step by step as the region wants it. One by one: of a batch that is cut short, later
    /// descriptors might be seen without the first.
    fn end_tracked<A: GuestAddressSpace>(&mut self, ring: &PackedRing<A>, id: u16, written: u32) {
        let InFlight { first, last, .. } = self
            .in_flight
            .get(usize::from(id))
            .copied()
            .unwrap_or_default();
        let free = self.free_copy;
        let at = self.next_used;
        let slots = self.forget(id);
        self.next_used = at.step(slots, self.size);
        if let Some(tracker) = &self.tracker {
            tracker.stage(first, last, free, self.next_used.into());
        }
        self.write_used(ring, at, id, written);
        self.publish_staged(ring);
        if let Some(tracker) = &self.tracker {
            tracker.publish(first, self.next_used.into());
        }
    }
}

impl<A: GuestAddressSpace> Format<A> for Packed<A::M> {
    type Ring = PackedRing<A>;
    type State = PackedState;

    fn new(
        config: &QueueConfig,
        size: u16,
        state: Option<&PackedState>,
    ) -> Result<Self, StartError> {
        let mut queue = Self {
            size,
            features: config.features,
            next_avail: Position::START,
            next_used: Position::START,
            published: Position::START,
            staged: None,
            unsignalled: 0,
            in_flight: vec![InFlight::default(); usize::from(size)].into(),
            copies: (1..=size)
                .map(|next| Copied {
                    words: [0; 2],
                    next,
                })
                .collect(),
            free_copy: 0,
            plain: !config.features.contains(Features::IN_ORDER),
            order: InOrder::new(config.features, size),
            silent: None,
            popped: 0,
            resumed: Resumed::default(),
            tracker: None,
            rooms: Vec::new(),
        };
        if let Some(state) = state {
            queue.restore(state)?;
        }
        Ok(queue)
    }

    fn tracked(
        config: &QueueConfig,
        size: u16,
        state: Option<&PackedState>,
        ring: &PackedRing<A>,
        region: InFlightRegion,
    ) -> Result<Self, StartError> {
        let available = |at: PackedPosition| ring.is_available(at.into());
        let recovered = PackedTracker::recover(&region, size, available)?;
        let new = <Self as Format<A>>::new;
        let (mut queue, start) = match recovered {
            Some(recovered) => {
                let mut queue = new(config, size, None)?;
                queue.adopt(&recovered)?;
                (queue, recovered)
            }
            None => {
                let queue = new(config, size, state)?;
                let start = queue.to_recover();
                (queue, start)
            }
        };
        queue.tracker = Some(Box::new(PackedTracker::new(region, &start)));
        queue.plain = false;
        Ok(queue)
    }

    fn save(&self) -> PackedState {
        let Self {
            next_avail,
            next_used,
            in_flight,
            copies: _, // reached from `in_flight`
            // What follows is configuration, a cache, or contained in the above.
            size: _,
            features: _,
            published: _,
            staged: _,
            unsignalled: _,
            free_copy: _,
            plain: _,
            order: _,
            silent: _,
            popped: _,
            resumed: _,
            tracker: _,
            rooms: _,
        } = self;
        let mut ids: Vec<(u64, u16)> = (0..)
            .zip(in_flight)
            .filter(|(_, chain)| chain.when != 0)
            .map(|(id, chain)| (chain.when, id))
            .collect();
        ids.sort_unstable();
        let kept = DescriptorFlags::WRITE | DescriptorFlags::INDIRECT;
        let chain = |id: u16| {
            let InFlight { first, slots, .. } =
                in_flight.get(usize::from(id)).copied().unwrap_or_default();
            let descriptors = self.copied(first, slots).map(|(_, copy)| {
                let descriptor = copy.descriptor();
                (
                    descriptor.addr.get(),
                    descriptor.len.get(),
                    descriptor.flags.get() & kept.bits(),
                )
            });
            PackedChain {
                id,
                descriptors: descriptors.collect(),
            }
        };
        PackedState {
            next_avail: (*next_avail).into(),
            next_used: (*next_used).into(),
            in_flight: ids.into_iter().map(|(_, id)| chain(id)).collect(),
        }
    }

    fn map(space: &A, config: &QueueConfig) -> Result<PackedRing<A>, NoMemory> {
        let view = View::new(space);
        let size = usize::try_from(config.size).unwrap_or(usize::MAX);
        let desc_len = packed::descriptor_ring_len(size);
        Ok(PackedRing {
            regions: Regions::new(&view),
            desc: Area::map(&view, config.desc.0, desc_len, Permissions::ReadWrite)?,
            driver_event: Area::map(&view, config.avail.0, packed::EVENT_LEN, Permissions::Read)?,
            device_event: Area::map(&view, config.used.0, packed::EVENT_LEN, Permissions::Write)?,
        })
    }

    #[inline(always)]
    fn pop<H: Anchor<Memory = A::M>>(
        &mut self,
        ring: &PackedRing<A>,
        memory: &H,
    ) -> Result<Option<Chain<H>>, Error> {
        if !self.resumed.is_empty() {
            return self.pop_resumed(ring, memory);
        }
        let [addr, rest] = ring.descriptor(self.next_avail);
        let descriptor: Descriptor = transmute!([addr, rest]);
        let flags = descriptor.flags();
        if !self.next_avail.is_available(flags.bits()) {
            return Ok(None);
        }
        if flags.intersects(DescriptorFlags::NEXT | DescriptorFlags::INDIRECT) {
            return self.pop_many(ring, addr, rest, memory).map(Some);
        }
        let (head, first) = (descriptor.id.get(), self.free_copy);
        let fail = |rule| Error::Chain { head, rule };
        let last = self.copy([addr, rest]).map_err(fail)?;
        self.begin(head, first, last, 1).map_err(fail)?;
        self.next_avail = self.next_avail.step(1, self.size);
        let mut chain = self.empty_chain(head, memory);
        let writable = flags.contains(DescriptorFlags::WRITE);
        let (addr, len) = (descriptor.addr.get(), descriptor.len.get());
        if chain.single(&ring.regions, addr, len, writable) {
            return Ok(Some(chain));
        }
        self.walk(ring, chain).map(Some)
    }

    #[inline(always)]
    fn stage<H: Anchor<Memory = A::M>>(
        &mut self,
        ring: &PackedRing<A>,
        chain: Chain<H>,
        written: u32,
    ) -> Result<(), Error> {
        let (head, writable) = (chain.head(), chain.writable_len());
        if u64::from(written) > writable {
            return Err(Error::Written {
                head,
                written,
                writable,
            });
        }
        match self.in_flight.get(usize::from(head)) {
            Some(chain) if chain.when != 0 => {
                if self.plain {
                    let slots = self.forget(head);
                    self.write_used(ring, self.next_used, head, written);
                    self.next_used = self.next_used.step(slots, self.size);
                } else {
                    let when = chain.when;
                    self.end_in_turn(ring, when, head, (written, writable))?;
                }
            }
            _ => return Err(Error::NotInFlight(head)),
        }
        self.rooms.push(chain.into_room());
        Ok(())
    }

    #[inline(always)]
    fn publish(&mut self, ring: &PackedRing<A>) {
        if let Some((at, id, written)) = self.silent {
            self.silent = None;
            self.write_used(ring, at, id, written);
        }
        self.publish_staged(ring);
    }

    fn put_back<H: Anchor<Memory = A::M>>(&mut self, chain: Chain<H>) -> Result<(), Error> {
        let head = chain.head();
        if self
            .in_flight
            .get(usize::from(head))
            .is_none_or(|chain| chain.when == 0)
        {
            return Err(Error::NotInFlight(head));
        }
        self.resumed.put_back(head);
        self.rooms.push(chain.into_room());
        Ok(())
    }

    fn needs_interrupt(&mut self, ring: &PackedRing<A>) -> bool {
        let passed = std::mem::take(&mut self.unsignalled);
        if passed == 0 {
            return false;
        }
        // The descriptors are published before the driver's wish is read; the driver writes its wish before it reads them.
        fence(Ordering::SeqCst);
        let event: EventSuppression =
            transmute!(ring.driver_event.load::<AtomicU32>(0, Ordering::Relaxed));
        match event.flags.get() & packed::EVENT_MASK {
            packed::EVENT_DISABLE => false,
            packed::EVENT_DESC if self.features.contains(Features::EVENT_IDX) => self
                .published
                .passed_event(event.off_wrap.get(), passed, self.size),
            _ => true,
        }
    }

    fn disable_kicks(&mut self, ring: &PackedRing<A>) {
        let event = EventSuppression {
            off_wrap: 0.into(),
            flags: packed::EVENT_DISABLE.into(),
        };
        ring.device_event
            .store::<AtomicU32>(0, transmute!(event), Ordering::Relaxed);
    }

    fn enable_kicks(&mut self, ring: &PackedRing<A>) -> Result<bool, Error> {
        let event = if self.features.contains(Features::EVENT_IDX) {
            EventSuppression {
                off_wrap: self.next_avail.off_wrap().into(),
                flags: packed::EVENT_DESC.into(),
            }
        } else {
            EventSuppression {
                off_wrap: 0.into(),
                flags: packed::EVENT_ENABLE.into(),
            }
        };
        ring.device_event
            .store::<AtomicU32>(0, transmute!(event), Ordering::Relaxed);
        // Our wish is published before the descriptor is read; the driver does the same in the other order.
        fence(Ordering::SeqCst);
        self.has_new(ring)
    }

    fn has_new(&mut self, ring: &PackedRing<A>) -> Result<bool, Error> {
        Ok(ring.is_available(self.next_avail) || self.resumed.any_new())
    }
}
