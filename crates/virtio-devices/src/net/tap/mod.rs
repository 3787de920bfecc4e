//! A tap interface of Linux as back-end (`Documentation/networking/tuntap.rst`).

mod syscall;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::backend::{FrameReceiver, FrameSender, NetBackend, NetPort};
use super::spec::{Features, HEADER, MAX_FRAME};

/// Why a tap interface could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The name does not fit.
    #[error("interface name {0:?} is not 0 to 15 bytes without NUL")]
    Name(String),
    /// At least one queue pair is needed.
    #[error("a tap interface needs 1 to 256 queues, not {0}")]
    Queues(u16),
    /// The device node could not be opened.
    #[error("/dev/net/tun: {0}")]
    Open(io::Error),
    /// The interface could not be created or attached to.
    #[error("tap interface {name:?}: {step}: {source}")]
    Setup {
        /// The name that was asked for.
        name: String,
        /// The system call.
        step: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// A tap interface with one queue a queue pair. A clone is the same interface, for the next device after the one that has it.
#[derive(Clone, Debug)]
pub struct Tap {
    name: String,
    queues: Vec<Arc<TapQueue>>,
}

/// One queue of a [`Tap`].
#[derive(Debug)]
pub struct TapQueue {
    file: File,
    /// A new queue is attached. Attaching twice is an error to the kernel, and so is detaching.
    attached: Mutex<bool>,
    received: Mutex<Received>,
}

/// The frame that was read last.
#[derive(Debug)]
struct Received {
    buffer: Box<[u8]>,
    /// Bytes of the frame, 0 if it was taken.
    len: usize,
}

/// Linux allows this many queues (`MAX_TAP_QUEUES` in `drivers/net/tap.c` and `tun.c`).
const MAX_QUEUES: u16 = 256;

impl Tap {
    /// Opens `queues` queues of the interface `name`, which is made if it does not exist and if the process may. A name that is
    /// empty or contains `%d` lets the kernel choose: see [`name`](Self::name).
    ///
    /// An interface that was made here vanishes with the `Tap`. The interface is neither brought up nor given an address. One
    /// that exists must have been made multi-queue (`ip tuntap add … multi_queue`) if `queues` is more than 1, and only then.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str, queues: u16) -> Result<Self, TapError> {
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(TapError::Queues(queues));
        }
        let mut actual = name.to_owned();
        let mut opened = Vec::new();
        for _ in 0..queues {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open("/dev/net/tun")
                .map_err(TapError::Open)?;
            let request = syscall::Request::new(&actual, queues > 1)
                .ok_or_else(|| TapError::Name(name.to_owned()))?;
            let failed = |step| {
                move |source| TapError::Setup {
                    name: name.to_owned(),
                    step,
                    source,
                }
            };
            actual = syscall::set_interface(&file, request).map_err(failed("TUNSETIFF"))?;
            syscall::set_header_size(&file, HEADER).map_err(failed("TUNSETVNETHDRSZ"))?;
            opened.push(Arc::new(TapQueue {
                file,
                attached: Mutex::new(true),
                received: Mutex::new(Received {
                    buffer: vec![0; HEADER + MAX_FRAME].into(),
                    len: 0,
                }),
            }));
        }
        Ok(Self {
            name: actual,
            queues: opened,
        })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl NetBackend for Tap {
    type Port = TapQueue;

    fn ports(&self) -> &[Arc<TapQueue>] {
        &self.queues
    }

    fn offloads(&self) -> Features {
        Features::CSUM
            | Features::HOST_TSO4
            | Features::HOST_TSO6
            | Features::HOST_ECN
            | Features::GUEST_CSUM
            | Features::GUEST_TSO4
            | Features::GUEST_TSO6
            | Features::GUEST_ECN
    }

    fn set_guest_offloads(&self, offloads: Features) -> io::Result<()> {
        let flags = [
            (Features::GUEST_CSUM, libc::TUN_F_CSUM),
            (Features::GUEST_TSO4, libc::TUN_F_TSO4),
            (Features::GUEST_TSO6, libc::TUN_F_TSO6),
            (Features::GUEST_ECN, libc::TUN_F_TSO_ECN),
        ]
        .into_iter()
        .filter(|(feature, _)| offloads.contains(*feature))
        .fold(0, |flags, (_, flag)| flags | flag);
        // The offloads belong to the interface, whichever queue they are set through.
        match self.queues.first() {
            Some(queue) => syscall::set_offloads(&queue.file, flags),
            None => Ok(()),
        }
    }
}

/// Receives from a queue of a [`Tap`].
#[derive(Debug)]
pub struct TapReceiver<'p> {
    file: &'p File,
    received: MutexGuard<'p, Received>,
}

impl NetPort for TapQueue {
    type Sender<'p> = &'p Self;
    type Receiver<'p> = TapReceiver<'p>;
    const POLLED: bool = false;

    fn sender(&self) -> &Self {
        self
    }

    fn receiver(&self) -> TapReceiver<'_> {
        TapReceiver {
            file: &self.file,
            received: self.received.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if *attached != enabled {
            syscall::set_queue(&self.file, enabled)?;
            *attached = enabled;
        }
        Ok(())
    }
}

impl FrameSender for &TapQueue {
    fn send<'a, B: BitmapSlice>(
        &mut self,
        frame: impl Iterator<Item = VolatileSlice<'a, B>>,
    ) -> io::Result<()> {
        syscall::write_vectored(&self.file, frame).map(|_| ())
    }
}

impl FrameReceiver for TapReceiver<'_> {
    fn peek(&mut self) -> io::Result<&mut [u8]> {
        let Received { buffer, len } = &mut *self.received;
        if *len == 0 {
            *len = self.file.read(buffer)?;
        }
        Ok(buffer.get_mut(..*len).unwrap_or_default())
    }

    fn take(&mut self) {
        self.received.len = 0;
    }
}

impl AsRawFd for TapQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
