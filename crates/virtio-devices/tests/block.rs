//! The block device, driven through the MMIO transport.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod support;

use std::io::Write;
use std::sync::Arc;

use support::driver::{Driver, WRITE};
use support::{Line, Memory, memory};
use virtio_devices::Worker;
use virtio_devices::block::{Block, BlockBackend, BlockOptions, FileDisk, MemoryDisk};
use virtio_devices::transport::MmioTransport;
use virtio_devices::transport::spec::mmio;

/// The parts of a request.
const HEADER: u64 = 0x8_0000;
const DATA: u64 = 0x9_0000;
const STATUS: u64 = 0x8_1000;

const SECTORS: u64 = 64;

type Transport = Arc<MmioTransport<Memory>>;

struct Rig<B: BlockBackend> {
    driver: Driver<Transport>,
    device: Arc<Block<Memory, B>>,
}

fn contents() -> Vec<u8> {
    (0..SECTORS * 512)
        .map(|at| u8::try_from((at * 7 + at / 512) % 251).unwrap())
        .collect()
}

fn memory_disk() -> MemoryDisk {
    MemoryDisk::new(contents(), false)
}

fn file_disk(bytes: &[u8]) -> FileDisk {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    FileDisk::new(file, false).unwrap()
}

impl<B: BlockBackend> Rig<B> {
    fn with(backend: B, options: BlockOptions, features: u64) -> Self {
        let memory = memory();
        let queues = options.queues;
        let size = options.queue_size.min(64);
        let worker = Worker::spawn("block").unwrap();
        let device = Arc::new(Block::new(backend, vec![worker], options).unwrap());
        let transport = MmioTransport::new(
            Arc::clone(&device) as Arc<_>,
            Arc::clone(&memory),
            Arc::new(Line::default()),
        )
        .unwrap();
        let driver = Driver::start(Arc::new(transport), memory, queues, size, features);
        Self { driver, device }
    }

    fn new(backend: B) -> Self {
        Self::with(backend, BlockOptions::default(), 1 << 9)
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.put(HEADER, &header);
        self.driver.put(STATUS, &[0xaa]);
    }

    fn status(&self) -> u8 {
        self.driver.get(STATUS, 1)[0]
    }

    /// Reads; returns status, used length and data.
    fn read(&mut self, sector: u64, len: u32) -> (u8, u32, Vec<u8>) {
        self.header(0, sector);
        self.driver.put(DATA, &vec![0xee; len as usize]);
        let used = self.driver.run(
            0,
            &[(HEADER, 16, 0), (DATA, len, WRITE), (STATUS, 1, WRITE)],
        );
        (self.status(), used, self.driver.get(DATA, len as usize))
    }

    /// Sends a request with readable data; returns status and used length.
    fn send(&mut self, kind: u32, sector: u64, data: &[u8]) -> (u8, u32) {
        self.header(kind, sector);
        self.driver.put(DATA, data);
        let len = u32::try_from(data.len()).unwrap();
        let used = self
            .driver
            .run(0, &[(HEADER, 16, 0), (DATA, len, 0), (STATUS, 1, WRITE)]);
        (self.status(), used)
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut range = [0; 16];
        range[..8].copy_from_slice(&sector.to_le_bytes());
        range[8..12].copy_from_slice(&sectors.to_le_bytes());
        range[12..].copy_from_slice(&flags.to_le_bytes());
        self.send(kind, 0, &range).0
    }

