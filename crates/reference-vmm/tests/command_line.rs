//! The program as a user meets it: what it says when something is wrong, and with which status it ends.
#![expect(clippy::unwrap_used, reason = "test code")]

mod kvm;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use kvm::has_kvm;

fn vmm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reference-vmm"))
        .args(args)
        .output()
        .unwrap()
}

/// Status, and standard error, which must be a single line if the status is 1.
fn failure(args: &[&str]) -> (Option<i32>, String) {
    let output = vmm(args);
    let message = String::from_utf8(output.stderr).unwrap();
    if output.status.code() == Some(1) {
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.starts_with("reference-vmm: "), "{message}");
    }
    (output.status.code(), message)
}

#[test]
fn help_names_every_option_and_status() {
    let help = String::from_utf8(vmm(&["run", "--help"]).stdout).unwrap();
    for text in [
        "--kernel",
        "--initrd",
        "--cmdline",
        "--cpus",
        "--memory",
        "--disk",
        "--net",
        "--vhost-user",
        "--vfio",
        "--vpio",
        "--console",
        "--transport",
        "--device",
        "--iommu",
        "--xen",
        "--xen-peer",
        "--debug-exit",
        "--report",
        "--no-reboot",
        "Exit status",
        "Example",
    ] {
        assert!(help.contains(text), "{text}");
    }
}

#[test]
fn missing_kernel() {
    let (status, message) = failure(&["run", "--kernel", "/no/such/kernel"]);
    assert_eq!(status, Some(1));
    assert!(message.contains("cannot open the kernel /no/such/kernel: No such file"));
}

#[test]
fn kernel_is_a_directory() {
    let (status, message) = failure(&["run", "--kernel", "/"]);
    assert_eq!(status, Some(1));
    assert!(message.contains("directory"), "{message}");
}

#[test]
fn unreadable_initrd_and_disk() {
    let kernel = tempfile::NamedTempFile::new().unwrap();
    let kernel = kernel.path().to_str().unwrap();
    let (status, message) = failure(&["run", "--kernel", kernel, "--initrd", "/no/initrd"]);
    assert_eq!(status, Some(1));
    assert!(message.contains("cannot open the initrd /no/initrd"));
    let (status, message) = failure(&["run", "--kernel", kernel, "--disk", "/no/disk,readonly"]);
    assert_eq!(status, Some(1));
    assert!(message.contains("cannot open the disk image /no/disk:"));
}

#[test]
fn devices_of_xen_need_xen() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), [0; 512]).unwrap();
    let path = file.path().to_str().unwrap();
    let disk = format!("{path},pv=xen,readonly");
    for device in [["--disk", &disk], ["--net", "tap=t,pv=xen"]] {
        let (status, message) = failure(&[["run", "--kernel", path].as_slice(), &device].concat());
        assert_eq!(status, Some(1));
        assert!(message.contains("add --xen"), "{message}");
    }
    let (status, _) = failure(&["run", "--kernel", path, "--xen", "--iommu", "vtd"]);
    assert_eq!(status, Some(2));
}

#[test]
fn disk_in_another_format() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let kernel = write("kernel", b"");
    let mut header = b"QFI\xfb".to_vec();
    header.resize(4096, 0);
    let qcow = write("disk.qcow2", &header);
    let (status, message) = failure(&["run", "--kernel", &kernel, "--disk", &qcow]);
    assert_eq!(status, Some(1));
    assert!(message.contains("qemu-img convert"));
    let short = write("short", b"x");
    let (status, message) = failure(&["run", "--kernel", &kernel, "--disk", &short]);
    assert_eq!(status, Some(1));
    assert!(message.contains("smaller than one sector"));
}

#[test]
fn vhost_user_backends_that_are_missing_or_no_backends() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (kernel, socket) = (path("kernel"), path("socket"));
    fs::write(&kernel, b"").unwrap();
    let blk = format!("blk={socket}");
    let run = ["run", "--kernel", &kernel, "--vhost-user", &blk];
    let (status, message) = failure(&run);
    assert_eq!(status, Some(1));
    let wanted = format!("cannot connect to the vhost-user backend at {socket}: No such file");
    assert!(message.contains(&wanted), "{message}");
    // Somebody listens, and hangs up.
    if !has_kvm() {
        return;
    }
    let listener = UnixListener::bind(&socket).unwrap();
    let (status, message) = failure(&[&run[..], &["--iommu", "vtd"]].concat());
    assert_eq!(status, Some(1));
    assert!(message.contains("behind an IOMMU"), "{message}");
    let server = thread::spawn(move || {
        // The one before, and this one.
        for _ in 0..2 {
            drop(listener.accept());
        }
    });
    let (status, message) = failure(&run);
    server.join().unwrap();
    assert_eq!(status, Some(1));
    let wanted = format!("the vhost-user backend at {socket}: ");
    assert!(message.contains(&wanted), "{message}");
}

/// What a guest maps in other units, or in first-stage tables, is not told or not carried over.
#[test]
fn an_assigned_function_is_behind_no_iommu_that_is_not_told() {
    if !has_kvm() {
        return;
    }
    let kernel = tempfile::NamedTempFile::new().unwrap();
    let kernel = kernel.path().to_str().unwrap();
    for iommu in ["virtio", "vtd", "vtd,caching-mode,scalable"] {
        let run = ["run", "--kernel", kernel, "--vfio", "01:00.0"];
        let (status, message) = failure(&[&run[..], &["--iommu", iommu]].concat());
        assert_eq!(status, Some(1));
        assert!(message.contains("and no other"), "{iommu}: {message}");
    }
}

