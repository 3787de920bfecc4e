//! A disk on which a guest has its root: busybox, programs of Debian's with their libraries, and a script that runs there.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::debian;
use crate::process;

/// The first part of such a guest's init, in its initramfs: finds the disk, which `lab.root=` names on the kernel's command line.
pub const INIT: &str = concat!(
    include_str!("../../lab/guest-begins.sh"),
    include_str!("../../lab/root-init.sh")
);

/// The root's folders besides those of its programs.
const FOLDERS: [&str; 6] = ["bin", "proc", "sys", "dev", "tmp", "disk"];

/// Makes the folder `root` such a root, with each of `programs` (a name, and the package that has it) and the script `init`.
pub fn fill(root: &Path, cache: &Path, programs: &[(&str, &str)], init: &str) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = debian::unpacked(cache, "busybox-static")?.join("bin/busybox");
    fs::copy(busybox, root.join("bin/busybox"))?;
    for (program, package) in programs {
        debian::ensure_program(program, &[package], false)?;
        let path = Path::new("/usr/bin").join(program);
        fs::copy(&path, root.join("bin").join(program))?;
        // Its libraries and their loader, where it looks for them.
        let libraries = process::output_text(Command::new("ldd").arg(&path))?;
        for library in libraries.split_whitespace().filter(|w| w.starts_with('/')) {
            let copy = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(copy.parent().unwrap_or(root))?;
            fs::copy(library, copy)?;
        }
    }
    fs::write(root.join("init"), init)?;
    Ok(())
}

/// Makes `image` an ext4 file system of `size`, as mkfs writes it, that holds the folder `root`.
pub fn make(image: &Path, size: &str, root: &Path) -> Result<()> {
    debian::ensure_program("mkfs.ext4", &["e2fsprogs"], false)?;
    let mut mkfs = Command::new("mkfs.ext4");
    process::run_quietly(mkfs.args(["-q", "-F", "-d"]).arg(root).arg(image).arg(size))
}
