//! The main job: an unmodified Debian kernel boots in our VMM and does real I/O.

mod command_line;
pub mod exits;
pub mod iommu;
mod measured;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use super::attempts::{attempts, reported};
use super::host::{Finished, Host};
use super::kernel::{Kernel, Series};
use super::{debian, initramfs, programs, vhost};
use crate::process::{self, quoted};
use crate::progress::Progress;
use crate::workspace;
use command_line::{backends, command_line};
pub use measured::Measured;

const GUEST_INIT: &str = concat!(
    include_str!("../../../lab/guest-begins.sh"),
    include_str!("../../../lab/guest-checks.sh"),
    include_str!("../../../lab/guest-init.sh")
);
const HOST_SCRIPT: &str = concat!(
    include_str!("../../../lab/checks.sh"),
    include_str!("../../../lab/network-host.sh"),
    include_str!("../../../lab/boot-host.sh")
);
const GUEST_MODULES: [&str; 8] = [
    "crc32c_generic",
    "ext4",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
];
/// The driver of a virtio IOMMU, which Debian's kernel 6.1 does not have.
const IOMMU_MODULE: &str = "virtio_iommu";
/// The drivers with which a program in the guest drives a device, behind an IOMMU.
const VFIO_MODULES: [&str; 2] = ["vfio_pci", "vfio_iommu_type1"];
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
    LAST_WORDS,
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

/// The guest's last words. Without them it crashed or hung.
const LAST_WORDS: &str = "guest: done";
/// Seconds that a VMM may take on the emulated host; a boot there takes about 40.
const VMM_BOUND: u64 = 200;

/// A boot that passed its checks.
#[derive(Debug)]
pub struct Booted {
    /// What the host's script left.
    pub finished: Finished,
    /// What it cost.
    pub measured: Measured,
    /// At which attempt it passed, from 1; always 1 on a host that is not emulated.
    pub attempt: u32,
}

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
    /// Let other processes serve the disk (qemu-storage-daemon) and the network (vring-vhost), over vhost-user
    #[arg(long)]
    pub vhost_user: bool,
    /// The VMM: ours, or QEMU as a machine to compare with
    #[arg(long, value_enum, default_value_t = Vmm::Reference)]
    pub vmm: Vmm,
    /// The IOMMU before the devices, as reference-vmm's `--iommu` takes it (ours only)
    #[arg(long, value_name = "KIND[,OPTION…]")]
    pub iommu: Option<String>,
    /// Attach the device `edu`, which the guest drives from user space if a VT-d unit stands before it (ours only)
    #[arg(long)]
    pub edu: bool,
    /// Have the guest reboot once before its work (ours only)
    #[arg(long)]
    pub reboot: bool,
    /// More words for the guest's kernel
    #[arg(
        long,
        default_value = "",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    pub append: String,
    /// Use the emulated host even where this machine's own KVM would do
    #[arg(long)]
    pub emulated: bool,
    /// Seconds that it may take from the host's power-on to its power-off
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub bound: u64,
}

/// A virtio transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// virtio over PCI
    Pci,
    /// virtio over PCI, each device behind a root port (ours only)
    PciPorts,
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

/// Boots the guest, checks what it did and prints the report.
pub fn boot(args: &BootArgs) -> Result<()> {
    let progress = Progress::new("boot");
    let Booted {
        finished,
        measured,
        attempt,
    } = run(args, "boot", &progress)?;
    drop(progress);
    print!("{}", finished.output);
    let kernel = if args.elf { "ELF/PVH" } else { "bzImage" };
    println!(
        "\n{}, {} cpu(s), {:?}, {kernel}: all checks passed",
        args.vmm, args.cpus, args.transport
    );
    if let Ok(exits) = fs::read_to_string(finished.folder.join("exits.txt")) {
        println!("\n{exits}");
    }
    println!("{measured}");
    if attempt > 1 {
        println!("passed at attempt {attempt}: see docs/src/lab.md on the emulated host");
    }
    println!("logs: {}", finished.folder.display());
    Ok(())
}

