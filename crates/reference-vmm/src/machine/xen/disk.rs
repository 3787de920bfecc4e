//! Block devices.

use std::io;
use std::sync::Arc;

use grant_table::block::{self, BlockBack, Limits};
use grant_table::foreign::InProcess;
use grant_table::spec::block::SECTOR;
use virtio_devices::block::{BlockBackend, FileDisk};
use vm_memory::VolatileSlice;

use super::GUEST;
use super::device::{BackEnd, Front};
use super::host::{GuestChannel, Server, Wake};
use crate::machine::disk::Disk;

/// What guests call the first disk: `xvda`, with 16 numbers for it and its partitions.
const FIRST: u32 = 202 << 8;
/// Segments of an indirect request, as Linux's own back end offers.
const INDIRECT: u16 = 256;
/// Pages that stay mapped, as Linux's own back end keeps at most.
const PERSISTENT: u16 = 1056;
/// A disk that must not be written (`VDISK_READONLY`).
const READ_ONLY: u32 = 4;
/// The layout of requests of a 64-bit guest.
const PROTOCOL: &[u8] = b"x86_64-abi";

/// An image for a ring.
struct Image(Arc<FileDisk>);

fn offset(sector: u64) -> u64 {
    sector.saturating_mul(SECTOR as u64)
}

impl block::Disk for Image {
    fn sectors(&self) -> u64 {
        self.0.size() / SECTOR as u64
    }

    fn read(&mut self, sector: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read(offset(sector), &[VolatileSlice::from(bytes)])
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        let mut copy = bytes.to_vec();
        let bytes = VolatileSlice::from(copy.as_mut_slice());
        self.0.write(offset(sector), &[bytes], false)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn discard(&mut self, sector: u64, sectors: u64) -> io::Result<()> {
        self.0.discard(offset(sector), offset(sectors))
    }
}

/// A ring that is served. Its pages that stay mapped end with it.
struct Serving(Option<BlockBack<InProcess, Image>>);

impl Serving {
    /// Serves all requests there are; false when the guest has broken its ring, and has no disk any more.
    fn serve(&mut self, channel: &GuestChannel, wake: &Wake) -> bool {
        let Some(back) = &mut self.0 else {
            return false;
        };
        loop {
            match back.serve() {
                Ok(true) => channel.notify(),
                Ok(false) => {}
                Err(_) => return false,
            }
            if wake.is_stopped() || !back.is_waiting() {
                return true;
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _image = self.0.take().map(BlockBack::disconnect);
    }
}

/// A disk of the guest's.
pub(super) struct BlockDevice {
    image: Arc<FileDisk>,
    handle: u32,
}

impl BlockDevice {
    /// The disk number `index`.
    pub(super) fn new(disk: Disk, index: u32) -> Self {
        Self {
            image: Arc::new(disk.image),
            handle: FIRST.saturating_add(index.saturating_mul(16)),
        }
    }

    /// The number by which the guest knows it.
    pub(super) fn handle(&self) -> u32 {
        self.handle
    }

    /// What is written to it.
    pub(super) fn image(&self) -> Arc<FileDisk> {
        self.image.clone()
    }
}

impl BackEnd for BlockDevice {
    fn kind(&self) -> &'static str {
        "vbd"
    }

    fn front_nodes(&self) -> Vec<(&'static str, String)> {
        vec![
            ("virtual-device", self.handle.to_string()),
            ("device-type", "disk".to_owned()),
        ]
    }

    fn offers(&self) -> Vec<(&'static str, String)> {
        let info = if self.image.read_only() { READ_ONLY } else { 0 };
        let mode = if self.image.read_only() { "r" } else { "w" };
        vec![
            ("mode", mode.to_owned()),
            ("feature-flush-cache", "1".to_owned()),
            ("feature-persistent", "1".to_owned()),
            ("feature-max-indirect-segments", INDIRECT.to_string()),
            ("sectors", (self.image.size() / SECTOR as u64).to_string()),
            ("sector-size", SECTOR.to_string()),
            (
                "physical-sector-size",
                self.image.physical_block().to_string(),
            ),
            ("info", info.to_string()),
        ]
    }

    fn connect(&self, front: &mut Front<'_>) -> Option<Server> {
        if front.text("protocol").is_some_and(|name| name != PROTOCOL) {
            return None;
        }
        let persistent = front.has("feature-persistent");
        let limits = Limits {
            indirect_segments: INDIRECT,
            persistent: if persistent { PERSISTENT.into() } else { 0 },
            read_only: self.image.read_only(),
        };
        let ring = front.ring("ring-ref")?;
        let wake = Wake::new().ok()?;
        let channel = front.channel("event-channel", &wake)?;
        let image = Image(self.image.clone());
        let back = BlockBack::new(vec![ring], GUEST, front.foreign(), image, limits).ok()?;
        let mut serving = Serving(Some(back));
        let name = format!("xen-disk{}", self.handle);
        let serve = move |wake: &Wake| while wake.wait() && serving.serve(&channel, wake) {};
        Server::spawn(name, wake, serve).ok()
    }
}
