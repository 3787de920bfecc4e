use std::path::PathBuf;

use clap::{Parser, Subcommand};
use sriov_vfio::sysfs::PciAddress;
use virtio_devices::net::MacAddress;

use super::size;
use super::vhost_user::{self, VhostUserArg};
use crate::machine::{Emulated, HostFunction, Iommu, MAX_VIRTUAL_NICS, Transport, VtdOptions};

/// Runs virtual machines on KVM.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, propagate_version = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Run(Box<RunArgs>),
    /// Run a small built-in guest that drives a virtio disk, and show what it cost
    ///
    /// It needs nothing but /dev/kvm.
    Demo(DemoArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ReportArgs {
    /// File for a report of the guest's exits: JSON if its name ends in .json, a plot if in .svg, else a table. May be repeated. Of a guest that was reset it is the last life
    #[arg(long = "report", value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
}

/// Boot a Linux kernel.
///
/// The first serial port is the terminal: type Ctrl-A X to end the machine, Ctrl-A Ctrl-A for a Ctrl-A. With `--console stdio` what is
/// typed goes to the virtio console instead, and both print.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0      the guest powered off
  1      the machine could not be made or run
  2      the command line was wrong
  3      the guest crashed: triple fault or kernel panic
  4      the guest asked for a reset, with --no-reboot
  128+N  signal N ended the machine cleanly
  2N+1   the guest wrote N to the port of --debug-exit

Example:
  reference-vmm run --kernel vmlinuz --initrd initrd.img --memory 1G --cpus 2")]
pub(super) struct RunArgs {
    /// Kernel: a bzImage, an ELF file with a PVH entry point, or a file with a Multiboot header
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: PathBuf,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,

    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    pub(super) cmdline: String,

    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=254))]
    pub(super) cpus: u8,

    /// Raw disk image, as a virtio block device, or with `,pv=xen` as one of Xen's; `,readonly` refuses writes. May be repeated
    #[arg(long = "disk", value_name = "FILE[,readonly][,pv=xen]", value_parser = disk)]
    pub(super) disks: Vec<DiskArg>,

    /// Tap interface of the host, as a virtio network device, or with `pv=xen` as one of Xen's; made if it does not exist. With `sriov=N`, and behind a root port, the guest can enable N virtual functions of it: the one with number M, from 0, is connected to the tap interface NAMEvM. May be repeated
    #[arg(long = "net", value_name = "tap=NAME[,mac=ADDRESS][,sriov=N|,pv=xen]", value_parser = net)]
    pub(super) nets: Vec<NetArg>,

    /// Device that a vhost-user backend serves, which listens at the socket. May be repeated
    #[arg(long, value_name = "blk=SOCKET|net=SOCKET", value_parser = vhost_user::parse)]
    pub(super) vhost_user: Vec<VhostUserArg>,

    /// PCI function of the host, bound to vfio-pci (`sriov bind`), for the guest to drive itself; all of the guest's memory is pinned for it, or with `--iommu vtd,caching-mode` what the guest maps. A virtual function whose physical one is bound to vfio-pci too needs the VF token that was set with the latter, as this sets it. May be repeated
    #[arg(long, value_name = "BDF[,vf-token=UUID][,BDF...]", value_parser = vfio)]
    pub(super) vfio: Vec<VfioArg>,

    /// The same for a function that the guest only drives as a model of the device allows, which is checked first (`vpio check`); for devices that reach memory in ways that an IOMMU does not tell apart. With `socket=PATH`, one that the guests of other processes have as well, by turns: the socket is that of `vpio serve`. May be repeated
    #[arg(long, value_name = "BDF,model=FILE|socket=PATH", value_parser = vpio)]
    pub(super) vpio: Vec<VpioArg>,

    /// Virtio console (hvc0 in Linux): on the terminal, or printing to a file
    #[arg(long, value_name = "stdio|file=FILE", value_parser = console)]
    pub(super) console: Option<ConsoleArg>,

    /// How the guest finds its virtio devices
    #[arg(long, value_enum, default_value_t = TransportArg::Pci)]
    pub(super) transport: TransportArg,

    /// Further PCI device. May be repeated
    #[arg(long = "device", value_name = "NAME", value_enum)]
    pub(super) devices: Vec<DeviceArg>,

    /// IOMMU before all devices: an Intel VT-d unit with interrupt remapping, or a virtio-iommu. Options: `strict` has a Linux guest invalidate at once what it unmaps; of VT-d, `caching-mode`, `scalable`, and `sidecore`, with which a thread polls its registers instead of taking exits
    #[arg(long, value_name = "vtd|virtio[,OPTION...]", value_parser = iommu)]
    pub(super) iommu: Option<IommuArg>,

    /// Be Xen for the guest: hypercalls, event channels, grants and a store
    #[arg(long, conflicts_with = "iommu")]
    pub(super) xen: bool,

    /// Socket at which the VMM of another guest with the same argument is met, whichever comes first: each of the two guests can map pages that the other grants to domain 2, and connect event channels to it. Each VMM maps the memory of both
    #[arg(long, value_name = "SOCKET", requires = "xen")]
    pub(super) xen_peer: Option<PathBuf>,

    /// Port by which the guest ends the machine: a VALUE written there makes the exit status VALUE * 2 + 1, modulo 256
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub(super) debug_exit: Option<u16>,

    /// End with status 4 when the guest resets, instead of booting it again
    #[arg(long)]
    pub(super) no_reboot: bool,

    #[command(flatten)]
    pub(super) report: ReportArgs,

    /// Size of RAM, with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    pub(super) memory: u64,
}

