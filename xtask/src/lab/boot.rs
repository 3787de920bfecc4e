//! The main job: an unmodified Debian kernel boots in our VMM and does real I/O.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use super::exits::Exits;
use super::host::{Finished, Host};
use super::kernel::{Kernel, Series};
use super::{debian, initramfs};
use crate::process::{self, quoted};
use crate::progress::Progress;
use crate::workspace;

const GUEST_INIT: &str = include_str!("../../lab/guest-init.sh");
const HOST_SCRIPT: &str = include_str!("../../lab/boot-host.sh");
const GUEST_MODULES: [&str; 7] = [
    "crc32c_generic",
    "ext4",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
];
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";
const TAP: &str = "lab0";
/// What the guest and the host must have reported.
const EXPECTED: [&str; 17] = [
    "guest: mount: ok",
    "guest: disk read: ok",
    "guest: disk write: ok",
    "guest: ping: ok",
    "guest: upload: ok",
    "guest: console: ok",
    "guest: rng: virtio_rng.0 ",
    "guest: done",
    "host: make the disk: ok",
    "host: make the tap: ok",
    "host: vmm status: 0",
    "host: fsck: ok",
    "host: the disk holds what the guest wrote: ok",
    "host: the upload arrived: ok",
    "host: the download arrived: ok",
    "host: the console was written: ok",
    "host: init seen: ",
];

/// How many checks one boot makes.
pub const CHECKS: u64 = EXPECTED.len() as u64;

/// What boots, and in what.
#[derive(Args, Clone, Debug)]
pub struct BootArgs {
    /// Virtual CPUs of the guest
    #[arg(long, default_value_t = 1)]
    pub cpus: u8,
    /// How the guest finds its virtio devices
    #[arg(long, value_enum, default_value_t = Transport::Pci)]
    pub transport: Transport,
    /// Which of Debian 12's kernels the guest runs
    #[arg(long, value_enum, default_value = "6.12")]
    pub kernel: Series,
    /// Start the uncompressed ELF kernel through PVH instead of the bzImage
    #[arg(long)]
    pub elf: bool,
    /// The VMM: ours, or QEMU as a machine to compare with
    #[arg(long, value_enum, default_value_t = Vmm::Reference)]
    pub vmm: Vmm,
    /// Use the emulated host even where this machine's own KVM would do
    #[arg(long)]
    pub emulated: bool,
    /// Seconds that it may take from the host's power-on to its power-off
    #[arg(long, default_value_t = 240, value_name = "SECONDS")]
    pub bound: u64,
}

/// A virtio transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// virtio over PCI
    Pci,
    /// virtio over MMIO
    Mmio,
}

/// A virtual machine monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// reference-vmm
    Reference,
    /// QEMU's q35
    Q35,
    /// QEMU's microvm with PCI and ACPI
    Microvm,
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reference => "reference-vmm",
            Self::Q35 => "qemu q35",
            Self::Microvm => "qemu microvm",
        })
    }
}

/// What was measured while the guest ran.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Measured {
    /// Exits to user space from power-on until the guest's init ran.
    pub exits_to_init: Exits,
    /// Exits to user space from power-on to the end of the guest's work.
    pub exits: Exits,
    /// Hundredths of a second from the VMM's start until the guest's init ran, as the host counts.
    pub init_after_cs: u64,
    /// What the VMM kept in memory beyond the guest's RAM.
    pub resident_kib: u64,
}

/// Boots the guest, checks what it did and prints the report.
pub fn boot(args: &BootArgs) -> Result<()> {
    let progress = Progress::new("boot");
    let (finished, measured) = run(args, "boot", &progress)?;
    drop(progress);
    print!("{}", finished.output);
    let kernel = if args.elf { "ELF/PVH" } else { "bzImage" };
    println!(
        "\n{}, {} cpu(s), {:?}, {kernel}: all checks passed",
        args.vmm, args.cpus, args.transport
    );
    println!("{measured}");
    println!("logs: {}", finished.folder.display());
    Ok(())
}

