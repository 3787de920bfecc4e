use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use pio_mmio_bus::interrupt::{InterruptError, MsiMessage, MsiRoute, MsiRouter};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::IOAPIC_PINS;
use crate::kvm::{Irqchip, Vm};

/// Size of KVM's routing table (`KVM_MAX_IRQ_ROUTES`).
const MAX_ROUTES: u32 = 4096;
/// Entries that the pins of the legacy controllers take besides those of the I/O APIC.
const LEGACY_ROUTES: u32 = 16;

/// The routing table as KVM was told, and the GSIs that are taken.
#[derive(Debug, Default)]
struct Table {
    /// `None` for a route that is allocated but not connected.
    messages: BTreeMap<u32, Option<MsiMessage>>,
}

/// Routes messages through KVM's GSI routing table. GSIs that are pins of an in-kernel I/O APIC are left to it; of one in user
/// space they are the first that are handed out.
#[derive(Clone, Debug)]
pub struct KvmRouter {
    vm: Vm,
    table: Arc<Mutex<Table>>,
}

impl KvmRouter {
    /// A router for `vm`, of which there must be only one.
    pub fn new(vm: Vm) -> Self {
        Self {
            vm,
            table: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Points `gsi` at `message`. Told to KVM only when it changes something: each update waits for all vCPUs.
    fn route(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut table = self.lock();
        let previous = table.messages.insert(gsi, Some(message)).flatten();
        if previous == Some(message) {
            return Ok(());
        }
        let entries = table.entries(self.vm.irqchip());
        let told = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from(io::ErrorKind::StorageFull))
            .and_then(|routing| Ok(self.vm.set_gsi_routing(&routing)?));
        if told.is_err() {
            table.messages.insert(gsi, previous);
        }
        told
    }
}

impl Table {
    /// The whole table: the pins of in-kernel controllers one to one, then the messages.
    fn entries(&self, irqchip: Irqchip) -> Vec<kvm_irq_routing_entry> {
        let pin = |gsi, irqchip, pin| {
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
            entry
        };
        let master = (0..8).map(|gsi| pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
        let slave = (8..16).map(|gsi| pin(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8));
        let ioapic = (0..IOAPIC_PINS).map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
        let pins = (irqchip == Irqchip::Full).then(|| master.chain(slave).chain(ioapic));
        let messages = self.messages.iter().filter_map(|(gsi, message)| {
            let message = (*message)?;
            let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
            let mut entry = kvm_irq_routing_entry {
                gsi: *gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: u32::from_le_bytes([a, b, c, d]),
                address_hi: u32::from_le_bytes([e, f, g, h]),
                data: message.data,
                ..Default::default()
            };
            Some(entry)
        });
        pins.into_iter().flatten().chain(messages).collect()
    }
}

impl MsiRouter for KvmRouter {
    fn allocate(&self) -> Result<Arc<dyn MsiRoute>, InterruptError> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let mut gsis = match self.vm.irqchip() {
            Irqchip::Full => IOAPIC_PINS..MAX_ROUTES - LEGACY_ROUTES,
            Irqchip::Split => 0..MAX_ROUTES,
        };
        let limit = gsis.len();
        let mut table = self.lock();
        let gsi = gsis
            .find(|gsi| !table.messages.contains_key(gsi))
            .ok_or(InterruptError::NoRoute { limit })?;
        table.messages.insert(gsi, None);
        drop(table);
        Ok(Arc::new(Route {
            router: self.clone(),
            gsi,
            event,
            connected: Mutex::new(false),
        }))
    }
}

/// A GSI and the eventfd that raises it. While it is not connected, signals stay in the eventfd.
struct Route {
    router: KvmRouter,
    gsi: u32,
    event: EventFd,
    connected: Mutex<bool>,
}

impl MsiRoute for Route {
    fn eventfd(&self) -> &EventFd {
        &self.event
    }

    fn update(&self, message: Option<MsiMessage>) -> Result<(), InterruptError> {
        let mut connected = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let vm = &self.router.vm;
        match message {
            Some(message) => {
                self.router.route(self.gsi, message)?;
                if !*connected {
                    vm.register_irqfd(&self.event, self.gsi)
                        .map_err(io::Error::from)?;
                }
            }
            None if *connected => vm
                .unregister_irqfd(&self.event, self.gsi)
                .map_err(io::Error::from)?,
            None => {}
        }
        *connected = message.is_some();
        Ok(())
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        // A route that cannot be unregistered only wastes its GSI.
        if self.update(None).is_ok() {
            self.router.lock().messages.remove(&self.gsi);
        }
    }
}