/// A disk image and how it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskArg {
    pub(super) path: PathBuf,
    pub(super) read_only: bool,
    /// One of Xen's.
    pub(super) xen: bool,
}

fn disk(text: &str) -> Result<DiskArg, String> {
    let (mut path, mut read_only, mut xen) = (text, false, false);
    while let Some((rest, option)) = path.rsplit_once(',') {
        match option {
            "readonly" => read_only = true,
            "pv=xen" => xen = true,
            _ => {
                return Err(format!(
                    "unknown option `{option}`, expected `readonly` or `pv=xen`"
                ));
            }
        }
        path = rest;
    }
    if path.is_empty() {
        return Err("the name of the image is missing".to_owned());
    }
    Ok(DiskArg {
        path: path.into(),
        read_only,
        xen,
    })
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NetArg {
    pub(super) tap: String,
    pub(super) mac: Option<MacAddress>,
    /// How many virtual functions it can have.
    pub(super) sriov: u8,
    /// One of Xen's.
    pub(super) xen: bool,
}

fn net(text: &str) -> Result<NetArg, String> {
    let (mut tap, mut mac, mut sriov, mut xen) = (None, None, 0, false);
    for option in text.split(',') {
        match option.split_once('=') {
            Some(("tap", name)) if !name.is_empty() => tap = Some(name.to_owned()),
            Some(("mac", address)) => {
                let address: MacAddress = address.parse().map_err(|e| format!("{e}"))?;
                mac = Some(address);
            }
            Some(("sriov", number)) => {
                sriov = number
                    .parse()
                    .ok()
                    .filter(|number| (1..=MAX_VIRTUAL_NICS).contains(number))
                    .ok_or_else(|| {
                        format!(
                            "sriov={number}: a card has 1 to {MAX_VIRTUAL_NICS} virtual functions"
                        )
                    })?;
            }
            Some(("pv", "xen")) => xen = true,
            _ => {
                return Err(format!(
                    "unknown option `{option}`, expected tap=NAME, mac=ADDRESS, sriov=N or pv=xen"
                ));
            }
        }
    }
    if xen && sriov > 0 {
        return Err("an interface of Xen's has no virtual functions".to_owned());
    }
    Ok(NetArg {
        tap: tap.ok_or("tap=NAME is missing")?,
        mac,
        sriov,
        xen,
    })
}

/// Functions of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VfioArg(pub(super) Vec<HostFunction>);

fn vfio(text: &str) -> Result<VfioArg, String> {
    let mut functions: Vec<HostFunction> = Vec::new();
    for part in text.split(',') {
        if let Some(uuid) = part.strip_prefix("vf-token=") {
            let last = functions.last_mut().ok_or("a VF token follows its BDF")?;
            last.token = Some(uuid.parse().map_err(|error| format!("{error}"))?);
        } else {
            let address = part.parse().map_err(|error| format!("{error}"))?;
            functions.push(HostFunction {
                address,
                token: None,
            });
        }
    }
    Ok(VfioArg(functions))
}

/// A function that the guest drives as far as a model allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VpioArg {
    /// One of the host's, and the file with its model.
    Own { address: PciAddress, model: PathBuf },
    /// One that an arbiter shares at a socket.
    Shared(PathBuf),
}

