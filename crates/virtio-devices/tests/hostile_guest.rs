//! A guest that writes anything anywhere: registers, rings, descriptors, requests.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use std::sync::Arc;

use pio_mmio_bus::bus::BusDevice;
use proptest::prelude::*;
use support::driver::{Driver, WRITE};
use support::{Line, Memory, memory};
use virtio_devices::Worker;
use virtio_devices::block::{Block, BlockOptions, MemoryDisk};
use virtio_devices::transport::MmioTransport;
use vm_memory::{Bytes, GuestAddress};

const HEADER: u64 = 0x8_0000;
const DATA: u64 = 0x9_0000;
const STATUS: u64 = 0x8_1000;

#[derive(Clone, Debug)]
enum Op {
    /// Any register, any value.
    Register(u64, u32),
    Read(u64, usize),
    /// A descriptor of the queue that was set up, close to what is sensible.
    Descriptor(u16, u64, u32, u16, u16),
    Available(u16),
    /// Anything into a ring.
    Ring(u64, u32),
    Header(u32, u64),
    Kick,
    PauseAndResume,
}

fn op() -> impl Strategy<Value = Op> {
    let register = prop_oneof![
        8 => (0..0x40_u64).prop_map(|index| index * 4),
        1 => Just(0x70),
        1 => any::<u64>(),
    ];
    let value = prop_oneof![4 => 0..16_u32, 1 => any::<u32>()];
    let address = prop_oneof![
        8 => Just(HEADER), 8 => Just(DATA), 4 => 0..0x10_0000_u64, 1 => any::<u64>(), 1 => Just(0x1000)
    ];
    let length = prop_oneof![
        4 => Just(16_u32), 4 => Just(512), 4 => Just(1), 2 => Just(513), 1 => 0..0x8000_u32,
        1 => any::<u32>()
    ];
    let flags = prop_oneof![8 => 0..4_u16, 1 => any::<u16>()];
    let index = || prop_oneof![12 => 0..8_u16, 1 => any::<u16>()];
    prop_oneof![
        2 => (register.clone(), value).prop_map(|(at, value)| Op::Register(at, value)),
        1 => (register, 1..9_usize).prop_map(|(at, width)| Op::Read(at, width)),
        8 => (0..8_u16, address, length, flags, index())
            .prop_map(|(at, addr, len, flags, next)| Op::Descriptor(at, addr, len, flags, next)),
        4 => index().prop_map(Op::Available),
        1 => (0..0xc00_u64, any::<u32>()).prop_map(|(at, value)| Op::Ring(at * 4, value)),
        3 => (0..15_u32, 0..70_u64).prop_map(|(kind, sector)| Op::Header(kind, sector)),
        4 => Just(Op::Kick),
        1 => Just(Op::PauseAndResume),
    ]
}

fn apply(driver: &mut Driver<MmioTransport<Memory>>, op: Op) {
    match op {
        Op::Register(at, value) => {
            let _ = driver.transport.write(at, &value.to_le_bytes());
        }
        Op::Read(at, width) => {
            let _ = driver.transport.read(at, &mut vec![0; width]);
        }
        Op::Descriptor(at, addr, len, flags, next) => {
            driver.descriptor(0, at, (addr, len, flags, next));
        }
        Op::Available(head) => driver.make_available(0, head),
        Op::Ring(at, value) => {
            let at = GuestAddress(0x1000 + at);
            driver.memory.write_obj(value, at).unwrap();
        }
        Op::Header(kind, sector) => {
            let at = GuestAddress(HEADER);
            driver.memory.write_obj(kind, at).unwrap();
            driver
                .memory
                .write_obj(sector, GuestAddress(HEADER + 8))
                .unwrap();
        }
        Op::Kick => driver.kick(0),
        Op::PauseAndResume => {
            let state = driver.transport.save();
            driver.transport.restore(state).unwrap();
            driver.transport.resume();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// THREATS: malformed chain kills the worker or leaks the head (openvmm #4045, Cloud Hypervisor #8401 #8142); status walks with I/O in flight;
    /// snapshot bytes. Whatever the guest did, a reset and a driver that behaves find a device that works.
    #[test]
    fn a_reset_repairs_everything(ops in proptest::collection::vec(op(), 1..120), features in 0..2_u64) {
        let memory = memory();
        let disk = MemoryDisk::new(vec![0x5a; 64 * 512], true);
        let worker = Worker::spawn("block").unwrap();
        let device = Arc::new(Block::new(disk, vec![worker], BlockOptions::default()).unwrap());
        let transport =
            MmioTransport::new(device, Arc::clone(&memory), Arc::new(Line::default())).unwrap();
        // With indirect descriptors or without.
        let features = features << 28;
        let mut driver = Driver::start(transport, memory, 1, 8, features);
        for op in ops {
            apply(&mut driver, op);
        }
        driver.bring_up(1, features);
        driver.put(HEADER, &[0; 16]);
        let buffers = [(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)];
        prop_assert_eq!(driver.run(0, &buffers), 513);
        prop_assert_eq!(driver.get(DATA, 512), vec![0x5a; 512]);
    }
}
