//! The program `sriov` on a folder that looks like sysfs and only remembers what is written.
#![cfg(feature = "bin")]
#![expect(clippy::unwrap_used, reason = "test code")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use sriov_vfio::sysfs::Sysfs;
use sriov_vfio::sysfs::fake::{FakeFunction, FakeSriov, FakeSysfs};
use tempfile::TempDir;

fn machine() -> TempDir {
    let root = TempDir::new().unwrap();
    let fake = FakeSysfs::new(root.path()).unwrap();
    fake.add_driver("igb").unwrap();
    let card = FakeFunction {
        device: 0x10c9,
        driver: Some("igb".into()),
        group: Some(14),
        sriov: Some(FakeSriov {
            total: 7,
            offset: 0x80,
            stride: 2,
            ..FakeSriov::default()
        }),
        interface: Some("eth0".into()),
    };
    fake.add("01:00.0".parse().unwrap(), &card).unwrap();
    let plain = FakeFunction {
        device: 0x10d3,
        ..FakeFunction::default()
    };
    fake.add("02:00.0".parse().unwrap(), &plain).unwrap();
    root
}

/// Exit status, standard output, standard error.
fn sriov(root: &Path, arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sriov"))
        .arg("--sysfs")
        .arg(root)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn lists() {
    let root = machine();
    let (_, out, _) = sriov(root.path(), &["list"]);
    assert_eq!(
        out,
        "0000:01:00.0 8086:10c9 driver igb, group 14, 0 of 7 virtual functions\n"
    );
    let (_, out, _) = sriov(root.path(), &["list", "--all"]);
    assert!(
        out.ends_with("0000:02:00.0 8086:10d3 driver -, no IOMMU group\n"),
        "{out}"
    );
    let (_, out, _) = sriov(root.path(), &["list", "--json"]);
    let sysfs = FakeSysfs::new(root.path()).unwrap();
    let neighbour = FakeFunction {
        group: Some(14),
        ..FakeFunction::default()
    };
    sysfs.add("01:00.1".parse().unwrap(), &neighbour).unwrap();
    let (_, shared, _) = sriov(root.path(), &["list"]);
    assert!(
        shared.contains(", group 14 with 0000:01:00.1 (no driver), "),
        "{shared}"
    );
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json.pointer("/0/address").unwrap(), "0000:01:00.0");
    assert_eq!(json.pointer("/0/role/physical/total").unwrap(), 7);
}

#[test]
fn enables() {
    let root = machine();
    // The program writes plain files here: nobody gives the interface a link when it comes up.
    fs::write(root.path().join("class/net/eth0/carrier"), "1\n").unwrap();
    let (good, _, errors) = sriov(
        root.path(),
        &["enable", "01:00.0", "2", "--up", "--no-driver"],
    );
    assert!(good, "{errors}");
    let read = |name: &str| fs::read_to_string(root.path().join(name)).unwrap();
    assert_eq!(read("bus/pci/devices/0000:01:00.0/sriov_numvfs"), "2");
    assert_eq!(
        read("bus/pci/devices/0000:01:00.0/sriov_drivers_autoprobe"),
        "1"
    );
    assert_eq!(read("class/net/eth0/flags"), "0x1003");
}

#[test]
fn who_has_to_name_a_token_is_said() {
    let root = machine();
    let sysfs = Sysfs::new(root.path(), Arc::new(FakeSysfs::new(root.path()).unwrap()));
    FakeSysfs::new(root.path())
        .unwrap()
        .add_driver("vfio-pci")
        .unwrap();
    let physical = "01:00.0".parse().unwrap();
    let enabled = sysfs.enable(physical, 1).unwrap();
    let bound = enabled[0].to_string();
    sysfs.bind(enabled[0], "vfio-pci").unwrap();
    let (good, _, errors) = sriov(root.path(), &["bind", &bound]);
    assert!(good && errors.is_empty(), "{errors}");
    sysfs.bind(physical, "vfio-pci").unwrap();
    let (_, out, errors) = sriov(root.path(), &["bind", &bound]);
    assert!(out.starts_with("/dev/vfio/"), "{out}");
    let needed = format!("sriov: {bound} needs the VF token that was set with 0000:01:00.0: ");
    assert!(errors.starts_with(&needed), "{errors}");
    let (_, _, errors) = sriov(root.path(), &["bind", "01:00.0"]);
    assert!(errors.contains("set a VF token"), "{errors}");
}

#[test]
fn errors_end_the_program_and_say_what_to_do() {
    let root = machine();
    for (arguments, expected) in [
        (
            &["enable", "01:00.0", "8"][..],
            "sriov: 0000:01:00.0: 8 virtual functions, the device has 7\n",
        ),
        (
            &["enable", "02:00.0", "1"],
            "sriov: 0000:02:00.0: no SR-IOV: ",
        ),
        (&["disable", "02:00.0"], "sriov: 0000:02:00.0: no SR-IOV: "),
        (
            &["bind", "02:00.0"],
            "sriov: 0000:02:00.0: in no IOMMU group: ",
        ),
        (
            &["bind", "01:00.0"],
            "sriov: driver vfio-pci is not loaded: modprobe vfio-pci\n",
        ),
        (
            &["release", "09:00.0"],
            "sriov: 0000:09:00.0: there is no such function; `sriov list`",
        ),
        (
            &["enable", "02:00.0", "1", "--up"],
            "sriov: 0000:02:00.0: has no network interface",
        ),
    ] {
        let (good, out, errors) = sriov(root.path(), arguments);
        assert!(
            !good && out.is_empty() && errors.starts_with(expected),
            "{errors}"
        );
    }
}
