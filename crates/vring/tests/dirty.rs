//! What a queue writes is seen by the memory's dirty bitmap, and nothing else is: a migration copies no page for nothing and misses none.
#![allow(clippy::unwrap_used, reason = "test code")]

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vring::{Buffer, DriverQueue, Features, Queue, QueueConfig};

type Memory = GuestMemoryMmap<AtomicBitmap>;

/// The pages that are dirty, which are then clean.
fn dirty(memory: &Memory) -> Vec<usize> {
    let bitmap = memory.find_region(GuestAddress(0)).unwrap().bitmap();
    let pages = (0..16)
        .filter(|page| bitmap.dirty_at(page * 0x1000))
        .collect();
    bitmap.reset();
    pages
}

#[test]
fn only_what_is_written_is_dirty() {
    for (features, pushed, asked) in [
        (Features::VERSION_1, 3, 3),
        (Features::EVENT_IDX, 3, 3),
        (Features::RING_PACKED, 1, 3),
    ] {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let config = QueueConfig {
            size: 4,
            desc: GuestAddress(0x1000),
            avail: GuestAddress(0x2000),
            used: GuestAddress(0x3000),
            features,
        };
        let mut driver = DriverQueue::new(&memory, &config).unwrap();
        let mut device = Queue::new(&memory, &config, None).unwrap();
        let buffers = [(0x4000, 8, false), (0x5ffc, 8, true), (0x8000, 8, true)].map(
            |(addr, len, writable)| Buffer {
                addr: GuestAddress(addr),
                len,
                writable,
            },
        );
        memory
            .write_slice(b"request!", GuestAddress(0x4000))
            .unwrap();
        driver.add(&buffers, ()).unwrap();
        dirty(&memory);

        let chain = device.pop(&&memory).unwrap().unwrap();
        assert_eq!(
            chain.reader().read_obj::<u64>().unwrap(),
            u64::from_ne_bytes(*b"request!")
        );
        assert!(dirty(&memory).is_empty());
        chain.writer().write_all(&[1; 8]).unwrap();
        assert_eq!(dirty(&memory), [5, 6]);
        device.push(chain, 8).unwrap();
        assert_eq!(dirty(&memory), [pushed]);
        device.disable_kicks().unwrap();
        device.enable_kicks().unwrap();
        assert_eq!(dirty(&memory), [asked]);
    }
}
