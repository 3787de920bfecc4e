use std::sync::atomic::Ordering;

use pio_mmio_bus::{
    bus::{AccessError, BusDevice},
    interrupt::MsiMessage,
};

use super::{
    Capabilities, Invalidation, PhysicalMemory, Unit,
    drain::{Drain, Waiter},
    event::Event,
    fault_log::FaultLog,
    unit::lock,
};
use crate::spec::{
    fault::FaultRecord,
    invalidation::{ContextScope, IotlbScope},
    low16, low32,
    register::{Global, ICS_IWC, VERSION, ccmd, iotlb, irta, offset, queue, rtaddr},
};

/// The registers that hold state, besides what translation and interrupt remapping latched of them.
#[derive(Debug)]
pub(super) struct Registers {
    /// GSTS.
    pub status: Global,
    pub root: u64,
    pub context: u64,
    pub faults: FaultLog,
    pub queue: QueueRegisters,
    pub interrupt_table: u64,
    pub invalidate_address: u64,
    pub iotlb: u64,
    pub drain: Drain,
    /// Messages to send once the lock is free.
    pub outbox: Vec<MsiMessage>,
    pub limits: Limits,
}

/// What the capabilities leave writable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Addresses of the guest.
    host: u64,
    root: u64,
    interrupt_table: u64,
    /// Extended interrupt mode exists.
    extended: bool,
}

impl Limits {
    fn new(capabilities: &Capabilities) -> Self {
        let config = capabilities.config();
        let host = u64::MAX >> (64 - config.host_address_width);
        // Modes that do not exist are reserved.
        let (root, table) = (rtaddr::WRITABLE & host, irta::WRITABLE & host);
        Self {
            host,
            root: if config.scalable { root } else { root & !0xfff },
            interrupt_table: if config.extended_interrupts {
                table
            } else {
                table & !(1 << 11)
            },
            extended: config.extended_interrupts,
        }
    }

    /// Whether RTADDR can hold a value.
    pub fn root(&self, value: u64) -> bool {
        value & !self.root == 0
    }

    /// Whether IRTA can hold a value.
    pub fn interrupt_table(&self, value: u64) -> bool {
        value & !self.interrupt_table == 0
    }
}

/// The invalidation queue's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct QueueRegisters {
    pub head: u64,
    pub tail: u64,
    pub address: u64,
    /// ICS.
    pub completion: u32,
    pub event: Event,
    /// IQERCD.
    pub error: u64,
}

impl Registers {
    pub fn new(capabilities: &Capabilities) -> Self {
        Self {
            status: Global::empty(),
            root: 0,
            context: 0,
            faults: FaultLog::new(capabilities.config().fault_records),
            queue: QueueRegisters {
                head: 0,
                tail: 0,
                address: 0,
                completion: 0,
                event: Event::new(),
                error: 0,
            },
            interrupt_table: 0,
            invalidate_address: 0,
            iotlb: 0,
            drain: Drain::default(),
            outbox: Vec::new(),
            limits: Limits::new(capabilities),
        }
    }

    /// Checks that every register can hold what it holds; the error names one that cannot.
    pub fn check(&self, capabilities: &Capabilities) -> Result<(), &'static str> {
        let config = capabilities.config();
        let Self {
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
            limits,
        } = self;
        let mut possible = Global::all() - Global::WRITE_BUFFER_FLUSH;
        if !config.interrupt_remapping {
            possible -= Global::INTERRUPT_REMAPPING
                | Global::INTERRUPT_TABLE_POINTER
                | Global::COMPATIBILITY_FORMAT;
        }
        let carried_out = (3 << ccmd::CAIG_SHIFT, 3 << iotlb::IAIG_SHIFT);
        let indices = (queue.head | queue.tail) & !queue::INDEX_MASK == 0;
        let checks = [
            (possible.contains(*status), "GSTS"),
            (limits.root(*root), "RTADDR"),
            (context & !(ccmd::WRITABLE | carried_out.0) == 0, "CCMD"),
            (faults.valid(config.fault_records), "FSTS or FRCD"),
            (indices, "IQH or IQT"),
            (
                queue.address & !(queue::IQA_WRITABLE & (limits.host | 0xfff)) == 0,
                "IQA",
            ),
            (queue.completion & !ICS_IWC == 0, "ICS"),
            (queue.event.valid(), "IECTL"),
            (limits.interrupt_table(*interrupt_table), "IRTA"),
            (invalidate_address & !iotlb::IVA_WRITABLE == 0, "IVA"),
            (iotlb & !(iotlb::WRITABLE | carried_out.1) == 0, "IOTLB"),
        ];
        match checks.iter().find(|(possible, _)| !possible) {
            Some((_, register)) => Err(register),
            None => Ok(()),
        }
    }

    pub fn complete_context(&mut self) {
        let carried_out = ccmd::granularity(self.context) << ccmd::CAIG_SHIFT;
        self.context = self.context & ccmd::WRITABLE | carried_out;
    }

    pub fn complete_iotlb(&mut self) {
        let carried_out = iotlb::granularity(self.iotlb) << iotlb::IAIG_SHIFT;
        self.iotlb = self.iotlb & iotlb::WRITABLE | carried_out;
    }
}

