//! The machine: RAM, buses, board, processors.

mod board;
mod devices;
pub mod disk;
mod emulated;
mod iommu;
pub mod layout;
mod memory;
mod sriov;
pub mod stop;
mod vfio;
mod vhost_user;
mod virtio;
mod vpio;
pub(crate) mod watch;
mod xen;

use std::io::{self, Write};
use std::sync::Arc;

use iommu_emul::sidecore::Counters;
use pio_mmio_bus::bus::{Bus, BusError, BusReport};
use pio_mmio_bus::pci::{RootComplex, RootError};
use vm_memory::Bytes;
use vm_memory::GuestAddress;

pub use devices::{Nic, Peripherals};
pub use emulated::Emulated;
pub use iommu::{Iommu, IommuError, VtdOptions};
pub use memory::{Memory, MemoryError};
pub use sriov::{MAX_VIRTUAL_NICS, VirtualNic};
pub use vfio::{HostFunction, VfioError};
pub use vhost_user::{VhostUser, VhostUserError, VhostUserKind};
pub use virtio::{AttachError, Transport};
pub use vpio::{Denial, ModelledFunction, ModelledUse, VpioError};
pub(crate) use xen::Xen;
pub use xen::{Vif, XenDevices, XenError};

use crate::acpi::{self, Board};
use crate::boot::{self, BootError, Payload};
use crate::devices::edu::EduError;
use crate::devices::keyboard;
use crate::devices::serial::SerialPort;
use crate::irq::{Controller, ControllerError};
use crate::kvm::{self, Irqchip, KvmError, Vm};
use crate::vcpu::{self, Buses, Finished, Runner, StartError, VcpuThread, cpuid};
use board::Motherboard;
use devices::{Devices, Stoppable};
use iommu::Translation;
use layout::{FIRMWARE_ENTRY, Layout, LayoutError};
use stop::{Stop, StopSwitch};
use vfio::Assigned;
use virtio::Views;

/// What a machine is made of.
pub struct Config {
    /// Number of vCPUs, 1 to 254.
    pub cpus: u8,
    /// RAM in bytes.
    pub memory: u64,
    /// What it boots.
    pub payload: Payload,
    /// Its devices.
    pub peripherals: Peripherals,
    /// How the guest finds virtio devices.
    pub transport: Transport,
    /// What stands before the devices, and makes the machine one without legacy interrupt controllers and timer.
    pub iommu: Option<Iommu>,
    /// What the guest has of Xen, if it sees that.
    pub xen: Option<XenDevices>,
    /// Where the serial port prints.
    pub serial: Box<dyn Write + Send>,
    /// First of the four ports by which the guest ends the machine with a status ([`Stop::Exit`]), if there are any.
    pub debug_exit: Option<u16>,
    /// Whether the handling of exits is timed, for a report.
    pub timed: bool,
}