/// Boots the guest and checks what it did.
pub fn run(args: &BootArgs, name: &str, progress: &Progress) -> Result<(Finished, Measured)> {
    let lab = workspace::lab()?;
    progress.step("the guest's kernel and initramfs");
    let kernel = Kernel::obtain(&lab, args.kernel)?;
    let initrd = lab.join(format!("guest-{}.initrd", kernel.release));
    fs::write(
        &initrd,
        initramfs::build(&lab, &kernel, &GUEST_MODULES, GUEST_INIT)?,
    )?;
    let image = if args.elf {
        kernel.vmlinux()?
    } else {
        kernel.image
    };
    debian::ensure_program("mkfs.ext4", &["e2fsprogs"], false)?;
    if args.vmm == Vmm::Reference {
        progress.step("building reference-vmm");
        process::run_quietly(workspace::cargo()?.args([
            "build",
            "--release",
            "-p",
            "reference-vmm",
        ]))?;
    }

    let host = Host::new(name, Duration::from_secs(args.bound));
    let folder = host.folder()?;
    let finished = if !args.emulated && debian::is_root() && has_hardware_kvm() {
        let work = tempfile::tempdir()?;
        let busybox = debian::unpacked(&lab, "busybox-static")?.join("bin/busybox");
        let script = script(args, &image, &initrd, work.path(), &folder, &busybox)?;
        progress.step("the guest boots on this machine's KVM");
        natively(&host, folder, &script)?
    } else {
        let (work, job) = (Path::new("/run/lab"), Path::new("/job"));
        let busybox = Path::new("/run/busybox/busybox");
        let script = script(args, &image, &initrd, work, job, busybox)?;
        host.run(folder, &script, progress)?
    };
    check(&finished)?;
    let measured = Measured::read(&finished)?;
    Ok((finished, measured))
}

fn script(
    args: &BootArgs,
    image: &Path,
    initrd: &Path,
    work: &Path,
    results: &Path,
    busybox: &Path,
) -> Result<String> {
    let disk = work.join("disk.img");
    let vmm = command_line(args, image, initrd, &disk, results)?;
    let vmm = vmm
        .iter()
        .map(|word| quoted(word))
        .collect::<Vec<_>>()
        .join(" ");
    let mut script = String::new();
    for (name, value) in [
        ("VMM", vmm.into()),
        ("DISK", disk.to_string_lossy()),
        ("TAP", TAP.into()),
        ("BUSYBOX", busybox.to_string_lossy()),
        ("WORK", work.to_string_lossy()),
        ("RESULTS", results.to_string_lossy()),
    ] {
        script.push_str(&format!("{name}={}\n", quoted(&value)));
    }
    Ok(script + HOST_SCRIPT)
}

fn command_line(
    args: &BootArgs,
    image: &Path,
    initrd: &Path,
    disk: &Path,
    results: &Path,
) -> Result<Vec<String>> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let console = results.join("console.txt");
    let mut words: Vec<String> = Vec::new();
    let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
    let cpus = args.cpus.to_string();
    if args.vmm == Vmm::Reference {
        add(&[
            &text(&workspace::target()?.join("release/reference-vmm")),
            "run",
            "--kernel",
            &text(image),
            "--initrd",
            &text(initrd),
            "--cmdline",
            CMDLINE,
            "--cpus",
            &cpus,
            "--memory",
            "256M",
            "--disk",
            &text(disk),
            "--net",
            &format!("tap={TAP}"),
            "--console",
            &format!("file={}", text(&console)),
            "--transport",
            if args.transport == Transport::Pci {
                "pci"
            } else {
                "mmio"
            },
            "--report",
            &text(&results.join("report.json")),
        ]);
        return Ok(words);
    }
    let machine = if args.vmm == Vmm::Q35 {
        "q35"
    } else {
        "microvm,pcie=on,acpi=on"
    };
    add(&[
        "qemu-system-x86_64",
        "-M",
        machine,
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        &cpus,
    ]);
    add(&[
        "-m",
        "256M",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    add(&["-serial", "stdio", "-append", CMDLINE]);
    add(&["-kernel", &text(image), "-initrd", &text(initrd)]);
    let kind = match args.transport {
        Transport::Pci => "pci",
        Transport::Mmio if args.vmm == Vmm::Microvm => "device",
        Transport::Mmio => bail!("QEMU's q35 has no virtio-mmio"),
    };
    let rom = if args.transport == Transport::Pci {
        ",romfile="
    } else {
        ""
    };
    add(&[
        "-drive",
        &format!("file={},format=raw,if=none,id=d0", text(disk)),
    ]);
    add(&["-device", &format!("virtio-blk-{kind},drive=d0")]);
    add(&[
        "-netdev",
        &format!("tap,id=n0,ifname={TAP},script=no,downscript=no"),
    ]);
    add(&["-device", &format!("virtio-net-{kind},netdev=n0{rom}")]);
    add(&["-chardev", &format!("file,id=c0,path={}", text(&console))]);
    add(&[
        "-device",
        &format!("virtio-serial-{kind}"),
        "-device",
        "virtconsole,chardev=c0",
    ]);
    add(&["-device", &format!("virtio-rng-{kind}")]);
    Ok(words)
}

/// Whether this machine's KVM runs guests on the CPU itself.
fn has_hardware_kvm() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
        && flags
            .split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
}

