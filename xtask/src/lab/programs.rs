//! This workspace's programs, built for a scenario.

use std::path::PathBuf;

use anyhow::Result;

use crate::process;
use crate::workspace;

/// Builds the VMM, in release, and returns its path.
pub fn reference_vmm() -> Result<PathBuf> {
    process::run_quietly(workspace::cargo()?.args(["build", "--release", "-p", "reference-vmm"]))?;
    Ok(workspace::target()?.join("release/reference-vmm"))
}

/// Builds the program `sriov` and returns its path.
pub fn sriov() -> Result<PathBuf> {
    let build = [
        "build",
        "-p",
        "sriov-vfio",
        "--features",
        "bin",
        "--bin",
        "sriov",
    ];
    process::run_quietly(workspace::cargo()?.args(build))?;
    Ok(workspace::target()?.join("debug/sriov"))
}
