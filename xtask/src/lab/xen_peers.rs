//! Two Debian guests to which reference-vmm is Xen, which share pages and an event channel, on the KVM of the lab's host.

use std::time::Duration;

use anyhow::Result;

use super::attempts::{attempts, reported};
use super::host::Host;
use super::kernel::{Kernel, Series};
use super::{initramfs, programs};
use crate::process::quoted;
use crate::progress::Progress;
use crate::workspace;

const HOST_SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/xen-peers-host.sh")
);
const GUEST_INIT: &str = concat!(
    include_str!("../../lab/guest-begins.sh"),
    include_str!("../../lab/xen-peers-guest.sh")
);
const MODULES: [&str; 3] = ["xen-gntdev", "xen-gntalloc", "xen-evtchn"];
/// What the guests and the host must have reported.
const EXPECTED: [&str; 12] = [
    "host: the first guest grants: ok",
    "peer: what is not granted cannot be mapped: ok",
    "peer: the page: ok",
    "peer: the page, to be read only: ok",
    "peer: the event: ok",
    "peer: a port that does not wait cannot be had: ok",
    "peer: the answer: ok",
    "peer: the end: ok",
    LAST_WORDS,
    "host: the second VMM ended: ok",
    "host: the first VMM ended: ok",
    "host: nothing is left of where they met: ok",
];
/// How many checks a run makes.
pub const CHECKS: u64 = EXPECTED.len() as u64;
/// Each guest's last words.
const LAST_WORDS: &str = "guest: done";

/// Runs the scenario. Returns at which attempt the guests lived, from 1.
pub fn run(progress: &Progress) -> Result<u32> {
    progress.step("building reference-vmm");
    let vmm = programs::reference_vmm()?;
    let program = programs::static_example("grant-table", "peer")?;
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let archive = initramfs::build(&lab, &kernel, &MODULES, GUEST_INIT, &[program])?;
    let initrd = initramfs::store(&lab, "xen-peers.initrd", &archive)?;
    let [vmm, image, initrd] =
        [&vmm, &kernel.image, &initrd].map(|path| quoted(&path.to_string_lossy()));
    let command = format!("{vmm} run --xen --kernel {image} --initrd {initrd} --memory 256M");
    let script = format!("VMM={}\nWORK=/run/lab\n{HOST_SCRIPT}", quoted(&command));
    let ((), attempt) = attempts("xen peers", || {
        let host = Host::new("xen-peers", Duration::from_secs(300));
        let finished = host.run(host.folder()?, &script, progress)?;
        reported(&finished, &EXPECTED, LAST_WORDS, 2)
    })?;
    Ok(attempt)
}
