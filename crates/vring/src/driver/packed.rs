//! The driver side of a packed virtqueue (virtio 1.3 §2.8).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, Permissions};
use zerocopy::{IntoBytes, transmute};

use super::{AddError, DeviceFault, InFlight, Layout, Used, end};
use crate::config::QueueConfig;
use crate::device::StartError;
use crate::mapping::{Area, NoMemory, View};
use crate::packed_position::Position;
use crate::spec::packed::{self, Descriptor, EventSuppression};
use crate::spec::{DescriptorFlags, Features};

pub(super) struct Packed<A: GuestAddressSpace, T> {
    view: View<A>,
    desc: Area<A, 16>,
    driver_event: Area<A, 4>,
    device_event: Area<A, 4>,
    size: u16,
    features: Features,
    /// The free buffer IDs.
    ids: Vec<u16>,
    /// Free descriptors.
    free: u16,
    pub(super) in_flight: Box<[Option<InFlight<T>>]>,
    /// With `IN_ORDER`: the IDs in flight, oldest first.
    order: VecDeque<u16>,
    /// With `IN_ORDER`: the last ID of the batch that the device used, with its length.
    batch: Option<(u16, u32)>,
    next_avail: Position,
    next_used: Position,
    /// The first descriptor that was staged: its offset, and the word that makes it and those after it available.
    staged: Option<(usize, u64)>,
    /// Slots made available since `needs_kick` was last asked.
    unkicked: u32,
    /// The device's view of `next_avail`.
    published: Position,
}

impl<A: GuestAddressSpace, T> Packed<A, T> {
    pub(super) fn new(space: A, config: &QueueConfig, size: u16) -> Result<Self, StartError> {
        let view = View::new(&space);
        let desc_len = packed::descriptor_ring_len(size.into());
        let queue = Self {
            desc: Area::map(&view, config.desc.0, desc_len, Permissions::ReadWrite)?,
            driver_event: Area::map(
                &view,
                config.avail.0,
                packed::EVENT_LEN,
                Permissions::ReadWrite,
            )?,
            device_event: Area::map(
                &view,
                config.used.0,
                packed::EVENT_LEN,
                Permissions::ReadWrite,
            )?,
            view,
            size,
            features: config.features,
            ids: (0..size).collect(),
            free: size,
            in_flight: (0..size).map(|_| None).collect(),
            order: VecDeque::new(),
            batch: None,
            next_avail: Position::START,
            next_used: Position::START,
            staged: None,
            unkicked: 0,
            published: Position::START,
        };
        for offset in (0..desc_len).step_by(8) {
            queue.desc.store::<AtomicU64>(offset, 0, Ordering::Relaxed);
        }
        queue
            .driver_event
            .store::<AtomicU32>(0, 0, Ordering::Relaxed);
        queue
            .device_event
            .store::<AtomicU32>(0, 0, Ordering::Relaxed);
        Ok(queue)
    }

    #[inline(always)]
    pub(super) fn stage(&mut self, layout: Layout<'_>, token: T) -> Result<(), AddError> {
        layout.check(self.features, self.size)?;
        let slots = layout.slots();
        let full = AddError::Full {
            wanted: slots.into(),
            free: self.free.into(),
        };
        if slots > self.free {
            return Err(full);
        }
        if let Some(table) = layout.table {
            self.write_table(table, &layout)?;
        }
        let id = self.ids.pop().ok_or(full)?;
        // The first descriptor is the last to be written.
        let first = self.next_avail;
        for number in (0..slots).rev() {
            let at = first.step(number, self.size);
            let (addr, len, mut flags) =
                match (layout.table, layout.buffers.get(usize::from(number))) {
                    (Some(table), _) => (table, layout.table_len(), DescriptorFlags::INDIRECT),
                    (None, Some(buffer)) if buffer.writable => {
                        (buffer.addr, buffer.len, DescriptorFlags::WRITE)
                    }
                    (None, Some(buffer)) => (buffer.addr, buffer.len, DescriptorFlags::empty()),
                    (None, None) => return Err(AddError::Empty),
                };
            flags.set(DescriptorFlags::NEXT, number + 1 < slots);
            flags |= at.available_marks();
            let descriptor = Descriptor {
                addr: addr.0.into(),
                len: len.into(),
                id: id.into(),
                flags: flags.bits().into(),
            };
            let [address, word]: [u64; 2] = transmute!(descriptor);
            let offset = at.offset();
            self.desc
                .store::<AtomicU64>(offset, address, Ordering::Relaxed);
            if number == 0 && self.staged.is_none() {
                self.staged = Some((offset + 8, word));
            } else {
                self.desc
                    .store::<AtomicU64>(offset + 8, word, Ordering::Release);
            }
        }
        if let Some(slot) = self.in_flight.get_mut(usize::from(id)) {
            *slot = Some(InFlight {
                token,
                first: first.slot(),
                last: first.slot(),
                slots,
                writable: layout.writable(),
            });
        }
        if self.features.contains(Features::IN_ORDER) {
            self.order.push_back(id);
        }
        self.free -= slots;
        self.next_avail = first.step(slots, self.size);
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
        let entries: Vec<Descriptor> = layout
            .buffers
            .iter()
            .map(|buffer| {
                let mut flags = DescriptorFlags::empty();
                flags.set(DescriptorFlags::WRITE, buffer.writable);
                Descriptor {
                    addr: buffer.addr.0.into(),
                    len: buffer.len.into(),
                    id: 0.into(),
                    flags: flags.bits().into(),
                }
            })
            .collect();
        self.view
            .write_slice(entries.as_bytes(), table)
            .map_err(|_| AddError::Table(error))
    }