    /// The disk works.
    fn check_alive(&mut self) {
        let (status, used, data) = self.read(1, 512);
        assert_eq!((status, used), (0, 513));
        assert_eq!(data, contents()[512..1024]);
    }
}

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn reads_and_writes<B: BlockBackend>(mut rig: Rig<B>) {
    let mut expected = contents();
    let (status, used, data) = rig.read(0, 4096);
    assert_eq!((status, used), (OK, 4097));
    assert_eq!(data, expected[..4096]);

    let new = vec![0x5a; 1536];
    assert_eq!(rig.send(1, 3, &new), (OK, 1));
    expected[3 * 512..6 * 512].copy_from_slice(&new);
    assert_eq!(rig.send(4, 0, &[]), (OK, 1));
    assert_eq!(rig.read(0, 32768).2, expected);

    assert_eq!(rig.range(13, 10, 2, 0), OK);
    assert_eq!(rig.range(13, 14, 2, 1), OK);
    expected[10 * 512..12 * 512].fill(0);
    expected[14 * 512..16 * 512].fill(0);
    assert_eq!(rig.read(0, 32768).2, expected);
    assert_eq!(rig.range(11, 20, 2, 0), OK);
    assert_eq!(rig.read(0, 5120).2, expected[..5120]);
}

#[test]
fn a_memory_disk_reads_and_writes() {
    reads_and_writes(Rig::new(memory_disk()));
}

#[test]
fn a_file_reads_and_writes_with_io_uring() {
    reads_and_writes(Rig::new(file_disk(&contents())));
}

#[test]
fn a_file_reads_and_writes_with_threads() {
    let options = BlockOptions {
        io_uring: false,
        ..BlockOptions::default()
    };
    reads_and_writes(Rig::with(file_disk(&contents()), options, 1 << 9));
}

/// Without FLUSH every write is durable; that must work in both ways of doing I/O.
#[test]
fn a_driver_without_flush_writes_through() {
    for io_uring in [false, true] {
        let options = BlockOptions {
            io_uring,
            ..BlockOptions::default()
        };
        reads_and_writes(Rig::with(file_disk(&contents()), options, 0));
    }
}

#[test]
fn identity_is_twenty_bytes() {
    let options = BlockOptions {
        id: "disk".to_owned(),
        ..BlockOptions::default()
    };
    let mut rig = Rig::with(memory_disk(), options, 0);
    rig.header(8, 0);
    rig.driver.put(DATA, &[0xee; 32]);
    let buffers = [(HEADER, 16, 0), (DATA, 20, WRITE), (STATUS, 1, WRITE)];
    assert_eq!(rig.driver.run(0, &buffers), 21);
    assert_eq!(rig.status(), OK);
    assert_eq!(
        rig.driver.get(DATA, 20),
        *b"disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(rig.driver.get(DATA + 20, 12), [0xee; 12]);
}

#[test]
fn requests_out_of_bounds_are_refused() {
    let mut rig = Rig::new(memory_disk());
    let before = rig.device.backend().contents();
    for (sector, len) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX / 512 + 1, 512),
        (1 << 55, 512),
        (0, 511),
        (0, 513),
        (0, 33280),
    ] {
        let (status, used, data) = rig.read(sector, len);
        assert_eq!((status, used), (IOERR, 0), "read {sector:#x} {len}");
        assert!(data.iter().all(|byte| *byte == 0xee));
        let status = rig.send(1, sector, &vec![0x77; len as usize]).0;
        assert_eq!(status, IOERR, "write {sector:#x} {len}");
    }
    for (sector, sectors) in [
        (SECTORS, 1),
        (0, 65),
        (u64::MAX, 1),
        (0, u32::MAX),
        (0, 1 << 22),
    ] {
        assert_eq!(rig.range(11, sector, sectors, 0), IOERR);
        assert_eq!(rig.range(13, sector, sectors, 0), IOERR);
    }
    // §5.2.6.2: unknown flags, and unmap of a discard.
    assert_eq!(rig.range(11, 0, 1, 1), UNSUPP);
    assert_eq!(rig.range(11, 0, 1, 2), UNSUPP);
    assert_eq!(rig.range(13, 0, 1, 4), UNSUPP);
    // Two ranges where one is allowed, and a part of one.
    assert_eq!(rig.send(11, 0, &[0; 32]).0, IOERR);
    assert_eq!(rig.send(13, 0, &[0; 15]).0, IOERR);
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(rig.send(kind, 0, &[0; 512]).0, UNSUPP, "type {kind}");
    }
    assert_eq!(rig.device.backend().contents(), before);
    rig.check_alive();
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut rig = Rig::new(MemoryDisk::new(contents(), true));
    assert_eq!(rig.send(1, 0, &[0x77; 512]).0, IOERR);
    assert_eq!(rig.range(11, 0, 1, 0), IOERR);
    assert_eq!(rig.range(13, 0, 1, 0), IOERR);
    assert_eq!(rig.device.backend().contents(), contents());
    rig.driver.write(mmio::DEVICE_FEATURES_SEL, 0);
    let features = rig.driver.read(mmio::DEVICE_FEATURES);
    assert_eq!(features & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    rig.check_alive();
}

