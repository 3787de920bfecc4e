//! A guest behind an IOMMU enables virtual functions of reference-vmm's network card, drives them, and gives one to user space.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

use super::attempts::{attempts, reported};
use super::boot::program;
use super::host::{Finished, Host};
use super::initramfs;
use super::kernel::{Kernel, Series};
use super::programs;
use crate::process::quoted;
use crate::progress::Progress;
use crate::workspace;

const HOST_SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/virtual-functions-host.sh")
);
const GUEST_INIT: &str = concat!(
    include_str!("../../lab/guest-begins.sh"),
    include_str!("../../lab/guest-checks.sh"),
    include_str!("../../lab/virtual-functions-guest.sh")
);
/// A network card behind a root port, and an IOMMU before it.
const MACHINE: &str = "--memory 256M --transport pci-ports --iommu vtd --net tap=lab,sriov=3";
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 intel_iommu=on";
const MODULES: [&str; 4] = ["virtio_pci", "virtio_net", "vfio_iommu_type1", "vfio_pci"];
/// What the guest and the host must have reported.
const EXPECTED: [&str; 40] = [
    "guest: three functions are offered: ok",
    "guest: ping: ok",
    "guest: four are refused: ok",
    "guest: enable 2: ok",
    "guest: two appear: ok",
    "guest: each has a group of its own: ok",
    "guest: each has an address of its own: ok",
    "guest: traffic of function 0: ok",
    "guest: traffic of function 1: ok",
    "guest: disable: ok",
    "guest: they disappear: ok",
    "guest: ping after that: ok",
    "guest: enable 3: ok",
    "guest: three appear: ok",
    "guest: each has a group of its own again: ok",
    "guest: function 2 reaches its host: ok",
    "guest: a change of the number is refused: ok",
    "guest: enable 1: ok",
    "guest: one appears: ok",
    "guest: function 0 reaches its host again: ok",
    "guest: vf identity: ok",
    "guest: vf reset: ok",
    "guest: vf features: ok",
    "guest: vf address: ok",
    "guest: vf start: ok",
    "guest: vf sends: ok",
    "guest: vf receives: ok",
    "guest: vf function-level reset: ok",
    "guest: its driver has it back: ok",
    "guest: disable at last: ok",
    "guest: ping at last: ok",
    LAST_WORDS,
    "host: the downloads arrived: ok",
    "host: the upload of function 0 arrived: ok",
    "host: the upload of function 1 arrived: ok",
    "host: each has an address of its own: ok",
    "host: their threads come and go: ok",
    "host: only the function that went astray was blocked: ok",
    "host: the vmm ended: ok",
    "guest: frames of function 1: ",
];
/// How many checks a run makes.
pub const CHECKS: u64 = EXPECTED.len() as u64;
/// The guest's last words.
const LAST_WORDS: &str = "guest: done";

/// What the two virtual functions carried.
#[derive(Debug)]
pub struct Carried {
    /// Frames received and sent, of each.
    pub frames: Vec<[u64; 2]>,
    /// At which attempt the guest lived, from 1.
    pub attempt: u32,
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames: Vec<String> = self
            .frames
            .iter()
            .map(|[received, sent]| format!("{received} + {sent}"))
            .collect();
        write!(f, "{} frames received + sent", frames.join(", "))?;
        if self.attempt > 1 {
            write!(f, ", at attempt {}", self.attempt)?;
        }
        Ok(())
    }
}

/// Runs the scenario.
pub fn run(progress: &Progress) -> Result<Carried> {
    progress.step("building reference-vmm");
    let vmm = programs::reference_vmm()?;
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let programs = [program(&lab, "vf")?];
    let archive = initramfs::build(&lab, &kernel, &MODULES, GUEST_INIT, &programs)?;
    let initrd = initramfs::store(&lab, "virtual-functions-guest.initrd", &archive)?;
    let [vmm, image, initrd] =
        [&vmm, &kernel.image, &initrd].map(|path| quoted(&path.to_string_lossy()));
    let vmm =
        format!("{vmm} run --kernel {image} --initrd {initrd} {MACHINE} --cmdline '{CMDLINE}'");
    let script = format!("VMM={}\nWORK=/run/lab\n{HOST_SCRIPT}", quoted(&vmm));
    let host = Host::new("virtual-functions", Duration::from_secs(300));
    let (frames, attempt) = attempts(&host.name, || {
        let finished = host.run(host.folder()?, &script, progress)?;
        reported(&finished, &EXPECTED, LAST_WORDS, 1)?;
        frames(&finished)
    })?;
    Ok(Carried { frames, attempt })
}

fn frames(finished: &Finished) -> Result<Vec<[u64; 2]>> {
    let words = finished
        .output
        .lines()
        .filter_map(|line| line.strip_prefix("guest: frames of function "));
    words
        .map(|words| {
            let (_, counts) = words.split_once(": ").context("no counts")?;
            let (received, sent) = counts.trim().split_once(' ').context("one count")?;
            Ok([received.parse()?, sent.parse()?])
        })
        .collect()
}
