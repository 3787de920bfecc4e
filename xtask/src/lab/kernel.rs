//! A Debian kernel: its image, its modules, and its uncompressed ELF form.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::debian;
use crate::process;

/// Scenarios run side by side, and ask for the same kernel.
static UNPACKING: Mutex<()> = Mutex::new(());

/// Which of Debian 12's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Series {
    /// The newest 6.12, from backports.
    #[value(name = "6.12")]
    V6_12,
    /// The newest 6.1, bookworm's own.
    #[value(name = "6.1")]
    V6_1,
}

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The folder that holds `boot` and `lib/modules`.
    pub root: PathBuf,
}

/// A module as `insmod` takes it.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its file name, without compression.
    pub name: String,
    /// The uncompressed ELF file.
    pub bytes: Vec<u8>,
}

impl Kernel {
    /// Downloads and unpacks the newest kernel of `series`.
    pub fn obtain(cache: &Path, series: Series) -> Result<Self> {
        let package = match series {
            Series::V6_12 => debian::newest("linux-image-6.12.", "-amd64-unsigned", true)?,
            Series::V6_1 => debian::newest("linux-image-6.1.0-", "-amd64", false)?,
        };
        let root = debian::unpacked(cache, &package)?;
        let release = package
            .trim_start_matches("linux-image-")
            .trim_end_matches("-unsigned");
        let kernel = Self {
            release: release.to_owned(),
            image: root.join(format!("boot/vmlinuz-{release}")),
            root,
        };
        debian::ensure_program("modprobe", &["kmod"], false)?;
        let _others = UNPACKING.lock().unwrap_or_else(PoisonError::into_inner);
        let modules = kernel.root.join("lib/modules").join(release);
        if !modules.join("modules.dep.bin").exists() {
            process::run_quietly(
                Command::new("depmod")
                    .arg("-b")
                    .arg(&kernel.root)
                    .arg(release),
            )?;
        }
        Ok(kernel)
    }

    /// The modules `names` and those that they need, in the order to load them.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for name in names {
            let listing =
                process::output_text(Command::new("modprobe").arg("-d").arg(&self.root).args([
                    "-S",
                    &self.release,
                    "--show-depends",
                    name,
                ]))?;
            for line in listing.lines() {
                // `insmod PATH [PARAMETER…]`, or `builtin NAME`.
                let mut words = line.split_whitespace();
                if words.next() == Some("insmod")
                    && let Some(path) = words.next().map(PathBuf::from)
                    && !paths.contains(&path)
                {
                    paths.push(path);
                }
            }
        }
        paths.iter().map(|path| module(path)).collect()
    }

    /// The ELF image inside the bzImage (Linux boot protocol: `setup_sects`, `payload_offset`,
    /// `payload_length`), unpacked once.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let path = self.root.join(format!("boot/vmlinux-{}", self.release));
        let _others = UNPACKING.lock().unwrap_or_else(PoisonError::into_inner);
        if path.exists() {
            return Ok(path);
        }
        let image = fs::read(&self.image)?;
        let payload = payload(&image).context("the kernel image is not a bzImage")?;
        let (program, package) = match payload {
            [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", "zstd"),
            [0xfd, b'7', b'z', b'X', ..] => ("xz", "xz-utils"),
            [0x1f, 0x8b, ..] => ("gzip", "gzip"),
            _ => bail!("the kernel is packed in a way this task does not know"),
        };
        debian::ensure_program(program, &[package], false)?;
        let packed = path.with_extension("packed");
        fs::write(&packed, payload)?;
        let elf = process::output(
            Command::new(program)
                .arg("-dc")
                .stdin(Stdio::null())
                .arg(&packed),
        )?;
        fs::remove_file(&packed)?;
        fs::write(&path, elf)?;
        Ok(path)
    }
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let setup_sectors = match image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The build appends the unpacked size, which belongs to no compressed format.
    let end = start.checked_add(word(0x24c)?)?.checked_sub(4)?;
    image.get(start..end)
}

fn module(path: &Path) -> Result<Module> {
    let name = path
        .file_name()
        .context("a module without a name")?
        .to_string_lossy();
    let (name, bytes) = match name.strip_suffix(".xz") {
        None => (&*name, fs::read(path)?),
        Some(name) => {
            debian::ensure_program("xz", &["xz-utils"], false)?;
            (
                name,
                process::output(Command::new("xz").arg("-dc").arg(path))?,
            )
        }
    };
    Ok(Module {
        name: name.to_owned(),
        bytes,
    })
}