#[test]
fn wrong_arguments_have_a_status_of_their_own() {
    for wrong in [
        &["run"][..],
        &["run", "--kernel", "k", "--cpus", "0"],
        &["run", "--kernel", "k", "--cpus", "255"],
        &["run", "--kernel", "k", "--memory", "lots"],
        &["run", "--kernel", "k", "--disk", "d,rw"],
        &["run", "--kernel", "k", "--disk", ",readonly"],
        &["run", "--kernel", "k", "--net", "bridge=br0"],
        &["run", "--kernel", "k", "--net", "mac=02:00:00:00:00:01"],
        &["run", "--kernel", "k", "--net", "tap=t,mac=nonsense"],
        &["run", "--kernel", "k", "--net", "tap=t,sriov=0"],
        &["run", "--kernel", "k", "--net", "tap=t,sriov=256"],
        &["run", "--kernel", "k", "--net", "tap=t,pv=kvm"],
        &["run", "--kernel", "k", "--xen-peer", "s"],
        &["run", "--kernel", "k", "--net", "tap=t,pv=xen,sriov=1"],
        &["run", "--kernel", "k", "--net", "tap=t,sriov="],
        &["run", "--kernel", "k", "--vhost-user", "blk="],
        &["run", "--kernel", "k", "--vhost-user", "scsi=socket"],
        &["run", "--kernel", "k", "--vfio", "01:00.8"],
        &["run", "--kernel", "k", "--console", "stdin"],
        &["run", "--kernel", "k", "--transport", "isa"],
        &["run", "--kernel", "k", "--device", "virtio"],
        &["run", "--kernel", "k", "--iommu", "amd"],
        &["run", "--kernel", "k", "--iommu", "vtd,lazy"],
        &["run", "--kernel", "k", "--iommu", "virtio,sidecore"],
        &["run", "--kernel", "k", "--debug-exit", "0x10000"],
        &["fly"],
    ] {
        let (status, message) = failure(wrong);
        assert_eq!(status, Some(2), "{wrong:?}");
        assert!(
            message.contains("error:") || message.contains("Usage"),
            "{message}"
        );
    }
}

#[test]
fn without_kvm_one_line_says_so() {
    if Path::new("/dev/kvm").exists() {
        println!("SKIPPED: there is a /dev/kvm");
        return;
    }
    let (status, message) = failure(&["demo"]);
    assert_eq!(status, Some(1));
    assert!(message.contains("/dev/kvm does not exist"));
}

#[test]
fn file_that_is_no_kernel() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    for bytes in [&b""[..], &[0; 4096], b"\x7fELF"] {
        fs::write(&path, bytes).unwrap();
        let (status, message) = failure(&["run", "--kernel", path.to_str().unwrap()]);
        assert_eq!(status, Some(1));
        assert!(message.contains("kernel"), "{message}");
    }
}

#[test]
fn demo_ends_with_a_table_and_status_0() {
    if !has_kvm() {
        return;
    }
    let report = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    let output = vmm(&["demo", "--report", report.path().to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}{errors}");
    assert!(text.contains("32 sectors read, one written and read back"));
    assert!(text.contains("exit to user space"));
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(report.path()).unwrap()).unwrap();
    assert_eq!(report["vcpus"], 1);
    // A doorbell never leaves the kernel: there are 34 requests, and fewer writes to all registers of the device.
    let writes = report["user"].as_array().unwrap().iter();
    let writes: u64 = writes
        .filter(|exits| exits["kind"] == "memory-write")
        .map(|exits| exits["count"].as_u64().unwrap())
        .sum();
    assert!(writes < 34, "{writes}");
}

#[test]
fn a_model_that_is_missing_wrong_or_unsafe() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let kernel = path("kernel");
    fs::write(&kernel, b"").unwrap();
    let model = path("card.vpio");
    let vpio = format!("01:00.0,model={model}");
    let run = || vmm(&["run", "--kernel", &kernel, "--vpio", &vpio]);
    let said = || String::from_utf8(run().stderr).unwrap();
    assert!(said().contains("cannot open the model "), "{}", said());
    fs::write(&model, "model \"card\";\nspace regs: port bar 0 size;").unwrap();
    assert!(said().contains("card.vpio:2:"), "{}", said());
    let text = "model \"card\"; space regs: port bar 0 size 8; machine dma { idle, busy } address buffer: 32;
        register BUFFER = regs[0]:4; register START = regs[4]:1;
        transfer send: read buffer, 512 while dma is busy;
        on write BUFFER { buffer = value; forward device(value); }
        on write START { dma -> busy; }
        reusable when 1;";
    fs::write(&model, text).unwrap();
    let words = "card.vpio is unsafe: transfer `send` runs unchecked after write START";
    assert!(said().contains(words), "{}", said());
    assert_eq!(run().status.code(), Some(1));
    for wrong in ["01:00.0", "01:00.0,model=", "socket=", "socket"] {
        let wrong = vmm(&["run", "--kernel", &kernel, "--vpio", wrong]);
        assert_eq!(wrong.status.code(), Some(2));
    }
}
