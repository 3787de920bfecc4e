//! The device side of a split virtqueue (virtio 1.3 §2.7).

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use vm_memory::{GuestAddressSpace, GuestMemory, Permissions};
use zerocopy::transmute;

use super::in_order::{InOrder, Pushed};
use super::resumed::Resumed;
use super::{Format, StartError};
use crate::chain::{Builder, Chain, ChainRoom};
use crate::config::QueueConfig;
use crate::error::{Error, Rule};
use crate::event::passed_index;
use crate::in_flight::{InFlightRegion, SplitTracker};
use crate::indirect;
use crate::mapping::{Anchor, Area, NoMemory, Regions, Room, View};
use crate::spec::split::{self, Descriptor};
use crate::spec::{DescriptorFlags, Features};
use crate::state::{SplitState, StateError};

/// The three areas of a ring.
pub(super) struct SplitRing<A: GuestAddressSpace> {
    desc: Area<A, 16>,
    regions: Regions<A>,
    avail: Area<A, 2>,
    used: Area<A, 4>,
}

impl<A: GuestAddressSpace> SplitRing<A> {
    /// Reads a [`Descriptor`], each of its words once. As words it stays in registers.
    #[inline(always)]
    fn descriptor(&self, index: u16) -> [u64; 2] {
        let offset = usize::from(index) * size_of::<Descriptor>();
        self.desc.load_pair::<AtomicU64>(offset, Ordering::Relaxed)
    }

    #[inline(always)]
    fn load_avail(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.avail.load::<AtomicU16>(offset, order))
    }

    #[inline(always)]
    fn store_used(&self, offset: usize, value: u16, order: Ordering) {
        self.used.store::<AtomicU16>(offset, value.to_le(), order);
    }
}

/// The device's positions in a split ring.
pub(super) struct Split<M: GuestMemory> {
    size: u16,
    features: Features,
    /// Index of the next entry of the available ring.
    next_avail: u16,
    /// The driver's index, as last read.
    avail_idx: u16,
    /// Index of the next entry of the used ring.
    next_used: u16,
    /// Entries published since `needs_interrupt` was last asked. Not more than 2¹⁶ need to be counted.
    unsignalled: u32,
    /// The driver's view of `next_used`.
    published: u16,
    /// For each head, when it was popped, counted from 1; 0 if it is not in flight.
    in_flight: Box<[u64]>,
    /// There is neither `order` nor `tracker`.
    plain: bool,
    /// With `IN_ORDER`.
    order: Option<Box<InOrder>>,
    /// The used entry that is left out if another follows: its index, head and length.
    silent: Option<(u16, u16, u32)>,
    /// Chains popped so far.
    popped: u64,
    resumed: Resumed,
    /// Where a successor finds what is in flight.
    tracker: Option<Box<SplitTracker>>,
    /// Room of chains that were pushed.
    #[expect(clippy::vec_box, reason = "a chain takes the box")]
    rooms: Vec<Box<ChainRoom<M>>>,
}

