//! An unmodified Debian guest to which reference-vmm is Xen, on the KVM of the lab's host.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::attempts::{attempts, reported};
use super::host::Host;
use super::kernel::{Kernel, Series};
use super::programs;
use super::{initramfs, root_disk};
use crate::process::quoted;
use crate::progress::Progress;
use crate::workspace;

const HOST_SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/network-host.sh"),
    include_str!("../../lab/xen-guest-host.sh")
);
const ROOT: &str = concat!(
    include_str!("../../lab/guest-checks.sh"),
    include_str!("../../lab/fio.sh"),
    include_str!("../../lab/xen-guest.sh")
);
const PROGRAMS: [(&str, &str); 5] = [
    ("fio", "fio"),
    ("xenstore-ls", "xenstore-utils"),
    ("xenstore-read", "xenstore-utils"),
    ("xenstore-write", "xenstore-utils"),
    ("xenstore-rm", "xenstore-utils"),
];
const MODULES: [&str; 4] = ["xen-blkfront", "xen-netfront", "ext4", "crc32c_generic"];
/// What the guest and the host must have reported.
const EXPECTED: [&str; 32] = [
    "host: make the disk: ok",
    "host: make the tap: ok",
    "guest: the hypervisor is Xen: ok",
    "guest: it is version 4.10: ok",
    "guest: events come by vectors of the vCPUs: ok",
    "guest: its root is on xvda: ok",
    "guest: xenstore-ls shows its disk: ok",
    "guest: xenstore-ls shows the whole store: ok",
    "guest: xen-blkfront finds the disk: ok",
    "guest: it has persistent grants and indirect descriptors: ok",
    "guest: mount: ok",
    "guest: disk read: ok",
    "guest: disk write: ok",
    "guest: fio: ok",
    "guest: xen-netfront finds the interface: ok",
    "guest: it has an event channel for each direction: ok",
    "guest: ping: ok",
    "guest: the download comes uncut: ok",
    "guest: upload: ok",
    "guest: the upload goes uncut: ok",
    "guest: the disk is detached: ok",
    "guest: the disk is attached: ok",
    "guest: disk read after that: ok",
    LAST_WORDS,
    "host: the VMM ended: ok",
    "host: fsck: ok",
    "host: fsck of the root: ok",
    "host: the disk holds what the guest wrote: ok",
    "host: the upload arrived: ok",
    "host: the download arrived: ok",
    "host: requests make no exits: ok",
    COUNTS,
];
/// How many checks a run makes.
pub const CHECKS: u64 = EXPECTED.len() as u64;
const COUNTS: &str = "host: requests and hypercalls: ";
/// The guest's last words.
const LAST_WORDS: &str = "guest: done";

/// Runs the scenario. Returns how many requests the guest made of its disk and how many of its hypercalls reached user space, and at
/// which attempt it lived, from 1.
pub fn run(progress: &Progress) -> Result<(String, u32)> {
    progress.step("building reference-vmm");
    let vmm = programs::reference_vmm()?;
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let archive = initramfs::build(&lab, &kernel, &MODULES, root_disk::INIT, &[])?;
    let initrd = initramfs::store(&lab, "xen-guest.initrd", &archive)?;
    let folder = tempfile::tempdir_in(&lab)?;
    let (root, image) = (folder.path().join("root"), folder.path().join("root.img"));
    root_disk::fill(&root, &lab, &PROGRAMS, ROOT)?;
    root_disk::make(&image, "192M", &root)?;
    let quote = |path: &Path| quoted(&path.to_string_lossy());
    let vmm = format!(
        "{} run --xen --cpus 2 --kernel {} --initrd {} --memory 256M --cmdline 'console=ttyS0 quiet panic=-1 lab.root=/dev/xvda lab.reboot'",
        quote(&vmm),
        quote(&kernel.image),
        quote(&initrd)
    );
    let script = format!(
        "VMM={}\nROOT={}\nWORK=/run/lab\nTAP=vmm0\nBUSYBOX=/run/busybox/busybox\n{HOST_SCRIPT}",
        quoted(&vmm),
        quote(&image)
    );
    attempts("xen guest", || {
        let host = Host::new("xen-guest", Duration::from_secs(400));
        let finished = host.run(host.folder()?, &script, progress)?;
        reported(&finished, &EXPECTED, LAST_WORDS, 1)?;
        let mut lines = finished.output.lines();
        let counts = lines.find_map(|line| line.strip_prefix(COUNTS));
        Ok(counts.context("no counts")?.trim().to_owned())
    })
}
