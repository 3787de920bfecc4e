//! Whole devices behind a real kernel's VT-d, given to guests of reference-vmm: an NVMe disk (MSI-X) and an AHCI disk (MSI), on which a guest
//! makes file systems, and a network card that has but an interrupt pin.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

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
const GUEST_INIT: &str = concat!(
    include_str!("../../lab/guest-begins.sh"),
    include_str!("../../lab/guest-checks.sh"),
    include_str!("../../lab/disk-guest.sh")
);
/// One machine with an IOMMU, the disks' controllers, of which the NVMe disk's is a physical function behind a root port, and two cards at
/// the same cable.
const HARDWARE: [&str; 18] = [
    "-device",
    "intel-iommu,intremap=on,caching-mode=on,aw-bits=48",
    "-device",
    "pcie-root-port,id=rp0,chassis=1",
    "-device",
    "nvme-subsys,id=subsystem",
    "-device",
    "nvme,id=disk,bus=rp0,serial=lab,subsys=subsystem,sriov_max_vfs=1,sriov_vq_flexible=2,sriov_vi_flexible=1",
    "-device",
    "ich9-ahci,id=sata",
    "-netdev",
    "hubport,id=n0,hubid=0",
    "-netdev",
    "hubport,id=n1,hubid=0",
    "-device",
    "e1000,netdev=n0,mac=52:54:00:12:34:58",
    "-device",
    "e1000e,netdev=n1,mac=52:54:00:12:34:59",
];
/// Bytes of each disk.
const SIZE: u64 = 64 << 20;
/// What the guests and the host must have reported.
const EXPECTED: [&str; 34] = [
    "host: the disk has virtual functions: ok",
    "host: bind ",
    "host: one group is said: ok",
    "guest: NVMe finds the disk: ok",
    "guest: NVMe: make a file system: ok",
    "guest: NVMe: mount: ok",
    "guest: NVMe: read again: ok",
    "guest: AHCI finds the disk: ok",
    "guest: AHCI: make a file system: ok",
    "guest: AHCI: mount: ok",
    "guest: AHCI: read again: ok",
    "guest: AHCI has MSI: ok",
    "guest: the card has a pin: ok",
    "guest: link: ok",
    "guest: ping: ok",
    COUNTS,
    FRAMES,
    EXITS,
    LAST_WORDS,
    "host: plain: the VMM ended: ok",
    "host: plain: the download arrived: ok",
    "host: plain: the upload arrived: ok",
    "host: behind: the VMM ended: ok",
    "host: behind: the download arrived: ok",
    "host: behind: the upload arrived: ok",
    "host: the second guest reads what the first wrote: ok",
    "host: a third VMM has the card: ok",
    "host: the host asks for the card: ok",
    "host: the third VMM says why it ends: ok",
    "host: release: ok",
    "host: the host has the disk again: ok",
    "host: fsck: ok",
    "host: the file is what the guest wrote: ok",
    "host: no DMA was blocked: ok",
];
/// How many checks a run makes.
pub const CHECKS: u64 = EXPECTED.len() as u64;
const COUNTS: &str = "guest: requests and interrupts: ";
const FRAMES: &str = "guest: frames and interrupts: ";
const EXITS: &str = "host: exits for the transfer: ";
/// Each guest's last words: two have them.
const LAST_WORDS: &str = "guest: done";

/// What the guests' I/O cost.
#[derive(Debug)]
pub struct Cost {
    /// Requests to the NVMe disk, and its interrupts.
    requests: String,
    /// Of the card whose pin is the kernel's to drive, then of the one whose pin is the VMM's.
    pins: [PinCost; 2],
    /// At which attempt the guests lived, from 1.
    pub attempt: u32,
}

#[derive(Debug)]
struct PinCost {
    /// Frames sent and received, and interrupts.
    frames: String,
    /// Exits to user space.
    exits: u64,
}

impl Cost {
    fn read(output: &str) -> Result<Self> {
        let all = |words: &'static str| {
            let lines = output.lines();
            lines.filter_map(move |line| Some(line.strip_prefix(words)?.trim().to_owned()))
        };
        let pins: Vec<_> = (all(FRAMES).zip(all(EXITS)))
            .map(|(frames, exits)| {
                let exits = exits.parse()?;
                Ok(PinCost { frames, exits })
            })
            .collect::<Result<_>>()?;
        let cost = Self {
            requests: all(COUNTS).next().context("no counts")?,
            pins: pins.try_into().ok().context("not two guests' counts")?,
            attempt: 1,
        };
        let [plain, _] = &cost.pins;
        let frames = plain.frames.split(' ').next().unwrap_or_default();
        if plain.exits * 100 > frames.parse::<u64>()? {
            bail!("{frames} frames took {} exits", plain.exits);
        }
        Ok(cost)
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [plain, behind] = &self.pins;
        write!(f, "NVMe requests and interrupts: {}", self.requests)?;
        for (pin, whose) in [(plain, "the kernel's"), (behind, "the VMM's")] {
            let PinCost { frames, exits } = pin;
            write!(
                f,
                "; frames and interrupts by {whose} pin: {frames}, {exits} exits"
            )?;
        }
        if self.attempt > 1 {
            write!(f, ", at attempt {}", self.attempt)?;
        }
        Ok(())
    }
}

/// Runs the scenario.
pub fn run(progress: &Progress) -> Result<Cost> {
    progress.step("building sriov and reference-vmm");
    let (sriov, vmm) = (programs::sriov()?, programs::reference_vmm()?);
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let archive = initramfs::build(
        &lab,
        &kernel,
        &["nvme", "ahci", "sd_mod", "e1000", "ext4"],
        GUEST_INIT,
        &[],
    )?;
    let initrd = initramfs::store(&lab, "disk-guest.initrd", &archive)?;
    let quote = |path: &Path| quoted(&path.to_string_lossy());
    let vmm = format!(
        "{} run --kernel {} --initrd {} --memory 256M",
        quote(&vmm),
        quote(&kernel.image),
        quote(&initrd)
    );
    let script = format!(
        "SRIOV={}\nVMM={}\nWORK=/run/lab\n{HOST_SCRIPT}",
        quote(&sriov),
        quoted(&vmm)
    );
    let (cost, attempt) = attempts("disk", || {
        let mut host = Host {
            hardware: HARDWARE.map(str::to_owned).to_vec(),
            append: "intel_iommu=on".to_owned(),
            ..Host::new("disk", Duration::from_secs(300))
        };
        let folder = host.folder()?;
        for (image, device) in [("nvme", "nvme-ns,bus=disk"), ("sata", "ide-hd,bus=sata.0")] {
            let file = folder.join(image).with_extension("img");
            fs::File::create(&file)?.set_len(SIZE)?;
            let file = file.to_string_lossy().replace(',', ",,");
            host.hardware.extend([
                "-drive".to_owned(),
                format!("file={file},format=raw,if=none,id={image}"),
                "-device".to_owned(),
                format!("{device},drive={image}"),
            ]);
        }
        let finished = host.run(folder, &script, progress)?;
        reported(&finished, &EXPECTED, LAST_WORDS, 2)?;
        Cost::read(&finished.output)
    })?;
    Ok(Cost { attempt, ..cost })
}
