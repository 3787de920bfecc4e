//! A virtual function that the same guest drives under reference-vmm and under QEMU, in front of their emulated VT-d and behind it: what a
//! transfer takes.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::attempts::{attempts, reported};
use super::host::Host;
use super::kernel::{Kernel, Series};
use super::{initramfs, programs, vfio};
use crate::process::quoted;
use crate::progress::Progress;
use crate::workspace;

const HOST_SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/assigned-host.sh")
);
/// As the script names them, in its order.
const NAMES: [&str; 4] = ["ours plain", "qemu plain", "ours behind", "qemu behind"];
const FRAMES: &str = "guest: compared frames: ";
/// Each guest's last words.
const LAST_WORDS: &str = "guest: done";

/// What a transfer took under one VMM.
#[derive(Debug, Serialize)]
pub struct Took {
    /// Whether it is ours, else QEMU.
    pub ours: bool,
    /// Whether the function was behind the VMM's emulated VT-d.
    pub behind: bool,
    /// Frames that the guest sent and received.
    pub frames: u64,
    /// Exits to user space.
    pub exits: u64,
    /// Calls of VFIO that mapped memory.
    pub maps: u64,
    /// Calls of VFIO that unmapped memory.
    pub unmaps: u64,
}

/// Runs the four guests.
pub fn run(progress: &Progress) -> Result<Vec<Took>> {
    progress.step("building sriov and reference-vmm");
    let (sriov, vmm) = (programs::sriov()?, programs::reference_vmm()?);
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let archive = initramfs::build(&lab, &kernel, &["igbvf"], vfio::GUEST_INIT, &[])?;
    let initrd = initramfs::store(&lab, "vfio-guest.initrd", &archive)?;
    let [sriov, vmm, image, initrd] =
        [&sriov, &vmm, &kernel.image, &initrd].map(|path| quoted(&path.to_string_lossy()));
    let command = format!("{vmm} run --kernel {image} --initrd {initrd} --memory 256M");
    let script = format!(
        "SRIOV={sriov}\nVMM={}\nKERNEL={image}\nINITRD={initrd}\nWORK=/run/lab\n{HOST_SCRIPT}",
        quoted(&command)
    );
    let host = Host {
        hardware: vfio::HARDWARE.map(str::to_owned).to_vec(),
        append: "intel_iommu=on".to_owned(),
        ..Host::new("assigned", Duration::from_secs(400))
    };
    let (took, _) = attempts(&host.name, || {
        let finished = host.run(host.folder()?, &script, progress)?;
        reported(&finished, &[LAST_WORDS], LAST_WORDS, NAMES.len())?;
        took(&finished.output)
    })?;
    Ok(took)
}

fn took(output: &str) -> Result<Vec<Took>> {
    let mut frames = output.lines().filter_map(|line| line.strip_prefix(FRAMES));
    NAMES
        .into_iter()
        .map(|name| {
            let prefix = format!("host: {name}: ");
            let mut lines = output.lines().filter_map(|line| line.strip_prefix(&prefix));
            let numbers = lines
                .find_map(|rest| {
                    let numbers = rest.split(' ').map(str::parse);
                    numbers.collect::<Result<Vec<u64>, _>>().ok()
                })
                .with_context(|| format!("no counts of {name}"))?;
            let [exits, maps, unmaps] = numbers[..] else {
                anyhow::bail!("{name}: {numbers:?}");
            };
            Ok(Took {
                ours: name.starts_with("ours"),
                behind: name.ends_with("behind"),
                frames: frames.next().context("no frames")?.trim().parse()?,
                exits,
                maps,
                unmaps,
            })
        })
        .collect()
}
