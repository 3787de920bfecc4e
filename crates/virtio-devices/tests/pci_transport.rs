//! The PCI transport: capabilities, registers, doorbells, interrupts, the configuration access window.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod support;

use std::sync::Arc;

use pio_mmio_bus::bus::Outcome;
use pio_mmio_bus::interrupt::RecordingLine;
use pio_mmio_bus::pci::PciFunction;
use support::pci::Rig;
use support::{Recorder, memory};
use virtio_devices::transport::spec::pci::common;

fn rig() -> (Rig, Arc<Recorder>, Arc<RecordingLine>) {
    let device = Recorder::new();
    let line = Arc::new(RecordingLine::default());
    let rig = Rig::new(Arc::clone(&device) as Arc<_>, memory(), Arc::clone(&line));
    (rig, device, line)
}

/// What a driver does until DRIVER_OK, with one queue.
fn bring_up(rig: &Rig) {
    rig.write(common::DEVICE_STATUS, &[1]);
    rig.write(common::DEVICE_STATUS, &[3]);
    rig.write(common::DRIVER_FEATURE_SELECT, &1_u32.to_le_bytes());
    rig.write(common::DRIVER_FEATURE, &1_u32.to_le_bytes());
    rig.write(common::DEVICE_STATUS, &[11]);
    rig.write(common::QUEUE_SELECT, &1_u16.to_le_bytes());
    rig.write(common::QUEUE_ENABLE, &1_u16.to_le_bytes());
    rig.write(common::DEVICE_STATUS, &[15]);
}

fn status(rig: &Rig) -> u8 {
    let mut data = [0];
    rig.read(common::DEVICE_STATUS, &mut data);
    data[0]
}

/// The vendor capabilities: their offset in configuration space and their first 20 bytes.
fn capabilities(rig: &Rig) -> Vec<(u16, [u8; 20])> {
    let mut found = Vec::new();
    let mut at = u16::try_from(rig.config_u32(0x34) & 0xff).unwrap();
    while at != 0 {
        let mut bytes = [0; 20];
        rig.transport.function().read_config(at, &mut bytes);
        if bytes[0] == 9 {
            found.push((at, bytes));
        }
        at = bytes[1].into();
    }
    found
}

