//! A real Xen, whose domain 0 is a Debian kernel that runs grant-table's programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::attempts::{attempts, reported};
use super::host::{Finished, HostDied, ensure_qemu};
use super::kernel::{Kernel, Series};
use super::{debian, initramfs, programs};
use crate::process;
use crate::progress::Progress;
use crate::workspace;

const DOM0_INIT: &str = concat!(
    include_str!("../../lab/guest-begins.sh"),
    include_str!("../../lab/xen-dom0.sh")
);
const MODULES: [&str; 5] = [
    "xen-gntdev",
    "xen-gntalloc",
    "xen-evtchn",
    "xenfs",
    "xen-blkfront",
];
/// What the conformance suite reports in process.
const CONFORMANCE: &str =
    include_str!("../../../crates/grant-table/tests/conformance/expected.txt");
/// What else must have been reported.
const EXPECTED: [&str; 9] = [
    "xen: conformance: ok",
    "blkback: connected, persistent grants: true",
    "xen: blkfront finds the disk: ok",
    "xen: blkfront reads it: ok",
    "xen: blkfront writes to it: ok",
    "xen: the file is what was written: ok",
    "xen: blkfront reads what was written: ok",
    "blkback: closed",
    LAST_WORDS,
];
/// Domain 0's last words.
const LAST_WORDS: &str = "xen: done";
/// How long Xen may run, from power-on to power-off.
const BOUND: Duration = Duration::from_secs(300);

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Checks that passed.
    pub checks: usize,
    /// At which attempt the emulated machine lived, from 1.
    pub attempt: u32,
}

/// Runs the scenario.
pub fn run(progress: &Progress) -> Result<Report> {
    let lab = workspace::lab()?;
    ensure_qemu()?;
    debian::ensure_program("setpriv", &["util-linux"], false)?;
    progress.step("building grant-table's programs");
    let programs = [
        programs::static_example("grant-table", "conformance")?,
        programs::static_example("grant-table", "blkback")?,
    ];
    progress.step("the lab's Xen and its kernel");
    let hypervisor = hypervisor(&lab)?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let archive = initramfs::build(&lab, &kernel, &MODULES, DOM0_INIT, &programs)?;
    let initrd = initramfs::store(&lab, "xen-dom0.initrd", &archive)?;

    let lines = CONFORMANCE
        .lines()
        .map(|line| format!("conformance: {line}: ok"));
    let expected: Vec<String> = lines.chain(EXPECTED.map(str::to_owned)).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    let ((), attempt) = attempts("xen", || {
        let finished = boot(&hypervisor, &kernel.image, &initrd, progress)?;
        reported(&finished, &expected, LAST_WORDS, 1)
    })?;
    Ok(Report {
        checks: expected.len(),
        attempt,
    })
}

/// The newest hypervisor of Debian's, uncompressed.
fn hypervisor(lab: &Path) -> Result<PathBuf> {
    let package = debian::newest("xen-hypervisor-", "-amd64", false)?;
    let name = package.replace("xen-hypervisor-", "xen-");
    let root = debian::unpacked(lab, &package)?;
    let elf = root.join("boot").join(&name);
    if !elf.exists() {
        let packed = elf.with_file_name(format!("{name}.gz"));
        let unpacked = process::output(Command::new("gzip").arg("-dc").arg(&packed))?;
        let partial = elf.with_file_name("xen.partial");
        fs::write(&partial, unpacked)?;
        fs::rename(&partial, &elf)?;
    }
    Ok(elf)
}

/// Boots Xen with domain 0 until it powers off.
fn boot(hypervisor: &Path, image: &Path, initrd: &Path, progress: &Progress) -> Result<Finished> {
    let folder = workspace::lab()?.join("runs/xen");
    fs::create_dir_all(&folder)?;
    let console = folder.join("console.log");
    let quote = |path: &Path| path.to_string_lossy().replace(',', ",,");
    // setpriv: the machine ends with this task, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args(["-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "1000M"]);
    command.args(["-display", "none", "-nodefaults", "-no-reboot"]);
    command
        .arg("-serial")
        .arg(format!("file:{}", console.display()));
    command.arg("-kernel").arg(hypervisor);
    // Multiboot modules: domain 0's kernel with its command line, and its initramfs.
    command.arg("-initrd").arg(format!(
        "{} console=hvc0 quiet,{}",
        quote(image),
        quote(initrd)
    ));
    command.arg("-append");
    command.arg("console=com1 com1=115200,8n1 dom0_mem=700M noreboot");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(fs::File::create(folder.join("qemu.log"))?);
    progress.step("Xen starts");
    let child = command.spawn().context("cannot start QEMU")?;
    let ended = process::wait_bounded(child, BOUND, || Ok(()))?;
    let output = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
    match ended {
        Some(status) => Ok(Finished {
            status: status.code().unwrap_or(-1),
            output,
            folder,
        }),
        None => Err(HostDied(format!(
            "Xen did not end within {} s; its logs are in {}\n{output}",
            BOUND.as_secs(),
            folder.display()
        ))
        .into()),
    }
}