    #[inline(always)]
    pub(super) fn publish(&mut self) {
        if let Some((offset, word)) = self.staged.take() {
            // Release: the device sees buffers and later descriptors before the first.
            self.desc
                .store::<AtomicU64>(offset, word, Ordering::Release);
            let new = self.published.distance(self.next_avail, self.size);
            self.unkicked = self.unkicked.saturating_add(new);
            self.published = self.next_avail;
        }
    }

    pub(super) fn needs_kick(&mut self) -> bool {
        let passed = std::mem::take(&mut self.unkicked);
        if passed == 0 {
            return false;
        }
        // The descriptors are published before the device's wish is read; the device writes its wish before it reads them.
        fence(Ordering::SeqCst);
        let event: EventSuppression =
            transmute!(self.device_event.load::<AtomicU32>(0, Ordering::Relaxed));
        match event.flags.get() & packed::EVENT_MASK {
            packed::EVENT_DISABLE => false,
            packed::EVENT_DESC if self.features.contains(Features::EVENT_IDX) => self
                .published
                .passed_event(event.off_wrap.get(), passed, self.size),
            _ => true,
        }
    }

    pub(super) fn next_position(&self) -> u16 {
        self.next_avail.off_wrap()
    }

    #[inline(always)]
    pub(super) fn take(&mut self) -> Result<Option<Used<T>>, DeviceFault> {
        let (id, written) = match self.batch {
            Some(batch) => batch,
            None => match self.read_used()? {
                Some(used) => used,
                None => return Ok(None),
            },
        };
        if !self.features.contains(Features::IN_ORDER) {
            return self.end(id, Some(written)).map(Some);
        }
        // The descriptor stands for all chains up to its own (§2.8.11).
        let first = self
            .order
            .pop_front()
            .ok_or(DeviceFault::NotInFlight(id.into()))?;
        self.batch = (first != id).then_some((id, written));
        self.end(first, (first == id).then_some(written)).map(Some)
    }

    /// Reads the next used descriptor.
    #[inline(always)]
    fn read_used(&self) -> Result<Option<(u16, u32)>, DeviceFault> {
        let offset = self.next_used.offset() + 8;
        // Acquire: buffers are read after the flags. What is not ours to use has the flags that we wrote.
        let word = self.desc.load::<AtomicU64>(offset, Ordering::Acquire);
        let descriptor: Descriptor = transmute!([0, word]);
        if !self.next_used.is_used(descriptor.flags.get()) {
            return Ok(None);
        }
        let id = descriptor.id.get();
        if self
            .in_flight
            .get(usize::from(id))
            .is_none_or(Option::is_none)
        {
            return Err(DeviceFault::NotInFlight(id.into()));
        }
        Ok(Some((id, descriptor.len.get())))
    }

    #[inline(always)]
    fn end(&mut self, id: u16, written: Option<u32>) -> Result<Used<T>, DeviceFault> {
        let (chain, written) = end(&mut self.in_flight, id, written)?;
        self.ids.push(id);
        self.free += chain.slots;
        self.next_used = self.next_used.step(chain.slots, self.size);
        Ok(Used {
            token: chain.token,
            written,
        })
    }

    pub(super) fn disable_interrupts(&mut self) {
        self.write_event(EventSuppression {
            off_wrap: 0.into(),
            flags: packed::EVENT_DISABLE.into(),
        });
    }

    pub(super) fn enable_interrupts(&mut self) -> bool {
        self.write_event(if self.features.contains(Features::EVENT_IDX) {
            EventSuppression {
                off_wrap: self.next_used.off_wrap().into(),
                flags: packed::EVENT_DESC.into(),
            }
        } else {
            EventSuppression {
                off_wrap: 0.into(),
                flags: packed::EVENT_ENABLE.into(),
            }
        });
        // Our wish is published before the descriptor is read; the device does the same in the other order.
        fence(Ordering::SeqCst);
        self.batch.is_some() || !matches!(self.read_used(), Ok(None))
    }

    fn write_event(&self, event: EventSuppression) {
        self.driver_event
            .store::<AtomicU32>(0, transmute!(event), Ordering::Relaxed);
    }
}