fn word(bytes: &[u8; 20], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn a_driver_finds_the_structures() {
    let (rig, _, _) = rig();
    assert_eq!(rig.config_u32(0), 0x106a_1af4);
    let found = capabilities(&rig);
    let places: Vec<_> = found
        .iter()
        .map(|(_, bytes)| {
            (
                bytes[3],
                bytes[2],
                bytes[4],
                word(bytes, 8),
                word(bytes, 12),
            )
        })
        .collect();
    assert_eq!(
        places,
        [
            (1, 16, 0, 0, 0x3c),
            (3, 16, 0, 0x1000, 1),
            (4, 16, 0, 0x2000, 0x1000),
            (2, 20, 0, 0x3000, 0x1000),
            (5, 20, 0, 0, 0),
        ]
    );
    assert_eq!(word(&found[3].1, 16), 4);
}

/// THREATS: config space: offset and width, straddles, write to read-only (Firecracker d91a74c1b). Every offset of the BAR in every width: what is not
/// a register in that width reads as all ones and ignores writes.
#[test]
fn the_bar_takes_every_offset_and_width() {
    let (rig, device, _) = rig();
    // Registers in offset and width that take part; the upper halves of 64-bit ones come with 4 bytes.
    let widths = |offset: u64| -> &[usize] {
        match offset {
            0x00 | 0x04 | 0x08 | 0x0c | 0x24 | 0x2c | 0x34 => &[4],
            0x20 | 0x28 | 0x30 => &[4, 8],
            0x10 | 0x12 | 0x16 | 0x18 | 0x1a | 0x1c | 0x1e | 0x38 | 0x3a => &[2],
            0x14 | 0x15 => &[1],
            _ => &[],
        }
    };
    for offset in 0..Rig::DEVICE {
        for width in [1, 2, 4, 8] {
            let mut data = vec![0x5a; width];
            rig.read(offset, &mut data);
            if offset != Rig::ISR && !widths(offset).contains(&width) {
                assert_eq!(data, vec![0xff; width], "{offset:#x} {width}");
                let outcome = rig.try_write(offset, &data);
                assert!(matches!(outcome, Outcome::Failed(_)), "{offset:#x} {width}");
            }
        }
    }
    assert_eq!(status(&rig), 0);
    let config = Recorder::initial_config();
    for offset in 0..0x1000 {
        for width in [1, 2, 4, 8] {
            let mut data = vec![0x5a; width];
            rig.read(Rig::DEVICE + offset, &mut data);
            let start = usize::try_from(offset).unwrap();
            for (byte, at) in data.iter().zip(start..) {
                // An access that runs out of the structures is the bus's or the device's; none of these does.
                assert_eq!(*byte, config.get(at).copied().unwrap_or(0));
            }
            rig.write(Rig::DEVICE + offset, &data);
        }
    }
    assert_eq!(*device.config.lock().unwrap(), config);
}

/// THREATS: queue or vector selector out of range (Cloud Hypervisor #7917, Firecracker #5353).
#[test]
fn all_queue_selectors_and_vectors_are_safe() {
    let (rig, _, _) = rig();
    for queue in 0..=u16::MAX {
        rig.write(common::QUEUE_SELECT, &queue.to_le_bytes());
        assert_eq!(rig.read_u16(common::QUEUE_SELECT), queue);
        let size = Recorder::SIZES.get(usize::from(queue)).copied();
        assert_eq!(rig.read_u16(common::QUEUE_SIZE), size.unwrap_or(0));
        assert_eq!(rig.read_u16(common::QUEUE_MSIX_VECTOR), 0xffff);
        rig.write(common::QUEUE_MSIX_VECTOR, &3_u16.to_le_bytes());
        let vector = if size.is_some() { 3 } else { 0xffff };
        assert_eq!(rig.read_u16(common::QUEUE_MSIX_VECTOR), vector);
        rig.write(common::QUEUE_ENABLE, &1_u16.to_le_bytes());
        assert_eq!(rig.read_u16(common::QUEUE_ENABLE), 0);
    }
    rig.write(common::QUEUE_SELECT, &2_u16.to_le_bytes());
    for vector in 0..=u16::MAX {
        // Three queues and the configuration have vectors.
        let expected = if vector < 4 { vector } else { 0xffff };
        rig.write(common::QUEUE_MSIX_VECTOR, &vector.to_le_bytes());
        assert_eq!(rig.read_u16(common::QUEUE_MSIX_VECTOR), expected);
        rig.write(common::CONFIG_MSIX_VECTOR, &vector.to_le_bytes());
        assert_eq!(rig.read_u16(common::CONFIG_MSIX_VECTOR), expected);
    }
}

#[test]
fn each_queue_has_a_doorbell_of_any_width() {
    let (rig, device, _) = rig();
    bring_up(&rig);
    let kick = Arc::clone(&device.running.lock().unwrap()[&1].kick);
    for width in [1, 2, 4, 8] {
        rig.write(Rig::NOTIFY + 4, &vec![0xab; width]);
        assert_eq!(kick.read().unwrap(), 1);
    }
    for offset in (0..0x1000).filter(|offset| *offset != 4) {
        rig.write(Rig::NOTIFY + offset, &1_u16.to_le_bytes());
        assert!(kick.read().is_err(), "{offset:#x}");
    }
}

#[test]
fn interrupts_are_messages_once_enabled_and_the_pin_before() {
    let (rig, device, line) = rig();
    bring_up(&rig);
    let used = Arc::clone(&device.running.lock().unwrap()[&1].interrupt);
    used.trigger();
    device.events().config_changed();
    assert!(line.asserted());
    let mut isr = [0];
    rig.read(Rig::ISR, &mut isr);
    assert_eq!(isr, [3]);
    assert!(!line.asserted());

    rig.enable_msix();
    // No vector: no interrupt.
    used.trigger();
    device.events().config_changed();
    assert_eq!(rig.router.take(), []);
    rig.write(common::QUEUE_MSIX_VECTOR, &2_u16.to_le_bytes());
    rig.write(common::CONFIG_MSIX_VECTOR, &3_u16.to_le_bytes());
    used.trigger();
    let data = |messages: Vec<pio_mmio_bus::interrupt::MsiMessage>| -> Vec<u32> {
        messages.iter().map(|message| message.data).collect()
    };
    assert_eq!(data(rig.router.take()), [2]);
    device.events().needs_reset();
    assert_eq!(data(rig.router.take()), [3]);
    assert_eq!(status(&rig), 0x4f);
    assert!(!line.asserted());

    // A reset forgets the vectors.
    rig.write(common::DEVICE_STATUS, &[0]);
    assert_eq!(rig.read_u16(common::CONFIG_MSIX_VECTOR), 0xffff);
    assert_eq!(status(&rig), 0);
}

#[test]
fn the_configuration_window_reaches_the_structures() {
    let (rig, _, _) = rig();
    let at = capabilities(&rig).last().unwrap().0;
    let function = rig.transport.function();
    let point = |bar: u8, offset: u32, length: u32| {
        function.write_config(at + 4, &[bar]);
        function.write_config(at + 8, &offset.to_le_bytes());
        function.write_config(at + 12, &length.to_le_bytes());
    };
    let status_at = u32::try_from(common::DEVICE_STATUS).unwrap();
    point(0, status_at, 1);
    function.write_config(at + 16, &[1]);
    assert_eq!(status(&rig), 1);
    assert_eq!(rig.config_u32(at + 16) & 0xff, 1);
    point(0, 0x2000, 4);
    assert_eq!(rig.config_u32(at + 16), 0x0403_0201);
    // Other BARs, offsets outside, and lengths that do not exist are no accesses.
    for (bar, offset, length) in [
        (1, status_at, 1),
        (2, 0, 4),
        (0xff, status_at, 1),
        (0, u32::MAX, 1),
        (0, 0x4000, 4),
        (0, status_at, 0),
        (0, status_at, 3),
        (0, status_at, 8),
        (0, status_at, u32::MAX),
        (0, 0x15, 2),
    ] {
        point(bar, offset, length);
        function.write_config(at + 16, &[3; 4]);
        let _ = rig.config_u32(at + 16);
        assert_eq!(status(&rig), 1, "{bar} {offset:#x} {length}");
    }
    // Nothing is accessed when the window is restored or reset.
    point(0, status_at, 1);
    function.write_config(at + 16, &[3]);
    assert_eq!(status(&rig), 3);
    let state = rig.transport.save();
    rig.write(common::DEVICE_STATUS, &[0]);
    rig.transport.restore(&state).unwrap();
    assert_eq!(status(&rig), 3);
    function.reset();
    rig.place();
    assert_eq!(status(&rig), 0);
}

/// THREATS: reset while busy. A reset of the function stops its queues like a device reset.
#[test]
fn a_function_reset_stops_the_queues() {
    let (rig, device, _) = rig();
    bring_up(&rig);
    assert_eq!(device.running.lock().unwrap().len(), 1);
    rig.transport.function().reset();
    assert!(device.running.lock().unwrap().is_empty());
    rig.place();
    assert_eq!(status(&rig), 0);
}

/// A function that is no bus master reaches no memory (PCIe §7.5.1.1.3): its queues stand, and its messages wait.
#[test]
fn queues_run_while_the_function_masters_the_bus() {
    let (rig, device, _) = rig();
    let master = |enabled: bool| {
        let command = 2 | u16::from(enabled) << 2;
        rig.transport
            .function()
            .write_config(0x04, &command.to_le_bytes());
    };
    let running = || device.running.lock().unwrap().len();
    rig.enable_msix();
    rig.transport.resume();
    master(false);
    bring_up(&rig);
    rig.write(common::QUEUE_MSIX_VECTOR, &2_u16.to_le_bytes());
    rig.write(common::CONFIG_MSIX_VECTOR, &3_u16.to_le_bytes());
    assert_eq!((status(&rig), running()), (15, 0));
    device.events().config_changed();
    assert_eq!(rig.router.take(), []);
    master(true);
    master(true);
    assert_eq!((running(), rig.router.take().len()), (1, 1));
    master(false);
    assert_eq!(running(), 0);

    // Neither of pausing and bus mastering undoes the other.
    rig.transport.pause();
    master(true);
    assert_eq!(running(), 0);
    master(false);
    rig.transport.resume();
    assert_eq!(running(), 0);
    let state = rig.transport.save();
    rig.transport.restore(&state).unwrap();
    rig.transport.resume();
    assert_eq!((status(&rig), running()), (15, 0));
    master(true);
    assert_eq!(running(), 1);
    let state = rig.transport.save();
    master(false);
    rig.transport.restore(&state).unwrap();
    assert_eq!(running(), 0, "restored and still paused");
    rig.transport.resume();
    assert_eq!(running(), 1);
}

/// THREATS: snapshot bytes (CVE-2023-50711, openvmm InvalidSavedState). Any single field that no driver can bring about is refused.
#[test]
fn hostile_states_are_refused() {
    let (rig, _, _) = rig();
    bring_up(&rig);
    let good = rig.transport.save();
    let refused = |change: fn(&mut virtio_devices::transport::PciState)| {
        let mut state = good.clone();
        change(&mut state);
        assert!(rig.transport.restore(&state).is_err(), "{state:?}");
    };
    refused(|state| state.transport.status = 0x20);
    refused(|state| state.transport.status = 0x04);
    refused(|state| state.transport.status = 0x0b & !1);
    refused(|state| state.transport.driver_features = 0);
    refused(|state| state.transport.driver_features |= 1 << 63);
    refused(|state| state.transport.driver_features |= 0b10);
    refused(|state| state.transport.queues.clear());
    refused(|state| state.transport.queues[0].size = 0);
    refused(|state| state.transport.queues[0].size = 3);
    refused(|state| state.transport.queues[0].size = 512);
    refused(|state| {
        state.transport.queues[0].ring =
            Some(vring::QueueState::Split(vring::SplitState::default()))
    });
    refused(|state| state.transport.status = 0);
    refused(|state| state.isr = 4);
    refused(|state| state.queue_vectors.clear());
    refused(|state| state.config_space.registers.clear());
    refused(|state| state.config_space.registers[0] ^= 1);
    refused(|state| state.msix.entries.clear());
    rig.transport.restore(&good).unwrap();
    assert_eq!(rig.transport.save(), good);
}
