//! A guest that does anything to a VT-d unit: registers, the invalidation queue, tables that change while they are walked, interrupt
//! remapping entries, the sidecore's page, and snapshots with changed fields.

use std::sync::Arc;

use iommu_emul::{
    mapping::{CostModel, Recording},
    shadow::Shadow,
    sidecore::{PageControl, PolledUnit},
    vtd::{Access, Config, DmaGuard, DmaView, Unit},
};
use pio_mmio_bus::{
    bus::BusDevice,
    interrupt::{InterruptError, MsiMessage, MsiSink},
    pci::RequesterId,
};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryMmap, Permissions,
};

use crate::input::Input;

type Memory = Arc<GuestMemoryMmap>;

/// Memory is from 0 to here: small, so that random tables point at each other.
const MEMORY: usize = 0x2_0000;
/// How many entries a shadow looks at.
const BUDGET: u64 = 4096;

struct Sink;

impl MsiSink for Sink {
    fn send(&self, _message: MsiMessage) -> Result<(), InterruptError> {
        Ok(())
    }
}

struct Trap;

impl PageControl for Trap {
    fn set_trapped(&self, _trapped: bool) {}
}

impl Input<'_> {
    /// A number with few bits set, or any: what tables and registers are made of.
    fn entry(&mut self) -> u64 {
        let kind = self.byte();
        let low = u64::from(self.byte());
        match kind % 4 {
            // A pointer into memory with flags.
            0 | 1 => (u64::from(self.byte()) % 32) << 12 | low,
            2 => low << (self.byte() % 57),
            _ => self.u64(),
        }
    }
}

struct Guest {
    memory: Memory,
    unit: Arc<Unit<Memory>>,
    views: [DmaView<Memory>; 3],
    guards: Vec<DmaGuard<Memory>>,
    page: Memory,
    polled: PolledUnit<Memory, Memory>,
    _shadow: Arc<Shadow<Memory, Recording>>,
}

impl Guest {
    /// None if the machine cannot give the memory.
    fn new(features: u8) -> Option<Self> {
        let on = |bit: u8| features >> bit & 1 != 0;
        let config = Config {
            levels: 3 + features % 3,
            caching_mode: on(2),
            scalable: on(3),
            first_stage: on(3) && on(4),
            nested: on(3) && on(4) && on(5),
            pasid_bits: if on(3) { 20 } else { 0 },
            device_tlb: on(6),
            posted_interrupts: on(7),
            fault_records: 2,
            ..Config::default()
        };
        let capabilities = config.capabilities().ok()?;
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).ok()?);
        let page: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).ok()?);
        let unit = Unit::new(capabilities, memory.clone(), Arc::new(Sink));
        let device = RequesterId(0x8);
        Some(Self {
            views: [
                unit.view(device),
                unit.view(RequesterId(0x88)),
                unit.view_with_pasid(device, 1),
            ],
            guards: Vec::new(),
            polled: PolledUnit::new(unit.clone(), page.clone(), GuestAddress(0), Box::new(Trap)),
            _shadow: Shadow::new(
                unit.clone(),
                device,
                Recording::new(CostModel::default(), 0),
                BUDGET,
            ),
            memory,
            unit,
            page,
        })
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 10 {
            0 | 1 => {
                // A register, also of a width or at an offset that there is not.
                let at = u64::from(input.byte()) * 4 + u64::from(input.byte() == 0xff);
                let bytes = input.entry().to_le_bytes();
                let width = [4, 8, 8, 1].map(|width| bytes.get(..width).unwrap_or_default());
                let chosen = usize::from(input.byte() % 4);
                let _refused = self
                    .unit
                    .write(at, width.get(chosen).copied().unwrap_or_default());
                let _refused = self.unit.read(at, &mut [0; 8]);
            }
            2 | 3 => {
                let at =
                    GuestAddress((u64::from(input.byte()) << 9 | u64::from(input.byte())) & !7);
                let _outside = self.memory.write_obj(input.entry(), at);
            }
            4 => {
                // A descriptor, and the tail behind it.
                let tail = u64::from(input.byte()) * 16;
                let words = [input.entry(), input.entry()];
                for (word, i) in words.into_iter().zip(0..) {
                    let at = GuestAddress(0x8000 + tail.saturating_sub(16) + 8 * i);
                    let _outside = self.memory.write_obj(word, at);
                }
                let _done = self.unit.write(0x88, &tail.to_le_bytes());
            }
            5 | 6 => {
                let view = self.views.get(usize::from(input.byte() % 3));
                let (address, write) = (input.entry(), input.byte().is_multiple_of(2));
                let Some(view) = view else { return };
                let guard = view.memory();
                let access = if write { Access::Write } else { Access::Read };
                if let Some((to, length)) = guard.translate(GuestAddress(address), access) {
                    // What is translated is never in the interrupt address range, to the last byte.
                    let last = to.0.checked_add(length - 1);
                    assert!(last.is_some_and(|last| last < 0xfee0_0000 || to.0 > 0xfeef_ffff));
                    assert!(!(0xfee0_0000..=0xfeef_ffff).contains(&address));
                }
                let count = usize::from(input.byte()) << (input.byte() % 48);
                let permissions = if write {
                    Permissions::Write
                } else {
                    Permissions::Read
                };
                let found: usize = guard
                    .get_slices(GuestAddress(address), count.min(MEMORY * 4), permissions)
                    .map_or(0, |slices| {
                        slices.map_while(|slice| slice.ok()).map(|s| s.len()).sum()
                    });
                assert!(found <= count);
                if self.guards.len() < 4 {
                    self.guards.push(guard);
                }
            }
            7 => {
                let drop_at = usize::from(input.byte());
                if drop_at < self.guards.len() {
                    self.guards.swap_remove(drop_at);
                }
            }
            8 => {
                let message = MsiMessage {
                    requester: RequesterId(input.byte().into()),
                    address: 0xfee0_0000 | input.entry() & 0xf_ffff,
                    data: input.byte().into(),
                };
                let _blocked = self.unit.deliver(message);
            }
            _ => {
                let at = GuestAddress(u64::from(input.byte() % 32) * 8);
                let _written = self.page.write_obj(input.entry(), at);
                self.polled.poll();
            }
        }
    }
}

