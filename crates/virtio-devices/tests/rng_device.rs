//! The entropy device (Virtio 1.3, §5.4).
#![expect(clippy::unwrap_used, reason = "test code")]

mod driver;

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use driver::{Memory, Part, Reports, Ring, memory};
use virtio_devices::rng::{MAX_REQUEST, Rng};
use virtio_devices::{VirtioDevice, Worker};

/// The numbers from 0, each a byte; reads are interrupted now and then, and end where told.
struct Numbers {
    next: u8,
    left: usize,
    calls: usize,
}

impl Numbers {
    fn up_to(left: usize) -> Self {
        Self {
            next: 0,
            left,
            calls: 0,
        }
    }
}

impl Read for Numbers {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(3) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.left == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let length = buf.len().min(self.left);
        for byte in buf.iter_mut().take(length) {
            *byte = self.next;
            self.next = self.next.wrapping_add(1);
        }
        self.left -= length;
        Ok(length)
    }
}

fn setup(source: impl Read + Send + 'static) -> (impl VirtioDevice<Memory>, Ring, Arc<Reports>) {
    let device = Rng::new(source, Worker::spawn("rng").unwrap());
    let reports = Arc::new(Reports::default());
    VirtioDevice::<Memory>::connect(&device, reports.clone());
    let ring = Ring::new(&memory(1), 0, 64, 1 << 32);
    ring.start(&device, 0, None);
    (device, ring, reports)
}

/// THREATS "any framing of the same bytes gives the same result".
#[test]
fn buffers_are_filled_in_order_whatever_their_framing() {
    let (_device, mut ring, _) = setup(Numbers::up_to(usize::MAX));
    let mut next = 0u8;
    for lengths in [vec![1], vec![5, 0, 3], vec![0, 7], vec![1; 20], vec![0]] {
        let parts: Vec<_> = lengths.iter().map(|length| Part::Write(*length)).collect();
        let used = ring.round_trip(&parts);
        assert_eq!(used.bytes.len(), lengths.iter().sum::<usize>());
        for byte in used.bytes {
            assert_eq!(byte, next);
            next = next.wrapping_add(1);
        }
    }
}

/// THREATS "host allocation or loop from an inflated length": a request gets no more than the bound, however large it is.
#[test]
fn a_request_is_bounded() {
    let (_device, mut ring, reports) = setup(Numbers::up_to(usize::MAX));
    let all = ring.round_trip(&vec![Part::Raw(0x10_0000, 0x30_0000, true); 40]);
    assert_eq!(all.bytes.len(), MAX_REQUEST);
    assert_eq!(ring.round_trip(&[Part::Read(vec![0; 9])]).written, 0);
    assert!(!reports.needs_reset());
}

#[test]
fn a_source_that_fails_leaves_the_buffer_empty() {
    let (_device, mut ring, reports) = setup(Numbers::up_to(10));
    assert_eq!(ring.round_trip(&[Part::Write(100)]).written, 10);
    assert_eq!(ring.round_trip(&[Part::Write(100)]).written, 0);
    assert!(!reports.needs_reset());
}

#[test]
fn requests_beyond_a_turn_are_all_answered() {
    let (_device, mut ring, _) = setup(Numbers::up_to(usize::MAX));
    for _ in 0..64 {
        ring.offer(&[Part::Write(8)]);
    }
    ring.kick();
    for _ in 0..64 {
        assert_eq!(ring.used().written, 8);
    }
}

/// THREATS "malformed chain": the device asks for a reset and works after it.
#[test]
fn a_malformed_chain_breaks_the_queue_until_reset() {
    let (device, mut ring, reports) = setup(Numbers::up_to(usize::MAX));
    ring.write_desc(0, u64::MAX - 3, 100, 2, 0);
    ring.offer_head(0);
    ring.kick();
    reports.wait_needs_reset();
    assert!(device.stop_queue(0).is_some());
    assert!(device.stop_queue(0).is_none());
    device.reset();
    let mut ring = Ring::new(&memory(1), 0, 64, 1 << 32);
    ring.start(&device, 0, None);
    assert_eq!(ring.round_trip(&[Part::Write(8)]).written, 8);
}

#[test]
fn there_is_no_configuration_space() {
    let (device, _ring, _) = setup(Numbers::up_to(0));
    for offset in [0, 1, 100, u64::MAX] {
        let mut data = [0xee; 8];
        device.write_config(offset, &data);
        device.read_config(offset, &mut data);
        assert_eq!(data, [0; 8]);
    }
    assert_eq!((device.features(), device.queue_max_sizes().len()), (0, 1));
}

#[test]
fn the_hosts_entropy_reaches_the_driver() {
    let (_device, mut ring, _) = setup(File::open("/dev/urandom").unwrap());
    let bytes = ring.round_trip(&[Part::Write(64)]).bytes;
    assert_eq!(bytes.len(), 64);
    assert_ne!(bytes, ring.round_trip(&[Part::Write(64)]).bytes);
}
