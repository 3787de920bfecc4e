//! Physical and virtual functions through sysfs: a fake of it, which the lab's scenario `sriov` replaces by a kernel's.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sriov_vfio::sysfs::fake::{FakeFunction, FakeSriov, FakeSysfs};
use sriov_vfio::sysfs::{Attributes, Bindings, PciAddress, Role, Sysfs, SysfsError};
use tempfile::TempDir;

/// A card with 7 virtual functions at 01:00.0, one without at 02:00.0 that shares its group with 02:00.1, and one in no group.
fn machine(root: &Path) -> (Sysfs, Arc<FakeSysfs>) {
    let fake = Arc::new(FakeSysfs::new(root).unwrap());
    for driver in ["igb", "igbvf", "e1000e", "vfio-pci"] {
        fake.add_driver(driver).unwrap();
    }
    let card = FakeFunction {
        device: 0x10c9,
        driver: Some("igb".into()),
        group: Some(14),
        sriov: Some(FakeSriov {
            total: 7,
            offset: 0x80,
            stride: 2,
            device: 0x10ca,
            driver: "igbvf".into(),
        }),
        interface: Some("eth0".into()),
    };
    fake.add(at("01:00.0"), &card).unwrap();
    let plain = |driver: &str, group| FakeFunction {
        device: 0x10d3,
        driver: Some(driver.into()),
        group,
        ..FakeFunction::default()
    };
    fake.add(at("02:00.0"), &plain("e1000e", Some(15))).unwrap();
    fake.add(at("02:00.1"), &plain("e1000e", Some(15))).unwrap();
    fake.add(at("03:00.0"), &plain("e1000e", None)).unwrap();
    let attributes = Arc::clone(&fake);
    (Sysfs::new(root, attributes), fake)
}

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

fn driver(sysfs: &Sysfs, address: &str) -> String {
    sysfs
        .function(at(address))
        .unwrap()
        .driver
        .unwrap_or_default()
}

fn message(result: Result<impl Sized, SysfsError>) -> String {
    result.map(|_| "no error").unwrap_err().to_string()
}

#[test]
fn the_inventory_names_functions_groups_and_drivers() {
    let root = TempDir::new().unwrap();
    let (sysfs, _) = machine(root.path());
    sysfs.enable(at("01:00.0"), 2).unwrap();
    let functions = sysfs.functions().unwrap();
    let shown: Vec<String> = functions
        .iter()
        .map(|function| function.address.to_string())
        .collect();
    assert_eq!(
        shown,
        [
            "0000:01:00.0",
            "0000:01:10.0",
            "0000:01:10.2",
            "0000:02:00.0",
            "0000:02:00.1",
            "0000:03:00.0"
        ]
    );
    let [physical, first, _, shared, _, none] = functions.as_slice() else {
        return;
    };
    assert_eq!(
        physical.role,
        Role::Physical {
            total: 7,
            functions: vec![at("01:10.0"), at("01:10.2")],
            autoprobe: true,
            msix: None
        }
    );
    assert_eq!(physical.interfaces, ["eth0"]);
    assert_eq!(
        first.role,
        Role::Virtual {
            physical: at("01:00.0")
        }
    );
    assert_eq!(
        (first.driver.as_deref(), first.device),
        (Some("igbvf"), 0x10ca)
    );
    assert_eq!(
        (shared.group, &shared.group_others),
        (Some(15), &vec![at("02:00.1")])
    );
    assert_eq!((none.group, &none.role), (None, &Role::Plain));
}

#[test]
fn the_number_changes_through_zero() {
    let root = TempDir::new().unwrap();
    let (sysfs, _) = machine(root.path());
    for (count, names) in [(2, 2), (2, 2), (7, 7), (1, 1), (0, 0), (0, 0)] {
        assert_eq!(sysfs.enable(at("01:00.0"), count).unwrap().len(), names);
    }
    sysfs.enable(at("01:00.0"), 3).unwrap();
    sysfs.disable(at("01:00.0")).unwrap();
    assert!(matches!(
        sysfs.function(at("01:10.0")),
        Err(SysfsError::NoFunction(_))
    ));
}

#[test]
fn functions_without_autoprobe_are_free() {
    let root = TempDir::new().unwrap();
    let (sysfs, _) = machine(root.path());
    sysfs.set_autoprobe(at("01:00.0"), false).unwrap();
    sysfs.enable(at("01:00.0"), 1).unwrap();
    assert_eq!(driver(&sysfs, "01:10.0"), "");
    sysfs.set_msix_count(at("01:10.0"), 3).unwrap();
    let count = sysfs.folder(at("01:10.0")).join("sriov_vf_msix_count");
    assert_eq!(fs::read_to_string(count).unwrap(), "3");
}

