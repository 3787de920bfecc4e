//! Where things are: the workspace, its build products and the lab's files.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// The root of the workspace.
pub fn root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .context("xtask's manifest has no parent folder")
}

/// Cargo's target directory.
pub fn target() -> Result<PathBuf> {
    let root = root()?;
    Ok(match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root.join(dir),
        None => root.join("target"),
    })
}

/// What the lab downloads, builds and logs.
pub fn lab() -> Result<PathBuf> {
    Ok(target()?.join("lab"))
}

/// The cargo that started this task, in the root of the workspace.
pub fn cargo() -> Result<Command> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()?);
    Ok(cargo)
}

/// A package of this workspace, as `cargo metadata` has it.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The registries it may go to: none for one that stays here, `None` for any.
    publish: Option<Vec<String>>,
    /// Its libraries, binaries, tests, ….
    pub targets: Vec<Target>,
}

impl Package {
    /// Whether it is for others to use.
    pub fn is_published(&self) -> bool {
        self.publish
            .as_ref()
            .is_none_or(|registries| !registries.is_empty())
    }
}

/// What a package builds.
#[derive(Debug, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// What it is: `lib`, `bin`, `test`, ….
    pub kind: Vec<String>,
    /// The root of its sources.
    pub src_path: PathBuf,
}

/// The packages of this workspace.
pub fn packages() -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let json = process::output(cargo()?.args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Metadata = serde_json::from_slice(&json)?;
    Ok(metadata.packages)
}
