//! The lab's host (L1): an emulated machine in which a Debian kernel has real KVM, and which sees
//! the files of the machine that runs it.

use std::fmt;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::kernel::{Kernel, Series};
use super::{debian, initramfs};
use crate::process::{self, quoted};
use crate::progress::Progress;
use crate::workspace;

/// What the host's init needs before it sees the files of the machine below.
const MODULES: [&str; 8] = [
    "virtio_pci",
    "9p",
    "9pnet_virtio",
    "overlay",
    "kvm_amd",
    "tun",
    "vhost_net",
    "virtio_rng",
];
const INIT: &str = include_str!("../../lab/host-init.sh");

/// An emulated host that runs one script and ends.
#[derive(Debug)]
pub struct Host {
    /// Names the folder of its logs, `target/lab/runs/NAME`.
    pub name: String,
    /// How long it may take from power-on to power-off.
    pub bound: Duration,
    /// More hardware: arguments for QEMU.
    pub hardware: Vec<String>,
    /// More for the kernel's command line.
    pub append: String,
}

/// What a run left behind.
#[derive(Debug)]
pub struct Finished {
    /// The exit status of the script.
    pub status: i32,
    /// What the script printed.
    pub output: String,
    /// The folder shared with the host: its logs, and what the script left there.
    pub folder: PathBuf,
}

/// The emulated host hung, crashed or reset: no script can do that to it. What is known of it.
#[derive(Debug)]
pub struct HostDied(pub String);

impl std::error::Error for HostDied {}

impl fmt::Display for HostDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Host {
    /// A host called `name` that may run for `bound`.
    pub fn new(name: &str, bound: Duration) -> Self {
        Self {
            name: name.to_owned(),
            bound,
            hardware: Vec::new(),
            append: String::new(),
        }
    }

    /// The folder that the host sees as `/job`, emptied.
    pub fn folder(&self) -> Result<PathBuf> {
        let folder = workspace::lab()?.join("runs").join(&self.name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Runs `script` (POSIX sh) in the host, `folder` being its `/job`.
    pub fn run(&self, folder: PathBuf, script: &str, progress: &Progress) -> Result<Finished> {
        let lab = workspace::lab()?;
        ensure_qemu()?;
        debian::ensure_program("setpriv", &["util-linux"], false)?;
        progress.step("the lab's kernel");
        let kernel = Kernel::obtain(&lab, Series::V6_12)?;
        let archive = initramfs::build(&lab, &kernel, &MODULES, INIT, &[])?;
        let initrd = initramfs::store(&lab, "host.initrd", &archive)?;
        let prelude = format!(
            "cd {}\nexport LAB_KERNEL_ROOT={}\n",
            quoted(&workspace::root()?.to_string_lossy()),
            quoted(&kernel.root.to_string_lossy())
        );
        fs::write(folder.join("main.sh"), prelude + script)?;

        let console = folder.join("console.log");
        // setpriv: the machine ends with this task, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(["-accel", "tcg,thread=multi"]);
        command.args(["-M", "q35", "-cpu", "max", "-smp", "2"]);
        command.args(["-m", "3G", "-display", "none", "-nodefaults", "-no-reboot"]);
        command
            .arg("-serial")
            .arg(format!("file:{}", console.display()));
        command
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initrd);
        command.arg("-append");
        command.arg(format!("console=ttyS0 panic=-1 quiet {}", self.append));
        command.args(&self.hardware);
        share(&mut command, "host", Path::new("/"), ",readonly=on");
        share(&mut command, "job", &folder, "");
        command.args(["-device", "virtio-rng-pci"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(folder.join("qemu.log"))?);
        progress.step("the lab's host starts");
        let child = command.spawn().context("cannot start QEMU")?;

        let mut tail = Tail::new(folder.join("output.log"));
        let ended = process::wait_bounded(child, self.bound, || {
            if let Some(line) = tail.last_line()? {
                progress.note(&line);
            }
            Ok(())
        })?;
        let output = read_text(&folder.join("output.log"));
        let status = fs::read_to_string(folder.join("status"));
        match (ended, status) {
            (None, _) => Err(HostDied(format!(
                "the lab's host did not end within {} s; its logs are in {}\n{output}",
                self.bound.as_secs(),
                folder.display()
            ))
            .into()),
            (Some(_), Ok(status)) => Ok(Finished {
                status: status
                    .trim()
                    .parse()
                    .context("the lab's host left no exit status")?,
                output,
                folder,
            }),
            (Some(_), Err(_)) => Err(HostDied(format!(
                "the lab's host ended before its script did; its logs are in {}\n{}{output}{}",
                folder.display(),
                read_text(&folder.join("qemu.log")),
                read_text(&console)
            ))
            .into()),
        }
    }
}

/// Installs QEMU where it is missing and that can be done.
pub fn ensure_qemu() -> Result<()> {
    let packages = [
        "qemu-system-x86",
        "qemu-system-common",
        "seabios",
        "ipxe-qemu",
    ];
    debian::ensure_program("qemu-system-x86_64", &packages, true)
}

fn share(command: &mut Command, tag: &str, path: &Path, options: &str) {
    let path = path.to_string_lossy().replace(',', ",,");
    command.arg("-fsdev").arg(format!(
        "local,id={tag},path={path},security_model=none,multidevs=remap{options}"
    ));
    command
        .arg("-device")
        .arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
}

fn read_text(path: &Path) -> String {
    fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into(),
    )
}

/// Follows a file that grows.
struct Tail {
    path: PathBuf,
    position: u64,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, position: 0 }
    }

    /// The last whole line written since the last call.
    fn last_line(&mut self) -> Result<Option<String>> {
        let Ok(mut file) = fs::File::open(&self.path) else {
            return Ok(None);
        };
        file.seek(SeekFrom::Start(self.position))?;
        let mut new = Vec::new();
        file.read_to_end(&mut new)?;
        self.position += u64::try_from(new.len())?;
        let text = String::from_utf8_lossy(&new);
        Ok(text
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .map(|line| line.trim().to_owned()))
    }
}
