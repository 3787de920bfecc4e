//! Opens functions that are bound to vfio-pci as a VMM would, and tries what can be tried without a guest. A line for each check,
//! `host: WHAT: ok`.
//!
//! `probe function BDF` tries a virtual function of an 82576, `probe token BDF` a physical one whose driver enables virtual ones, `probe slot BDF` an
//! 82574 that is alone in its slot.

#![expect(clippy::unwrap_used, reason = "an example")]

use std::process::ExitCode;
use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus, Outcome};
use pio_mmio_bus::interrupt::RecordingRouter;
use pio_mmio_bus::pci::{Decoder, PciFunction, RequesterId};
use sriov_vfio::capability::SriovCapability;
use sriov_vfio::sysfs::{PciAddress, Sysfs};
use sriov_vfio::vfio::kernel::Groups;
use sriov_vfio::vfio::{
    Access, AssignedFunction, DmaSpace, Holder, HostMemory, OpenError, Policy, RegionIndex,
    SlotFunction, VfioDevice, VfioSpace, map_guest_memory, unmap_guest_memory,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Where the VMM places BARs 0 and 3.
const BARS: [u32; 2] = [0xe000_0000, 0xd000_0000];

/// Two secrets.
const TOKENS: [&str; 2] = [
    "9b2b8f0e-5d0c-4f53-8c5e-6c1f7d3a2b10",
    "9b2b8f0e-5d0c-4f53-8c5e-6c1f7d3a2b11",
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, what, address] = &arguments[..] else {
        return ExitCode::FAILURE;
    };
    let address: PciAddress = address.parse().unwrap();
    let mut failed = false;
    let check = |what: &str, good: bool| {
        println!("host: VFIO: {what}: {}", if good { "ok" } else { "FAILED" });
        failed |= !good;
    };
    match what.as_str() {
        "function" => function(address, check),
        "token" => token(address, check),
        "slot" => slot(address, check),
        _ => return ExitCode::FAILURE,
    }
    match failed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// Those who drive virtual functions and those who drive their physical one.
fn token(physical: PciAddress, mut check: impl FnMut(&str, bool)) {
    let sysfs = Sysfs::default();
    let groups = Groups::new(sysfs.clone(), None);
    let open = |function, token| groups.container().unwrap().open(function, token);
    let [first, second] = TOKENS.map(|uuid| uuid.parse().unwrap());
    let held = open(physical, Some(first)).unwrap();
    let enabled = sysfs.enable(physical, 1).unwrap();
    let virtual_function = *enabled.first().unwrap();
    sysfs.bind(virtual_function, "vfio-pci").unwrap();
    let needed = |token| {
        let opened = open(virtual_function, token);
        matches!(opened.err(), Some(OpenError::Token(_)))
    };
    check(
        "a virtual function is refused without its token",
        needed(None),
    );
    check("it is refused with another one", needed(Some(second)));
    check(
        "it is opened with its token",
        open(virtual_function, Some(first)).is_ok(),
    );
    check(
        "the token can be changed",
        held.set_vf_token(second).is_ok()
            && needed(Some(first))
            && open(virtual_function, Some(second)).is_ok(),
    );
    let slot = held.slot().unwrap();
    let has = |function, holder| slot.contains(&SlotFunction { function, holder });
    check(
        "the slot has both, one of them somebody else's",
        has(physical, Holder::Open) && has(virtual_function, Holder::Other),
    );
    check("such a slot is not reset", held.reset_slot().is_err());
    let shared = open(virtual_function, Some(second)).unwrap();
    check(
        "who opens it has both",
        held.slot()
            .unwrap()
            .iter()
            .all(|mate| mate.holder == Holder::Open),
    );
    drop(shared);
    sysfs.disable(physical).unwrap();
}

/// A card without a reset of its own.
fn slot(card: PciAddress, mut check: impl FnMut(&str, bool)) {
    /// Where the descriptors are that it receives by (82574 data sheet §10.2.5.6), 0 after a reset.
    const RDBAL: u64 = 0x2800;
    let container = Groups::new(Sysfs::default(), None).container().unwrap();
    let device = container.open(card, None).unwrap();
    let alone = [SlotFunction {
        function: card,
        holder: Holder::Open,
    }];
    check(
        "the slot has the card alone",
        device.slot().unwrap() == alone,
    );
    let mmio = Bus::new(AddressSpace::Mmio).unwrap();
    let decoder = Decoder::new(Bus::new(AddressSpace::Pio).unwrap(), mmio);
    let router = RecordingRouter::new();
    let assigned =
        AssignedFunction::new(device.clone(), Policy::default(), &decoder, &router).unwrap();
    let bar = RegionIndex::Bar(0);
    let register = || {
        let mut bytes = [0; 4];
        device.read(bar, RDBAL, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    };
    for what in ["the slot is reset", "a function without reset is reset"] {
        device.write(bar, RDBAL, &0x1000_u32.to_le_bytes()).unwrap();
        let written = register() == 0x1000;
        match what {
            "the slot is reset" => device.reset_slot().unwrap(),
            _ => assigned.reset(),
        }
        let good = written && register() == 0 && !assigned.take_failure();
        check(what, good);
    }
}

/// A virtual function.
fn function(address: PciAddress, mut check: impl FnMut(&str, bool)) {
    let sysfs = Sysfs::default();
    let function = sysfs.function(address).unwrap();
    let container = Groups::new(sysfs, None).container().unwrap();
    let device = container.clone().open(address, None).unwrap();
    check(
        "the function is opened",
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
    check("vendor and device", read32(0) == identity);
    let mut config = vec![0; 4096];
    assigned.read_config(0, &mut config);
    check(
        "SR-IOV is hidden",
        SriovCapability::find(&config) == Ok(None),
    );

    for (register, base) in [0x10, 0x1c].into_iter().zip(BARS) {
        assigned.write_config(register, &u32::MAX.to_le_bytes());
        let size = !(read32(register) & !0xf) + 1;
        check("a BAR's size", size == 0x4000);
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
        "the status register answers",
        done && register != [0xff; 4] && status & 2 != 0,
    );

    let msix = assigned.msix().unwrap();
    let mut put =
        |address, value: u64| matches!(guest.write(address, &value.to_le_bytes()), Outcome::Done);
    let written = put(second, 0xfee0_1000) && put(second + 8, 0x41);
    check("the MSI-X table", written && msix.vectors() == 3);
    let table_control = capability(&config, 0x11).unwrap();
    assigned.write_config(table_control + 2, &0x8000_u16.to_le_bytes());
    check(
        "MSI-X is connected",
        msix.enabled() && !assigned.take_failure(),
    );
    assigned.write_config(table_control + 2, &0_u16.to_le_bytes());
    check("MSI-X is disconnected", !assigned.take_failure());

    let express = capability(&config, 0x10).unwrap();
    assigned.write_config(express + 8, &0x8000_u16.to_le_bytes());
    check(
        "function-level reset",
        !assigned.take_failure() && read32(4) & 7 == 0,
    );

    let ranges = [(GuestAddress(0), 2 << 20), (GuestAddress(1 << 32), 4 << 20)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    let mapped = map_guest_memory(&*container, &memory);
    check(
        "each region of memory is one mapping",
        matches!(mapped, Ok(2)),
    );
    let page = HostMemory::of(&memory, GuestAddress(0), 4096).unwrap();
    check(
        "overlapping mappings are refused",
        container.map(0x1000, &page, Access::all()).is_err(),
    );
    check(
        "part of a mapping is not unmapped",
        container.unmap(0x1000, 4096).is_err(),
    );
    check(
        "memory that is read only",
        container.map(1 << 40, &page, Access::READ).is_ok()
            && container.unmap(1 << 40, 4096).is_ok(),
    );
    check(
        "memory is taken back",
        unmap_guest_memory(&*container, &memory).is_ok()
            && container.map(0x1000, &page, Access::all()).is_ok(),
    );
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
