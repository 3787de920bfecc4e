use std::any::Any;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use grant_table::frame::Frame;
use grant_table::guest::Access;
use grant_table::spec::PAGE_SIZE;
use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MEM_READONLY,
    KVM_PIT_SPEAKER_DUMMY, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::{KvmError, Vcpu};
use crate::irq::IOAPIC_PINS;
use crate::machine::Memory;
use crate::machine::layout::{KVM_IDENTITY_MAP, KVM_TSS};

pub(super) const DEVICE: &str = "/dev/kvm";

/// Opens `/dev/kvm`.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| {
        let error = io::Error::from(error);
        match error.kind() {
            io::ErrorKind::NotFound => KvmError::Missing,
            io::ErrorKind::PermissionDenied if Path::new(DEVICE).exists() => KvmError::Permission,
            _ => KvmError::Open(error),
        }
    })?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(KvmError::Version(version));
    }
    Ok(kvm)
}

/// Which interrupt controllers are in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// All of a PC's, and its interval timer.
    Full,
    /// The local APICs only, with 32-bit destinations in messages. GSIs 0 to 23 are the pins of an I/O APIC in user space, which
    /// is told the end of their level-triggered interrupts (Documentation/virt/kvm/api.rst, KVM_CAP_SPLIT_IRQCHIP).
    Split,
}

/// A virtual machine: its interrupt controllers, timer and RAM.
///
/// Cheap to clone; the RAM stays mapped until the last handle and the last [`Vcpu`] are gone.
#[derive(Clone, Debug)]
pub struct Vm {
    fd: Arc<VmFd>,
    memory: Memory,
    windows: Windows,
    irqchip: Irqchip,
}

/// What keeps the memory of all windows that there ever were.
pub(super) type Windows = Arc<Mutex<Vec<Box<dyn Any + Send + Sync>>>>;

impl Vm {
    /// Creates a VM with `irqchip` in the kernel and `memory` as its RAM.
    pub fn new(kvm: &Kvm, memory: Memory, irqchip: Irqchip) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(KvmError::call("create a VM"))?;
        fd.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(KvmError::call("place the identity map"))?;
        fd.set_tss_address(KVM_TSS)
            .map_err(KvmError::call("place the TSS"))?;
        match irqchip {
            Irqchip::Full => create_irqchip(&fd)?,
            Irqchip::Split => split_irqchip(&fd)?,
        }
        for (region, slot) in memory.iter().zip(0u32..) {
            let at = Some(region.start_addr().0);
            set_slot(&fd, Mapped::of(region)?, (slot, 0), at)?;
        }
        Ok(Self {
            fd: Arc::new(fd),
            memory,
            windows: Windows::default(),
            irqchip,
        })
    }

    /// Which interrupt controllers are in the kernel.
    pub fn irqchip(&self) -> Irqchip {
        self.irqchip
    }

    /// The RAM.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Adds vCPU `index`, whose APIC ID is the same number.
    pub fn create_vcpu(&self, index: u8) -> Result<Vcpu, KvmError> {
        let fd = self
            .fd
            .create_vcpu(index.into())
            .map_err(KvmError::call("create a vCPU"))?;
        Ok(Vcpu::new(fd, self.memory.clone(), self.windows.clone()))
    }

    /// Prepares to show `memory`, of one region, to the guest, wherever that begins. It is not shown yet, and from now on stays mapped
    /// as long as RAM does.
    ///
    /// # Errors
    ///
    /// The memory is not mapped.
    pub fn window(&self, memory: Memory) -> Result<Window, KvmError> {
        let region = memory.iter().next().ok_or(KvmError::NotMapped(0))?;
        let mapped = Mapped::of(region)?;
        Ok(self.prepare(mapped, memory))
    }

    /// Prepares to show a page that is not the guest's RAM. As [`window`](Self::window).
    pub fn frame_window(&self, frame: Frame) -> Window {
        let mapped = Mapped {
            host: frame.as_ptr().expose_provenance(),
            length: PAGE_SIZE,
        };
        self.prepare(mapped, frame)
    }

    fn prepare(&self, mapped: Mapped, keep: impl Any + Send + Sync) -> Window {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = self.memory.num_regions().saturating_add(windows.len());
        windows.push(Box::new(keep));
        Window {
            fd: self.fd.clone(),
            mapped,
            slot: u32::try_from(slot).unwrap_or(u32::MAX),
        }
    }
}

