use std::sync::{Arc, atomic::Ordering};

use pio_mmio_bus::interrupt::MsiSink;
use serde::{Deserialize, Serialize};

use super::{
    Capabilities, PhysicalMemory, Unit,
    fault_log::FaultLog,
    interrupt::InterruptTable,
    registers::{QueueRegisters, Registers},
    unit::lock,
};
use crate::spec::register::{Global, ccmd, iotlb};

/// What a guest could observe of a unit after migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitState {
    /// CAP and ECAP: the state is of a unit with these.
    capabilities: [u64; 2],
    status: u32,
    root: u64,
    /// The root table address as latched.
    root_latched: u64,
    translation: bool,
    context: u64,
    faults: FaultLog,
    queue: QueueRegisters,
    interrupt_table: u64,
    /// The interrupt remapping table address as latched.
    interrupt_table_latched: u64,
    invalidate_address: u64,
    iotlb: u64,
}

/// Why a [`UnitState`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It was saved from a unit with other capabilities.
    #[error("saved with capabilities {saved:#x?}, restored with {own:#x?}")]
    Capabilities {
        /// CAP and ECAP of the unit that was saved.
        saved: [u64; 2],
        /// CAP and ECAP of the unit to restore.
        own: [u64; 2],
    },
    /// A register holds what it cannot hold.
    #[error("{0} is not a possible value of its register")]
    Register(&'static str),
}

impl<M: PhysicalMemory> Unit<M> {
    /// The unit's state. Commands that wait for guards are saved as not complete; restored, they are, for no guard is left. Messages
    /// that a sidecore has still to send are sent now.
    pub fn save(&self) -> UnitState {
        self.send_all(self.take_events());
        let registers = self.lock_registers();
        let Registers {
            status,
            root,
            context,
            faults,
            queue,
            interrupt_table,
            invalidate_address,
            iotlb,
            drain: _,
            outbox: _,
            limits: _,
        } = &*registers;
        UnitState {
            capabilities: [self.capabilities().cap(), self.capabilities().ecap()],
            status: status.bits(),
            root: *root,
            root_latched: self.root.load(Ordering::Acquire),
            translation: self.enabled.load(Ordering::Acquire),
            context: *context,
            faults: faults.clone(),
            queue: *queue,
            interrupt_table: *interrupt_table,
            interrupt_table_latched: lock(&self.interrupts).address,
            invalidate_address: *invalidate_address,
            iotlb: *iotlb,
        }
    }

    /// A unit in a saved state. Routes resolve when their devices are restored.
    ///
    /// # Errors
    ///
    /// If the state is not one that a unit with these capabilities can be in.
    pub fn restore(
        capabilities: Capabilities,
        memory: M,
        sink: Arc<dyn MsiSink>,
        state: UnitState,
    ) -> Result<Arc<Self>, StateError> {
        let UnitState {
            capabilities: saved,
            status,
            root,
            root_latched,
            translation,
            context,
            faults,
            queue,
            interrupt_table,
            interrupt_table_latched,
            invalidate_address,
            iotlb,
        } = state;
        let own = [capabilities.cap(), capabilities.ecap()];
        if saved != own {
            return Err(StateError::Capabilities { saved, own });
        }
        let status = Global::from_bits(status).ok_or(StateError::Register("GSTS"))?;
        let mut registers = Registers::new(&capabilities);
        registers.status = status;
        registers.status.set(Global::TRANSLATION, translation);
        registers.root = root;
        registers.context = context & !ccmd::ICC;
        registers.faults = faults;
        registers.queue = queue;
        registers.interrupt_table = interrupt_table;
        registers.invalidate_address = invalidate_address;
        registers.iotlb = iotlb & !iotlb::IVT;
        registers
            .check(&capabilities)
            .map_err(StateError::Register)?;
        if !registers.limits.root(root_latched) {
            return Err(StateError::Register("latched RTADDR"));
        }
        if !registers.limits.interrupt_table(interrupt_table_latched) {
            return Err(StateError::Register("latched IRTA"));
        }
        let table = InterruptTable {
            enabled: status.contains(Global::INTERRUPT_REMAPPING),
            compatibility: status.contains(Global::COMPATIBILITY_FORMAT),
            address: interrupt_table_latched,
        };
        let unit = Self::assemble(
            capabilities,
            memory,
            sink,
            registers,
            translation,
            root_latched,
            table,
        );
        let mut registers = unit.lock_registers();
        unit.run_queue(&mut registers);
        unit.unlock_registers(registers);
        Ok(unit)
    }

    /// Puts the unit in its state after reset. What waited for guards is forgotten.
    pub fn reset(&self) {
        let mut registers = self.lock_registers();
        let Registers {
            status,
            root,
            context,
            faults,
            queue,
            interrupt_table,
            invalidate_address,
            iotlb,
            drain,
            outbox,
            limits: _,
        } = &mut *registers;
        let fresh = Registers::new(self.capabilities());
        *status = fresh.status;
        *root = fresh.root;
        *context = fresh.context;
        *faults = fresh.faults;
        *queue = fresh.queue;
        *interrupt_table = fresh.interrupt_table;
        *invalidate_address = fresh.invalidate_address;
        *iotlb = fresh.iotlb;
        drain.abandon();
        outbox.clear();
        self.enabled.store(false, Ordering::Release);
        self.root.store(0, Ordering::Release);
        *lock(&self.interrupts) = InterruptTable::default();
        self.invalidate(&super::Invalidation::All);
        self.routes.resolve(None);
        self.unlock_registers(registers);
    }
}
