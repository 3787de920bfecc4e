//! The lab: real counterparts inside one emulated machine.

pub mod assigned;
pub mod attempts;
pub mod boot;
pub mod debian;
pub mod disk;
pub mod host;
pub mod initramfs;
pub mod kernel;
pub mod kernel_source;
pub mod programs;
pub mod root_disk;
pub mod shared;
pub mod sriov;
pub mod vfio;
pub mod vhost;
pub mod virtual_functions;
pub mod vpio;
pub mod xen;
pub mod xen_disks;
pub mod xen_guest;
pub mod xen_peers;

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::process::quoted;
use crate::progress::Progress;
use crate::workspace;
use host::Host;
use kernel::{Kernel, Series};

/// One scenario of the lab.
#[derive(Args, Debug)]
pub struct LabArgs {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand, Debug)]
enum Scenario {
    /// Run a command in the lab's host, which has KVM and sees this machine's files, copy on write
    ///
    /// The command starts in the root of the workspace. What it leaves in /job is kept in
    /// target/lab/runs/run, where the logs are. The kernel package is at $LAB_KERNEL_ROOT.
    Run(RunArgs),
    /// Boot an unmodified Debian guest and check its I/O (the same as `cargo xtask boot`)
    Boot(boot::BootArgs),
    /// Boot Debian guests behind our IOMMUs, in each of their modes
    Iommu(boot::BootArgs),
    /// Try vring-vhost with DPDK's testpmd and with a guest of QEMU, killing it under load
    Vhost,
    /// Try the program sriov, and VFIO, with a real kernel's igb behind VT-d
    Sriov,
    /// Give a network card behind a real kernel's VT-d to a Debian guest, which drives it itself
    Vfio,
    /// Give disks and a network card behind a real kernel's VT-d to Debian guests, which make file systems on them
    Disk,
    /// Give old network cards and an AHCI controller to a Debian guest, which drives them as far as models allow
    Models,
    /// Let two Debian guests have an old network card by turns, downloading at once
    Shared,
    /// Let a Debian guest enable virtual functions of our network card, drive them, and give one to user space
    VirtualFunctions,
    /// Boot a real Xen, whose domain 0 runs grant-table's conformance suite and has a disk from its back end
    Xen,
    /// Boot an unmodified Debian guest to which our VMM is Xen, with a disk of Xen's
    XenGuest,
    /// Boot two Debian guests to which our VMM is Xen, which share pages and an event channel
    XenPeers,
    /// Count what a Debian guest's requests take of a disk of Xen's, under our VMM and under QEMU, and of virtio's
    XenDisks,
    /// Fetch a Debian kernel and print the path of its image
    Kernel(KernelArgs),
}

#[derive(Args, Debug)]
struct KernelArgs {
    /// Which of Debian 12's kernels
    #[arg(long, value_enum, default_value = "6.12")]
    series: Series,
    /// The uncompressed ELF image (which starts through PVH) instead of the bzImage
    #[arg(long)]
    elf: bool,
}

#[derive(Args, Debug)]
struct RunArgs {
    /// Seconds that the host may take from power-on to power-off
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    bound: u64,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the scenario that `args` names.
pub fn run(args: &LabArgs) -> Result<()> {
    match &args.scenario {
        Scenario::Run(args) => run_command(args),
        Scenario::Boot(args) => boot::boot(args),
        Scenario::Iommu(args) => run_iommu(args),
        Scenario::Vhost => run_vhost(),
        Scenario::Sriov => run_sriov(),
        Scenario::Vfio => run_vfio(),
        Scenario::Disk => run_disk(),
        Scenario::Models => run_models(),
        Scenario::Shared => run_shared(),
        Scenario::VirtualFunctions => run_virtual_functions(),
        Scenario::Xen => run_xen(),
        Scenario::XenGuest => run_xen_guest(),
        Scenario::XenPeers => run_xen_peers(),
        Scenario::XenDisks => run_xen_disks(),
        Scenario::Kernel(args) => print_kernel(args),
    }
}

fn run_command(args: &RunArgs) -> Result<()> {
    let host = Host::new("run", Duration::from_secs(args.bound));
    let words: Vec<String> = args.command.iter().map(|word| quoted(word)).collect();
    let finished = {
        let progress = Progress::new("lab");
        host.run(host.folder()?, &(words.join(" ") + "\n"), &progress)?
    };
    print!("{}", finished.output);
    if finished.status != 0 {
        bail!(
            "the command ended with status {}; the logs are in {}",
            finished.status,
            finished.folder.display()
        );
    }
    Ok(())
}

fn run_iommu(args: &boot::BootArgs) -> Result<()> {
    println!("exits by the unit's registers, of all exits to user space:");
    for mode in boot::iommu::modes() {
        let (used, attempt) = boot::iommu::run(mode, args, &Progress::new(mode))?;
        println!("{used}, {} checks passed at attempt {attempt}", used.checks);
    }
    Ok(())
}

fn run_vhost() -> Result<()> {
    let checks = vhost::run(&Progress::new("vhost"))?;
    for check in checks {
        println!("{check}");
    }
    Ok(())
}

fn run_sriov() -> Result<()> {
    let checks = sriov::run(&Progress::new("sriov"))?;
    for check in checks {
        println!("{check}");
    }
    Ok(())
}

fn run_vfio() -> Result<()> {
    println!("{}", vfio::run(&Progress::new("vfio"))?);
    Ok(())
}

fn run_disk() -> Result<()> {
    println!("{}", disk::run(&Progress::new("disk"))?);
    Ok(())
}

fn run_models() -> Result<()> {
    let (used, _) = vpio::run(&Progress::new("models"))?;
    for used in used {
        println!("{used}");
    }
    Ok(())
}

fn run_shared() -> Result<()> {
    for card in [shared::RTL8139, shared::NE2000] {
        let turns = shared::run(&card, &Progress::new("shared"))?;
        println!("{turns}");
    }
    Ok(())
}

fn run_virtual_functions() -> Result<()> {
    let progress = Progress::new("virtual functions");
    println!("{}", virtual_functions::run(&progress)?);
    Ok(())
}

fn run_xen() -> Result<()> {
    let report = xen::run(&Progress::new("xen"))?;
    println!(
        "{} checks passed at attempt {}",
        report.checks, report.attempt
    );
    Ok(())
}

fn run_xen_guest() -> Result<()> {
    let (counts, attempt) = xen_guest::run(&Progress::new("xen guest"))?;
    println!("requests and hypercalls: {counts}, at attempt {attempt}");
    Ok(())
}

fn run_xen_peers() -> Result<()> {
    let attempt = xen_peers::run(&Progress::new("xen peers"))?;
    println!("{} checks passed at attempt {attempt}", xen_peers::CHECKS);
    Ok(())
}

fn run_xen_disks() -> Result<()> {
    for took in xen_disks::run(&Progress::new("xen disks"))? {
        println!("{took:?}");
    }
    Ok(())
}

fn print_kernel(args: &KernelArgs) -> Result<()> {
    let kernel = Kernel::obtain(&workspace::lab()?, args.series)?;
    let path = if args.elf {
        kernel.vmlinux()?
    } else {
        kernel.image
    };
    println!("{}", path.display());
    Ok(())
}
