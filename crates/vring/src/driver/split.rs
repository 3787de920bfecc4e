//! The driver side of a split virtqueue (virtio 1.3 §2.7).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, Permissions};
use zerocopy::{IntoBytes, transmute};

use super::{AddError, Buffer, DeviceFault, InFlight, Layout, Used, end};
use crate::config::QueueConfig;
use crate::device::StartError;
use crate::event::passed_index;
use crate::mapping::{Area, NoMemory, View};
use crate::spec::split::{self, Descriptor};
use crate::spec::{DescriptorFlags, Features};

pub(super) struct Split<A: GuestAddressSpace, T> {
    view: View<A>,
    desc: Area<A, 16>,
    avail: Area<A, 2>,
    used: Area<A, 4>,
    size: u16,
    features: Features,
    /// How many descriptors are free.
    free: u16,
    /// The first free one.
    first_free: u16,
    /// For each descriptor, the next of its chain, or the next free one: a chain takes the first free ones. With `IN_ORDER` that is
    /// the next of the ring, and stays so (§2.7.9). The device can overwrite the ring, but not this.
    next: Box<[u16]>,
    pub(super) in_flight: Box<[Option<InFlight<T>>]>,
    /// With `IN_ORDER`: the heads in flight, oldest first.
    order: VecDeque<u16>,
    /// With `IN_ORDER`: the last head of the batch that the device used, with its length.
    batch: Option<(u16, u32)>,
    next_avail: u16,
    next_used: u16,
    /// The device's index, as last read.
    used_idx: u16,
    /// Entries made available since `needs_kick` was last asked.
    unkicked: u32,
    /// The device's view of `next_avail`.
    published: u16,
}

impl<A: GuestAddressSpace, T> Split<A, T> {
    pub(super) fn new(space: A, config: &QueueConfig, size: u16) -> Result<Self, StartError> {
        let view = View::new(&space);
        let event_idx = config.features.contains(Features::EVENT_IDX);
        let n = usize::from(size);
        let used_len = split::used_len(n, event_idx);
        let queue = Self {
            desc: Area::map(
                &view,
                config.desc.0,
                split::descriptor_table_len(n),
                Permissions::ReadWrite,
            )?,
            avail: Area::map(
                &view,
                config.avail.0,
                split::avail_len(n, event_idx),
                Permissions::ReadWrite,
            )?,
            used: Area::map(&view, config.used.0, used_len, Permissions::ReadWrite)?,
            view,
            size,
            features: config.features,
            free: size,
            first_free: 0,
            next: (1..size).chain([0]).collect(),
            in_flight: (0..size).map(|_| None).collect(),
            order: VecDeque::new(),
            batch: None,
            next_avail: 0,
            next_used: 0,
            used_idx: 0,
            unkicked: 0,
            published: 0,
        };
        for offset in (0..split::avail_len(n, event_idx)).step_by(2) {
            queue.avail.store::<AtomicU16>(offset, 0, Ordering::Relaxed);
        }
        for offset in (0..used_len).step_by(2) {
            queue.used.store::<AtomicU16>(offset, 0, Ordering::Relaxed);
        }
        Ok(queue)
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let words: [u64; 2] = transmute!(descriptor);
        for (i, word) in words.into_iter().enumerate() {
            self.desc
                .store::<AtomicU64>(usize::from(index) * 16 + 8 * i, word, Ordering::Relaxed);
        }
    }

    fn store_avail(&self, offset: usize, value: u16, order: Ordering) {
        self.avail.store::<AtomicU16>(offset, value.to_le(), order);
    }

