//! An NVMe disk behind a real kernel's VT-d, given whole to a guest of reference-vmm, which makes a file system on it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::attempts::{attempts, reported};
use super::host::Host;
use super::initramfs;
use super::kernel::{Kernel, Series};
use super::programs;
use crate::process::quoted;
use crate::progress::Progress;
use crate::workspace;

const HOST_SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/disk-host.sh")
);
const GUEST_INIT: &str = include_str!("../../lab/disk-guest.sh");
/// One machine with an IOMMU and the disk's controller, a physical function, behind a root port.
const HARDWARE: [&str; 8] = [
    "-device",
    "intel-iommu,intremap=on,caching-mode=on,aw-bits=48",
    "-device",
    "pcie-root-port,id=rp0,chassis=1",
    "-device",
    "nvme-subsys,id=subsystem",
    "-device",
    "nvme,id=disk,bus=rp0,serial=lab,subsys=subsystem,sriov_max_vfs=1,sriov_vq_flexible=2,sriov_vi_flexible=1",
];
/// Bytes of the disk.
const SIZE: u64 = 64 << 20;
/// What the guest and the host must have reported.
const EXPECTED: [&str; 14] = [
    "host: the disk has virtual functions: ok",
    "host: bind: ok",
    "guest: nvme finds the disk: ok",
    "guest: make a file system: ok",
    "guest: mount: ok",
    "guest: read again: ok",
    COUNTS,
    LAST_WORDS,
    "host: the VMM ended: ok",
    "host: release: ok",
    "host: the host has the disk again: ok",
    "host: fsck: ok",
    "host: the file is what the guest wrote: ok",
    "host: no DMA was blocked: ok",
];
/// How many checks a run makes.
pub const CHECKS: u64 = EXPECTED.len() as u64;
const COUNTS: &str = "guest: requests and interrupts: ";
/// The guest's last words.
const LAST_WORDS: &str = "guest: done";

/// Runs the scenario. Returns how many requests the guest made, how many interrupts it got, and at which attempt it lived, from 1.
pub fn run(progress: &Progress) -> Result<(String, u32)> {
    progress.step("building sriov and reference-vmm");
    let (sriov, vmm) = (programs::sriov()?, programs::reference_vmm()?);
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let initrd = lab.join("disk-guest.initrd");
    let archive = initramfs::build(&lab, &kernel, &["nvme", "ext4"], GUEST_INIT, &[])?;
    fs::write(&initrd, archive)?;
    let quote = |path: &Path| quoted(&path.to_string_lossy());
    let vmm = format!(
        "{} run --kernel {} --initrd {} --memory 256M --cmdline 'console=ttyS0 quiet panic=-1'",
        quote(&vmm),
        quote(&kernel.image),
        quote(&initrd)
    );
    let script = format!(
        "SRIOV={}\nVMM={}\nWORK=/run/lab\n{HOST_SCRIPT}",
        quote(&sriov),
        quoted(&vmm)
    );
    attempts("disk", || {
        let mut host = Host {
            hardware: HARDWARE.map(str::to_owned).to_vec(),
            append: "intel_iommu=on".to_owned(),
            ..Host::new("disk", Duration::from_secs(180))
        };
        let folder = host.folder()?;
        let image = folder.join("disk.img");
        fs::File::create(&image)?.set_len(SIZE)?;
        let image = image.to_string_lossy().replace(',', ",,");
        host.hardware.extend([
            "-drive".to_owned(),
            format!("file={image},format=raw,if=none,id=image"),
            "-device".to_owned(),
            "nvme-ns,bus=disk,drive=image".to_owned(),
        ]);
        let finished = host.run(folder, &script, progress)?;
        reported(&finished, &EXPECTED, LAST_WORDS, 1)?;
        let mut lines = finished.output.lines();
        let counts = lines.find_map(|line| line.strip_prefix(COUNTS));
        Ok(counts.context("no counts")?.trim().to_owned())
    })
}