/// Why a machine could not be made or started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The number of vCPUs.
    #[error("{cpus} vCPUs are too many, this host can have {limit}")]
    Cpus {
        /// The number asked for.
        cpus: u8,
        /// What KVM can do.
        limit: usize,
    },
    /// The memory size.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// RAM could not be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The PCI root complex.
    #[error(transparent)]
    Pci(Box<RootError>),
    /// A virtio device.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A device to learn from.
    #[error(transparent)]
    Edu(#[from] EduError),
    /// The IOMMU.
    #[error(transparent)]
    Iommu(#[from] IommuError),
    /// The interrupt controller.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// Xen.
    #[error(transparent)]
    Xen(#[from] XenError),
    /// A function of the host.
    #[error(transparent)]
    Vfio(#[from] VfioError),
    /// A function of the host behind a model.
    #[error(transparent)]
    Vpio(#[from] VpioError),
    /// A device that another process serves.
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The firmware tables.
    #[error(transparent)]
    Acpi(#[from] acpi::TooLarge),
    /// The tables could not be written.
    #[error("guest memory: {0}")]
    Guest(#[from] vm_memory::GuestMemoryError),
    /// A vCPU.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A descriptor or thread.
    #[error("the host: {0}")]
    Host(#[from] io::Error),
}

impl From<RootError> for MachineError {
    fn from(error: RootError) -> Self {
        Self::Pci(Box::new(error))
    }
}

/// A machine that was made and not started.
pub struct Machine {
    buses: [Bus; 2],
    serial: Arc<SerialPort>,
    stop: Arc<StopSwitch>,
    runners: Vec<Runner>,
    root: Arc<RootComplex>,
    devices: Box<dyn Stoppable>,
    assigned: Assigned,
    translation: Option<Translation>,
    xen: Option<Arc<Xen>>,
}

impl Machine {
    /// Makes a machine: after this its guest only needs to be entered.
    pub fn new(config: Config) -> Result<Self, MachineError> {
        let kvm = kvm::open()?;
        let limit = kvm.get_max_vcpus();
        if usize::from(config.cpus) > limit {
            return Err(MachineError::Cpus {
                cpus: config.cpus,
                limit,
            });
        }
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::call("read the supported CPUID leaves"))?;
        let address_bits = cpuid::address_bits(&supported);
        let mut layout = Layout::new(config.memory, address_bits)?;
        if config.transport == Transport::PciPorts {
            layout = layout.with_last_pci_bus(config.peripherals.devices());
        }
        let shared = !config.peripherals.vhost_user.is_empty();
        if let Some(iommu) = config.iommu {
            if !config.peripherals.assigned.is_empty() && !iommu.shadows() {
                return Err(VfioError::Iommu.into());
            }
            if config.transport == Transport::Mmio {
                return Err(IommuError::Transport.into());
            }
            if config.xen.is_some() {
                return Err(XenError::Iommu.into());
            }
            if shared {
                return Err(VhostUserError::Iommu.into());
            }
        }
        let peer = config.xen.as_ref().is_some_and(|xen| xen.peer.is_some());
        let shared = shared || peer || !config.peripherals.shared.is_empty();
        let memory = memory::map(&layout, shared)?;
        let irqchip = config.iommu.map_or(Irqchip::Full, Iommu::irqchip);
        let vm = Vm::new(&kvm, memory.clone(), irqchip)?;
        let mut translation = config
            .iommu
            .map(|iommu| Translation::new(iommu, &vm, address_bits))
            .transpose()?;

        let controller = Controller::new(&vm, |router| match &translation {
            None => Arc::new(router),
            Some(translation) => translation.remapper(router),
        })?;
        let board = Motherboard::new(&vm, &layout, controller, config.serial, config.debug_exit)?;
        for bus in [&board.pio, &board.mmio] {
            bus.set_accounting(config.timed)?;
        }

        let xen = config
            .xen
            .map(|devices| Xen::new(&vm, &board, config.cpus, devices))
            .transpose()?;

        let Peripherals {
            assigned,
            modelled,
            shared,
            ..
        } = &config.peripherals;
        let assigned = Assigned::attach(
            (assigned, modelled, shared),
            &vm,
            &board,
            translation.as_ref(),
        )?;
        let (peripherals, transport) = (config.peripherals, config.transport);
        let (devices, slots) = match &mut translation {
            None => {
                let views = Views::plain(memory.clone());
                Devices::attach(peripherals, views, transport, &board)?
            }
            Some(translation) => {
                translation.place(&vm, &board)?;
                Devices::attach(peripherals, translation.views(), transport, &board)?
            }
        };

        let iommu = translation.as_ref().map(Translation::table).transpose()?;
        let tables = acpi::build(&Board {
            layout: &layout,
            cpus: config.cpus,
            virtio_mmio: &slots,
            iommu: iommu.as_ref(),
        })?;
        memory.write_slice(&tables.bytes, GuestAddress(tables.address))?;
        memory.write_slice(&keyboard::FIRMWARE, GuestAddress(FIRMWARE_ENTRY))?;
        let entry = boot::load(&memory, &layout, config.payload, tables.rsdp)?;

        let tsc_deadline = vm.check_extension(kvm_ioctls::Cap::TscDeadlineTimer);
        let mut runners = Vec::new();
        for index in 0..config.cpus {
            let vcpu = vm.create_vcpu(index)?;
            let mut cpuid = cpuid::for_vcpu(&supported, index, config.cpus, tsc_deadline);
            if let Some(xen) = &xen {
                cpuid = xen.prepare(index, &vcpu, &cpuid)?;
            }
            let entry = (index == 0).then_some(entry);
            vcpu::prepare(&vcpu, &cpuid, &memory, entry)?;
            runners.push(Runner {
                index,
                vcpu,
                buses: Buses {
                    pio: board.pio.reader(),
                    mmio: board.mmio.reader(),
                },
                stop: board.stop.clone(),
                panic: board.panic.clone(),
                ioapic: board.controller.ioapic().cloned(),
                xen: xen.clone(),
                timed: config.timed,
            });
        }
        Ok(Self {
            buses: [board.pio, board.mmio],
            serial: board.serial,
            stop: board.stop,
            runners,
            root: board.root,
            devices,
            assigned,
            translation,
            xen,
        })
    }

    /// The serial port, to type into.
    pub fn serial(&self) -> Arc<SerialPort> {
        self.serial.clone()
    }

    /// The switch that stops it.
    pub fn stop_switch(&self) -> Arc<StopSwitch> {
        self.stop.clone()
    }

    /// Enters the guest on all vCPUs.
    pub fn start(self) -> Result<Running, MachineError> {
        let mut running = Running {
            buses: self.buses,
            stop: self.stop,
            threads: Vec::new(),
            _root: self.root,
            devices: self.devices,
            assigned: self.assigned,
            translation: self.translation,
            xen: self.xen,
        };
        for runner in self.runners {
            match VcpuThread::spawn(runner) {
                Ok(thread) => running.threads.push(thread),
                Err(error) => {
                    running.stop.throw(Stop::Host(error.to_string()));
                    running.finish();
                    return Err(error.into());
                }
            }
        }
        Ok(running)
    }
}

/// A machine whose guest runs.
pub struct Running {
    buses: [Bus; 2],
    stop: Arc<StopSwitch>,
    threads: Vec<VcpuThread>,
    /// The configuration ports and window on the buses do not hold it themselves.
    _root: Arc<RootComplex>,
    devices: Box<dyn Stoppable>,
    assigned: Assigned,
    translation: Option<Translation>,
    xen: Option<Arc<Xen>>,
}

/// A machine that has stopped.
pub struct Stopped {
    /// Why.
    pub reason: Stop,
    /// The vCPUs, but for those whose thread panicked.
    pub vcpus: Vec<Finished>,
    /// What was accessed: ports, then memory.
    pub buses: [BusReport; 2],
    /// What the thread did that emulated the IOMMU, if there was one.
    pub sidecore: Option<Counters>,
    /// What was done with functions of the host behind models.
    pub modelled: Vec<ModelledUse>,
    /// Whether what the guest wrote to its disks is on stable storage.
    pub flushed: io::Result<()>,
}

impl Running {
    /// Waits until the machine stops, then ends it.
    pub fn wait(self) -> io::Result<Stopped> {
        stop::wait_readable(&[self.stop.event()])?;
        Ok(self.finish())
    }

    /// Ends all vCPUs and devices of a machine whose switch was thrown, or throws it.
    pub fn finish(self) -> Stopped {
        self.stop.throw(Stop::User);
        let vcpus = self
            .threads
            .into_iter()
            .filter_map(VcpuThread::join)
            .collect();
        self.assigned.stop();
        let pv = self.xen.as_ref().map_or(Ok(()), |xen| xen.stop());
        let flushed = self.devices.stop().and(pv);
        if let Some(translation) = &self.translation {
            translation.pause();
        }
        Stopped {
            flushed,
            sidecore: self.translation.as_ref().and_then(Translation::counters),
            modelled: self.assigned.used(),
            buses: self.buses.map(|bus| bus.report()),
            reason: self.stop.reason().cloned().unwrap_or(Stop::User),
            vcpus,
        }
    }
}