#[test]
fn the_interface_of_a_function_is_brought_up() {
    let root = TempDir::new().unwrap();
    let (sysfs, _) = machine(root.path());
    assert_eq!(
        message(sysfs.wait_for_link(at("01:00.0"), Duration::from_millis(60))),
        "0000:01:00.0: its network interface eth0 has no link after 60ms: is it up, with a cable in it?"
    );
    sysfs.bring_up(at("01:00.0")).unwrap();
    for function in ["01:00.0", "02:00.0"] {
        sysfs.wait_for_link(at(function), Duration::ZERO).unwrap();
    }
    let flags = fs::read_to_string(root.path().join("class/net/eth0/flags")).unwrap();
    assert_eq!(flags, "0x1003");
    assert!(matches!(
        sysfs.bring_up(at("02:00.0")),
        Err(SysfsError::NoInterface(_))
    ));
}

#[test]
fn errors_say_what_to_do() {
    let root = TempDir::new().unwrap();
    let (sysfs, fake) = machine(root.path());
    sysfs.enable(at("01:00.0"), 1).unwrap();
    for (error, expected) in [
        (
            message(sysfs.enable(at("01:00.0"), 8)),
            "0000:01:00.0: 8 virtual functions, the device has 7",
        ),
        (
            message(sysfs.enable(at("02:00.0"), 1)),
            "0000:02:00.0: no SR-IOV",
        ),
        (
            message(sysfs.enable(at("01:10.0"), 1)),
            "0000:01:10.0: is a virtual function; name the physical one, 0000:01:00.0",
        ),
        (
            message(sysfs.enable(at("09:00.0"), 1)),
            "0000:09:00.0: there is no such function",
        ),
        (
            message(sysfs.bind(at("03:00.0"), "vfio-pci")),
            "0000:03:00.0: in no IOMMU group: switch the IOMMU on",
        ),
        (
            message(sysfs.bind(at("02:00.0"), "vfio-pci")),
            "0000:02:00.0: IOMMU group 15 is shared with 0000:02:00.1 (driver e1000e)",
        ),
        (
            message(sysfs.bind(at("01:10.0"), "vfio-none")),
            "driver vfio-none is not loaded: modprobe vfio-none",
        ),
    ] {
        assert!(error.starts_with(expected), "{error}");
    }
    fake.deny(true);
    for error in [
        message(sysfs.enable(at("01:00.0"), 2)),
        message(sysfs.bind(at("01:10.0"), "vfio-pci")),
        message(sysfs.release(at("01:10.0"))),
    ] {
        assert!(error.ends_with("permission denied: run as root"), "{error}");
    }
}

/// A kernel that answers every write with one error.
struct Refusing(i32);

impl Attributes for Refusing {
    fn write(&self, _path: &Path, _value: &str) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }
}

#[test]
fn what_the_kernel_refuses_is_said() {
    let root = TempDir::new().unwrap();
    let (sysfs, _) = machine(root.path());
    let refusing = |errno| {
        let sysfs = Sysfs::new(root.path(), Arc::new(Refusing(errno)));
        message(sysfs.enable(at("01:00.0"), 1))
    };
    let (busy, io, no_entry) = (refusing(16), refusing(5), refusing(2));
    assert!(busy.contains("are being changed or used by somebody else: release them"));
    assert!(io.contains("sriov_numvfs: Input/output error"), "{io}");
    assert!(no_entry.contains("set the parameter enable_sriov of vfio-pci"));
    let total = sysfs.folder(at("01:00.0")).join("sriov_totalvfs");
    fs::write(total, "many").unwrap();
    let parse = message(sysfs.enable(at("01:00.0"), 1));
    assert!(parse.ends_with("sriov_totalvfs: reads \"many\""), "{parse}");
}

#[test]
fn a_physical_function_without_driver_enables_nothing() {
    let root = TempDir::new().unwrap();
    let (sysfs, _) = machine(root.path());
    sysfs.bind(at("01:00.0"), "vfio-pci").unwrap();
    fs::remove_file(sysfs.folder(at("01:00.0")).join("driver")).unwrap();
    assert!(matches!(
        sysfs.enable(at("01:00.0"), 1),
        Err(SysfsError::NoPhysicalDriver(_))
    ));
}

#[test]
fn bound_and_released() {
    let root = TempDir::new().unwrap();
    let (sysfs, _) = machine(root.path());
    sysfs.enable(at("01:00.0"), 1).unwrap();
    for _ in 0..2 {
        sysfs.bind(at("01:10.0"), "vfio-pci").unwrap();
        sysfs.bind(at("01:10.0"), "vfio-pci").unwrap();
        let now = sysfs.function(at("01:10.0")).unwrap();
        assert_eq!(
            (now.driver.as_deref(), now.driver_override.as_deref()),
            (Some("vfio-pci"), Some("vfio-pci"))
        );
        sysfs.release(at("01:10.0")).unwrap();
        let now = sysfs.function(at("01:10.0")).unwrap();
        assert_eq!(
            (now.driver.as_deref(), now.driver_override),
            (Some("igbvf"), None)
        );
    }
}

