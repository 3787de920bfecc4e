//! Opens a function that is bound to vfio-pci as a VMM would, and tries what can be tried without a guest: `probe BDF`. A line for
//! each check, `host: WHAT: ok`.

#![expect(clippy::unwrap_used, reason = "an example")]

use std::process::ExitCode;
use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus, Outcome};
use pio_mmio_bus::interrupt::RecordingRouter;
use pio_mmio_bus::pci::{Decoder, PciFunction, RequesterId};
use sriov_vfio::capability::SriovCapability;
use sriov_vfio::sysfs::{PciAddress, Sysfs};
use sriov_vfio::vfio::kernel::Container;
use sriov_vfio::vfio::{
    Access, AssignedFunction, DmaSpace, HostMemory, Policy, RegionIndex, VfioDevice,
    map_guest_memory, unmap_guest_memory,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Where the VMM places BARs 0 and 3.
const BARS: [u32; 2] = [0xe000_0000, 0xd000_0000];

fn main() -> ExitCode {
    let address: PciAddress = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut failed = false;
    let mut check = |what: &str, good: bool| {
        println!("host: {what}: {}", if good { "ok" } else { "FAILED" });
        failed |= !good;
    };

    let sysfs = Sysfs::default();
    let function = sysfs.function(address).unwrap();
    let container = Container::new(None).unwrap();
    let device = container.open(&sysfs, address).unwrap();
    check(
        "VFIO opens the function",
        device.region(RegionIndex::Config).size == 4096,
    );

    let mmio = Bus::new(AddressSpace::Mmio).unwrap();
    let decoder = Decoder::new(Bus::new(AddressSpace::Pio).unwrap(), mmio.clone());
    let router = RecordingRouter::new();
    let policy = Policy {
        identity: Some((function.vendor, function.device)),
        ..Policy::default()
    };
    let shared: Arc<dyn VfioDevice> = device.clone();
    let assigned = AssignedFunction::new(shared, policy, &decoder, &router).unwrap();
    assigned.set_requester(RequesterId::new(1, 0));
    let read32 = |offset| {
        let mut bytes = [0; 4];
        assigned.read_config(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    let identity = u32::from(function.device) << 16 | u32::from(function.vendor);
    check("VFIO: vendor and device", read32(0) == identity);
    let mut config = vec![0; 4096];
    assigned.read_config(0, &mut config);
    check(
        "VFIO: SR-IOV is hidden",
        SriovCapability::find(&config) == Ok(None),
    );

    for (register, base) in [0x10, 0x1c].into_iter().zip(BARS) {
        assigned.write_config(register, &u32::MAX.to_le_bytes());
        let size = !(read32(register) & !0xf) + 1;
        check("VFIO: a BAR's size", size == 0x4000);
        assigned.write_config(register, &base.to_le_bytes());
        assigned.write_config(register + 4, &[0; 4]);
    }
    assigned.write_config(4, &6_u16.to_le_bytes());
    let mut guest = mmio.reader();
    let [first, second] = BARS.map(u64::from);
    let mut register = [0; 4];
    let done = matches!(guest.read(first + 8, &mut register), Outcome::Done);
    // The link, which the host brought up (82576 data sheet §8.2.2, LU).
    let [status, ..] = register;
    check(
        "VFIO: the status register answers",
        done && register != [0xff; 4] && status & 2 != 0,
    );

    let msix = assigned.msix().unwrap();
    let mut put =
        |address, value: u64| matches!(guest.write(address, &value.to_le_bytes()), Outcome::Done);
    let written = put(second, 0xfee0_1000) && put(second + 8, 0x41);
    check("VFIO: the MSI-X table", written && msix.vectors() == 3);
    let table_control = capability(&config, 0x11).unwrap();
    assigned.write_config(table_control + 2, &0x8000_u16.to_le_bytes());
    check(
        "VFIO: MSI-X is connected",
        msix.enabled() && !assigned.take_failure(),
    );
    assigned.write_config(table_control + 2, &0_u16.to_le_bytes());
    check("VFIO: MSI-X is disconnected", !assigned.take_failure());

    let express = capability(&config, 0x10).unwrap();
    assigned.write_config(express + 8, &0x8000_u16.to_le_bytes());
    check(
        "VFIO: function-level reset",
        !assigned.take_failure() && read32(4) & 7 == 0,
    );

    let ranges = [(GuestAddress(0), 2 << 20), (GuestAddress(1 << 32), 4 << 20)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    let mapped = map_guest_memory(&*container, &memory);
    check(
        "VFIO: each region of memory is one mapping",
        matches!(mapped, Ok(2)),
    );
    let page = HostMemory::of(&memory, GuestAddress(0), 4096).unwrap();
    check(
        "VFIO: overlapping mappings are refused",
        container.map(0x1000, &page, Access::all()).is_err(),
    );
    check(
        "VFIO: part of a mapping is not unmapped",
        container.unmap(0x1000, 4096).is_err(),
    );
    check(
        "VFIO: memory that is read only",
        container.map(1 << 40, &page, Access::READ).is_ok()
            && container.unmap(1 << 40, 4096).is_ok(),
    );
    check(
        "VFIO: memory is taken back",
        unmap_guest_memory(&*container, &memory).is_ok()
            && container.map(0x1000, &page, Access::all()).is_ok(),
    );
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Where a capability is in the conventional list.
fn capability(config: &[u8], id: u8) -> Option<u16> {
    let mut at = config.get(0x34).copied()?;
    while at != 0 {
        let place = usize::from(at);
        if config.get(place).copied()? == id {
            return Some(at.into());
        }
        at = config.get(place + 1).copied()?;
    }
    None
}
