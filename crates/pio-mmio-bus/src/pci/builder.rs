use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU16};
use std::sync::{Arc, Mutex};

use super::bar::{Bar, BarKind, PlacedBar};
use super::capability::{Capability, Id};
use super::config::{ConfigSpace, Handled};
use super::decode::Decoder;
use super::intx::IntxPin;
use super::registers::Registers;
use super::spec::{
    CACHE_LINE_SIZE, CAPABILITIES_POINTER, CLASS_CODE, COMMAND, CONFIG_SPACE_SIZE,
    CONVENTIONAL_SIZE, Command, DEVICE_ID, FIRST_CAPABILITY, HEADER_TYPE, INTERRUPT_LINE,
    INTERRUPT_PIN, MULTI_FUNCTION, REVISION_ID, STATUS, SUBSYSTEM_ID, SUBSYSTEM_VENDOR_ID, Status,
    VENDOR_ID, bridge, capability_id, express,
};
use crate::bus::BusError;

/// Why a configuration space could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The header has no such BAR, or it is taken (also by the upper half of a 64-bit one).
    #[error("BAR {index}: no such register, or taken")]
    BarIndex {
        /// Number of the register.
        index: usize,
    },
    /// See [`BarKind::allows`].
    #[error("BAR {index}: {kind:?} cannot have {size:#x} bytes")]
    BarSize {
        /// Number of the register.
        index: usize,
        /// Its kind.
        kind: BarKind,
        /// The size asked for, in bytes.
        size: u64,
    },
    /// A capability is shorter than its header or does not fit behind those before it.
    #[error("no room for capability {id:#x} of {length} bytes")]
    CapabilityLength {
        /// Its identifier.
        id: u16,
        /// Its length in bytes.
        length: usize,
    },
    /// The bus refused the region of a BAR.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Who a function is (PCI §6.2.1, §6.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, subclass and programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor ID; a bridge shows none.
    pub subsystem_vendor: u16,
    /// Subsystem ID; a bridge shows none.
    pub subsystem: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Header {
    Endpoint,
    VirtualFunction,
    Bridge,
}

/// Builds a [`ConfigSpace`].
pub struct ConfigBuilder {
    header: Header,
    identity: Identity,
    multi_function: bool,
    bars: Vec<(usize, Bar)>,
    capabilities: Vec<Capability>,
    interrupt: Option<Arc<IntxPin>>,
}

impl ConfigBuilder {
    /// A function with a type 0 header.
    pub fn endpoint(identity: Identity) -> Self {
        Self::new(Header::Endpoint, identity)
    }

    /// An SR-IOV virtual function: a type 0 header in which most is read-only zero, for the physical function's registers hold; of the
    /// command register there is only Bus Master Enable, and no BARs or interrupt pin (PCIe 6.0 §9.3.4.1).
    pub fn virtual_function(identity: Identity) -> Self {
        Self::new(Header::VirtualFunction, identity)
    }

    /// A bridge: a type 1 header, with bus numbers and all windows for the guest to program (Bridge §3.2).
    pub fn bridge(identity: Identity) -> Self {
        Self::new(Header::Bridge, identity)
    }

    fn new(header: Header, identity: Identity) -> Self {
        Self {
            header,
            identity,
            multi_function: false,
            bars: Vec::new(),
            capabilities: Vec::new(),
            interrupt: None,
        }
    }

    /// Announces that the device has more functions. Function 0 must say so for the others to be found (PCI §6.2.1).
    pub fn multi_function(mut self) -> Self {
        self.multi_function = true;
        self
    }

    /// Adds a BAR whose first register is number `index`.
    pub fn bar(mut self, index: usize, bar: Bar) -> Self {
        self.bars.push((index, bar));
        self
    }

    /// Adds a capability. Each of the two lists has its capabilities in the order in which they are added.
    pub fn capability(mut self, capability: Capability) -> Self {
        self.capabilities.push(capability);
        self
    }

