use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::AsFd;

use virtio_devices::console::Port;
use virtio_devices::net::{MacAddress, Tap, TapError};

use super::args::{ConsoleArg, IommuArg, NetArg, RunArgs, VpioArg};
use super::report;
use super::status;
use super::terminal::RawMode;
use super::watch::{Keyboard, Watch};
use crate::boot::{Image, Linux, Payload};
use crate::machine::disk::Disk;
use crate::machine::stop::Stop;
use crate::machine::{
    Config, Machine, ModelledFunction, Nic, Peripherals, Stopped, VhostUser, Vif, VirtualNic,
    VpioError, XenDevices,
};

type Error = Box<dyn std::error::Error>;

/// Boots a guest, again after each reset, waits for its end, and returns the exit status.
pub(super) fn run(args: &RunArgs) -> Result<u8, Error> {
    let kept = Kept::open(args)?;
    let mut watch = Watch::new()?;
    let mut terminal = None;
    let stopped = loop {
        let (config, keys) = kept.config(args)?;
        let machine = Machine::new(config)?;
        let stop = machine.stop_switch();
        let mut keyboard =
            keys.map_or_else(|| Keyboard::Serial(machine.serial()), Keyboard::Console);
        if terminal.is_none() {
            terminal = Some(RawMode::enter(rustix::stdio::stdin())?);
        }
        let running = machine.start()?;
        let watched = watch.until_stopped(&stop, &mut keyboard);
        let stopped = running.finish();
        watched?;
        if stopped.reason != Stop::Reset || stopped.flushed.is_err() || args.no_reboot {
            break stopped;
        }
    };
    drop(terminal);
    report::write(&args.report, &stopped)?;
    say_what_was_denied(&stopped)?;
    stopped
        .flushed
        .map_err(|error| format!("cannot flush the disks: {error}"))?;
    let status = match &stopped.reason {
        Stop::PowerOff => return Ok(status::POWERED_OFF),
        Stop::Exit(value) => return Ok(status::of_debug_exit(*value)),
        Stop::Reset => status::RESET,
        Stop::Crash(_) => status::CRASHED,
        Stop::Signal(signal) => {
            let number = u8::try_from(*signal).unwrap_or_default();
            status::SIGNAL.saturating_add(number)
        }
        Stop::User => status::POWERED_OFF,
        Stop::Host(_) | Stop::Device(_) => status::FAILED,
    };
    writeln!(io::stderr(), "reference-vmm: {}", stopped.reason)?;
    Ok(status)
}

/// What models denied: nothing a driver of the device they describe would do.
fn say_what_was_denied(stopped: &Stopped) -> io::Result<()> {
    for used in &stopped.modelled {
        for (reason, denial) in &used.denials {
            let function = used.function;
            writeln!(
                io::stderr(),
                "reference-vmm: {function}: denied, {denial}: {reason}"
            )?;
        }
    }
    Ok(())
}

/// The kernel's command line, with what other arguments add to it.
fn cmdline(args: &RunArgs) -> String {
    match args.iommu {
        Some(IommuArg { strict: true, .. }) => format!("{} iommu.strict=1", args.cmdline),
        _ => args.cmdline.clone(),
    }
}

/// The network card number `number`, whose virtual functions have taps named after its own.
fn nic(net: &NetArg, number: u8) -> Result<Nic, TapError> {
    let own = MacAddress([2, b'v', b'r', b'n', b'g', number]);
    let mac = net.mac.unwrap_or(own);
    let virtual_functions = (0..net.sriov)
        .map(|index| {
            Ok(VirtualNic {
                tap: Tap::open(&format!("{}v{index}", net.tap), 1)?,
                mac: virtual_mac(mac, index),
            })
        })
        .collect::<Result<_, TapError>>()?;
    Ok(Nic {
        tap: Tap::open(&net.tap, 1)?,
        mac,
        virtual_functions,
    })
}

/// The address of virtual function `index`: the card's, made a locally administered one, with another fourth byte.
fn virtual_mac(MacAddress([a, b, c, d, e, f]): MacAddress, index: u8) -> MacAddress {
    MacAddress([a | 2, b, c, d ^ index.wrapping_add(1), e, f])
}

/// What outlives a reset of the guest: a tap interface made here would vanish with its addresses, and the console's output be
/// truncated. All else is opened and made anew, so that nothing of one life of the guest reaches the next.
struct Kept {
    nics: Vec<Nic>,
    vifs: Vec<Vif>,
    /// Their models were checked, which takes a while.
    modelled: Vec<ModelledFunction>,
    /// Where the virtio console prints.
    console: Option<File>,
}

