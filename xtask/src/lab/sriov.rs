//! The program `sriov` with a real kernel: an 82576 of QEMU behind VT-d, its virtual functions enabled, given to VFIO and back, each
//! step compared with what sysfs says; and one of them opened through VFIO as a VMM does.

use std::time::Duration;

use anyhow::{Result, bail};

use super::attempts::attempts;
use super::host::Host;
use crate::process::{self, quoted};
use crate::progress::Progress;
use crate::workspace;

const SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/sriov-host.sh")
);
/// One machine with an IOMMU and two cards behind root ports: one with 7 virtual functions, and one without SR-IOV. All memory is below 4 GiB, as
/// in the scenario `vfio`. Of a faster port the kernel waits in vain for its link after a reset of what is behind it.
const HARDWARE: [&str; 14] = [
    "-m",
    "2800M",
    "-device",
    "intel-iommu,intremap=on,caching-mode=on,aw-bits=48",
    "-device",
    "pcie-root-port,id=rp0,chassis=1",
    "-device",
    "pcie-root-port,id=rp1,chassis=2,x-speed=5",
    "-netdev",
    "user,id=n0",
    "-device",
    "igb,bus=rp0,netdev=n0",
    "-device",
    "e1000e,bus=rp1",
];
/// How many checks the script makes: all of them must have been made.
pub const CHECKS: usize = 53;

/// Runs the scenario and returns a line for each check.
pub fn run(progress: &Progress) -> Result<Vec<String>> {
    progress.step("building sriov");
    let build = [
        "build",
        "-p",
        "sriov-vfio",
        "--features",
        "bin",
        "--bin",
        "sriov",
        "--example",
        "probe",
    ];
    process::run_quietly(workspace::cargo()?.args(build))?;
    let built = workspace::target()?.join("debug");
    let host = Host {
        hardware: HARDWARE.map(str::to_owned).to_vec(),
        append: "intel_iommu=on".to_owned(),
        ..Host::new("sriov", Duration::from_secs(180))
    };
    let quote = |name: &str| quoted(&built.join(name).to_string_lossy());
    let script = format!(
        "SRIOV={}\nPROBE={}\n{SCRIPT}",
        quote("sriov"),
        quote("examples/probe")
    );
    let (finished, _) = attempts(&host.name, || host.run(host.folder()?, &script, progress))?;
    let checks: Vec<String> = finished
        .output
        .lines()
        .filter(|line| line.ends_with(": ok"))
        .map(str::to_owned)
        .collect();
    if finished.status != 0 || checks.len() != CHECKS {
        bail!(
            "{}\n{} of {CHECKS} checks passed; the logs are in {}",
            finished.output,
            checks.len(),
            finished.folder.display()
        );
    }
    Ok(checks)
}
