use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use virtio_devices::console::Port;
use virtio_devices::net::{MacAddress, Tap, TapError};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::args::RunArgs;
use super::report;
use super::status;
use super::terminal::{Escape, RawMode};
use crate::boot::{Image, Linux, Payload};
use crate::devices::serial::SerialPort;
use crate::machine::disk::Disk;
use crate::machine::stop::{Stop, StopSwitch};
use crate::machine::{Config, Machine, Nic, Peripherals};

type Error = Box<dyn std::error::Error>;

/// Boots a guest, waits for its end, and returns the exit status.
pub(super) fn run(args: RunArgs) -> Result<u8, Error> {
    let payload = Payload::Linux(Linux {
        kernel: Image::open(args.kernel, "kernel")?,
        initrd: args
            .initrd
            .map(|path| Image::open(path, "initrd"))
            .transpose()?,
        cmdline: args.cmdline,
    });
    let disks = args
        .disks
        .iter()
        .map(|disk| Disk::open(&disk.path, disk.read_only))
        .collect::<Result<_, _>>()?;
    let nics = args
        .nets
        .into_iter()
        .zip(0u8..)
        .map(|(net, number)| {
            Ok(Nic {
                tap: Tap::open(&net.tap, 1)?,
                mac: net
                    .mac
                    .unwrap_or(MacAddress([2, b'v', b'r', b'n', b'g', number])),
            })
        })
        .collect::<Result<_, TapError>>()?;
    let console = args.console.map(|path| console(&path)).transpose()?;
    let machine = Machine::new(Config {
        cpus: args.cpus,
        memory: args.memory,
        payload,
        peripherals: Peripherals {
            disks,
            nics,
            console,
        },
        transport: args.transport.into(),
        serial: Box::new(io::stdout()),
        timed: !args.report.files.is_empty(),
    })?;
    let mut watch = Watch::new(machine.stop_switch(), machine.serial())?;
    let terminal = RawMode::enter()?;
    let running = machine.start()?;
    let watched = watch.until_stopped();
    let stopped = running.finish();
    drop(terminal);
    watched?;
    report::write(&args.report, &stopped)?;
    stopped
        .flushed
        .map_err(|error| format!("cannot flush the disks: {error}"))?;
    let status = match &stopped.reason {
        Stop::PowerOff => return Ok(status::POWERED_OFF),
        Stop::Reset => status::RESET,
        Stop::Crash(_) => status::CRASHED,
        Stop::Signal(signal) => {
            let number = u8::try_from(*signal).unwrap_or_default();
            status::SIGNAL.saturating_add(number)
        }
        Stop::User => status::POWERED_OFF,
        Stop::Host(_) => status::FAILED,
    };
    writeln!(io::stderr(), "reference-vmm: {}", stopped.reason)?;
    Ok(status)
}

/// A console that prints to a file.
fn console(path: &Path) -> Result<Port, Error> {
    let file = File::create(path).map_err(|error| {
        format!(
            "cannot create the console\'s file {}: {error}",
            path.display()
        )
    })?;
    Ok(Port::console().output(file))
}

/// What the main thread waits for while the guest runs.
struct Watch {
    epoll: Epoll,
    stop: Arc<StopSwitch>,
    serial: Arc<SerialPort>,
    signals: Vec<(i32, UnixStream)>,
    /// What is typed at a terminal may be a command; a pipe's bytes are all for the guest.
    escape: Option<Escape>,
}

/// Tags of the descriptors; signals are tagged with their number.
const STOP: u64 = 1000;
const INPUT: u64 = 1001;

impl Watch {
    fn new(stop: Arc<StopSwitch>, serial: Arc<SerialPort>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let add = |fd, tag| {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, tag),
            )
        };
        add(stop.event().as_raw_fd(), STOP)?;
        let mut signals = Vec::new();
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            let (reader, writer) = UnixStream::pair()?;
            signal_hook::low_level::pipe::register(signal, writer)?;
            add(
                reader.as_raw_fd(),
                u64::try_from(signal).unwrap_or_default(),
            )?;
            signals.push((signal, reader));
        }
        // A file cannot be polled: then there is no input.
        let _ = add(io::stdin().as_raw_fd(), INPUT);
        Ok(Self {
            epoll,
            stop,
            serial,
            signals,
            escape: io::stdin().is_terminal().then(Escape::default),
        })
    }

    /// Returns when the switch is thrown, by the guest, a signal or the user.
    fn until_stopped(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 4];
        while self.stop.reason().is_none() {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in events.iter().take(count) {
                match event.data() {
                    STOP => {}
                    INPUT => self.input()?,
                    tag => {
                        let signal = self
                            .signals
                            .iter()
                            .find(|(s, _)| u64::try_from(*s) == Ok(tag));
                        if let Some((signal, _)) = signal {
                            self.stop.throw(Stop::Signal(*signal));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn input(&mut self) -> io::Result<()> {
        let mut buffer = [0; 256];
        // Not through the standard library's buffer: what that holds back, epoll does not see.
        let stdin = rustix::stdio::stdin();
        let count = match rustix::io::read(stdin, &mut buffer) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if count == 0 {
            // The end of the input is not the end of the machine.
            return self.epoll.ctl(
                ControlOperation::Delete,
                stdin.as_raw_fd(),
                EpollEvent::default(),
            );
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        let mut typed = Vec::new();
        let quit = match &mut self.escape {
            Some(escape) => escape.filter(bytes, &mut typed),
            None => {
                typed.extend(bytes);
                false
            }
        };
        if quit {
            self.stop.throw(Stop::User);
        }
        // Beyond what the port keeps, typing is lost, as on a real line.
        self.serial.input(&typed);
        Ok(())
    }
}