#[test]
fn a_function_that_the_driver_refuses_is_not_bound() {
    let root = TempDir::new().unwrap();
    let (sysfs, _) = machine(root.path());
    sysfs.enable(at("01:00.0"), 1).unwrap();
    fs::write(
        root.path().join("bus/pci/drivers/vfio-pci/fake_refuses"),
        "",
    )
    .unwrap();
    let error = message(sysfs.bind(at("01:10.0"), "vfio-pci"));
    assert!(
        error.starts_with("0000:01:10.0: driver vfio-pci did not take it, nobody has it"),
        "{error}"
    );
    // A guard puts things back.
    sysfs.release(at("01:10.0")).unwrap();
    let bindings = Bindings::new(sysfs.clone());
    assert!(bindings.bind(at("01:10.0"), "vfio-pci").is_err());
    assert_eq!(driver(&sysfs, "01:10.0"), "igbvf");
}

#[test]
fn a_group_is_viable_when_its_other_members_are_bound_too() {
    let root = TempDir::new().unwrap();
    let (sysfs, fake) = machine(root.path());
    fake.add_driver("pcieport").unwrap();
    let port = FakeFunction {
        driver: Some("pcieport".into()),
        group: Some(15),
        ..FakeFunction::default()
    };
    fake.add(at("00:01.0"), &port).unwrap();
    let driver = sysfs.folder(at("02:00.1")).join("driver");
    fs::remove_file(driver).unwrap();
    sysfs.bind(at("02:00.0"), "vfio-pci").unwrap();
    sysfs.bind(at("02:00.1"), "vfio-pci").unwrap();
}

#[test]
fn bindings_end_with_their_guard() {
    let root = TempDir::new().unwrap();
    let (sysfs, _) = machine(root.path());
    sysfs.enable(at("01:00.0"), 2).unwrap();
    // The second one had no driver, and an override.
    sysfs.bind(at("01:10.2"), "vfio-pci").unwrap();
    fs::remove_file(sysfs.folder(at("01:10.2")).join("driver")).unwrap();
    let bindings = Bindings::new(sysfs.clone());
    bindings.bind(at("01:10.0"), "vfio-pci").unwrap();
    bindings.bind(at("01:10.2"), "vfio-pci").unwrap();
    assert!(bindings.bind(at("02:00.0"), "vfio-pci").is_err());
    assert_eq!(
        driver(&sysfs, "01:10.0") + &driver(&sysfs, "01:10.2"),
        "vfio-pcivfio-pci"
    );
    drop(bindings);
    assert_eq!(
        driver(&sysfs, "01:10.0") + &driver(&sysfs, "01:10.2"),
        "igbvf"
    );
    assert_eq!(driver(&sysfs, "02:00.0"), "e1000e");
    let function = |address| sysfs.function(at(address)).unwrap().driver_override;
    assert_eq!(
        (function("01:10.0"), function("01:10.2").as_deref()),
        (None, Some("vfio-pci"))
    );
}

/// Not a test of its own: the process that `bindings_end_with_a_signal` ends.
#[test]
fn holder_of_a_binding() {
    let Some(root) = std::env::var_os("HOLDER_ROOT") else {
        return;
    };
    let fake = FakeSysfs::new(&root).unwrap();
    let bindings = Bindings::new(Sysfs::new(root, Arc::new(fake)));
    bindings.bind(at("01:10.0"), "vfio-pci").unwrap();
    bindings
        .restore_on_signals(&[signal_hook::consts::SIGTERM])
        .unwrap();
    println!("bound");
    std::thread::sleep(std::time::Duration::from_secs(30));
}

#[test]
fn bindings_end_with_a_signal() {
    let root = TempDir::new().unwrap();
    let (sysfs, _) = machine(root.path());
    sysfs.enable(at("01:00.0"), 1).unwrap();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder_of_a_binding", "--nocapture"])
        .env("HOLDER_ROOT", root.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("bound")));
    assert_eq!(driver(&sysfs, "01:10.0"), "vfio-pci");
    let killed = Command::new("kill")
        .args(["-TERM", &holder.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    assert!(!holder.wait().unwrap().success());
    assert_eq!(driver(&sysfs, "01:10.0"), "igbvf");
}

#[test]
fn addresses() {
    for (text, shown) in [
        ("04:10.0", "0000:04:10.0"),
        ("0000:04:1f.7", "0000:04:1f.7"),
        ("10000:e1:00.0", "10000:e1:00.0"),
    ] {
        assert_eq!(at(text).to_string(), shown);
    }
    for text in [
        "",
        "04",
        "04:10",
        "04:20.0",
        "04:10.8",
        "100:10.0:1",
        "+4:10.0",
        "0:4:1:0.0",
        "04:10.0 vf_token=1",
    ] {
        assert!(text.parse::<PciAddress>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn addresses_survive_their_text(domain in any::<u32>(), id in any::<u16>(), noise in "[0-9a-f:.+ ]{0,14}") {
        let address = PciAddress { domain, id: pio_mmio_bus::pci::RequesterId(id) };
        prop_assert_eq!(address.to_string().parse::<PciAddress>(), Ok(address));
        let _ = noise.parse::<PciAddress>();
    }
}