/// THREATS: zero-length descriptor, header split over descriptors, only the first descriptor read (vm-virtio #204, Cloud Hypervisor #7803). Any framing
/// of the same bytes gives the same result.
#[test]
fn framing_does_not_matter() {
    let mut rig = Rig::new(file_disk(&contents()));
    // A read of one sector: 16 readable bytes at HEADER, 513 writable at DATA of which the last is the status.
    let split = |start: u64, len: u32, cuts: &[u32], flags: u16| {
        let mut parts = Vec::new();
        let mut from = 0;
        for cut in cuts.iter().copied().chain([len]) {
            parts.push((start + u64::from(from), cut - from, flags));
            from = cut;
        }
        parts
    };
    let headers: [&[u32]; 6] = [&[], &[1], &[15], &[4, 8], &[0], &[3, 3, 9]];
    let bodies: [&[u32]; 8] = [
        &[],
        &[512],
        &[1],
        &[511],
        &[511, 512],
        &[100, 200, 300, 512, 512],
        &[0, 512],
        &[513],
    ];
    for header in headers {
        for body in bodies {
            rig.header(0, 2);
            rig.driver.put(DATA, &[0xee; 514]);
            let mut buffers = split(HEADER, 16, header, 0);
            buffers.extend(split(DATA, 513, body, WRITE));
            assert_eq!(rig.driver.run(0, &buffers), 513, "{header:?} {body:?}");
            assert_eq!(rig.driver.get(DATA, 512), contents()[1024..1536]);
            assert_eq!(rig.driver.get(DATA + 512, 2), [OK, 0xee]);

            // A write of one sector whose header and data share a buffer, cut anywhere.
            let cuts: Vec<u32> = body.iter().map(|cut| cut + 7).collect();
            rig.driver
                .put(DATA, &[1, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0]);
            rig.driver.put(DATA + 16, &contents()[20480..20992]);
            let mut buffers = split(DATA, 528, &cuts, 0);
            buffers.push((STATUS, 1, WRITE));
            assert_eq!(rig.driver.run(0, &buffers), 1);
            assert_eq!(rig.status(), OK);
        }
    }
    assert_eq!(rig.read(0, 32768).2, contents());
}

/// THREATS: malformed chain spins, kills the worker or leaks the head (openvmm #4045, Cloud Hypervisor #8401 #8142). Afterwards the device is in
/// NEEDS_RESET, its worker lives, and a reset brings it back.
#[test]
fn a_malformed_chain_needs_a_reset_and_no_more() {
    type Breakage = fn(&mut Driver<Transport>);
    let breakages: [(&str, Breakage); 8] = [
        ("no room for a status", |driver| {
            driver.offer(0, 0, &[(HEADER, 16, 0)])
        }),
        ("loop", |driver| {
            driver.descriptor(0, 0, (HEADER, 16, 1, 0));
            driver.make_available(0, 0);
        }),
        ("next out of range", |driver| {
            driver.descriptor(0, 0, (HEADER, 16, 1, 64));
            driver.make_available(0, 0);
        }),
        ("head out of range", |driver| driver.make_available(0, 64)),
        ("readable after writable", |driver| {
            driver.offer(0, 0, &[(STATUS, 1, WRITE), (HEADER, 16, 0)]);
        }),
        ("no memory", |driver| {
            driver.offer(0, 0, &[(0x1000_0000, 16, 0), (STATUS, 1, WRITE)]);
        }),
        ("top of the address space", |driver| {
            driver.offer(0, 0, &[(u64::MAX - 7, 16, 0), (STATUS, 1, WRITE)]);
        }),
        ("more available than the queue holds", |driver| {
            (0..65).for_each(|_| driver.make_available(0, 0));
        }),
    ];
    for io_uring in [false, true] {
        let options = BlockOptions {
            io_uring,
            ..BlockOptions::default()
        };
        let mut rig = Rig::with(file_disk(&contents()), options, 1 << 9);
        for (what, breakage) in breakages {
            rig.header(0, 0);
            breakage(&mut rig.driver);
            rig.driver.kick(0);
            rig.driver.wait_status(0x40);
            // The interrupt follows the status.
            rig.driver.wait("configuration interrupt", |driver| {
                (driver.read(mmio::INTERRUPT_STATUS) & 2 != 0).then_some(())
            });
            // Kicks are harmless, and nothing is used.
            rig.driver.kick(0);
            assert_eq!(rig.driver.used(0), None, "{what}");
            rig.driver.bring_up(1, 1 << 9);
            assert_eq!(rig.driver.read(mmio::STATUS), 15);
            rig.check_alive();
        }
    }
}

