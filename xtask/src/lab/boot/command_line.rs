//! How each VMM is told to run the guest.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::{BootArgs, Guest, TAP, Transport, Vmm};
use crate::workspace;

/// The command lines of what serves the guest's disk and network, at `disk.sock` and `net.sock` in `work`.
pub fn backends(work: &Path, disk: &Path) -> Result<[Vec<String>; 2]> {
    let socket = |name: &str| work.join(name).to_string_lossy().into_owned();
    let program = workspace::target()?.join("release/vring-vhost");
    let image = disk.to_string_lossy();
    let of_disk = [
        "qemu-storage-daemon",
        "--blockdev",
        &format!("driver=file,node-name=disk,filename={image}"),
        "--export",
        &format!(
            "vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={}",
            socket("disk.sock")
        ),
    ]
    .map(str::to_owned);
    let of_net = [
        &program.to_string_lossy(),
        "net",
        "--tap",
        TAP,
        "--socket",
        &socket("net.sock"),
    ]
    .map(str::to_owned);
    Ok([of_disk.into(), of_net.into()])
}

/// The command line that runs `guest` with this disk, in the VMM and as `args` say.
pub fn command_line(
    args: &BootArgs,
    guest: &Guest,
    work: &Path,
    disk: &Path,
    results: &Path,
) -> Result<Vec<String>> {
    let Guest {
        image,
        initrd,
        cmdline,
    } = guest;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let console = results.join("console.txt");
    let mut words: Vec<String> = Vec::new();
    let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
    let cpus = args.cpus.to_string();
    if args.vmm == Vmm::Reference {
        add(&[
            &text(&workspace::target()?.join("release/reference-vmm")),
            "run",
            "--kernel",
            &text(image),
            "--initrd",
            &text(initrd),
            "--cmdline",
            cmdline,
            "--cpus",
            &cpus,
            "--memory",
            "256M",
            "--console",
            &format!("file={}", text(&console)),
            "--transport",
            match args.transport {
                Transport::Pci => "pci",
                Transport::PciPorts => "pci-ports",
                Transport::Mmio => "mmio",
            },
        ]);
        if !args.reboot {
            add(&["--no-reboot"]);
        }
        if args.vhost_user {
            let backend = |kind: &str, name: &str| format!("{kind}={}", text(&work.join(name)));
            add(&["--vhost-user", &backend("blk", "disk.sock")]);
            add(&["--vhost-user", &backend("net", "net.sock")]);
        } else {
            add(&["--disk", &text(disk), "--net", &format!("tap={TAP}")]);
        }
        if let Some(iommu) = &args.iommu {
            add(&["--iommu", iommu]);
        }
        if args.edu {
            add(&["--device", "edu"]);
        }
        for report in ["exits.txt", "exits.json", "exits.svg"] {
            add(&["--report", &text(&results.join(report))]);
        }
        return Ok(words);
    }
    ensure!(
        !args.vhost_user,
        "only reference-vmm is told to use vhost-user"
    );
    ensure!(
        args.iommu.is_none() && !args.edu && !args.reboot,
        "only reference-vmm is told to have an IOMMU or the device edu, or to let the guest reboot"
    );
    let machine = if args.vmm == Vmm::Q35 {
        "q35"
    } else {
        "microvm,pcie=on,acpi=on"
    };
    add(&[
        "qemu-system-x86_64",
        "-M",
        machine,
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        &cpus,
    ]);
    add(&[
        "-m",
        "256M",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    add(&["-serial", "stdio", "-append", cmdline]);
    add(&["-kernel", &text(image), "-initrd", &text(initrd)]);
    let kind = match args.transport {
        Transport::Pci => "pci",
        Transport::PciPorts => bail!("only reference-vmm is told to use root ports"),
        Transport::Mmio if args.vmm == Vmm::Microvm => "device",
        Transport::Mmio => bail!("QEMU's q35 has no virtio-mmio"),
    };
    let rom = if args.transport == Transport::Pci {
        ",romfile="
    } else {
        ""
    };
    add(&[
        "-drive",
        &format!("file={},format=raw,if=none,id=d0", text(disk)),
    ]);
    add(&["-device", &format!("virtio-blk-{kind},drive=d0")]);
    add(&[
        "-netdev",
        &format!("tap,id=n0,ifname={TAP},script=no,downscript=no"),
    ]);
    add(&["-device", &format!("virtio-net-{kind},netdev=n0{rom}")]);
    add(&["-chardev", &format!("file,id=c0,path={}", text(&console))]);
    add(&[
        "-device",
        &format!("virtio-serial-{kind}"),
        "-device",
        "virtconsole,chardev=c0",
    ]);
    add(&["-device", &format!("virtio-rng-{kind}")]);
    Ok(words)
}