/// Runs `script` on this machine, as [`Host::run`] does in the emulated one.
fn natively(host: &Host, folder: PathBuf, script: &str) -> Result<Finished> {
    let output = fs::File::create(folder.join("output.log"))?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "sh", "-c", script])
        .stdin(Stdio::null());
    command.stderr(output.try_clone()?).stdout(output);
    let child = command.spawn().context("cannot start the host's script")?;
    let status = process::wait_bounded(child, host.bound, || Ok(()))?;
    let output = String::from_utf8_lossy(&fs::read(folder.join("output.log"))?).into_owned();
    let Some(status) = status.and_then(|status| status.code()) else {
        bail!(
            "the guest did not end in time; the logs are in {}\n{output}",
            folder.display()
        );
    };
    Ok(Finished {
        status,
        output,
        folder,
    })
}

fn check(finished: &Finished) -> Result<()> {
    let missing: Vec<&str> = EXPECTED
        .into_iter()
        .filter(|expected| {
            !finished
                .output
                .lines()
                .any(|line| line.starts_with(expected))
        })
        .collect();
    ensure!(
        missing.is_empty() && finished.status == 0,
        "{}\nnot reported: {missing:?}; the script ended with status {}; the logs are in {}",
        finished.output,
        finished.status,
        finished.folder.display()
    );
    Ok(())
}

impl Measured {
    fn read(finished: &Finished) -> Result<Self> {
        let line = |start: &str| {
            finished
                .output
                .lines()
                .find_map(|line| line.strip_prefix(start))
                .with_context(|| format!("no line `{start}` in the report"))
        };
        let centiseconds = |text: &str| text.replace('.', "").parse::<u64>();
        let (from, to) = line("host: init seen: ")?
            .split_once(' ')
            .context("two times")?;
        let resident = line("host: resident: ")?
            .split(' ')
            .next()
            .unwrap_or_default();
        Ok(Self {
            exits_to_init: Exits::read(&finished.folder.join("exits-init"))?,
            exits: Exits::read(&finished.folder.join("exits-end"))?,
            init_after_cs: centiseconds(to)?.saturating_sub(centiseconds(from)?),
            resident_kib: resident.parse().context("the VMM's resident memory")?,
        })
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24} {:>10} {:>10}",
            "exit to user space", "to init", "in all"
        )?;
        for (reason, count) in &self.exits.0 {
            let to_init = self.exits_to_init.0.get(reason).copied().unwrap_or(0);
            writeln!(f, "{reason:<24} {to_init:>10} {count:>10}")?;
        }
        let (to_init, all) = (self.exits_to_init.total(), self.exits.total());
        writeln!(f, "{:<24} {to_init:>10} {all:>10}", "total")?;
        let (seconds, hundredths) = (self.init_after_cs / 100, self.init_after_cs % 100);
        writeln!(
            f,
            "init ran after {seconds}.{hundredths:02} s of the host's time"
        )?;
        write!(
            f,
            "the VMM kept {} KiB beyond the guest's memory",
            self.resident_kib
        )
    }
}
