//! A guest that does anything to PCI: configuration accesses through both mechanisms, BARs, MSI-X, the I/O APIC, and snapshots
//! with changed bytes.

use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus, BusDevice, BusReader};
use pio_mmio_bus::interrupt::{Ioapic, IrqLine, MsiRoute, RecordingRouter};
use pio_mmio_bus::pci::{
    Bar, BarKind, Capability, ConfigBuilder, ConfigPorts, ConfigSpace, Decoder, Ecam, Identity,
    InterruptPin, IntxPin, Msix, PortType, RequesterId, RootComplex, RootPort,
};

/// Vectors of the function.
const VECTORS: u16 = 3;
/// Where the configuration window is.
const ECAM: u64 = 0xb000_0000;

struct Machine {
    mmio: BusReader,
    pio: BusReader,
    router: RecordingRouter,
    ioapic: Arc<Ioapic>,
    msix: Arc<Msix>,
    routes: Vec<Arc<dyn MsiRoute>>,
    pin: Arc<IntxPin>,
    function: Arc<ConfigSpace>,
    port: Arc<RootPort>,
    _root: Arc<RootComplex>,
}

impl Machine {
    /// A function with MSI-X and three BARs behind a root port at 00:01.0.
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let (pio, mmio) = (Bus::new(AddressSpace::Pio)?, Bus::new(AddressSpace::Mmio)?);
        let router = RecordingRouter::new();
        let ioapic = Ioapic::new(RequesterId(0xf8ff), &router)?;
        mmio.insert(
            Ioapic::BASE,
            Ioapic::SIZE,
            "ioapic",
            Arc::clone(&ioapic) as _,
        )?;
        let decoder = Decoder::new(pio.clone(), mmio.clone());
        let lines = [16, 17, 18, 19].map(|pin| ioapic.line(pin));
        let [Some(a), Some(b), Some(c), Some(d)] = lines else {
            return Err("the I/O APIC has 24 pins".into());
        };
        let root = RootComplex::new(Arc::clone(&decoder), [a, b, c, d])?;
        let ports = Arc::new(ConfigPorts::new(&root));
        pio.insert(ConfigPorts::BASE, ConfigPorts::SIZE, "ports", ports)?;
        let ecam = Arc::new(Ecam::new(&root));
        mmio.insert(ECAM, Ecam::SIZE, "ecam", ecam)?;
        let msix = Msix::new(VECTORS, &router)?;
        let port = RootPort::new(&root, 1)?;
        let pin = port.intx().pin(0, InterruptPin::A);
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [0x01, 0x80, 0x00],
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let bar = |kind, size| Bar {
            kind,
            size,
            name: format!("{kind:?}"),
            device: Arc::clone(&msix) as Arc<dyn BusDevice>,
        };
        let function = ConfigBuilder::endpoint(identity)
            .bar(
                0,
                bar(BarKind::Memory64 { prefetchable: true }, msix.size()),
            )
            .bar(
                2,
                bar(
                    BarKind::Memory32 {
                        prefetchable: false,
                    },
                    1 << 28,
                ),
            )
            .bar(3, bar(BarKind::Io, 0x100))
            .interrupt(Arc::clone(&pin))
            .capability(msix.capability(0, 0))
            .capability(Capability::express(PortType::Endpoint))
            .build(&decoder)?;
        port.bus().insert(0, Arc::clone(&function) as _)?;
        Ok(Self {
            mmio: mmio.reader(),
            pio: pio.reader(),
            routes: (0..VECTORS)
                .filter_map(|vector| msix.route(vector))
                .collect(),
            router,
            ioapic,
            msix,
            pin,
            function,
            port,
            _root: root,
        })
    }

    /// One step, chosen and filled by 16 bytes.
    fn step(&mut self, step: [u8; 16]) {
        let [choice, width, a, b, c, d, e, f, value @ ..] = step;
        let width = usize::from(width % 8) + 1;
        let mut buffer = value;
        let data = buffer.get_mut(..width).unwrap_or_default();
        let address = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        match choice % 12 {
            0 => drop(self.mmio.write(address, data)),
            1 => drop(self.mmio.read(address, data)),
            2 => drop(self.mmio.write(ECAM + address % Ecam::SIZE, data)),
            3 => drop(self.mmio.read(ECAM + address % Ecam::SIZE, data)),
            // The configuration space of the port and of the function where the guest usually has it.
            4 => drop(self.mmio.write(ECAM + 0x8000 + address % 0x1000, data)),
            5 => drop(self.mmio.write(ECAM + 0x10_0000 + address % 0x1000, data)),
            6 => drop(self.pio.write(ConfigPorts::BASE + address % 16, data)),
            7 => drop(self.pio.read(ConfigPorts::BASE + address % 16, data)),
            8 => drop(self.mmio.write(Ioapic::BASE + address % 0x50, data)),
            9 => {
                self.pin.set_level(a & 1 != 0);
                self.ioapic.eoi(b);
                if let Some(route) = self.routes.get(usize::from(c)) {
                    let _ = route.trigger();
                }
            }
            10 => self.restore(a, usize::from(u16::from_le_bytes([b, c])), d),
            _ => drop(self.router.take()),
        }
    }

    /// Saves and restores, with a byte changed.
    fn restore(&self, what: u8, at: usize, byte: u8) {
        match what % 4 {
            0 => {
                let mut state = self.function.save();
                if let Some(register) = state.registers.get_mut(at) {
                    *register = byte;
                }
                let _ = self.function.restore(&state);
            }
            1 => {
                let mut state = self.port.save();
                if let Some(register) = state.registers.get_mut(at) {
                    *register = byte;
                }
                let _ = self.port.restore(&state);
            }
            2 => {
                let mut state = self.msix.save();
                if let Some(entry) = state.entries.get_mut(at % 4) {
                    entry.address = u64::from(byte) << (at % 64);
                    entry.pending = byte & 1 != 0;
                }
                let _ = self.msix.restore(&state);
            }
            _ => {
                let mut state = self.ioapic.save();
                if let Some(pin) = state.pins.get_mut(at % 32) {
                    pin.entry ^= u64::from(byte) << (at % 64);
                }
                let _ = self.ioapic.restore(&state);
            }
        }
    }
}

/// Takes `data` as accesses of 16 bytes each. Nothing may panic, and in the end the state of each part restores to itself.
pub fn pci(data: &[u8]) {
    let Ok(mut machine) = Machine::new() else {
        return;
    };
    for step in data.as_chunks().0.iter().take(1000) {
        machine.step(*step);
    }
    let _ = machine.router.take();
    machine.pin.set_level(false);
    let state = machine.function.save();
    assert!(machine.function.restore(&state).is_ok());
    assert_eq!(machine.function.save(), state);
    let state = machine.port.save();
    assert!(machine.port.restore(&state).is_ok());
    assert_eq!(machine.port.save(), state);
    let state = machine.ioapic.save();
    assert!(machine.ioapic.restore(&state).is_ok());
    let state = machine.msix.save();
    assert!(machine.msix.restore(&state).is_ok());
}
