//! What every machine has: the legacy ports and the PCI root complex, placed on the buses.

use std::io::Write;
use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus, BusDevice};
use pio_mmio_bus::interrupt::Ioapic;
use pio_mmio_bus::pci::{ConfigPorts, Decoder, Ecam, RootComplex};

use super::MachineError;
use super::layout::{IOAPIC, Layout};
use super::stop::StopSwitch;
use crate::devices::cmos::{self, Cmos};
use crate::devices::exit::{self, DebugExit};
use crate::devices::keyboard::{self, KeyboardController};
use crate::devices::panic::{self, PanicPort};
use crate::devices::power::{self, SleepRegisters};
use crate::devices::serial::{self, SerialPort};
use crate::irq::{self, Controller, IoEvents};
use crate::kvm::Vm;

/// The buses and what is always on them.
pub(super) struct Motherboard {
    pub(super) pio: Bus,
    pub(super) mmio: Bus,
    pub(super) root: Arc<RootComplex>,
    pub(super) controller: Controller,
    pub(super) serial: Arc<SerialPort>,
    pub(super) panic: Arc<PanicPort>,
    pub(super) stop: Arc<StopSwitch>,
}

impl Motherboard {
    pub(super) fn new(
        vm: &Vm,
        layout: &Layout,
        controller: Controller,
        output: Box<dyn Write + Send>,
        debug_exit: Option<u16>,
    ) -> Result<Self, MachineError> {
        let pio = Bus::new(AddressSpace::Pio)?;
        let mmio = Bus::new(AddressSpace::Mmio)?;
        for bus in [&pio, &mmio] {
            bus.set_doorbell_binder(Some(Arc::new(IoEvents::new(vm.clone()))))?;
        }
        if let Some(ioapic) = controller.ioapic() {
            mmio.insert(IOAPIC, Ioapic::SIZE, "I/O APIC", ioapic.clone())?;
        }
        let line = |pin| controller.line(irq::intx_gsi(0, pin));
        let lines = [line(0)?, line(1)?, line(2)?, line(3)?];
        let root = RootComplex::new(Decoder::new(pio.clone(), mmio.clone()), lines)?;
        let stop = Arc::new(StopSwitch::new()?);
        let panic = Arc::new(PanicPort::default());
        let interrupt = controller.edge_line(serial::IRQ)?;
        let serial = Arc::new(SerialPort::new(interrupt, output));
        let ports: [(u64, u64, &str, Arc<dyn BusDevice>); 6] = [
            (
                serial::BASE.into(),
                serial::SIZE.into(),
                "serial port",
                serial.clone(),
            ),
            (
                keyboard::BASE.into(),
                keyboard::SIZE.into(),
                "keyboard controller",
                Arc::new(KeyboardController::new(stop.clone())),
            ),
            (
                cmos::BASE.into(),
                cmos::SIZE.into(),
                "clock",
                Arc::new(Cmos::default()),
            ),
            (
                power::BASE.into(),
                power::SIZE.into(),
                "sleep registers",
                Arc::new(SleepRegisters::new(stop.clone())),
            ),
            (panic::PORT.into(), 1, "panic port", panic.clone()),
            (
                ConfigPorts::BASE,
                ConfigPorts::SIZE,
                "PCI configuration ports",
                Arc::new(ConfigPorts::new(&root)),
            ),
        ];
        for (base, size, name, device) in ports {
            pio.insert(base, size, name, device)?;
        }
        if let Some(port) = debug_exit {
            let device = Arc::new(DebugExit::new(stop.clone()));
            pio.insert(port.into(), exit::SIZE.into(), "debug exit", device)?;
        }
        let ecam = layout.ecam();
        mmio.insert(
            ecam.start,
            ecam.end.saturating_sub(ecam.start),
            "PCI configuration window",
            Arc::new(Ecam::new(&root)),
        )?;
        Ok(Self {
            pio,
            mmio,
            root,
            controller,
            serial,
            panic,
            stop,
        })
    }
}