    /// Gives the function an interrupt pin.
    pub fn interrupt(mut self, pin: Arc<IntxPin>) -> Self {
        self.interrupt = Some(pin);
        self
    }

    /// The configuration space, with its BARs known to `decoder` and not yet decoded.
    pub fn build(self, decoder: &Arc<Decoder>) -> Result<Arc<ConfigSpace>, ConfigError> {
        let mut registers = Registers::new();
        self.define_header(&mut registers);
        let mut command = Command::BUS_MASTER;
        if self.header != Header::VirtualFunction {
            command |= Command::PARITY | Command::SERR | Command::INTX_DISABLE;
        }
        if self.header == Header::Bridge {
            define_bridge(&mut registers);
            command |= Command::IO | Command::MEMORY;
        }

        let mut bars: Vec<PlacedBar> = Vec::new();
        for (index, bar) in self.bars {
            let taken = |index| {
                bars.iter().any(|other| {
                    (other.index..other.index + other.kind.registers()).contains(&index)
                })
            };
            let count = match self.header {
                Header::Endpoint => 6_usize,
                Header::VirtualFunction => 0,
                Header::Bridge => 2,
            };
            let free = count.checked_sub(bar.kind.registers());
            if free.is_none_or(|last| index > last)
                || (index..index + bar.kind.registers()).any(taken)
            {
                return Err(ConfigError::BarIndex { index });
            }
            if !bar.kind.allows(bar.size) {
                return Err(ConfigError::BarSize {
                    index,
                    kind: bar.kind,
                    size: bar.size,
                });
            }
            PlacedBar::define(&mut registers, index, bar.kind, bar.size);
            command |= match bar.kind {
                BarKind::Io => Command::IO,
                _ => Command::MEMORY,
            };
            bars.push(PlacedBar {
                index,
                kind: bar.kind,
                region: decoder.region(bar.kind, bar.size, &bar.name, bar.device)?,
            });
        }
        registers.make_writable(COMMAND, &command.bits().to_le_bytes());

        let mut handlers = Vec::new();
        let mut device_control = None;
        let mut lists = Lists::default();
        for capability in self.capabilities {
            let window = lists.place(&mut registers, &capability)?;
            if capability.id == Id::Standard(capability_id::EXPRESS)
                && registers.u32(window.start + express::DEVICE_CAPABILITIES)
                    & express::FUNCTION_LEVEL_RESET
                    != 0
            {
                device_control = Some(window.start + express::DEVICE_CONTROL);
            }
            if let Some(handler) = capability.handler {
                handlers.push(Handled { window, handler });
            }
        }

        Ok(Arc::new(ConfigSpace {
            registers: Mutex::new(registers),
            bars,
            handlers,
            interrupt: self.interrupt,
            device_control,
            requester: AtomicU16::new(0),
            upstream: AtomicBool::new(true),
        }))
    }

    /// What both header types have.
    fn define_header(&self, registers: &mut Registers) {
        let Identity {
            vendor,
            device,
            revision,
            class: [base, sub, interface],
            subsystem_vendor,
            subsystem,
        } = self.identity;
        registers.define(VENDOR_ID, &vendor.to_le_bytes());
        registers.define(DEVICE_ID, &device.to_le_bytes());
        registers.define(REVISION_ID, &[revision]);
        registers.define(CLASS_CODE, &[interface, sub, base]);
        registers.make_clearable(STATUS, &Status::CLEARABLE.bits().to_le_bytes());
        if self.header != Header::VirtualFunction {
            registers.make_writable(CACHE_LINE_SIZE, &[0xff]);
            registers.make_writable(INTERRUPT_LINE, &[0xff]);
        }
        let kind = match self.header {
            Header::Endpoint | Header::VirtualFunction => 0,
            Header::Bridge => 1,
        };
        let multi_function = if self.multi_function {
            MULTI_FUNCTION
        } else {
            0
        };
        registers.define(HEADER_TYPE, &[kind | multi_function]);
        if self.header != Header::Bridge {
            registers.define(SUBSYSTEM_VENDOR_ID, &subsystem_vendor.to_le_bytes());
            registers.define(SUBSYSTEM_ID, &subsystem.to_le_bytes());
        }
        if let Some(pin) = &self.interrupt {
            registers.define(INTERRUPT_PIN, &[pin.pin().register()]);
        }
    }
}

