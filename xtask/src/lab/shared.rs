//! An old network card behind a real kernel's VT-d that two guests of reference-vmm have by turns, both downloading at once.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::attempts::{attempts, reported};
use super::boot::program;
use super::host::{Finished, Host};
use super::kernel::{Kernel, Series};
use super::{initramfs, programs, vpio};
use crate::process::quoted;
use crate::progress::Progress;
use crate::workspace;

const HOST_SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/behind-ports.sh"),
    include_str!("../../lab/shared-host.sh")
);
const GUEST_INIT: &str = concat!(
    include_str!("../../lab/guest-begins.sh"),
    include_str!("../../lab/guest-checks.sh"),
    include_str!("../../lab/shared-guest.sh")
);
/// What the guests and the host must have reported.
const EXPECTED: [&str; 19] = [
    "host: bind: ok",
    "guest: 1: finds its card: ok",
    "guest: 2: finds its card: ok",
    "guest: 1: answers: ok",
    "guest: 2: answers: ok",
    "guest: 1: may begin: ok",
    "guest: 2: may begin: ok",
    "guest: 1: download: ok",
    "guest: 2: download: ok",
    "host: VMM 1 ended: ok",
    "host: VMM 2 ended: ok",
    "host: guest 1 has its own frames only: ok",
    "host: guest 2 has its own frames only: ok",
    "host: what was sent is the guests': ok",
    "host: both download at once: ok",
    "host: both take turns: ok",
    "host: nothing was denied: ok",
    "host: no DMA was blocked: ok",
    LAST_WORDS,
];
/// How many checks a run makes.
pub const CHECKS: u64 = EXPECTED.len() as u64;
/// Each guest's last words.
const LAST_WORDS: &str = "guest: done";

/// A card, and how it is shared.
#[derive(Debug)]
pub struct Card {
    /// Names the run.
    name: &'static str,
    /// For QEMU.
    device: &'static str,
    /// Vendor and device, as sysfs has them.
    id: &'static str,
    /// Linux's.
    driver: &'static str,
    model: &'static str,
    /// How much each guest downloads.
    bytes: u64,
    /// For `vpio serve`.
    options: &'static str,
}

/// A switch clears its memory, through a data port, which takes a second: turns are not much shorter.
pub const NE2000: Card = Card {
    name: "shared-ne2000",
    device: "ne2k_pci",
    id: "0x10ec 0x8029",
    driver: "ne2k-pci",
    model: "ne2000.vpio",
    bytes: 32 << 10,
    options: "--quantum 1000 --patience 20000",
};

/// Turns that are short beside the downloads. What is QEMU's is an RTL8139C+, with rings; drivers take one of revision 10h for an RTL8139.
pub const RTL8139: Card = Card {
    name: "shared-rtl8139",
    device: "rtl8139",
    id: "0x10ec 0x8139",
    driver: "8139too",
    model: "rtl8139.vpio",
    bytes: 512 << 10,
    options: "--revision 16 --quantum 250 --patience 20000",
};

/// How often a card changed hands.
#[derive(Debug)]
pub struct Turns {
    turns: u64,
    /// At which attempt the guests lived, from 1.
    attempt: u32,
}

impl fmt::Display for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} turns", self.turns)?;
        if self.attempt > 1 {
            write!(f, ", at attempt {}", self.attempt)?;
        }
        Ok(())
    }
}

/// Runs the scenario with a card.
pub fn run(card: &Card, progress: &Progress) -> Result<Turns> {
    progress.step("building sriov, vpio and reference-vmm");
    let (sriov, arbiter, vmm) = (
        programs::sriov()?,
        programs::vpio()?,
        programs::reference_vmm()?,
    );
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let frames = program(&lab, "frames")?;
    // The program looks at frames by the last one.
    let modules = [card.driver, "af_packet"];
    let programs = std::slice::from_ref(&frames);
    let archive = initramfs::build(&lab, &kernel, &modules, GUEST_INIT, programs)?;
    let initrd = initramfs::store(&lab, &format!("{}-guest.initrd", card.name), &archive)?;
    let quote = |path: &Path| quoted(&path.to_string_lossy());
    let vmm = format!(
        "{} run --kernel {} --initrd {} --memory 192M",
        quote(&vmm),
        quote(&kernel.image),
        quote(&initrd)
    );
    let models = workspace::root()?.join("crates/vpio-model/models");
    let mut script = String::new();
    for (name, value) in [
        ("SRIOV", quote(&sriov)),
        ("VPIO", quote(&arbiter)),
        ("VMM", quoted(&vmm)),
        ("FRAMES", quote(&frames)),
        ("MODEL", quote(&models.join(card.model))),
        ("OPTIONS", quoted(card.options)),
        ("ID", quoted(card.id)),
        ("DRIVER", quoted(card.driver)),
        ("BYTES", card.bytes.to_string()),
        ("WORK", "/run/lab".to_owned()),
    ] {
        script.push_str(&format!("{name}={value}\n"));
    }
    script.push_str(HOST_SCRIPT);
    let host = Host {
        append: "intel_iommu=on".to_owned(),
        hardware: vpio::behind_ports(&[card.device]),
        ..Host::new(card.name, Duration::from_secs(300))
    };
    let (turns, attempt) = attempts(card.name, || {
        let finished = host.run(host.folder()?, &script, progress)?;
        reported(&finished, &EXPECTED, LAST_WORDS, 2)?;
        turns(&finished)
    })?;
    Ok(Turns { turns, attempt })
}

/// What the arbiter said when the last guest went away.
fn turns(finished: &Finished) -> Result<u64> {
    let lines = finished.output.lines().rev();
    let mut words =
        lines.filter_map(|line| line.strip_prefix("host: vpio: ")?.split_once(" after "));
    let (_, words) = words
        .next()
        .context("the arbiter did not say how often the card changed hands")?;
    let (turns, _) = words.split_once(' ').context("no number")?;
    Ok(turns.parse()?)
}
