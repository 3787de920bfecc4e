//! A guest that is part of this program: it shows a device driven end to end on any machine with KVM.
//!
//! It finds a virtio-blk among the PCI functions, drives it with a small driver of its own through a doorbell and MSI-X, compares
//! what it reads with what it expects, writes a sector, prints to the serial port and turns the power off.

mod guest;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_devices::block::FileDisk;

use crate::boot::Payload;
use crate::machine::disk::Disk;
use crate::machine::layout::MIB;
use crate::machine::stop::Stop;
use crate::machine::{Config, Machine, MachineError, Peripherals, Stopped, Transport};

const SECTOR: usize = 512;

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The disk in memory could not be made or read.
    #[error("the demo's disk: {0}")]
    Disk(#[from] io::Error),
    /// The machine could not be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The guest did not turn the power off.
    #[error("the demo's guest failed: {0}")]
    Guest(Stop),
    /// What the guest wrote is not on the disk.
    #[error("the demo's disk does not hold what the guest wrote")]
    Contents,
}

/// Runs the guest, which prints to `serial`, and checks what it left on its disk.
pub fn run(serial: Box<dyn Write + Send>) -> Result<Stopped, DemoError> {
    let disk = File::from(memfd_create("demo disk", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
    for number in 0..=guest::SCRATCH {
        disk.write_all_at(&sector(number, |word| word), offset(number))?;
    }
    let machine = Machine::new(Config {
        cpus: 1,
        memory: 16 * MIB,
        payload: Payload::Flat {
            image: guest::image().to_vec(),
            address: guest::LOAD,
        },
        peripherals: Peripherals {
            disks: vec![Disk {
                image: FileDisk::new(disk.try_clone()?, false)?,
                id: "demo".to_owned(),
            }],
            ..Peripherals::default()
        },
        transport: Transport::Pci,
        iommu: None,
        xen: None,
        serial,
        debug_exit: None,
        timed: true,
    })?;
    let stopped = machine.start()?.wait()?;
    if stopped.reason != Stop::PowerOff {
        return Err(DemoError::Guest(stopped.reason));
    }
    let mut written = [0; SECTOR];
    disk.read_exact_at(&mut written, offset(guest::SCRATCH))?;
    if written != sector(guest::SCRATCH, |word| !word) {
        return Err(DemoError::Contents);
    }
    Ok(stopped)
}

fn offset(sector: u32) -> u64 {
    u64::from(sector) * SECTOR as u64
}

/// A sector made of the words that both sides know.
fn sector(number: u32, change: impl Fn(u32) -> u32) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for (word, index) in bytes.chunks_exact_mut(4).zip(0u32..) {
        word.copy_from_slice(&change(guest::word(number, index)).to_le_bytes());
    }
    bytes
}