    fn load_used(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.used.load::<AtomicU16>(offset, order))
    }

    #[inline(always)]
    pub(super) fn stage(&mut self, layout: Layout<'_>, token: T) -> Result<(), AddError> {
        layout.check(self.features, self.size)?;
        let slots = layout.slots();
        if slots > self.free {
            return Err(AddError::Full {
                wanted: slots.into(),
                free: self.free.into(),
            });
        }
        let head = self.first_free;
        let (mut last, mut next) = (head, head);
        let mut write = |descriptor: Descriptor| {
            last = next;
            next = self.next.get(usize::from(last)).copied().unwrap_or(0);
            self.write_descriptor(
                last,
                Descriptor {
                    next: next.into(),
                    ..descriptor
                },
            );
        };
        match layout.table {
            Some(table) => {
                self.write_table(table, &layout)?;
                write(Descriptor {
                    addr: table.0.into(),
                    len: layout.table_len().into(),
                    flags: DescriptorFlags::INDIRECT.bits().into(),
                    next: 0.into(),
                });
            }
            None => {
                for (number, buffer) in (1..).zip(layout.buffers) {
                    // The link is set by `write`.
                    write(descriptor(buffer, (number != slots).then_some(0)));
                }
            }
        }
        self.first_free = next;
        self.free -= slots;
        if let Some(slot) = self.in_flight.get_mut(usize::from(head)) {
            *slot = Some(InFlight {
                token,
                first: head,
                last,
                slots,
                writable: layout.writable(),
            });
        }
        if self.features.contains(Features::IN_ORDER) {
            self.order.push_back(head);
        }
        self.store_avail(
            split::avail_slot(self.slot(self.next_avail)),
            head,
            Ordering::Relaxed,
        );
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    fn write_table(&self, table: GuestAddress, layout: &Layout<'_>) -> Result<(), AddError> {
        let error = NoMemory {
            addr: table.0,
            len: layout.table_len().into(),
        };
        table
            .0
            .checked_add(layout.table_len().into())
            .ok_or(AddError::Table(error))?;
        let count = layout.slots_in_table();
        let entries: Vec<Descriptor> = (1..=count)
            .zip(layout.buffers)
            .map(|(next, buffer)| descriptor(buffer, (next < count).then_some(next)))
            .collect();
        self.view
            .write_slice(entries.as_bytes(), table)
            .map_err(|_| AddError::Table(error))
    }

    #[inline(always)]
    pub(super) fn publish(&mut self) {
        let new = self.next_avail.wrapping_sub(self.published);
        self.unkicked = self.unkicked.saturating_add(new.into());
        self.published = self.next_avail;
        // Release: the device sees buffers, descriptors and entries before the index that covers them.
        self.store_avail(split::IDX, self.next_avail, Ordering::Release);
    }

    pub(super) fn needs_kick(&mut self) -> bool {
        let passed = std::mem::take(&mut self.unkicked);
        if passed == 0 {
            return false;
        }
        // The index is published before the device's wish is read; the device writes its wish before it reads the index.
        fence(Ordering::SeqCst);
        if !self.features.contains(Features::EVENT_IDX) {
            return self.load_used(split::FLAGS, Ordering::Relaxed) & split::USED_F_NO_NOTIFY == 0;
        }
        let event = self.load_used(
            split::used_len(usize::from(self.size), false),
            Ordering::Relaxed,
        );
        passed_index(event, self.published, passed)
    }

    pub(super) fn next_position(&self) -> u16 {
        self.next_avail
    }

    #[inline(always)]
    pub(super) fn take(&mut self) -> Result<Option<Used<T>>, DeviceFault> {
        let (head, written) = match self.batch {
            Some(batch) => batch,
            None => match self.read_used()? {
                Some(used) => used,
                None => return Ok(None),
            },
        };
        if !self.features.contains(Features::IN_ORDER) {
            return self.end(head, Some(written)).map(Some);
        }
        // The entry stands for all chains up to its own (§2.7.9).
        let first = self
            .order
            .pop_front()
            .ok_or(DeviceFault::NotInFlight(head.into()))?;
        self.batch = (first != head).then_some((head, written));
        self.end(first, (first == head).then_some(written))
            .map(Some)
    }

    /// Reads the next entry of the used ring.
    #[inline(always)]
    fn read_used(&mut self) -> Result<Option<(u16, u32)>, DeviceFault> {
        if self.next_used == self.used_idx {
            // Acquire: entries and buffers are read after the index that covers them.
            let index = self.load_used(split::IDX, Ordering::Acquire);
            let in_flight = self.published.wrapping_sub(self.next_used);
            if index.wrapping_sub(self.next_used) > in_flight {
                return Err(DeviceFault::UsedIndex {
                    index,
                    in_flight: in_flight.into(),
                });
            }
            self.used_idx = index;
            if index == self.next_used {
                return Ok(None);
            }
        }
        let offset = split::used_slot(self.slot(self.next_used));
        let id = u32::from_le(self.used.load::<AtomicU32>(offset, Ordering::Relaxed));
        let written = u32::from_le(self.used.load::<AtomicU32>(offset + 4, Ordering::Relaxed));
        let head = u16::try_from(id)
            .ok()
            .filter(|head| *head < self.size)
            .ok_or(DeviceFault::NotInFlight(id))?;
        if self
            .in_flight
            .get(usize::from(head))
            .is_none_or(Option::is_none)
        {
            return Err(DeviceFault::NotInFlight(id));
        }
        Ok(Some((head, written)))
    }

    #[inline(always)]
    fn end(&mut self, head: u16, written: Option<u32>) -> Result<Used<T>, DeviceFault> {
        let (chain, written) = end(&mut self.in_flight, head, written)?;
        if !self.features.contains(Features::IN_ORDER) {
            if let Some(next) = self.next.get_mut(usize::from(chain.last)) {
                *next = self.first_free;
            }
            self.first_free = chain.first;
        }
        self.free += chain.slots;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Used {
            token: chain.token,
            written,
        })
    }

    pub(super) fn disable_interrupts(&mut self) {
        // With EVENT_IDX the index asked for lies behind and stays there.
        if !self.features.contains(Features::EVENT_IDX) {
            self.store_avail(split::FLAGS, split::AVAIL_F_NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    pub(super) fn enable_interrupts(&mut self) -> bool {
        if self.features.contains(Features::EVENT_IDX) {
            let event = split::avail_len(usize::from(self.size), false);
            self.store_avail(event, self.next_used, Ordering::Relaxed);
        } else {
            self.store_avail(split::FLAGS, 0, Ordering::Relaxed);
        }
        // Our wish is published before the device's index is read; the device does the same in the other order.
        fence(Ordering::SeqCst);
        self.batch.is_some() || self.load_used(split::IDX, Ordering::Acquire) != self.next_used
    }
}

fn descriptor(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    let mut flags = DescriptorFlags::empty();
    flags.set(DescriptorFlags::WRITE, buffer.writable);
    flags.set(DescriptorFlags::NEXT, next.is_some());
    Descriptor {
        addr: buffer.addr.0.into(),
        len: buffer.len.into(),
        flags: flags.bits().into(),
        next: next.unwrap_or(0).into(),
    }
}