impl Kept {
    fn open(args: &RunArgs) -> Result<Self, Error> {
        let for_xen = args.disks.iter().any(|disk| disk.xen) || args.nets.iter().any(|net| net.xen);
        if for_xen && !args.xen {
            return Err("a device with pv=xen needs a guest that sees Xen: add --xen".into());
        }
        let (mut nics, mut vifs) = (Vec::new(), Vec::new());
        for (net, number) in args.nets.iter().zip(0u8..) {
            let nic = nic(net, number)?;
            if net.xen {
                let Nic { tap, mac, .. } = nic;
                vifs.push(Vif { tap, mac });
            } else {
                nics.push(nic);
            }
        }
        let console = match &args.console {
            Some(ConsoleArg::Stdio) => Some(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            Some(ConsoleArg::File(path)) => Some(File::create(path).map_err(|error| {
                format!(
                    "cannot create the console\'s file {}: {error}",
                    path.display()
                )
            })?),
            None => None,
        };
        let modelled = args.vpio.iter().filter_map(|arg| match arg {
            VpioArg::Own { address, model } => Some(ModelledFunction::new(*address, model)),
            VpioArg::Shared(_) => None,
        });
        let modelled = modelled.collect::<Result<_, VpioError>>()?;
        Ok(Self {
            nics,
            vifs,
            modelled,
            console,
        })
    }

    /// Describes a machine that boots from the start, and says where to type, if not into its serial port.
    fn config(&self, args: &RunArgs) -> Result<(Config, Option<PipeWriter>), Error> {
        let payload = Payload::Linux(Linux {
            kernel: Image::open(&args.kernel, "kernel")?,
            initrd: args
                .initrd
                .as_ref()
                .map(|path| Image::open(path, "initrd"))
                .transpose()?,
            cmdline: cmdline(args),
        });
        let open = |xen| {
            let disks = args.disks.iter().filter(move |disk| disk.xen == xen);
            disks
                .map(|disk| Disk::open(&disk.path, disk.read_only))
                .collect::<Result<Vec<_>, _>>()
        };
        let (disks, xen_disks) = (open(false)?, open(true)?);
        let vhost_user = args
            .vhost_user
            .iter()
            .map(|arg| VhostUser::connect(arg.kind, &arg.socket))
            .collect::<Result<_, _>>()?;
        let output = self.console.as_ref().map(File::try_clone).transpose()?;
        let mut console = output.map(|file| Port::console().output(file));
        let mut keys = None;
        if args.console == Some(ConsoleArg::Stdio) {
            let (reader, writer) = io::pipe()?;
            rustix::io::ioctl_fionbio(&writer, true)?;
            console = console.map(|port| port.input(reader));
            keys = Some(writer);
        }
        let shared = args.vpio.iter().filter_map(|arg| match arg {
            VpioArg::Own { .. } => None,
            VpioArg::Shared(socket) => Some(socket.clone()),
        });
        let config = Config {
            cpus: args.cpus,
            memory: args.memory,
            payload,
            peripherals: Peripherals {
                disks,
                nics: self.nics.clone(),
                vhost_user,
                console,
                emulated: args.devices.iter().copied().map(Into::into).collect(),
                assigned: args.vfio.iter().flat_map(|arg| arg.0.clone()).collect(),
                modelled: self.modelled.clone(),
                shared: shared.collect(),
            },
            transport: args.transport.into(),
            iommu: args.iommu.map(|arg| arg.iommu),
            xen: args.xen.then(|| XenDevices {
                disks: xen_disks,
                vifs: self.vifs.clone(),
                peer: args.xen_peer.clone(),
            }),
            serial: Box::new(io::stdout()),
            debug_exit: args.debug_exit,
            timed: !args.report.files.is_empty(),
        };
        Ok((config, keys))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn functions_of_all_cards_have_addresses_of_their_own() {
        let cards = [0, 1, 30].map(|number| MacAddress([2, b'v', b'r', b'n', b'g', number]));
        let functions = cards
            .into_iter()
            .flat_map(|card| (0..=254).map(move |index| virtual_mac(card, index)));
        let all: BTreeSet<_> = cards.into_iter().chain(functions).collect();
        assert_eq!(all.len(), 3 * 256);
        assert!(all.iter().all(|mac| !mac.is_multicast()));
    }
}
