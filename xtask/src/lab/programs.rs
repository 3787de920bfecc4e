//! This workspace's programs, built for a scenario.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::process;
use crate::workspace;

/// Builds the VMM, in release, and returns its path.
pub fn reference_vmm() -> Result<PathBuf> {
    process::run_quietly(workspace::cargo()?.args(["build", "--release", "-p", "reference-vmm"]))?;
    Ok(workspace::target()?.join("release/reference-vmm"))
}

/// Builds the program `vpio`, in release, and returns its path.
pub fn vpio() -> Result<PathBuf> {
    let build = [
        "build",
        "--release",
        "-p",
        "vpio-model",
        "--features",
        "bin",
        "--bin",
        "vpio",
    ];
    process::run_quietly(workspace::cargo()?.args(build))?;
    Ok(workspace::target()?.join("release/vpio"))
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

/// Builds an example so that it needs no library, and returns its path.
pub fn static_example(package: &str, name: &str) -> Result<PathBuf> {
    let mut build = workspace::cargo()?;
    build.args(["rustc", "-p", package, "--example", name]);
    // For the program alone: what it is made of is shared with the tests.
    build.args([
        "--",
        "-C",
        "target-feature=+crt-static",
        "-C",
        "strip=symbols",
    ]);
    process::run_quietly(&mut build)?;
    // A later build of the tests puts another program there.
    let program = workspace::lab()?.join(name);
    fs::create_dir_all(workspace::lab()?)?;
    fs::copy(
        workspace::target()?.join("debug/examples").join(name),
        &program,
    )?;
    Ok(program)
}
