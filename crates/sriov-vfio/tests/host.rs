//! Functions by groups and by iommufd, and VF tokens, over the fake of a host: what a VMM asks of either is the same, what the kernel is asked
//! is not. The lab's kernel has no iommufd.
#![expect(clippy::unwrap_used, reason = "test code")]

mod vf;

use std::sync::Arc;

use sriov_vfio::sysfs::PciAddress;
use sriov_vfio::vfio::fake::FakeHost;
use sriov_vfio::vfio::{
    OpenError, RegionIndex, VfToken, VfioDevice, VfioHost, map_guest_memory, unmap_guest_memory,
};
use vf::{config, device};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const FIRST: &str = "9b2b8f0e-5d0c-4f53-8c5e-6c1f7d3a2b10";
const SECOND: &str = "00000000-0000-0000-0000-000000000001";

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

fn token(uuid: &str) -> VfToken {
    uuid.parse().unwrap()
}

/// Two functions in groups of their own, and two in one.
fn filled(host: &Arc<FakeHost>) {
    for (address, group) in [
        ("01:10.0", 7),
        ("01:10.2", 8),
        ("02:00.0", 9),
        ("02:00.1", 9),
    ] {
        host.add(at(address), group, &Arc::new(device(config())), None);
    }
}

/// What a VMM does with two functions, whatever the host: it says what the host was asked.
fn assigned(host: &Arc<FakeHost>) -> Vec<String> {
    filled(host);
    let ranges = [(GuestAddress(0), 2 << 20), (GuestAddress(1 << 32), 4 << 20)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    let space = host.space().unwrap();
    for address in ["01:10.0", "01:10.2"] {
        let function = space.clone().open(at(address), None).unwrap();
        assert_eq!(function.region(RegionIndex::Config).size, 4096);
    }
    assert_eq!(map_guest_memory(&*space, &memory).unwrap(), 2);
    unmap_guest_memory(&*space, &memory).unwrap();
    host.take_calls()
}

#[test]
fn by_groups_a_container_becomes_one_with_its_first_group() {
    let expected = [
        "VFIO_GROUP_SET_CONTAINER 7",
        "VFIO_SET_IOMMU",
        "VFIO_GROUP_GET_DEVICE_FD 0000:01:10.0",
        "VFIO_GROUP_SET_CONTAINER 8",
        "VFIO_GROUP_GET_DEVICE_FD 0000:01:10.2",
        "VFIO_IOMMU_MAP_DMA 0x0 0x200000",
        "VFIO_IOMMU_MAP_DMA 0x100000000 0x400000",
        "VFIO_IOMMU_UNMAP_DMA 0x0 0x200000",
        "VFIO_IOMMU_UNMAP_DMA 0x100000000 0x400000",
    ];
    assert_eq!(assigned(&FakeHost::by_groups()), expected);
}

#[test]
fn by_iommufd_each_function_is_bound_and_attached() {
    let expected = [
        "IOMMU_IOAS_ALLOC 1",
        "VFIO_DEVICE_BIND_IOMMUFD 0000:01:10.0",
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT 0000:01:10.0 1",
        "VFIO_DEVICE_BIND_IOMMUFD 0000:01:10.2",
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT 0000:01:10.2 1",
        "IOMMU_IOAS_MAP 1 0x0 0x200000",
        "IOMMU_IOAS_MAP 1 0x100000000 0x400000",
        "IOMMU_IOAS_UNMAP 1 0x0 0x200000",
        "IOMMU_IOAS_UNMAP 1 0x100000000 0x400000",
    ];
    assert_eq!(assigned(&FakeHost::by_iommufd()), expected);
}

#[test]
fn a_space_of_an_iommufd_is_mapped_to_before_it_has_functions() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    let memory = Arc::new(memory);
    for (host, early) in [
        (FakeHost::by_groups(), false),
        (FakeHost::by_iommufd(), true),
    ] {
        let space = host.space().unwrap();
        assert_eq!(map_guest_memory(&*space, &memory).is_ok(), early);
    }
}

#[test]
fn functions_of_one_group_are_in_one_space() {
    for host in [FakeHost::by_groups(), FakeHost::by_iommufd()] {
        filled(&host);
        let space = host.space().unwrap();
        let other = host.space().unwrap();
        assert!(space.clone().open(at("02:00.0"), None).is_ok());
        let refused = other.clone().open(at("02:00.1"), None);
        assert!(matches!(
            refused.err(),
            Some(OpenError::OtherSpace { group: 9, .. })
        ));
        assert!(space.clone().open(at("02:00.1"), None).is_ok());
        drop(space);
        assert!(other.open(at("02:00.1"), None).is_ok());
    }
}

#[test]
fn a_virtual_function_is_opened_with_its_physical_ones_token() {
    for host in [FakeHost::by_groups(), FakeHost::by_iommufd()] {
        let physical = Arc::new(device(config()).physical());
        host.add(at("01:00.0"), 6, &physical, None);
        let function = Arc::new(device(config()));
        host.add(at("01:10.0"), 7, &function, Some(&physical));
        host.add(at("02:00.0"), 9, &Arc::new(device(config())), None);
        let space = host.space().unwrap();
        let open = |address, token: Option<&str>| {
            let token = token.map(|token| token.parse().unwrap());
            let opened = space.clone().open(at(address), token);
            opened.map(drop).map_err(|error| error.to_string())
        };
        let needed = |opened: Result<(), String>| opened.unwrap_err().contains("name its VF token");
        // Nobody knows the one that it has at first.
        assert!(needed(open("01:10.0", None)) && needed(open("01:10.0", Some(FIRST))));
        // The user of the physical function names one.
        open("01:00.0", Some(FIRST)).unwrap();
        assert!(needed(open("01:10.0", None)) && needed(open("01:10.0", Some(SECOND))));
        open("01:10.0", Some(FIRST)).unwrap();
        let calls = host.take_calls();
        let named = format!("0000:01:10.0 vf_token={FIRST}");
        assert!(calls.iter().any(|call| call.ends_with(&named)));
        // Or later another one.
        physical.set_vf_token(token(SECOND)).unwrap();
        assert!(needed(open("01:10.0", Some(FIRST))));
        open("01:10.0", Some(SECOND)).unwrap();
        // Who has nothing to do with that takes none.
        let refused = open("02:00.0", Some(FIRST)).unwrap_err();
        assert!(refused.contains("takes no VF token"), "{refused}");
        assert!(function.set_vf_token(token(FIRST)).is_err());
    }
}

#[test]
fn tokens_are_uuids_as_the_kernel_reads_them() {
    assert_eq!(token(FIRST).to_string(), FIRST);
    assert_eq!(token(&FIRST.to_uppercase()), token(FIRST));
    assert_eq!(token(SECOND).as_bytes(), &1_u128.to_be_bytes());
    for text in [
        "",
        "9b2b8f0e5d0c4f538c5e6c1f7d3a2b10",
        "{9b2b8f0e-5d0c-4f53-8c5e-6c1f7d3a2b10}",
        "9b2b8f0e-5d0c-4f53-8c5e-6c1f7d3a2b1g",
        "9b2b8f0e-5d0c-4f53-8c5e-6c1f7d3a2b10 ",
    ] {
        let error = text.parse::<VfToken>().unwrap_err();
        assert!(error.to_string().contains("is no VF token"), "{text}");
    }
}
