//! The same guest reading from the same disk, as one of Xen's under reference-vmm and under QEMU, and as virtio's: what a request takes.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::attempts::{attempts, reported};
use super::boot::program;
use super::host::{Host, ensure_qemu};
use super::initramfs;
use super::kernel::{Kernel, Series};
use super::programs;
use crate::process::quoted;
use crate::progress::Progress;
use crate::workspace;

const HOST_SCRIPT: &str = include_str!("../../lab/xen-disks-host.sh");
const GUEST_INIT: &str = concat!(
    include_str!("../../lab/guest-begins.sh"),
    include_str!("../../lab/xen-disks-guest.sh")
);
const MODULES: [&str; 3] = ["xen-blkfront", "virtio_pci", "virtio_blk"];
/// Each guest's last words.
const LAST_WORDS: &str = "guest: done";

/// A disk, and who serves it, as the host's script names them, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Served {
    /// One of Xen's, by reference-vmm.
    OursXen,
    /// One of Xen's, by QEMU.
    QemuXen,
    /// One of virtio's, by reference-vmm.
    OursVirtio,
}

/// All of them.
pub const ALL: [(Served, &str); 3] = [
    (Served::OursXen, "ours-xen"),
    (Served::QemuXen, "qemu-xen"),
    (Served::OursVirtio, "ours-virtio"),
];

/// What the requests of one disk took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Took {
    /// Which disk.
    pub served: Served,
    /// How many requests are under way at once.
    pub depth: u64,
    /// Requests of 4 KiB.
    pub requests: u64,
    /// Interrupts, or events, that the guest took from it.
    pub interrupts: u64,
    /// Hundredths of a second, as the guest counts.
    pub centiseconds: u64,
    /// Exits to user space, but for ports.
    pub exits: u64,
    /// Notifications of the guest's.
    pub kicks: u64,
}

/// Runs the three guests. Each depth of each is there once, with what both its stretches took.
pub fn run(progress: &Progress) -> Result<Vec<Took>> {
    ensure_qemu()?;
    progress.step("building reference-vmm");
    let vmm = programs::reference_vmm()?;
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let reader = program(&lab, "random-read")?;
    let archive = initramfs::build(&lab, &kernel, &MODULES, GUEST_INIT, &[reader])?;
    let initrd = initramfs::store(&lab, "xen-disks.initrd", &archive)?;
    let [vmm, image, initrd] =
        [&vmm, &kernel.image, &initrd].map(|path| quoted(&path.to_string_lossy()));
    let command = format!(
        "{vmm} run --kernel {image} --initrd {initrd} --memory 256M --cmdline 'console=ttyS0 quiet panic=-1'"
    );
    let script = format!(
        "VMM={}\nKERNEL={image}\nINITRD={initrd}\nWORK=/run/lab\n{HOST_SCRIPT}",
        quoted(&command)
    );
    let (took, _) = attempts("xen disks", || {
        let host = Host::new("xen-disks", Duration::from_secs(400));
        let finished = host.run(host.folder()?, &script, progress)?;
        reported(&finished, &[LAST_WORDS], LAST_WORDS, ALL.len())?;
        took(&finished.output)
    })?;
    Ok(took)
}

fn took(output: &str) -> Result<Vec<Took>> {
    let mut all: Vec<Took> = Vec::new();
    for (served, name) in ALL {
        let prefix = format!("host: {name}: ");
        let lines = output.lines().filter_map(|line| line.strip_prefix(&prefix));
        for line in lines {
            let numbers = line.split(' ').map(str::parse::<u64>);
            let numbers = numbers.collect::<Result<Vec<_>, _>>();
            let Ok(&[depth, requests, interrupts, centiseconds, exits, kicks]) = numbers.as_deref()
            else {
                anyhow::bail!("{name}: {line}");
            };
            let one = Took {
                served,
                depth,
                requests,
                interrupts,
                centiseconds,
                exits,
                kicks,
            };
            let same = |other: &&mut Took| (other.served, other.depth) == (served, depth);
            match all.iter_mut().find(same) {
                Some(first) => first.add(&one),
                None => all.push(one),
            }
        }
        let measured = all.iter().any(|took| took.served == served);
        ensure!(measured, "{name} was not measured");
    }
    Ok(all)
}

impl Took {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.interrupts += other.interrupts;
        self.centiseconds += other.centiseconds;
        self.exits += other.exits;
        self.kicks += other.kicks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_of_a_depth_are_one() {
        let output = "host: ours-xen: 1 100 90 50 1 99\nhost: ours-xen: 32 5 5 5 5 5\nhost: ours-xen: 1 100 90 70 0 98\n\
            host: qemu-xen: 1 1 1 1 1 1\nhost: ours-virtio: 1 1 1 1 1 1\n";
        let all = took(output).unwrap();
        assert_eq!(all.len(), 4);
        let first = Took {
            served: Served::OursXen,
            depth: 1,
            requests: 200,
            interrupts: 180,
            centiseconds: 120,
            exits: 1,
            kicks: 197,
        };
        assert_eq!(all.first(), Some(&first));
        assert!(took("host: ours-xen: 1 1 1 1 1 1").is_err());
        assert!(took(&output.replace("32 5", "32")).is_err());
    }
}