fn vpio(text: &str) -> Result<VpioArg, String> {
    if let Some(socket) = text.strip_prefix("socket=") {
        return match socket {
            "" => Err("the path of the socket is missing".to_owned()),
            path => Ok(VpioArg::Shared(path.into())),
        };
    }
    let parts = text.split_once(",model=");
    let (address, model) = parts.ok_or("expected BDF,model=FILE or socket=PATH")?;
    if model.is_empty() {
        return Err("the name of the model is missing".to_owned());
    }
    Ok(VpioArg::Own {
        address: address.parse().map_err(|error| format!("{error}"))?,
        model: model.into(),
    })
}

fn port(text: &str) -> Result<u16, String> {
    match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|error| error.to_string())
}

/// An IOMMU, and how the guest is asked to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IommuArg {
    pub(super) iommu: Iommu,
    /// Whether the kernel is told so on its command line.
    pub(super) strict: bool,
}

fn iommu(text: &str) -> Result<IommuArg, String> {
    let mut words = text.split(',');
    let kind = words.next().unwrap_or_default();
    let mut options = VtdOptions::default();
    let mut strict = false;
    for option in words {
        match (kind, option) {
            (_, "strict") => strict = true,
            ("vtd", "caching-mode") => options.caching_mode = true,
            ("vtd", "scalable") => options.scalable = true,
            ("vtd", "sidecore") => options.sidecore = true,
            _ => return Err(format!("the IOMMU `{kind}` has no option `{option}`")),
        }
    }
    let iommu = match kind {
        "vtd" => Iommu::Vtd(options),
        "virtio" => Iommu::Virtio,
        _ => return Err(format!("no IOMMU is called `{kind}`, only vtd and virtio")),
    };
    Ok(IommuArg { iommu, strict })
}

/// Where a virtio console is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConsoleArg {
    Stdio,
    File(PathBuf),
}

fn console(text: &str) -> Result<ConsoleArg, String> {
    match text.split_once('=') {
        None if text == "stdio" => Ok(ConsoleArg::Stdio),
        Some(("file", path)) if !path.is_empty() => Ok(ConsoleArg::File(path.into())),
        _ => Err("expected stdio or file=FILE".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum DeviceArg {
    /// QEMU's device for teaching: a factorial, DMA, interrupts
    Edu,
}

impl From<DeviceArg> for Emulated {
    fn from(device: DeviceArg) -> Self {
        match device {
            DeviceArg::Edu => Self::Edu,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TransportArg {
    /// As PCI functions
    Pci,
    /// As PCI functions, each behind a root port of its own
    PciPorts,
    /// As memory-mapped registers that the ACPI tables name
    Mmio,
}

impl From<TransportArg> for Transport {
    fn from(transport: TransportArg) -> Self {
        match transport {
            TransportArg::Pci => Self::Pci,
            TransportArg::PciPorts => Self::PciPorts,
            TransportArg::Mmio => Self::Mmio,
        }
    }
}