/// Boots the guest and checks what it did.
pub fn run(args: &BootArgs, name: &str, progress: &Progress) -> Result<Booted> {
    let mut cmdline = CMDLINE.to_owned();
    if args.reboot {
        cmdline.push_str(" lab.reboot");
    }
    if !args.append.is_empty() {
        cmdline.push(' ');
        cmdline.push_str(&args.append);
    }
    let guest = Guest::prepare(args, &cmdline, progress)?;
    let host = Host::new(name, Duration::from_secs(args.bound));
    let (finished, attempt) = if !args.emulated && debian::is_root() && has_hardware_kvm() {
        let folder = host.folder()?;
        let work = tempfile::tempdir()?;
        let busybox = debian::unpacked(&workspace::lab()?, "busybox-static")?;
        let script = guest.script(args, work.path(), &folder, &busybox.join("bin/busybox"))?;
        progress.step("the guest boots on this machine's KVM");
        let finished = natively(&host, folder, &script)?;
        check(&finished)?;
        (finished, 1)
    } else {
        let script = guest.script(
            args,
            Path::new("/run/lab"),
            Path::new("/job"),
            Path::new("/run/busybox/busybox"),
        )?;
        attempts(name, || {
            let finished = host.run(host.folder()?, &script, progress)?;
            check(&finished)?;
            Ok(finished)
        })?
    };
    let starts = finished.output.matches("\nguest: init: ").count();
    ensure!(
        starts == 1 + usize::from(args.reboot),
        "the guest started {starts} times; the logs are in {}",
        finished.folder.display()
    );
    let measured = Measured::read(&finished)?;
    Ok(Booted {
        finished,
        measured,
        attempt,
    })
}

/// What boots.
struct Guest {
    image: PathBuf,
    initrd: PathBuf,
    cmdline: String,
}

impl Guest {
    /// Fetches and builds what `args` need.
    fn prepare(args: &BootArgs, cmdline: &str, progress: &Progress) -> Result<Self> {
        progress.step("the guest's kernel and initramfs");
        let lab = workspace::lab()?;
        let kernel = Kernel::obtain(&lab, args.kernel)?;
        let mut name = format!("guest-{}", kernel.release);
        let mut modules = GUEST_MODULES.to_vec();
        let iommu = args.iommu.as_deref().unwrap_or_default();
        if iommu.starts_with("virtio") {
            // Before the drivers of the devices that are behind it.
            modules.insert(0, IOMMU_MODULE);
            name.push_str("-iommu");
        }
        let mut programs = vec![program(&lab, "random-read")?];
        if args.edu {
            modules.extend(VFIO_MODULES);
            programs.push(program(&lab, "edu")?);
            name.push_str("-edu");
        }
        let archive = initramfs::build(&lab, &kernel, &modules, GUEST_INIT, &programs)?;
        let initrd = initramfs::store(&lab, &format!("{name}.initrd"), &archive)?;
        let image = if args.elf {
            kernel.vmlinux()?
        } else {
            kernel.image
        };
        debian::ensure_program("mkfs.ext4", &["e2fsprogs"], false)?;
        if args.vhost_user {
            progress.step("building vring-vhost");
            debian::ensure_program("qemu-storage-daemon", &["qemu-utils"], true)?;
            vhost::backend::build()?;
        }
        if args.vmm == Vmm::Reference {
            progress.step("building reference-vmm");
            programs::reference_vmm()?;
        }
        Ok(Self {
            image,
            initrd,
            cmdline: cmdline.to_owned(),
        })
    }

    /// The host's script, with these folders and this busybox.
    fn script(
        &self,
        args: &BootArgs,
        work: &Path,
        results: &Path,
        busybox: &Path,
    ) -> Result<String> {
        let disk = work.join("disk.img");
        let vmm = shell(&command_line(args, self, work, &disk, results)?);
        let backends = if args.vhost_user {
            backends(work, &disk)?.map(|words| shell(&words)).join("\n")
        } else {
            String::new()
        };
        let mut script = String::new();
        for (name, value) in [
            ("VMM", vmm.into()),
            ("BACKENDS", backends.into()),
            ("DISK", disk.to_string_lossy()),
            ("TAP", TAP.into()),
            ("BUSYBOX", busybox.to_string_lossy()),
            ("WORK", work.to_string_lossy()),
            ("RESULTS", results.to_string_lossy()),
            ("BOUND", VMM_BOUND.to_string().into()),
        ] {
            script.push_str(&format!("{name}={}\n", quoted(&value)));
        }
        Ok(script + HOST_SCRIPT)
    }
}

/// A command line for a shell.
fn shell(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

/// Builds a program for the guest: by `rustc` itself, since cargo would build all that xtask depends on for another target.
pub fn program(lab: &Path, name: &str) -> Result<PathBuf> {
    let partial = tempfile::tempdir_in(lab)?;
    let built = partial.path().join(name);
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
        ])
        .args(["-C", "strip=symbols", "-o"])
        .arg(&built)
        .arg(workspace::root()?.join(format!("xtask/lab/{name}.rs")));
    process::run_quietly(&mut rustc)?;
    let program = lab.join(name);
    fs::rename(&built, &program)?;
    Ok(program)
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

/// Runs `script` on this machine, as [`Host::run`] does in the emulated one. One at a time: the guests' network cards are on one tap.
fn natively(host: &Host, folder: PathBuf, script: &str) -> Result<Finished> {
    static TAP_IN_USE: Mutex<()> = Mutex::new(());
    let _others = TAP_IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
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
    reported(finished, &EXPECTED, LAST_WORDS, 1)
}