/// THREATS: host allocation or loop from an inflated length (Firecracker 4392a8d19, CVE-2016-5403). A chain that repeats one buffer up to gigabytes is
/// refused by the disk's size, and nothing of its size is allocated; beyond 2³² bytes it is malformed.
#[test]
fn an_inflated_length_is_refused() {
    let options = BlockOptions {
        queue_size: 64,
        ..BlockOptions::default()
    };
    let mut rig = Rig::with(file_disk(&contents()), options, 1 << 9);
    rig.header(0, 0);
    let mut buffers = vec![(HEADER, 16, 0)];
    buffers.extend([(DATA, 0x6_0000, WRITE); 60]);
    buffers.push((STATUS, 1, WRITE));
    assert_eq!(rig.driver.run(0, &buffers), 0);
    assert_eq!(rig.status(), IOERR);
    rig.check_alive();
}

/// THREATS: status walks, reset while busy (openvmm #3221). Resets with I/O in flight end it: nothing is written to guest memory afterwards.
#[test]
fn a_reset_ends_what_is_in_flight() {
    for io_uring in [false, true] {
        let options = BlockOptions {
            io_uring,
            ..BlockOptions::default()
        };
        let mut rig = Rig::with(file_disk(&contents()), options, 1 << 9);
        for round in 0..50 {
            rig.header(0, 0);
            for head in 0..21 {
                let buffers = [(HEADER, 16, 0), (DATA, 32768, WRITE), (STATUS, 1, WRITE)];
                rig.driver.offer(0, head * 3, &buffers);
            }
            rig.driver.kick(0);
            if round % 2 == 0 {
                rig.driver.wait_used(0);
            }
            rig.driver.write(mmio::STATUS, 0);
            rig.driver.put(DATA, &[0x11; 32768]);
            rig.driver.put(STATUS, &[0x22]);
            rig.driver.bring_up(1, 1 << 9);
            assert_eq!(rig.driver.get(DATA, 32768), [0x11; 32768]);
            assert_eq!(rig.driver.get(STATUS, 1), [0x22]);
        }
        rig.check_alive();
    }
}

#[test]
fn a_device_that_is_dropped_while_it_runs_lets_go_of_memory() {
    for io_uring in [false, true] {
        let options = BlockOptions {
            io_uring,
            ..BlockOptions::default()
        };
        let mut rig = Rig::with(file_disk(&contents()), options, 1 << 9);
        rig.check_alive();
        let memory = Arc::clone(&rig.driver.memory);
        drop(rig);
        assert_eq!(Arc::strong_count(&memory), 1, "io_uring: {io_uring}");
    }
}