impl<M: GuestMemory> Split<M> {
    fn restore(&mut self, state: &SplitState) -> Result<(), StateError> {
        let SplitState {
            next_avail,
            next_used,
            in_flight,
        } = state;
        let apart = usize::from(next_avail.wrapping_sub(*next_used));
        if apart != in_flight.len() {
            return Err(StateError::Count {
                apart,
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
        self.published = *next_used;
        // The driver may have missed the last interrupt.
        self.unsignalled = u32::MAX;
        self.resumed = Resumed::new(in_flight.iter().copied());
        Ok(())
    }

    #[inline(always)]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Reads the driver's index and tells whether it is ahead of ours.
    #[inline(always)]
    fn refresh<A: GuestAddressSpace>(&mut self, ring: &SplitRing<A>) -> Result<bool, Error> {
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

    /// Takes the next entry of the available ring and marks its chain as in flight.
    #[inline(always)]
    fn take<A: GuestAddressSpace>(&mut self, ring: &SplitRing<A>) -> Result<u16, Error> {
        let head = ring.load_avail(
            split::avail_slot(self.slot(self.next_avail)),
            Ordering::Relaxed,
        );
        let Some(when) = self.in_flight.get_mut(usize::from(head)) else {
            return Err(Error::Chain {
                head,
                rule: Rule::Head,
            });
        };
        if *when != 0 {
            return Err(Error::Chain {
                head,
                rule: Rule::InFlight,
            });
        }
        self.popped += 1;
        *when = self.popped;
        self.next_avail = self.next_avail.wrapping_add(1);
        if let Some(tracker) = &mut self.tracker {
            tracker.begin(head);
        }
        Ok(head)
    }

    #[inline(never)]
    fn walk<H: Anchor, A: GuestAddressSpace<M = H::Memory>>(
        &self,
        ring: &SplitRing<A>,
        addr: u64,
        rest: u64,
        mut chain: Chain<H>,
    ) -> Result<Chain<H>, Error> {
        match self.translate(ring, addr, rest, &mut chain) {
            Ok(()) => Ok(chain),
            Err(rule) => Err(Error::Chain {
                head: chain.head(),
                rule,
            }),
        }
    }

    /// Translates the chain that begins with the descriptor of these words.
    #[inline(always)]
    fn translate<H: Anchor, A: GuestAddressSpace<M = H::Memory>>(
        &self,
        ring: &SplitRing<A>,
        mut addr: u64,
        mut rest: u64,
        chain: &mut Chain<H>,
    ) -> Result<(), Rule> {
        let mut chain = Builder::new(chain, &ring.regions, self.size);
        loop {
            let Descriptor {
                addr: start,
                len,
                flags,
                next,
            } = transmute!([addr, rest]);
            let flags = DescriptorFlags::from_bits_retain(flags.get());
            if flags.contains(DescriptorFlags::INDIRECT) {
                if !self.features.contains(Features::INDIRECT_DESC) {
                    return Err(Rule::IndirectFeature);
                }
                if flags.contains(DescriptorFlags::NEXT) {
                    return Err(Rule::IndirectNext);
                }
                return indirect::walk_linked(chain, start.get(), len.get());
            }
            let writable = flags.contains(DescriptorFlags::WRITE);
            chain.add(start.get(), len.get(), writable)?;
            if !flags.contains(DescriptorFlags::NEXT) {
                return chain.finish();
            }
            let next = next.get();
            if next >= self.size {
                return Err(Rule::Next(next));
            }
            [addr, rest] = ring.descriptor(next);
        }
    }

    /// Ends a chain, if those popped before it are ended, and those that have waited for it.
    #[inline(always)]
    fn end_in_turn<A: GuestAddressSpace>(
        &mut self,
        ring: &SplitRing<A>,
        when: u64,
        head: u16,
        (written, writable): (u32, u64),
    ) -> Result<(), Error> {
        let mut chain = Pushed {
            head,
            written,
            silent: false,
        };
        if let Some(order) = &mut self.order {
            // DPDK's driver looks for the entry of every chain that it wants the length of.
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

    /// Ends a chain. Entries of chains that are `silent` are left out but for that of the last, which is in the slot of the first
    /// (§2.7.9).
    #[inline(always)]
    fn end<A: GuestAddressSpace>(&mut self, ring: &SplitRing<A>, chain: Pushed) {
        let Pushed {
            head,
            written,
            silent,
        } = chain;
        if let Some(tracker) = &mut self.tracker {
            tracker.stage(head);
        }
        if let Some(when) = self.in_flight.get_mut(usize::from(head)) {
            *when = 0;
        }
        let index = self
            .silent
            .take()
            .map_or(self.next_used, |(first, ..)| first);
        self.next_used = self.next_used.wrapping_add(1);
        if silent {
            self.silent = Some((index, head, written));
        } else {
            self.write_used(ring, index, head, written);
        }
    }

    /// Writes an entry of the used ring.
    #[inline(always)]
    fn write_used<A: GuestAddressSpace>(
        &self,
        ring: &SplitRing<A>,
        index: u16,
        head: u16,
        written: u32,
    ) {
        let offset = split::used_slot(self.slot(index));
        ring.used
            .store::<AtomicU32>(offset, u32::from(head).to_le(), Ordering::Relaxed);
        ring.used
            .store::<AtomicU32>(offset + 4, written.to_le(), Ordering::Relaxed);
    }
}

impl<A: GuestAddressSpace> Format<A> for Split<A::M> {
    type Ring = SplitRing<A>;
    type State = SplitState;

    fn new(
        config: &QueueConfig,
        size: u16,
        state: Option<&SplitState>,
    ) -> Result<Self, StartError> {
        let mut queue = Self {
            size,
            features: config.features,
            next_avail: 0,
            avail_idx: 0,
            next_used: 0,
            unsignalled: 0,
            published: 0,
            in_flight: vec![0; usize::from(size)].into(),
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
        state: Option<&SplitState>,
        ring: &SplitRing<A>,
        region: InFlightRegion,
    ) -> Result<Self, StartError> {
        let used_idx = u16::from_le(ring.used.load::<AtomicU16>(split::IDX, Ordering::Acquire));
        let state = match SplitTracker::recover(&region, size, used_idx)? {
            Some(state) => state,
            None => state.cloned().unwrap_or_default(),
        };
        let mut queue = <Self as Format<A>>::new(config, size, Some(&state))?;
        queue.tracker = Some(Box::new(SplitTracker::new(region, &state)));
        queue.plain = false;
        Ok(queue)
    }

    fn save(&self) -> SplitState {
        let Self {
            next_avail,
            next_used,
            in_flight,
            // What follows is configuration, a cache, or contained in `in_flight`.
            size: _,
            features: _,
            avail_idx: _,
            unsignalled: _,
            published: _,
            plain: _,
            order: _,
            silent: _,
            popped: _,
            resumed: _,
            tracker: _,
            rooms: _,
        } = self;
        let mut heads: Vec<(u64, u16)> = (0..)
            .zip(in_flight)
            .filter(|(_, when)| **when != 0)
            .map(|(head, when)| (*when, head))
            .collect();
        heads.sort_unstable();
        SplitState {
            next_avail: *next_avail,
            next_used: *next_used,
            in_flight: heads.into_iter().map(|(_, head)| head).collect(),
        }
    }

    fn map(space: &A, config: &QueueConfig) -> Result<SplitRing<A>, NoMemory> {
        let view = View::new(space);
        let size = usize::try_from(config.size).unwrap_or(usize::MAX);
        let event_idx = config.features.contains(Features::EVENT_IDX);
        let desc_len = split::descriptor_table_len(size);
        Ok(SplitRing {
            regions: Regions::new(&view),
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

    #[inline(always)]
    fn pop<H: Anchor<Memory = A::M>>(
        &mut self,
        ring: &SplitRing<A>,
        memory: &H,
    ) -> Result<Option<Chain<H>>, Error> {
        let head = if self.next_avail != self.avail_idx
            || (self.resumed.is_empty() && self.refresh(ring)?)
        {
            self.take(ring)?
        } else {
            match self.resumed.pop() {
                Some(head) => head,
                None => return Ok(None),
            }
        };
        let mut chain = Chain::new(
            head,
            memory.clone(),
            self.rooms.pop().unwrap_or_else(Room::new),
        );
        let [addr, rest] = ring.descriptor(head);
        let Descriptor {
            addr: start,
            len,
            flags,
            ..
        } = transmute!([addr, rest]);
        let flags = DescriptorFlags::from_bits_retain(flags.get());
        let writable = flags.contains(DescriptorFlags::WRITE);
        let single = !flags.intersects(DescriptorFlags::NEXT | DescriptorFlags::INDIRECT);
        if single && chain.single(&ring.regions, start.get(), len.get(), writable) {
            return Ok(Some(chain));
        }
        self.walk(ring, addr, rest, chain).map(Some)
    }

    #[inline(always)]
    fn stage<H: Anchor<Memory = A::M>>(
        &mut self,
        ring: &SplitRing<A>,
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
        match self.in_flight.get_mut(usize::from(head)) {
            Some(when) if *when != 0 => {
                if self.plain {
                    *when = 0;
                    self.write_used(ring, self.next_used, head, written);
                    self.next_used = self.next_used.wrapping_add(1);
                } else {
                    let when = *when;
                    self.end_in_turn(ring, when, head, (written, writable))?;
                }
            }
            _ => return Err(Error::NotInFlight(head)),
        }
        self.rooms.push(chain.into_room());
        Ok(())
    }

    #[inline(always)]
    fn publish(&mut self, ring: &SplitRing<A>) {
        if let Some((index, head, written)) = self.silent {
            self.silent = None;
            self.write_used(ring, index, head, written);
        }
        let new = self.next_used.wrapping_sub(self.published);
        self.unsignalled = self.unsignalled.saturating_add(u32::from(new));
        self.published = self.next_used;
        // Release: the driver sees the buffers and the entries before the index that covers them.
        ring.store_used(split::IDX, self.next_used, Ordering::Release);
        if let Some(tracker) = &mut self.tracker {
            tracker.publish(self.next_used);
        }
    }

    fn put_back<H: Anchor<Memory = A::M>>(&mut self, chain: Chain<H>) -> Result<(), Error> {
        let head = chain.head();
        if self
            .in_flight
            .get(usize::from(head))
            .is_none_or(|when| *when == 0)
        {
            return Err(Error::NotInFlight(head));
        }
        self.resumed.put_back(head);
        // The next chain is looked for among the resumed before the ring.
        self.avail_idx = self.next_avail;
        self.rooms.push(chain.into_room());
        Ok(())
    }

    fn needs_interrupt(&mut self, ring: &SplitRing<A>) -> bool {
        let passed = std::mem::take(&mut self.unsignalled);
        if passed == 0 {
            return false;
        }
        // The index is published before the driver's wish is read; the driver writes its wish before it reads the index.
        fence(Ordering::SeqCst);
        if !self.features.contains(Features::EVENT_IDX) {
            return ring.load_avail(split::FLAGS, Ordering::Relaxed) & split::AVAIL_F_NO_INTERRUPT
                == 0;
        }
        let event = ring.load_avail(
            split::avail_len(usize::from(self.size), false),
            Ordering::Relaxed,
        );
        passed_index(event, self.published, passed)
    }

    fn disable_kicks(&mut self, ring: &SplitRing<A>) {
        // With EVENT_IDX the index asked for lies behind and stays there.
        if !self.features.contains(Features::EVENT_IDX) {
            ring.store_used(split::FLAGS, split::USED_F_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    fn enable_kicks(&mut self, ring: &SplitRing<A>) -> Result<bool, Error> {
        if self.features.contains(Features::EVENT_IDX) {
            let event = split::used_len(usize::from(self.size), false);
            ring.store_used(event, self.next_avail, Ordering::Relaxed);
        } else {
            ring.store_used(split::FLAGS, 0, Ordering::Relaxed);
        }
        // Our wish is published before the driver's index is read; the driver does the same in the other order.
        fence(Ordering::SeqCst);
        self.has_new(ring)
    }

    fn has_new(&mut self, ring: &SplitRing<A>) -> Result<bool, Error> {
        let available = self.refresh(ring)?;
        if !self.resumed.is_empty() {
            self.avail_idx = self.next_avail;
        }
        Ok(available || self.resumed.any_new())
    }
}
