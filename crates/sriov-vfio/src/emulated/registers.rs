use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::pci::spec::bar;
use pio_mmio_bus::pci::{BarKind, Capability, CapabilityHandler};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::layout::{Layout, VfBarLayout};
use crate::capability::VfBar;
use crate::spec::sriov::{
    CONTROL, Control, FIRST_VF_OFFSET, ID, INITIAL_VFS, LENGTH, NUM_VFS, PAGE_SHIFT, Registers,
    SUPPORTED_PAGE_SIZES, SYSTEM_PAGE_SIZE, TOTAL_VFS, VERSION, VF_BAR0, VF_DEVICE_ID, VF_STRIDE,
};

/// The bits of the control register that the guest may change.
const WRITABLE: Control = Control::VF_ENABLE
    .union(Control::MEMORY_ENABLE)
    .union(Control::ARI_CAPABLE_HIERARCHY);

/// The rules of the capability's registers, and what they hold.
pub(super) struct SriovRegisters {
    layout: Layout,
    current: Mutex<Registers>,
}

impl SriovRegisters {
    /// The layout must have been checked.
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            current: Mutex::new(Registers::new_zeroed()),
        }
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the registers hold.
    pub(super) fn current(&self) -> Registers {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The capability without its handler: values after a reset, and the bits that the guest may change at some time.
    pub(super) fn capability(&self) -> Capability {
        let Layout {
            total_vfs,
            first_vf_offset,
            vf_stride,
            vf_device_id,
            supported_page_sizes,
            bars,
        } = &self.layout;
        let mut capability = Capability::extended(ID, VERSION, LENGTH)
            .value(INITIAL_VFS, &total_vfs.to_le_bytes())
            .value(TOTAL_VFS, &total_vfs.to_le_bytes())
            .value(FIRST_VF_OFFSET, &first_vf_offset.to_le_bytes())
            .value(VF_STRIDE, &vf_stride.to_le_bytes())
            .value(VF_DEVICE_ID, &vf_device_id.to_le_bytes())
            .value(SUPPORTED_PAGE_SIZES, &supported_page_sizes.to_le_bytes())
            .value(SYSTEM_PAGE_SIZE, &1_u32.to_le_bytes())
            .writable(CONTROL, &WRITABLE.bits().to_le_bytes())
            .writable(NUM_VFS, &[0xff; 2])
            .writable(SYSTEM_PAGE_SIZE, &supported_page_sizes.to_le_bytes());
        for bar in bars {
            let offset = VF_BAR0 + 4 * bar.index;
            let mask = address_mask(bar, 1 << PAGE_SHIFT).to_le_bytes();
            let (mask, _) = mask.split_at(4 * bar.kind.registers());
            capability = capability
                .value(offset, &bar.kind.flags().to_le_bytes())
                .writable(offset, mask);
        }
        capability
    }

    /// What of `after` may follow `before`.
    fn allowed(&self, before: &Registers, after: &mut Registers) {
        let was = Control::from_bits_truncate(before.control.get());
        let mut control = Control::from_bits_truncate(after.control.get());
        if was.contains(Control::VF_ENABLE) {
            // What the virtual functions depend on stays as long as they exist (PCIe §9.3.3.3.5, §9.3.3.7, §9.3.3.13).
            after.num_vfs = before.num_vfs;
            after.system_page_size = before.system_page_size;
            if control.contains(Control::VF_ENABLE) {
                control.remove(Control::ARI_CAPABLE_HIERARCHY);
                control |= was & Control::ARI_CAPABLE_HIERARCHY;
            }
        }
        if after.num_vfs.get() > self.layout.total_vfs {
            control.remove(Control::VF_ENABLE);
        }
        after.control = control.bits().into();
        let page = after.system_page_size.get();
        if !page.is_power_of_two() || page & self.layout.supported_page_sizes == 0 {
            after.system_page_size = before.system_page_size;
        }
        let page = page_size(after);
        for bar in &self.layout.bars {
            let mask = address_mask(bar, page);
            let mut registers = after.vf_bars.iter_mut().skip(bar.index);
            if let Some(low) = registers.next() {
                let [a, b, c, d, ..] = mask.to_le_bytes();
                let address = low.get() & u32::from_le_bytes([a, b, c, d]);
                low.set(address | bar.kind.flags());
            }
            if bar.kind.registers() == 2
                && let Some(upper) = registers.next()
            {
                let [.., e, f, g, h] = mask.to_le_bytes();
                upper.set(upper.get() & u32::from_le_bytes([e, f, g, h]));
            }
        }
    }
}

/// Where virtual function `index`'s share of `bar` is, as the registers say; `None` while it is not decoded.
pub(super) fn share(registers: &Registers, bar: &VfBarLayout, index: u16) -> Option<u64> {
    let control = Control::from_bits_truncate(registers.control.get());
    if !control.contains(Control::VF_ENABLE | Control::MEMORY_ENABLE) {
        return None;
    }
    let register = |index: usize| registers.vf_bars.get(index).map(|bar| bar.get());
    let low = u64::from(register(bar.index)?) & !bar::MEMORY_FLAGS;
    let upper = match bar.kind {
        BarKind::Memory64 { .. } => u64::from(register(bar.index + 1)?),
        _ => 0,
    };
    let shares = VfBar {
        kind: bar.kind,
        base: upper << 32 | low,
    };
    shares
        .address(index, bar.size.max(page_size(registers)))
        .ok()
}

/// The system page size in bytes.
fn page_size(registers: &Registers) -> u64 {
    u64::from(registers.system_page_size.get()) << PAGE_SHIFT
}

/// The bits of the register(s) of `bar` that hold its address.
fn address_mask(bar: &VfBarLayout, page: u64) -> u64 {
    !(bar.size.max(page).saturating_sub(1))
}

impl CapabilityHandler for SriovRegisters {
    fn constrain(&self, before: &[u8], after: &mut [u8]) {
        if let (Ok(before), Ok(after)) = (
            Registers::ref_from_bytes(before),
            Registers::mut_from_bytes(after),
        ) {
            self.allowed(before, after);
        }
    }

    fn written(&self, registers: &[u8], _: Range<usize>) {
        if let Ok(registers) = Registers::ref_from_bytes(registers) {
            self.lock()
                .as_mut_bytes()
                .copy_from_slice(registers.as_bytes());
        }
    }
}