/// Carries a program out, saves and restores what it ended in.
///
/// # Panics
///
/// On a finding.
pub fn iommu(data: &[u8]) {
    let mut input = Input(data);
    let Some(mut guest) = Guest::new(input.byte()) else {
        return;
    };
    while !input.0.is_empty() {
        guest.step(&mut input);
    }
    let state = guest.unit.save();
    guest.guards.clear();
    let restored = Unit::restore(
        guest.unit.capabilities().clone(),
        guest.memory.clone(),
        Arc::new(Sink),
        state,
    );
    assert!(restored.is_ok(), "a unit's own state was refused");
}

/// Restores a snapshot whose fields are the input's, and uses what was accepted.
///
/// # Panics
///
/// On a finding.
pub fn iommu_snapshot(data: &[u8]) {
    let mut input = Input(data);
    let Some(guest) = Guest::new(input.byte()) else {
        return;
    };
    let Ok(mut state) = serde_json::to_value(guest.unit.save()) else {
        return;
    };
    while !input.0.is_empty() {
        change(&mut state, &mut input);
    }
    let Ok(state) = serde_json::from_value(state) else {
        return;
    };
    let restored = Unit::restore(
        guest.unit.capabilities().clone(),
        guest.memory.clone(),
        Arc::new(Sink),
        state,
    );
    if let Ok(unit) = restored {
        let view = unit.view(RequesterId(8));
        let _blocked = view.memory().translate(GuestAddress(0x1000), Access::Write);
        let _done = unit.write(0x88, &0x10_u64.to_le_bytes());
        unit.reset();
    }
}

/// Changes one number somewhere in `value`.
fn change(value: &mut serde_json::Value, input: &mut Input<'_>) {
    match value {
        serde_json::Value::Object(fields) => {
            let which = usize::from(input.byte()) % fields.len().max(1);
            if let Some(field) = fields.values_mut().nth(which) {
                change(field, input);
            }
        }
        serde_json::Value::Array(items) => {
            let which = usize::from(input.byte()) % items.len().max(1);
            if let Some(item) = items.get_mut(which) {
                change(item, input);
            }
        }
        serde_json::Value::Number(_) => *value = input.entry().into(),
        _ => {
            input.byte();
        }
    }
}