fn define_bridge(registers: &mut Registers) {
    registers.make_writable(bridge::PRIMARY_BUS, &[0xff; 3]);
    // After a reset each window is closed: its base is above its limit.
    for (offset, closed) in [(bridge::IO_BASE, 0xf0), (bridge::IO_LIMIT, 0)] {
        registers.define(offset, &[closed | bridge::IO_32]);
        registers.make_writable(offset, &[0xf0]);
    }
    registers.make_writable(bridge::IO_UPPER, &[0xff; 4]);
    registers.make_clearable(
        bridge::SECONDARY_STATUS,
        &Status::CLEARABLE.bits().to_le_bytes(),
    );
    for (offset, closed) in [
        (bridge::MEMORY_BASE, [0xf0, 0xff]),
        (bridge::MEMORY_LIMIT, [0, 0]),
        (
            bridge::PREFETCHABLE_BASE,
            [0xf0 | bridge::PREFETCHABLE_64, 0xff],
        ),
        (bridge::PREFETCHABLE_LIMIT, [bridge::PREFETCHABLE_64, 0]),
    ] {
        registers.define(offset, &closed);
        registers.make_writable(offset, &[0xf0, 0xff]);
    }
    registers.make_writable(bridge::PREFETCHABLE_BASE_UPPER, &[0xff; 8]);
    registers.make_writable(
        bridge::CONTROL,
        &bridge::Control::all().bits().to_le_bytes(),
    );
}

/// The two lists of capabilities while they grow.
struct Lists {
    /// Where the pointer to the next capability is to be written, and the first free byte.
    standard: (usize, usize),
    /// The last capability, if any, and the first free byte.
    extended: (Option<usize>, usize),
}

impl Default for Lists {
    fn default() -> Self {
        Self {
            standard: (CAPABILITIES_POINTER, FIRST_CAPABILITY),
            extended: (None, CONVENTIONAL_SIZE),
        }
    }
}

impl Lists {
    /// Places a capability behind those before it and links it.
    fn place(
        &mut self,
        registers: &mut Registers,
        capability: &Capability,
    ) -> Result<Range<usize>, ConfigError> {
        let length = capability.registers.len();
        let (id, header, start, limit) = match capability.id {
            Id::Standard(id) => (u16::from(id), 2, self.standard.1, CONVENTIONAL_SIZE),
            Id::Extended { id, .. } => (id, 4, self.extended.1, CONFIG_SPACE_SIZE),
        };
        let error = ConfigError::CapabilityLength { id, length };
        let end = start.checked_add(length).filter(|&end| end <= limit);
        let (Some(end), true) = (end, length >= header) else {
            return Err(error);
        };
        // Both fit 16 bits: they are below 4096.
        let Ok(pointer) = u16::try_from(start) else {
            return Err(error);
        };
        let free = end.next_multiple_of(4);
        registers.define(start, &capability.registers);
        registers.make_writable(start, &capability.writable);
        registers.make_clearable(start, &capability.clearable);
        match capability.id {
            Id::Standard(id) => {
                registers.define(start, &[id, 0]);
                registers.define(self.standard.0, &pointer.to_le_bytes()[..1]);
                registers.define(STATUS, &Status::CAPABILITIES.bits().to_le_bytes());
                self.standard = (start + 1, free);
            }
            Id::Extended { id, version } => {
                let header = u32::from(id) | u32::from(version & 0xf) << 16;
                registers.define(start, &header.to_le_bytes());
                if let Some(last) = self.extended.0 {
                    let linked = registers.u32(last) | u32::from(pointer) << 20;
                    registers.define(last, &linked.to_le_bytes());
                }
                self.extended = (Some(start), free);
            }
        }
        Ok(start..end)
    }
}
