//! Virtual functions of a network card behind a real kernel's VT-d, given to guests of reference-vmm that drive them, and one to a guest
//! that has it behind an emulated VT-d.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::attempts::{attempts, reported};
use super::boot::exits::Exits;
use super::host::{Finished, Host};
use super::initramfs;
use super::kernel::{Kernel, Series};
use crate::book;
use crate::process::{self, quoted};
use crate::progress::Progress;
use crate::workspace;

const HOST_SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/vfio-host.sh")
);
pub(super) const GUEST_INIT: &str = concat!(
    include_str!("../../lab/guest-begins.sh"),
    include_str!("../../lab/guest-checks.sh"),
    include_str!("../../lab/vfio-guest.sh")
);
/// One machine with an IOMMU and two cards at the same cable, each behind a root port: an 82576 with virtual functions, and one for the
/// host. All memory is below 4 GiB: with some above, the firmware has windows there, the kernel puts virtual functions' BARs into them,
/// and QEMU 10.0 maps those at the lower half of their address.
pub(super) const HARDWARE: [&str; 16] = [
    "-m",
    "2800M",
    "-device",
    "intel-iommu,intremap=on,caching-mode=on,aw-bits=48",
    "-device",
    "pcie-root-port,id=rp0,chassis=1",
    "-device",
    "pcie-root-port,id=rp1,chassis=2",
    "-netdev",
    "hubport,id=n0,hubid=0",
    "-netdev",
    "hubport,id=n1,hubid=0",
    "-device",
    "igb,bus=rp0,netdev=n0,mac=52:54:00:12:34:56",
    "-device",
    "e1000e,bus=rp1,netdev=n1,mac=52:54:00:12:34:57",
];
/// The page whose commands the host follows as they stand, besides what it does to be refused.
const PAGE: &str = include_str!("../../../docs/src/assigning-a-device.md");
/// What the guest and the host must have reported, besides the page's commands.
const EXPECTED: [&str; 34] = [
    "host: no VFIO is said: ok",
    "host: no such function is said: ok",
    "host: no driver is said: ok",
    "host: another driver is said: ok",
    "host: bind the other: ok",
    "guest: the page's guest has a link: ok",
    "host: twice is said: ok",
    "host: an IOMMU that does not tell is refused: ok",
    "host: another user is said: ok",
    "guest: igbvf finds the function: ok",
    "guest: link: ok",
    "guest: ping: ok",
    "guest: peer: ok",
    LAST_WORDS,
    "host: the download arrived: ok",
    "host: the upload arrived: ok",
    "host: two guests talk: ok",
    "host: the peer rebooted: ok",
    "host: the VMM was killed: ok",
    "host: all is pinned before: ok",
    "guest: the function's DMA is translated: ok",
    "guest: its interrupts are remapped: ok",
    "host: pinned with the interface up: ",
    "host: pinned after the transfer: ",
    "guest: alive after a blocked write: ok",
    "guest: the memory there is unchanged: ok",
    "host: pinned with the interface down: ",
    "host: the translated download arrived: ok",
    "host: the translated upload arrived: ok",
    "host: two lives of a guest had the function: ok",
    "host: the last VMM ended: ok",
    "host: only what it wrote elsewhere was blocked: ok",
    "host: no DMA was blocked: ok",
    "guest: packets and interrupts: ",
];
/// Each guest's last words: two have them.
const LAST_WORDS: &str = "guest: done";

/// What the transfer cost.
#[derive(Debug)]
pub struct Transfer {
    /// Frames that the guest sent and received.
    pub packets: u64,
    /// Interrupts of the function in the guest.
    pub interrupts: u64,
    /// Exits to user space.
    pub exits: Exits,
    /// What VFIO pinned, and how often it was called, at several times behind an IOMMU.
    pub pinned: Vec<String>,
    /// How many checks were made.
    pub checks: u64,
    /// At which attempt the guests lived, from 1.
    pub attempt: u32,
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} frames, {} interrupts, {} exits to user space",
            self.packets,
            self.interrupts,
            self.exits.total()
        )?;
        for pinned in &self.pinned {
            write!(f, "; {pinned}")?;
        }
        if self.attempt > 1 {
            write!(f, ", at attempt {}", self.attempt)?;
        }
        Ok(())
    }
}

/// Runs the scenario.
pub fn run(progress: &Progress) -> Result<Transfer> {
    progress.step("building sriov and reference-vmm");
    let (building, typed): (Vec<_>, Vec<_>) = book::root_commands(PAGE)
        .into_iter()
        .partition(|command| command.starts_with("cargo "));
    for command in building {
        let mut cargo = workspace::cargo()?;
        process::run_quietly(cargo.args(command.split(' ').skip(1)))?;
    }
    let target = workspace::target()?;
    let (sriov, vmm) = (
        target.join("debug/sriov"),
        target.join("release/reference-vmm"),
    );
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let archive = initramfs::build(&lab, &kernel, &["igbvf"], GUEST_INIT, &[])?;
    let initrd = initramfs::store(&lab, "vfio-guest.initrd", &archive)?;
    let quote = |path: &Path| quoted(&path.to_string_lossy());
    let command = format!(
        "{} run --kernel {} --initrd {} --memory 256M",
        quote(&vmm),
        quote(&kernel.image),
        quote(&initrd)
    );
    let script = format!(
        "SRIOV={}\nREFERENCE_VMM={}\nVMM={}\nKERNEL={}\nINITRD={}\nWORK=/run/lab\n{HOST_SCRIPT}",
        quote(&sriov),
        quote(&vmm),
        quoted(&command),
        quote(&kernel.image),
        quote(&initrd),
    );
    let reports: Vec<String> = typed
        .iter()
        .map(|command| format!("host: page: {command}: ok"))
        .collect();
    let mut expected = EXPECTED.to_vec();
    expected.extend(reports.iter().map(String::as_str));
    let host = Host {
        hardware: HARDWARE.map(str::to_owned).to_vec(),
        append: "intel_iommu=on".to_owned(),
        ..Host::new("vfio", Duration::from_secs(480))
    };
    let (transfer, attempt) = attempts(&host.name, || {
        let folder = host.folder()?;
        fs::write(folder.join("page"), typed.join("\n") + "\n")?;
        let finished = host.run(folder, &script, progress)?;
        reported(&finished, &expected, LAST_WORDS, 2)?;
        transfer(&finished)
    })?;
    Ok(Transfer {
        checks: u64::try_from(expected.len())?,
        attempt,
        ..transfer
    })
}

fn transfer(finished: &Finished) -> Result<Transfer> {
    let words = finished
        .output
        .lines()
        .find_map(|line| line.strip_prefix("guest: packets and interrupts: "))
        .context("no counts")?;
    let (packets, interrupts) = words.trim().split_once(' ').context("one count")?;
    let exits = |when: &str| Exits::read(&finished.folder.join(format!("exits-{when}")));
    let (before, mut exits) = (exits("before")?, exits("after")?);
    for (reason, count) in &mut exits.0 {
        *count -= before.0.get(reason).copied().unwrap_or(0);
    }
    let packets = packets.parse()?;
    if exits.total() * 100 > packets {
        bail!("{packets} frames took {} exits", exits.total());
    }
    Ok(Transfer {
        packets,
        interrupts: interrupts.parse()?,
        exits,
        pinned: finished
            .output
            .lines()
            .filter_map(|line| line.strip_prefix("host: "))
            .filter(|line| line.starts_with("pinned "))
            .map(str::to_owned)
            .collect(),
        checks: 0,
        attempt: 1,
    })
}
