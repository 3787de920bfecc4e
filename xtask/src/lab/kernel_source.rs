//! Parts of the source of Debian's kernel.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::debian;
use crate::process;
use crate::workspace;

const PACKAGE: &str = "linux-source-6.1";
/// What anybody here has a use for; all is 1.3 GB.
const PARTS: [&str; 3] = [
    "tools/virtio/ringtest",
    "drivers/net/ethernet",
    "drivers/ata",
];

/// A file or folder that is in one of [`PARTS`].
pub fn part(path: &str) -> Result<PathBuf> {
    let lab = workspace::lab()?;
    let root = lab.join(PACKAGE);
    if PARTS.iter().any(|part| !root.join(part).exists()) {
        debian::ensure_program("xz", &["xz-utils"], false)?;
        let package = debian::unpacked(&lab, PACKAGE)?;
        let archive = package.join("usr/src").join(format!("{PACKAGE}.tar.xz"));
        let mut tar = Command::new("tar");
        tar.arg("-xJf").arg(archive).arg("-C").arg(&lab);
        process::run_quietly(tar.args(PARTS.map(|part| format!("{PACKAGE}/{part}"))))?;
        // All of the source, of which nothing more is needed.
        fs::remove_dir_all(package)?;
    }
    Ok(root.join(path))
}