/// THREATS: DMA re-entrancy (CVE-2024-3446). The device's view of memory has RAM only, so its own registers are not memory to it.
#[test]
fn dma_to_the_devices_own_registers_is_no_access() {
    let mut rig = Rig::new(memory_disk());
    // Where a bus would have the transport; a write of zeros to STATUS would be a reset.
    let registers = 0xd000_0000 + mmio::STATUS;
    rig.header(0, 0);
    let buffers = [(HEADER, 16, 0), (registers, 512, WRITE), (STATUS, 1, WRITE)];
    rig.driver.offer(0, 0, &buffers);
    rig.driver.kick(0);
    rig.driver.wait_status(0x40);
    assert_eq!(rig.driver.read(mmio::STATUS), 0x4f);
    rig.driver.bring_up(1, 1 << 9);
    rig.check_alive();
}

#[test]
fn queues_work_side_by_side() {
    let options = BlockOptions {
        queues: 4,
        ..BlockOptions::default()
    };
    let mut rig = Rig::with(file_disk(&contents()), options, 1 << 9 | 1 << 12);
    rig.header(0, 7);
    for queue in 0..4 {
        let data = DATA + 0x1000 * u64::from(queue);
        let status = STATUS + u64::from(queue);
        let buffers = [(HEADER, 16, 0), (data, 512, WRITE), (status, 1, WRITE)];
        rig.driver.offer(queue, 0, &buffers);
        rig.driver.kick(queue);
    }
    for queue in 0..4 {
        assert_eq!(rig.driver.wait_used(queue), (0, 513));
        let data = DATA + 0x1000 * u64::from(queue);
        assert_eq!(rig.driver.get(data, 512), contents()[3584..4096]);
        assert_eq!(rig.driver.get(STATUS + u64::from(queue), 1), [OK]);
    }
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let mut rig = Rig::new(memory_disk());
    rig.driver.set_avail_flags(0, 1);
    rig.check_alive();
    // The interrupt, if any, comes after the buffer: stop the queue to be sure that it is not under way.
    rig.driver.transport.pause();
    assert_eq!(rig.driver.read(mmio::INTERRUPT_STATUS), 0);
    rig.driver.transport.resume();
    rig.driver.set_avail_flags(0, 0);
    rig.check_alive();
    rig.driver.transport.pause();
    assert_eq!(rig.driver.read(mmio::INTERRUPT_STATUS), 1);
}

/// With EVENT_IDX and many requests at once there are fewer interrupts than requests, and none is lost.
#[test]
fn event_idx_is_honoured() {
    let mut rig = Rig::with(
        file_disk(&contents()),
        BlockOptions::default(),
        1 << 9 | 1 << 29,
    );
    for _ in 0..20 {
        rig.header(0, 1);
        for head in 0..21 {
            let buffers = [(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)];
            rig.driver.offer(0, head * 3, &buffers);
        }
        rig.driver.kick(0);
        let mut heads: Vec<u16> = (0..21).map(|_| rig.driver.wait_used(0).0).collect();
        heads.sort_unstable();
        assert_eq!(heads, (0..21).map(|head| head * 3).collect::<Vec<_>>());
    }
}

/// What is saved while requests are under way is restored elsewhere: none is lost, none is done twice.
#[test]
fn a_saved_device_carries_on_elsewhere() {
    let mut rig = Rig::new(memory_disk());
    rig.check_alive();
    let saved = rig.driver.transport.save();
    // Offered while the device does not run: the other one finds it.
    rig.header(0, 1);
    rig.driver.put(DATA, &[0xee; 512]);
    let buffers = [(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)];
    rig.driver.offer(0, 0, &buffers);

    let device = Block::new(
        memory_disk(),
        vec![Worker::spawn("other").unwrap()],
        BlockOptions::default(),
    );
    let line = Arc::new(Line::default());
    let other = MmioTransport::new(
        Arc::new(device.unwrap()),
        Arc::clone(&rig.driver.memory),
        Arc::clone(&line) as Arc<_>,
    )
    .unwrap();
    other.restore(saved.clone()).unwrap();
    assert!(line.level());
    other.resume();
    rig.driver.transport = Arc::new(other);
    assert_eq!(rig.driver.wait_used(0), (0, 513));
    assert_eq!(rig.driver.get(DATA, 512), contents()[512..1024]);
    rig.check_alive();
}
