use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::{
    Capabilities, Invalidation, PhysicalMemory, Unit, drain::Waiter, memory::read_words,
    registers::Registers,
};
use crate::spec::{
    invalidation::{Descriptor, DescriptorError, IotlbScope, Pages, Wait},
    register::{FaultStatus, Global, ICS_IWC, QueueError, queue},
};

impl<M: PhysicalMemory> Unit<M> {
    /// Works through the invalidation queue (§6.5.2) until it is empty, an error stops it or a wait holds it: at most as many
    /// descriptors as the queue has.
    pub(super) fn run_queue(&self, registers: &mut Registers) {
        while registers.status.contains(Global::QUEUED_INVALIDATION)
            && registers.queue.head != registers.queue.tail
            && !registers.faults.queue_stopped()
            && !registers.drain.holds_queue()
        {
            let descriptor = match self.fetch(registers) {
                Ok(descriptor) => descriptor,
                Err(error) => {
                    registers.queue.error = error as u64;
                    let message = registers.faults.set(FaultStatus::IQE);
                    registers.outbox.extend(message);
                    return;
                }
            };
            match descriptor {
                Descriptor::Wait(wait) => {
                    // The head moves when the wait is over.
                    self.wait(registers, Waiter::Queue(wait));
                    continue;
                }
                Descriptor::ContextCache(scope) => {
                    self.invalidate(&Invalidation::Context(scope));
                }
                Descriptor::PasidCache(scope) => self.invalidate(&Invalidation::Pasid(scope)),
                Descriptor::Iotlb(scope) => self.invalidate(&Invalidation::Iotlb(scope)),
                Descriptor::PasidIotlb {
                    domain,
                    pasid,
                    pages,
                } => self.invalidate(&Invalidation::PasidIotlb {
                    domain,
                    pasid,
                    pages,
                }),
                Descriptor::InterruptEntryCache(scope) => self.routes.resolve(Some(scope)),
                // Views cache nothing beyond the IOTLB, whose own invalidation comes first (§6.5.2.5).
                Descriptor::DeviceTlb { .. } => {}
            }
            advance(registers);
        }
    }

    fn fetch(&self, registers: &Registers) -> Result<Descriptor, QueueError> {
        let (address, head, tail) = (
            registers.queue.address,
            registers.queue.head,
            registers.queue.tail,
        );
        let size = queue::size(address);
        if tail >= size || head >= size {
            return Err(QueueError::Tail);
        }
        let wide = queue::wide(address);
        if wide && (tail | head) & 0x10 != 0 {
            return Err(QueueError::TailAlignment);
        }
        let at = queue::address(address)
            .checked_add(head)
            .ok_or(QueueError::Fetch)?;
        let memory = self.memory().memory();
        let words = if wide {
            read_words(&*memory, at).ok_or(QueueError::Fetch)?
        } else {
            let [low, high] = read_words(&*memory, at).ok_or(QueueError::Fetch)?;
            [low, high, 0, 0]
        };
        let descriptor = Descriptor::decode(words).map_err(|error| match error {
            DescriptorError::Type => QueueError::Type,
            DescriptorError::Reserved => QueueError::Reserved,
        })?;
        let scalable = self.capabilities().config().scalable;
        let too_large = |pages: Pages| pages.order > Capabilities::MAX_ADDRESS_MASK;
        match descriptor {
            Descriptor::PasidCache(_) | Descriptor::PasidIotlb { .. } if !scalable => {
                Err(QueueError::Type)
            }
            Descriptor::Iotlb(IotlbScope::Pages(_, pages))
            | Descriptor::PasidIotlb {
                pages: Some(pages), ..
            } if too_large(pages) => Err(QueueError::Reserved),
            descriptor => Ok(descriptor),
        }
    }

    /// A wait descriptor is done: status write, completion event, next descriptor (§6.5.2.8, §6.5.2.9).
    pub(super) fn complete_wait(&self, registers: &mut Registers, wait: Wait) {
        if wait.status_write {
            // A status address that is not memory loses the write, as on hardware.
            let _lost = self.memory().memory().store(
                wait.data.to_le(),
                GuestAddress(wait.address),
                Ordering::Release,
            );
        }
        if wait.interrupt && registers.queue.completion & ICS_IWC == 0 {
            registers.queue.completion |= ICS_IWC;
            let message = registers.queue.event.raise();
            registers.outbox.extend(message);
        }
        advance(registers);
    }
}

/// Moves the head to the next descriptor. The guest may have disabled the queue or changed its address meanwhile: then the head
/// is wherever that put it, within the register.
fn advance(registers: &mut Registers) {
    let width = if queue::wide(registers.queue.address) {
        32
    } else {
        16
    };
    let next = registers.queue.head + width;
    registers.queue.head = if next >= queue::size(registers.queue.address) {
        0
    } else {
        next & queue::INDEX_MASK
    };
}
