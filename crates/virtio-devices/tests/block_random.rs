//! The block device against a model, and against a guest that changes its mind.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use support::driver::{Driver, WRITE};
use support::{Line, Memory, memory};
use virtio_devices::Worker;
use virtio_devices::block::{Block, BlockOptions, FileDisk};
use virtio_devices::transport::MmioTransport;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const HEADER: u64 = 0x8_0000;
const DATA: u64 = 0x9_0000;
const STATUS: u64 = 0x8_1000;
const SECTORS: usize = 16;

fn disk() -> FileDisk {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[0; SECTORS * 512]).unwrap();
    FileDisk::new(file, false).unwrap()
}

fn driver(io_uring: bool) -> Driver<MmioTransport<Memory>> {
    let memory = memory();
    let options = BlockOptions {
        io_uring,
        ..BlockOptions::default()
    };
    let worker = Worker::spawn("block").unwrap();
    let device = Arc::new(Block::new(disk(), vec![worker], options).unwrap());
    let transport =
        MmioTransport::new(device, Arc::clone(&memory), Arc::new(Line::default())).unwrap();
    Driver::start(transport, memory, 1, 64, 1 << 9)
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

#[derive(Clone, Debug)]
struct Request {
    kind: u32,
    sector: u64,
    len: u32,
    fill: u8,
    /// Where the buffers are cut, in 1/256 of their length.
    cuts: [u8; 3],
}

fn request() -> impl Strategy<Value = Request> {
    let sector = prop_oneof![8 => 0..18_u64, 1 => any::<u64>()];
    let len = prop_oneof![8 => (0..20_u32).prop_map(|sectors| sectors * 512), 1 => 0..0x3000_u32];
    (0..2_u32, sector, len, any::<u8>(), any::<[u8; 3]>()).prop_map(
        |(kind, sector, len, fill, cuts)| Request {
            kind,
            sector,
            len,
            fill,
            cuts,
        },
    )
}

/// The buffers of `len` bytes at `start`, cut in four, some of them empty.
fn pieces(start: u64, len: u32, cuts: [u8; 3], flags: u16) -> Vec<(u64, u32, u16)> {
    let mut ends = cuts.map(|cut| u32::from(cut) * len / 255).to_vec();
    ends.push(len);
    ends.sort_unstable();
    let mut from = 0;
    let mut pieces = Vec::new();
    for end in ends {
        pieces.push((start + u64::from(from), end - from, flags));
        from = end;
    }
    pieces
}

fn check(driver: &mut Driver<MmioTransport<Memory>>, requests: &[Request]) {
    let mut model = [0; SECTORS * 512];
    for request in requests {
        let Request {
            kind,
            sector,
            len,
            fill,
            cuts,
        } = request.clone();
        driver.put(HEADER, &header(kind, sector));
        driver.put(STATUS, &[0xaa]);
        let before = vec![fill; usize::try_from(len).unwrap()];
        driver.put(DATA, &before);
        let write = kind == 1;
        let mut buffers = pieces(HEADER, 16, cuts, 0);
        buffers.extend(pieces(DATA, len, cuts, if write { 0 } else { WRITE }));
        buffers.push((STATUS, 1, WRITE));
        let used = driver.run(0, &buffers);
        let after = driver.get(DATA, before.len());
        let range = usize::try_from(sector)
            .ok()
            .and_then(|sector| {
                let start = sector.checked_mul(512)?;
                model.get_mut(start..start.checked_add(before.len())?)
            })
            .filter(|_| len % 512 == 0);
        let (status, expected) = match range {
            None => (1, if len == 0 || write { 1 } else { 0 }),
            Some(range) if write => {
                range.copy_from_slice(&before);
                (0, 1)
            }
            Some(range) => {
                assert_eq!(after, range);
                (0, len + 1)
            }
        };
        assert_eq!(driver.get(STATUS, 1), [status], "{request:?}");
        assert_eq!(used, expected, "{request:?}");
        if status == 1 || write {
            assert_eq!(after, before);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// THREATS: any framing of the same bytes gives the same result; address + length overflow.
    #[test]
    fn a_disk_is_an_array_of_sectors(
        io_uring: bool,
        requests in proptest::collection::vec(request(), 1..40),
    ) {
        check(&mut driver(io_uring), &requests);
    }
}

/// THREATS: double fetch: a request header changes between reads (Xen and QEMU, many). A thread rewrites header and descriptors while the device
/// works. Each write carries the sector it is for, so one that was checked for one sector and done to another would show.
#[test]
fn a_guest_that_rewrites_its_requests_harms_only_itself() {
    for io_uring in [false, true] {
        let mut driver = driver(io_uring);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let memory = Arc::clone(&driver.memory);
            let stop = &stop;
            scope.spawn(move || {
                let mut sector = 0;
                while !stop.load(Ordering::Relaxed) {
                    sector = (sector + 7) % 40;
                    // Reads and writes, inside the disk and outside.
                    let bytes = header(sector % 2, u64::from(sector));
                    memory.write_slice(&bytes, GuestAddress(HEADER)).unwrap();
                    // The length of the second descriptor, which is data.
                    let len = 512 * (1 + sector % 3);
                    memory.write_obj(len, GuestAddress(0x1018)).unwrap();
                }
            });
            for _ in 0..2000 {
                driver.put(DATA, &[0xcd; 2048]);
                let data = (DATA, 512, 0);
                driver.offer(0, 0, &[(HEADER, 16, 0), data, (STATUS, 1, WRITE)]);
                driver.kick(0);
                driver.wait_used(0);
            }
            stop.store(true, Ordering::Relaxed);
        });
        // It lives, and has as many sectors as before.
        driver.put(HEADER, &header(0, 0));
        let len = u32::try_from(SECTORS * 512).unwrap();
        let buffers = [(HEADER, 16, 0), (DATA, len, WRITE), (STATUS, 1, WRITE)];
        assert_eq!(driver.run(0, &buffers), len + 1);
        // Reads have nothing writable but the status, so all data on the disk is of whole writes.
        for sector in driver.get(DATA, SECTORS * 512).chunks(512) {
            assert!(sector == [0; 512] || sector == [0xcd; 512]);
        }
    }
}

/// What a device writes shows in the dirty bitmap, whichever way the I/O goes: migration depends on it.
#[test]
fn writes_to_guest_memory_are_tracked() {
    type Tracked = Arc<GuestMemoryMmap<AtomicBitmap>>;
    for io_uring in [false, true] {
        let memory: Tracked =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap());
        let options = BlockOptions {
            io_uring,
            ..BlockOptions::default()
        };
        let worker = Worker::spawn("block").unwrap();
        let device = Block::new(disk(), vec![worker], options).unwrap();
        let line = Arc::new(Line::default());
        let transport = MmioTransport::new(Arc::new(device), Arc::clone(&memory), line).unwrap();
        let mut driver = Driver::start(transport, Arc::clone(&memory), 1, 64, 1 << 9);
        driver.put(HEADER, &header(0, 0));
        let dirty = || -> Vec<usize> {
            let region = memory.iter().next().unwrap();
            let pages = 0x81..0x100_usize;
            pages
                .filter(|page| region.bitmap().dirty_at(page * 0x1000))
                .collect()
        };
        assert!(dirty().is_empty());
        driver.run(
            0,
            &[(HEADER, 16, 0), (DATA, 8192, WRITE), (STATUS, 1, WRITE)],
        );
        // The status and two pages of data.
        assert_eq!(dirty(), [0x81, 0x90, 0x91], "io_uring: {io_uring}");
    }
}
