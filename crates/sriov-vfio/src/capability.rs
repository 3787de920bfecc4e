//! The SR-IOV capability of a physical function, as its configuration space says: of real hardware through sysfs, of a
//! device in another hypervisor, of a snapshot. The bytes are believed only where they make sense.

use pio_mmio_bus::pci::spec::bar;
use pio_mmio_bus::pci::{BarKind, RequesterId};
use zerocopy::FromBytes;

use crate::spec::sriov::{self, BARS, Control, FIRST_EXTENDED, Header, PAGE_SHIFT, Registers};

/// Why a capability could not be read, or says what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CapabilityError {
    /// The configuration space ends inside the list: sysfs shows 64 bytes to users other than root.
    #[error(
        "configuration space of {length} bytes ends before {offset:#x} does (sysfs shows all of it to root only)"
    )]
    Truncated {
        /// Where the missing capability starts.
        offset: u16,
        /// How many bytes there are.
        length: usize,
    },
    /// A capability points into the conventional part.
    #[error("the extended capability at {from:#x} points to {to:#x}")]
    Pointer {
        /// Offset of the capability.
        from: u16,
        /// Where it points.
        to: u16,
    },
    /// The list comes back to where it was.
    #[error("the list of extended capabilities loops through {offset:#x}")]
    Loop {
        /// A capability on the loop.
        offset: u16,
    },
    /// Not one bit, or not one of the supported ones.
    #[error("system page size {system:#x}, supported are {supported:#x}")]
    PageSize {
        /// The register.
        system: u32,
        /// The supported page sizes register.
        supported: u32,
    },
    /// The registers have only so many virtual functions.
    #[error("virtual function {index} of {total}")]
    NoSuchVf {
        /// From 0.
        index: u16,
        /// How many there can be.
        total: u16,
    },
    /// First VF Offset or VF Stride is 0, so that several functions would share a requester ID.
    #[error(
        "virtual function {index} has the requester ID of another: first offset {offset}, stride {stride}"
    )]
    SharedRequester {
        /// From 0.
        index: u16,
        /// First VF Offset.
        offset: u16,
        /// VF Stride.
        stride: u16,
    },
    /// The requester ID would need a bus number above 255.
    #[error("virtual function {index} of {physical} lies behind the last bus")]
    BehindLastBus {
        /// The physical function.
        physical: RequesterId,
        /// From 0.
        index: u16,
    },
    /// There is no VF BAR with this number, it is I/O, of a reserved type, or lacks its upper half.
    #[error("VF BAR {index} reads {value:#x}")]
    Bar {
        /// Number of the register.
        index: usize,
        /// What it reads.
        value: u32,
    },
    /// An address or a size of a VF BAR cannot be.
    #[error("VF BAR at {base:#x}: virtual function {index} with {size:#x} bytes")]
    BarRange {
        /// Address of the first virtual function's.
        base: u64,
        /// From 0.
        index: u16,
        /// Size of one virtual function's share in bytes.
        size: u64,
    },
}

/// The SR-IOV capability of a physical function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SriovCapability {
    offset: u16,
    registers: Registers,
}

impl SriovCapability {
    /// Looks for the capability in `config`, the configuration space from offset 0 (4096 bytes, or as many as there are).
    /// `None` if the function has none, also if there is no extended configuration space.
    pub fn find(config: &[u8]) -> Result<Option<Self>, CapabilityError> {
        for capability in ExtendedCapabilities::new(config) {
            let (offset, header) = capability?;
            if header.id() == sriov::ID {
                return Self::at(config, offset).map(Some);
            }
        }
        Ok(None)
    }

    /// The capability at `offset` of `config`.
    fn at(config: &[u8], offset: u16) -> Result<Self, CapabilityError> {
        let truncated = CapabilityError::Truncated {
            offset,
            length: config.len(),
        };
        let bytes = config.get(usize::from(offset)..).ok_or(truncated)?;
        let (registers, _) = Registers::read_from_prefix(bytes).map_err(|_| truncated)?;
        Ok(Self { offset, registers })
    }

    /// Where in configuration space it is.
    pub fn offset(&self) -> u16 {
        self.offset
    }

    /// The registers.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The control register. Bits that are not defined are dropped.
    pub fn control(&self) -> Control {
        Control::from_bits_truncate(self.registers.control.get())
    }

    /// How many virtual functions there can be.
    pub fn total_vfs(&self) -> u16 {
        self.registers.total_vfs.get()
    }

    /// How many virtual functions exist: none as long as they are not enabled, and never more than there can be.
    pub fn enabled_vfs(&self) -> u16 {
        if self.control().contains(Control::VF_ENABLE) {
            self.registers.num_vfs.get().min(self.total_vfs())
        } else {
            0
        }
    }

    /// Device ID of the virtual functions; their vendor ID is the physical function's.
    pub fn vf_device_id(&self) -> u16 {
        self.registers.vf_device_id.get()
    }

    /// The page size that VF BARs are aligned to, in bytes.
    pub fn system_page_size(&self) -> Result<u64, CapabilityError> {
        let system = self.registers.system_page_size.get();
        let supported = self.registers.supported_page_sizes.get();
        if !system.is_power_of_two() || system & supported == 0 {
            return Err(CapabilityError::PageSize { system, supported });
        }
        Ok(u64::from(system) << PAGE_SHIFT)
    }

    /// The requester ID of virtual function `index` (from 0) of the physical function `physical`: its own, plus First VF
    /// Offset, plus `index` times VF Stride, with the carry in the bus number (PCIe §9.3.3.9, §9.3.3.10).
    pub fn vf_requester(
        &self,
        physical: RequesterId,
        index: u16,
    ) -> Result<RequesterId, CapabilityError> {
        let total = self.total_vfs();
        if index >= total {
            return Err(CapabilityError::NoSuchVf { index, total });
        }
        let offset = self.registers.first_vf_offset.get();
        let stride = self.registers.vf_stride.get();
        vf_requester(physical, offset, stride, index)
    }

