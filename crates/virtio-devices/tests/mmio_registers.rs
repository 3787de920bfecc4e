//! The MMIO transport's registers: every offset in every width.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use std::sync::Arc;

use pio_mmio_bus::bus::{AccessError, BusDevice};
use support::{Line, Memory, Recorder, memory};
use virtio_devices::transport::MmioTransport;
use virtio_devices::transport::spec::mmio;

fn transport() -> (MmioTransport<Memory>, Arc<Recorder>) {
    let device = Recorder::new();
    let transport = MmioTransport::new(
        Arc::clone(&device) as Arc<_>,
        memory(),
        Arc::new(Line::default()),
    )
    .unwrap();
    (transport, device)
}

/// THREATS: config space: offset and width, straddles, write to read-only (Firecracker d91a74c1b).
#[test]
fn config_space_takes_every_offset_and_width() {
    let (transport, device) = transport();
    let initial = Recorder::initial_config();
    for offset in 0..MmioTransport::<Memory>::SIZE - mmio::CONFIG {
        for width in 1..=8 {
            let mut data = vec![0xa5; width];
            transport.read(mmio::CONFIG + offset, &mut data).unwrap();
            for (byte, at) in data.iter().zip(usize::try_from(offset).unwrap()..) {
                assert_eq!(*byte, initial.get(at).copied().unwrap_or(0));
            }
            transport
                .write(mmio::CONFIG + offset, &vec![0xee; width])
                .unwrap();
            let mut expected = initial;
            for at in usize::try_from(offset).unwrap()..usize::try_from(offset).unwrap() + width {
                if let Some(byte) = expected.get_mut(at) {
                    *byte = 0xee;
                }
            }
            assert_eq!(*device.config.lock().unwrap(), expected);
            *device.config.lock().unwrap() = initial;
        }
    }
    // Far outside, where offset arithmetic could overflow.
    for offset in [u64::MAX, u64::MAX - 7, 1 << 63] {
        let mut data = [0xa5; 8];
        transport.read(offset, &mut data).unwrap();
        assert_eq!(data, [0; 8]);
        transport.write(offset, &data).unwrap();
    }
    assert_eq!(*device.config.lock().unwrap(), initial);
}

/// THREATS: config space: offset and width. Registers are 32 bits wide and aligned; everything else is refused and changes nothing.
#[test]
fn registers_are_accessed_whole() {
    let (transport, _) = transport();
    let state = transport.save();
    for offset in 0..mmio::CONFIG {
        for width in (1..=8).filter(|width| *width != 4) {
            let mut data = vec![0xff; width];
            let refused = Err(AccessError::Width { offset, width });
            assert_eq!(transport.read(offset, &mut data), refused);
            assert_eq!(transport.write(offset, &data), refused);
        }
        if offset % 4 != 0 {
            let refused = Err(AccessError::NoRegister { offset });
            assert_eq!(transport.write(offset, &[0xff; 4]), refused);
            assert_eq!(transport.read(offset, &mut [0; 4]), refused);
        }
    }
    assert_eq!(transport.save(), state);
}

#[test]
fn identity_is_what_the_standard_says() {
    let (transport, _) = transport();
    let read = |register| {
        let mut data = [0; 4];
        transport.read(register, &mut data).unwrap();
        u32::from_le_bytes(data)
    };
    assert_eq!(read(mmio::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(read(mmio::VERSION), 2);
    assert_eq!(read(mmio::DEVICE_ID), 42);
    assert_eq!(read(mmio::SHM_LEN_LOW), u32::MAX);
}

/// THREATS: queue selector out of range. A doorbell for a queue that does not exist rings nothing.
#[test]
fn doorbells_ring_their_own_queue() {
    let (transport, _) = transport();
    for value in (0..=0xffff).chain([0x1_0000, 0x1_0001, u32::MAX]) {
        transport
            .write(mmio::QUEUE_NOTIFY, &value.to_le_bytes())
            .unwrap();
        for (index, kick) in (0..).zip(transport.kicks()) {
            assert_eq!(kick.read().is_ok(), index == value, "{value:#x} on {index}");
        }
    }
}