/// Memory besides the RAM that is shown to the guest or not; while it is not, accesses go to the bus.
#[derive(Debug)]
pub struct Window {
    fd: Arc<VmFd>,
    mapped: Mapped,
    slot: u32,
}

impl Window {
    /// Shows the memory at this guest-physical address, or hides it. Returns when no vCPU accesses it any more, if it is hidden.
    pub fn show(&self, at: Option<u64>) -> Result<(), KvmError> {
        set_slot(&self.fd, self.mapped, (self.slot, 0), at)
    }

    /// Shows only the page of the memory that begins at the byte `offset`, at this guest-physical address. What the guest writes to one
    /// that is read-only goes to the bus. Nothing of the memory may be shown yet.
    ///
    /// # Errors
    ///
    /// There is no such page, or KVM refuses the address.
    pub fn show_page(&self, offset: usize, at: u64, access: Access) -> Result<(), KvmError> {
        let end = offset.checked_add(PAGE_SIZE);
        let inside = end.is_some_and(|end| end <= self.mapped.length);
        if !inside || !offset.is_multiple_of(PAGE_SIZE) {
            return Err(KvmError::NotMapped(offset as u64));
        }
        let page = Mapped {
            host: self.mapped.host.saturating_add(offset),
            length: PAGE_SIZE,
        };
        let flags = match access {
            Access::ReadOnly => KVM_MEM_READONLY,
            Access::ReadWrite => 0,
        };
        set_slot(&self.fd, page, (self.slot, flags), Some(at))
    }
}

/// Where memory for the guest is mapped in this process: made of RAM and windows only, which stay mapped.
#[derive(Clone, Copy, Debug)]
struct Mapped {
    host: usize,
    length: usize,
}

impl Mapped {
    fn of(region: &GuestRegionMmap) -> Result<Self, KvmError> {
        let not_mapped = || KvmError::NotMapped(region.start_addr().0);
        let host = region.get_host_address(MemoryRegionAddress(0));
        Ok(Self {
            host: host.map_err(|_| not_mapped())?.expose_provenance(),
            length: usize::try_from(region.len()).map_err(|_| not_mapped())?,
        })
    }
}

/// Makes `mapped` the memory of `slot` at this guest-physical address, or leaves the slot empty.
fn set_slot(
    fd: &VmFd,
    mapped: Mapped,
    (slot, flags): (u32, u32),
    at: Option<u64>,
) -> Result<(), KvmError> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: at.unwrap_or(0),
        memory_size: at.map_or(0, |_| mapped.length as u64),
        userspace_addr: mapped.host as u64,
    };
    // SAFETY: the range is one whole mapping of the RAM or of a window, or a page of one. The VM can only use it while a vCPU runs, and each
    // `Vcpu` keeps the RAM and all windows mapped. KVM refuses slots that overlap.
    unsafe { fd.set_user_memory_region(slot) }.map_err(KvmError::call("give the guest its memory"))
}

fn create_irqchip(fd: &VmFd) -> Result<(), KvmError> {
    fd.create_irq_chip()
        .map_err(KvmError::call("create the interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    fd.create_pit2(pit)
        .map_err(KvmError::call("create the interval timer"))
}

fn split_irqchip(fd: &VmFd) -> Result<(), KvmError> {
    let enable = |cap, argument, what| {
        let mut cap = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        cap.args[0] = argument;
        fd.enable_cap(&cap).map_err(KvmError::call(what))
    };
    enable(
        KVM_CAP_SPLIT_IRQCHIP,
        IOAPIC_PINS.into(),
        "create the local interrupt controllers",
    )?;
    // Messages carry destinations of 32 bits, and 0xff is a processor like others.
    let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    enable(
        KVM_CAP_X2APIC_API,
        flags.into(),
        "enable 32-bit interrupt destinations",
    )
}

impl Deref for Vm {
    type Target = VmFd;

    fn deref(&self) -> &VmFd {
        &self.fd
    }
}

impl AsRawFd for Vm {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