    /// VF BAR `index` (0 to 5). `None` if all its bits are 0: the register is not there, or nobody placed it.
    pub fn vf_bar(&self, index: usize) -> Result<Option<VfBar>, CapabilityError> {
        let register = |index: usize| self.registers.vf_bars.get(index).map(|bar| bar.get());
        let low = register(index).ok_or(CapabilityError::Bar { index, value: 0 })?;
        let error = CapabilityError::Bar { index, value: low };
        let prefetchable = low & bar::PREFETCHABLE != 0;
        let flags = u32::try_from(bar::MEMORY_FLAGS).map_err(|_| error)?;
        let address = u64::from(low & !flags);
        match low & flags & !bar::PREFETCHABLE {
            0 if low == 0 => Ok(None),
            0 => Ok(Some(VfBar {
                kind: BarKind::Memory32 { prefetchable },
                base: address,
            })),
            bar::MEMORY_64 => {
                let upper = register(index + 1).ok_or(error)?;
                Ok(Some(VfBar {
                    kind: BarKind::Memory64 { prefetchable },
                    base: u64::from(upper) << 32 | address,
                }))
            }
            _ => Err(error),
        }
    }

    /// All VF BARs with the numbers of their first registers.
    pub fn vf_bars(&self) -> Result<Vec<(usize, VfBar)>, CapabilityError> {
        let mut bars = Vec::new();
        let mut index = 0;
        while index < BARS {
            let mut registers = 1;
            if let Some(bar) = self.vf_bar(index)? {
                registers = bar.kind.registers();
                bars.push((index, bar));
            }
            index += registers;
        }
        Ok(bars)
    }
}

/// The requester ID of virtual function `index`, see [`SriovCapability::vf_requester`].
pub(crate) fn vf_requester(
    physical: RequesterId,
    offset: u16,
    stride: u16,
    index: u16,
) -> Result<RequesterId, CapabilityError> {
    if offset == 0 || stride == 0 && index > 0 {
        return Err(CapabilityError::SharedRequester {
            index,
            offset,
            stride,
        });
    }
    stride
        .checked_mul(index)
        .and_then(|distance| distance.checked_add(offset))
        .and_then(|distance| distance.checked_add(physical.0))
        .map(RequesterId)
        .ok_or(CapabilityError::BehindLastBus { physical, index })
}

/// Where the virtual functions' share of one BAR begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfBar {
    /// What it decodes; never I/O.
    pub kind: BarKind,
    /// Address of the first virtual function's share.
    pub base: u64,
}

impl VfBar {
    /// The address of virtual function `index`'s share (from 0), each of `size` bytes: those of all virtual functions follow each
    /// other (PCIe §9.3.3.14). The size is what software measured, at least the system page size; sysfs gives the size for all
    /// of them together.
    pub fn address(&self, index: u16, size: u64) -> Result<u64, CapabilityError> {
        let error = CapabilityError::BarRange {
            base: self.base,
            index,
            size,
        };
        if !self.kind.allows(size) || !self.base.is_multiple_of(size) {
            return Err(error);
        }
        let start = size
            .checked_mul(index.into())
            .and_then(|distance| self.base.checked_add(distance))
            .ok_or(error)?;
        let last = start.checked_add(size - 1).ok_or(error)?;
        match self.kind {
            BarKind::Memory64 { .. } => Ok(start),
            _ if last <= u32::MAX.into() => Ok(start),
            _ => Err(error),
        }
    }
}

/// The list of extended capabilities in the bytes of a configuration space: offsets and headers, until the list ends or is
/// found to be wrong.
#[derive(Clone, Debug)]
pub struct ExtendedCapabilities<'a> {
    config: &'a [u8],
    /// 0 at the end.
    next: u16,
    previous: u16,
    /// How many more there can be without one being seen twice.
    left: usize,
}

impl<'a> ExtendedCapabilities<'a> {
    /// The list in `config`, the configuration space from offset 0.
    pub fn new(config: &'a [u8]) -> Self {
        let present = config.len() > usize::from(FIRST_EXTENDED);
        Self {
            config,
            next: if present { FIRST_EXTENDED } else { 0 },
            previous: 0,
            left: config.len().saturating_sub(usize::from(FIRST_EXTENDED)) / size_of::<Header>(),
        }
    }

    fn step(&mut self, offset: u16) -> Result<(u16, Header), CapabilityError> {
        if offset < FIRST_EXTENDED {
            return Err(CapabilityError::Pointer {
                from: self.previous,
                to: offset,
            });
        }
        let bytes = self.config.get(usize::from(offset)..);
        let bytes =
            bytes
                .and_then(|bytes| bytes.first_chunk())
                .ok_or(CapabilityError::Truncated {
                    offset,
                    length: self.config.len(),
                })?;
        self.left = self
            .left
            .checked_sub(1)
            .ok_or(CapabilityError::Loop { offset })?;
        Ok((offset, Header(u32::from_le_bytes(*bytes))))
    }
}

impl Iterator for ExtendedCapabilities<'_> {
    type Item = Result<(u16, Header), CapabilityError>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = std::mem::take(&mut self.next);
        if offset == 0 {
            return None;
        }
        let step = self.step(offset);
        if let Ok((offset, header)) = step {
            // Neither zeroes nor ones are a capability: there is no list, or nothing answers (PCIe §7.6.1).
            if matches!(header.0, 0 | u32::MAX) {
                return None;
            }
            self.previous = offset;
            self.next = header.next();
        }
        Some(step)
    }
}