/// `register` with its low or high half replaced.
fn replace_half(register: u64, high: bool, value: u32) -> u64 {
    if high {
        register & 0xffff_ffff | u64::from(value) << 32
    } else {
        register & !0xffff_ffff | u64::from(value)
    }
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

impl<M: PhysicalMemory> Unit<M> {
    /// Reads the aligned 64 bits at `offset`: one register, or two of 32 bits.
    fn read64(&self, registers: &Registers, at: u16) -> u64 {
        let Registers {
            status,
            root,
            context,
            faults,
            queue,
            interrupt_table,
            iotlb,
            ..
        } = registers;
        let config = self.capabilities().config();
        match at {
            offset::VER => VERSION.into(),
            offset::CAP => self.capabilities().cap(),
            offset::ECAP => self.capabilities().ecap(),
            offset::GCMD => pair(0, status.bits()),
            offset::RTADDR => *root,
            offset::CCMD => *context & !ccmd::WRITE_ONLY,
            0x30 => pair(0, faults.status()),
            offset::FECTL => pair(faults.event.read(0), faults.event.read(1)),
            offset::FEADDR => pair(faults.event.read(2), faults.event.read(3)),
            offset::IQH => queue.head,
            offset::IQT => queue.tail,
            offset::IQA => queue.address,
            0x98 => pair(0, queue.completion),
            offset::IECTL => pair(queue.event.read(0), queue.event.read(1)),
            offset::IEADDR => pair(queue.event.read(2), queue.event.read(3)),
            offset::IQERCD => queue.error,
            offset::IRTA => *interrupt_table,
            // Write-only.
            _ if at == config.iotlb_offset => 0,
            _ if at == config.iotlb_offset + 8 => *iotlb,
            _ => at
                .checked_sub(config.fault_record_offset)
                .map_or(0, |at| faults.read(at / 8)),
        }
    }

    /// The registers of the first 256 bytes, where all are that have a fixed place.
    pub(crate) fn read_page(&self) -> [u64; 32] {
        let registers = self.lock_registers();
        let mut words = [0; 32];
        for (word, at) in words.iter_mut().zip((0..).step_by(8)) {
            *word = self.read64(&registers, at);
        }
        words
    }

    /// Carries out writes of 32 bits.
    pub(crate) fn write_all(&self, writes: &[(u16, u32)]) {
        let mut registers = self.lock_registers();
        for &(at, value) in writes {
            self.write32(&mut registers, at, value);
        }
        self.unlock_registers(registers);
    }

    /// Writes the aligned 32 bits at `offset`. Commands in a 64-bit register run when the half that holds them is written.
    fn write32(&self, registers: &mut Registers, at: u16, value: u32) {
        let high = !at.is_multiple_of(8);
        let config = self.capabilities().config();
        match at {
            offset::GCMD => self.command(registers, Global::from_bits_truncate(value)),
            0x20 | 0x24 => {
                registers.root = replace_half(registers.root, high, value) & registers.limits.root;
            }
            0x28 | 0x2c => self.write_context_command(registers, high, value),
            offset::FSTS => {
                registers.faults.clear_status(value);
                self.run_queue(registers);
            }
            offset::FECTL..=0x47 => {
                let index = (at - offset::FECTL) / 4;
                let message = registers
                    .faults
                    .event
                    .write(index, value, registers.limits.extended);
                registers.outbox.extend(message);
            }
            offset::IQT => {
                registers.queue.tail = u64::from(value) & queue::INDEX_MASK;
                self.run_queue(registers);
            }
            0x90 | 0x94 => {
                registers.queue.address = replace_half(registers.queue.address, high, value)
                    & queue::IQA_WRITABLE
                    & (registers.limits.host | 0xfff);
            }
            offset::ICS => {
                registers.queue.completion &= !(value & ICS_IWC);
                if registers.queue.completion == 0 {
                    registers.queue.event.withdraw();
                }
            }
            offset::IECTL..=0xaf => {
                let index = (at - offset::IECTL) / 4;
                let message = registers
                    .queue
                    .event
                    .write(index, value, registers.limits.extended);
                registers.outbox.extend(message);
            }
            0xb8 | 0xbc => {
                registers.interrupt_table = replace_half(registers.interrupt_table, high, value)
                    & registers.limits.interrupt_table;
            }
            _ if at & !7 == config.iotlb_offset => {
                registers.invalidate_address =
                    replace_half(registers.invalidate_address, high, value) & iotlb::IVA_WRITABLE;
            }
            _ if at & !7 == config.iotlb_offset + 8 => {
                self.write_iotlb_command(registers, high, value);
            }
            _ => {
                let fault = u64::from(value) << 32 & FaultRecord::FAULT != 0;
                if let Some(at) = at.checked_sub(config.fault_record_offset)
                    && at % 16 == 12
                    && fault
                {
                    registers.faults.clear_record(at / 16);
                }
            }
        }
    }

    /// The global command register.
    fn command(&self, registers: &mut Registers, command: Global) {
        let config = self.capabilities().config();
        if command.contains(Global::ROOT_TABLE_POINTER) {
            self.root.store(registers.root, Ordering::Release);
            self.invalidate(&Invalidation::All);
            registers.status |= Global::ROOT_TABLE_POINTER;
        }
        if config.interrupt_remapping {
            self.command_interrupts(registers, command);
        }
        let queue = command.contains(Global::QUEUED_INVALIDATION);
        if queue != registers.status.contains(Global::QUEUED_INVALIDATION) {
            registers.status.set(Global::QUEUED_INVALIDATION, queue);
            registers.queue.head = 0;
            registers.drain.abandon_queue();
            self.run_queue(registers);
        }
        let translation = command.contains(Global::TRANSLATION);
        if translation != self.enabled.swap(translation, Ordering::AcqRel) {
            self.invalidate(&Invalidation::All);
            self.wait(registers, Waiter::Translation(translation));
        }
    }

    fn command_interrupts(&self, registers: &mut Registers, command: Global) {
        let mut table = *lock(&self.interrupts);
        if command.contains(Global::INTERRUPT_TABLE_POINTER) {
            table.address = registers.interrupt_table;
            registers.status |= Global::INTERRUPT_TABLE_POINTER;
        }
        table.enabled = command.contains(Global::INTERRUPT_REMAPPING);
        table.compatibility = command.contains(Global::COMPATIBILITY_FORMAT);
        let switches = Global::INTERRUPT_REMAPPING | Global::COMPATIBILITY_FORMAT;
        registers.status = (registers.status - switches) | (command & switches);
        let before = std::mem::replace(&mut *lock(&self.interrupts), table);
        if before != table {
            self.routes.resolve(None);
        }
    }

    fn write_context_command(&self, registers: &mut Registers, high: bool, value: u32) {
        if registers.context & ccmd::ICC != 0 {
            return;
        }
        let written = replace_half(registers.context, high, value);
        registers.context = written & ccmd::WRITABLE | registers.context & 3 << ccmd::CAIG_SHIFT;
        if !high || written & ccmd::ICC == 0 {
            return;
        }
        let (domain, source) = (low16(written), low16(written >> 16));
        let [mask, ..] = (written >> 32).to_le_bytes();
        let scope = ContextScope::decode(ccmd::granularity(written), domain, source, mask & 3);
        registers.context |= ccmd::ICC;
        if let Some(scope) = scope {
            self.invalidate(&Invalidation::Context(scope));
            self.wait(registers, Waiter::Context);
        } else {
            registers.complete_context();
        }
    }

    fn write_iotlb_command(&self, registers: &mut Registers, high: bool, value: u32) {
        if registers.iotlb & iotlb::IVT != 0 {
            return;
        }
        let written = replace_half(registers.iotlb, high, value);
        registers.iotlb = written & iotlb::WRITABLE | registers.iotlb & 3 << iotlb::IAIG_SHIFT;
        if !high || written & iotlb::IVT == 0 {
            return;
        }
        let scope = IotlbScope::decode(
            iotlb::granularity(written),
            iotlb::domain(written),
            registers.invalidate_address,
        );
        registers.iotlb |= iotlb::IVT;
        match scope {
            Some(IotlbScope::Pages(_, pages)) if pages.order > Capabilities::MAX_ADDRESS_MASK => {
                registers.iotlb &= iotlb::WRITABLE;
            }
            Some(scope) => {
                self.invalidate(&Invalidation::Iotlb(scope));
                self.wait(registers, Waiter::Iotlb);
            }
            None => registers.complete_iotlb(),
        }
    }
}

/// Accesses are 4 or 8 bytes wide and aligned; the specification leaves others undefined (§11.1), here they are refused. A write of
/// 8 bytes is one of the low half, then one of the high half.
impl<M: PhysicalMemory> BusDevice for Unit<M> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let at = checked(offset, data.len())?;
        let registers = self.lock_registers();
        let word = self.read64(&registers, at & !7);
        drop(registers);
        let bytes = if at % 8 == 0 { word } else { word >> 32 }.to_le_bytes();
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let at = checked(offset, data.len())?;
        let mut bytes = [0; 8];
        for (byte, value) in bytes.iter_mut().zip(data) {
            *byte = *value;
        }
        let value = u64::from_le_bytes(bytes);
        let mut registers = self.lock_registers();
        self.write32(&mut registers, at, low32(value));
        if data.len() == 8 {
            self.write32(&mut registers, at + 4, low32(value >> 32));
        }
        self.unlock_registers(registers);
        Ok(())
    }
}

fn checked(offset: u64, width: usize) -> Result<u16, AccessError> {
    match (u16::try_from(offset), width) {
        (Ok(at), 4) if at % 4 == 0 => Ok(at),
        (Ok(at), 8) if at % 8 == 0 => Ok(at),
        (Err(_), 4 | 8) => Err(AccessError::NoRegister { offset }),
        _ => Err(AccessError::Width { offset, width }),
    }
}
