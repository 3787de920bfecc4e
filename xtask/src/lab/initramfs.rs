//! An initramfs: a cpio archive in the "newc" format (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::debian;
use super::kernel::Kernel;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// A cpio archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds an executable file, and the folders above it.
    pub fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, PROGRAM, (0, 0), content)
    }

    /// Adds an empty folder, and those above it.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        self.parents(path)?;
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, (0, 0), &[])?;
        }
        Ok(())
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        self.parents(path)?;
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too large"))?;
        let name_size = u32::try_from(path.len() + 1)?;
        // inode, mode, uid, gid, links, mtime, size, dev major/minor, rdev major/minor, name, check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Puts an initramfs into the file `name` of `cache`, which another machine may just be reading: it goes on reading the old one.
pub fn store(cache: &Path, name: &str, archive: &[u8]) -> Result<PathBuf> {
    let path = cache.join(name);
    let mut file = tempfile::NamedTempFile::new_in(cache)?;
    file.write_all(archive)?;
    file.persist(&path)?;
    Ok(path)
}

/// An initramfs with busybox, `modules` of `kernel` (their load order in `/modules/order`), `init`, and static `programs` in
/// `/bin`.
pub fn build(
    cache: &Path,
    kernel: &Kernel,
    modules: &[&str],
    init: &str,
    programs: &[PathBuf],
) -> Result<Vec<u8>> {
    let busybox = debian::unpacked(cache, "busybox-static")?.join("bin/busybox");
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "tmp"] {
        archive.directory(directory)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.file("bin/busybox", &fs::read(busybox)?)?;
    let mut order = String::new();
    for module in kernel.modules(modules)? {
        archive.file(&format!("modules/{}", module.name), &module.bytes)?;
        order.push_str(&module.name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes())?;
    archive.file("init", init.as_bytes())?;
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("bin/{name}"), &fs::read(program)?)?;
    }
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_lists_folders_before_what_they_hold() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"hello").unwrap();
        archive.file("a/d", b"").unwrap();
        archive.device("dev/console", 5, 1).unwrap();
        let bytes = archive.finish().unwrap();

        let mut names = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            assert_eq!(&rest[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&rest[6 + 8 * n..14 + 8 * n]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = &rest[110..110 + name_size - 1];
            let content = (110 + name_size).next_multiple_of(4);
            names.push(String::from_utf8(name.to_vec()).unwrap());
            if names.last().unwrap() == "a/b/c" {
                assert_eq!(&rest[content..content + size], b"hello");
            }
            rest = &rest[(content + size).next_multiple_of(4)..];
        }
        assert_eq!(
            names,
            [
                "a",
                "a/b",
                "a/b/c",
                "a/d",
                "dev",
                "dev/console",
                "TRAILER!!!"
            ]
        );
    }
}
