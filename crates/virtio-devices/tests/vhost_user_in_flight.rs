//! A backend that is killed: what it had begun is not lost, and what it had answered is not done again.

mod raw_frontend;

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use raw_frontend::{
    Raw, SET_INFLIGHT_FD, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_ENABLE, SET_VRING_KICK,
    SET_VRING_NUM, event, file, halves, in_flight, words,
};
use virtio_devices::Worker;
use virtio_devices::block::{Block, BlockOptions, MemoryDisk};
use virtio_devices::transport::vhost_user::VhostUserBackend;

const DESC: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS: u64 = 0x6000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let flags = u32::from(flags) | u32::from(next) << 16;
    [words(&[addr]), halves(&[len, flags])].concat()
}

/// Heads 0 and 3 were available, in this order, and the backend before this one answered the second alone. Only the region that it left
/// tells its successor which (vhost-user, "Inflight I/O tracking").
#[test]
fn a_successor_does_what_was_in_flight_and_nothing_else() {
    let disk = MemoryDisk::new([[0xaa; 512], [0xbb; 512]].concat(), false);
    let workers = vec![Worker::spawn("disk").unwrap()];
    let block = Block::new(disk, workers, BlockOptions::default()).unwrap();
    let backend = Arc::new(VhostUserBackend::new(Arc::new(block)));

    let memory = file(0x10000);
    for (sector, head) in [(0_u64, 0_u16), (1, 3)] {
        // A read of one sector (virtio 1.3 §5.2.6).
        let header = HEADERS + 16 * sector;
        let chain = [
            descriptor(header, 16, NEXT, head + 1),
            descriptor(DATA + 512 * sector, 512, NEXT | WRITE, head + 2),
            descriptor(STATUS + sector, 1, WRITE, 0),
        ];
        let at = DESC + 16 * u64::from(head);
        memory.write_all_at(&chain.concat(), at).unwrap();
        memory.write_all_at(&words(&[0, sector]), header).unwrap();
        memory.write_all_at(&[0xff], STATUS + sector).unwrap();
    }
    memory
        .write_all_at(&halves(&[2 << 16, 3 << 16]), AVAIL)
        .unwrap();
    memory
        .write_all_at(&halves(&[1 << 16, 3, 513]), USED)
        .unwrap();

    // Version 1, 8 descriptors, 3 is the head of the last batch, the used index was 1; head 0 is in flight and was popped first.
    let region = file(192);
    let header = [words(&[0]), halves(&[8 << 16 | 1, 1 << 16 | 3])].concat();
    region.write_all_at(&header, 0).unwrap();
    region.write_all_at(&words(&[1, 1]), 16).unwrap();
    region.write_all_at(&words(&[0, 2]), 16 + 3 * 16).unwrap();

    let raw = Raw::negotiated(&backend);
    raw.share(&memory, 0, 0x10000, 0);
    let place = in_flight(192, 0, 1, 8);
    raw.send(SET_INFLIGHT_FD, &place, &[region.as_raw_fd()]);
    raw.send(SET_VRING_NUM, &halves(&[0, 8]), &[]);
    raw.send(SET_VRING_BASE, &halves(&[0, 1]), &[]);
    let addresses = [halves(&[0, 0]), words(&[DESC, USED, AVAIL, 0])].concat();
    raw.send(SET_VRING_ADDR, &addresses, &[]);
    raw.send(SET_VRING_KICK, &words(&[0]), &[event().as_raw_fd()]);
    raw.send(SET_VRING_ENABLE, &halves(&[0, 1]), &[]);

    let read = |at, len: usize| {
        let mut bytes = vec![0; len];
        memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let begun = Instant::now();
    while read(USED + 2, 2) == [1, 0] {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing is done");
        std::thread::yield_now();
    }
    assert_eq!(read(USED + 2, 2), [2, 0]);
    assert_eq!(read(USED + 12, 8), halves(&[0, 513]), "head 0 was answered");
    assert_eq!(read(DATA, 512), [0xaa; 512]);
    assert_eq!(read(STATUS, 2), [0, 0xff], "head 3 was not done again");
    assert_eq!(read(DATA + 512, 512), [0; 512]);
    raw.served();
}
