use std::ops::Range;
use std::sync::Arc;

use pio_mmio_bus::bus::BusDevice;
use pio_mmio_bus::pci::spec::capability_id;
use pio_mmio_bus::pci::{Capability, CapabilityHandler, RequesterId};
use vm_memory::GuestAddressSpace;

use super::super::spec::pci::{capability, common};
use super::parts::Renumbered;
use super::registers::{BarRegisters, layout};
use super::{BAR, bar_size};

/// The capabilities that tell the driver where the virtio structures are (virtio 1.3 §4.1.4).
pub(super) fn capabilities<M>(
    registers: &Arc<BarRegisters<M>>,
    renumbered: Option<Renumbered>,
) -> Vec<Capability>
where
    M: GuestAddressSpace + Send + Sync + 'static,
{
    let notify = bar_size(registers.kicks().len()) - layout::NOTIFY;
    vec![
        structure(capability::COMMON, layout::COMMON, common::LENGTH),
        structure(capability::ISR, layout::ISR, 1),
        structure(
            capability::DEVICE,
            layout::DEVICE,
            layout::NOTIFY - layout::DEVICE,
        ),
        structure(capability::NOTIFY, layout::NOTIFY, notify)
            .value(capability::EXTRA, &layout::NOTIFY_MULTIPLIER.to_le_bytes()),
        structure(capability::CONFIG_ACCESS, 0, 0)
            .writable(capability::BAR, &[0xff])
            .writable(capability::OFFSET, &[0xff; 12])
            .handler(Arc::new(ConfigAccess {
                bar: Arc::clone(registers),
                renumbered,
            })),
    ]
}

fn structure(kind: u8, offset: u64, length: u64) -> Capability {
    let [short, long] = capability::SIZES;
    let size = match kind {
        capability::NOTIFY | capability::CONFIG_ACCESS => long,
        _ => short,
    };
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    Capability::standard(capability_id::VENDOR, size)
        .value(
            capability::CAP_LEN,
            &[u8::try_from(size).unwrap_or(u8::MAX), kind, BAR],
        )
        .value(capability::OFFSET, &word(offset))
        .value(capability::LENGTH, &word(length))
}

/// The window onto the BAR for those who cannot map it, such as firmware (virtio 1.3 §4.1.4.9). It reaches the virtio structures only.
/// It also hears what happens to the function.
struct ConfigAccess<M> {
    bar: Arc<BarRegisters<M>>,
    renumbered: Option<Renumbered>,
}

const WINDOW: Range<usize> = capability::EXTRA..capability::EXTRA + 4;

/// Where the driver has pointed the window: offset in the BAR and length.
fn target(registers: &[u8]) -> Option<(u64, usize)> {
    let word = |at: usize| {
        let bytes = registers.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let offset = word(capability::OFFSET)?;
    let length = word(capability::LENGTH)?;
    let bar = *registers.get(capability::BAR)?;
    let aligned = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
    (bar == BAR && aligned).then_some((u64::from(offset), usize::try_from(length).ok()?))
}

impl<M: GuestAddressSpace + Send + Sync> CapabilityHandler for ConfigAccess<M> {
    fn refresh(&self, registers: &mut [u8], range: Range<usize>) {
        if range.end <= WINDOW.start {
            return;
        }
        if let Some((offset, length)) = target(registers)
            && offset < bar_size(self.bar.kicks().len())
            && let Some(window) = registers
                .get_mut(WINDOW)
                .and_then(|window| window.get_mut(..length))
            && self.bar.read(offset, window).is_err()
        {
            window.fill(0xff);
        }
    }

    fn written(&self, registers: &[u8], range: Range<usize>) {
        // A reset or a restored snapshot writes everything, and is not an access.
        if range.end <= WINDOW.start || range == (0..registers.len()) {
            return;
        }
        if let Some((offset, length)) = target(registers)
            && offset < bar_size(self.bar.kicks().len())
            && let Some(data) = registers
                .get(WINDOW)
                .and_then(|window| window.get(..length))
        {
            // As on the bus, a write that a register does not take is ignored.
            let _ = self.bar.write(offset, data);
        }
    }

    fn set_bus_master(&self, enabled: bool) {
        self.bar.lock().set_bus_master(enabled);
    }

    fn set_requester(&self, requester: RequesterId) {
        if let Some(renumbered) = &self.renumbered {
            renumbered(requester);
        }
    }

    fn reset(&self) {
        self.bar.reset();
    }
}
