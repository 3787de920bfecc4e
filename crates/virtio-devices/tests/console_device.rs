//! The console device between a driver and sockets of this process (Virtio 1.3, §5.3).
#![expect(clippy::unwrap_used, reason = "test code")]

mod driver;

use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use driver::{Memory, Part, Reports, Ring, framings, memory};
use proptest::prelude::*;
use virtio_devices::console::spec::{Features, receive_queue};
use virtio_devices::console::{
    Console, ConsoleError, ConsoleState, MAX_NAME, MAX_PORTS, Notices, Port, PortState,
};
use virtio_devices::{DeviceError, VirtioDevice, Worker};

struct Setup {
    device: Console,
    memory: Memory,
    reports: Arc<Reports>,
    features: u64,
}

impl Setup {
    fn new(ports: Vec<Port>) -> Self {
        let memory = memory(2 * ports.len() + 2);
        let device = Console::new(ports, Worker::spawn("console").unwrap()).unwrap();
        let features = VirtioDevice::<Memory>::features(&device);
        let reports = Arc::new(Reports::default());
        VirtioDevice::<Memory>::connect(&device, reports.clone());
        Self {
            device,
            memory,
            reports,
            features,
        }
    }

    fn ring(&self, index: u16) -> Ring {
        let ring = Ring::new(&self.memory, index.into(), 64, self.features | 1 << 32);
        ring.start(&self.device, index, None);
        ring
    }

    fn device(&self) -> &dyn VirtioDevice<Memory> {
        &self.device
    }

    fn reset(&self) {
        for index in 0..8 {
            self.device().stop_queue(index);
        }
        self.device().reset();
    }
}

/// A console alone: its device, receive and transmit queue, and the host's end.
fn console() -> (Setup, Ring, Ring, UnixStream) {
    let (port, host) = Port::console().connected().unwrap();
    let setup = Setup::new(vec![port]);
    let (rx, tx) = (setup.ring(0), setup.ring(1));
    (setup, rx, tx, host)
}

fn read(host: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    host.read_exact(&mut bytes).unwrap();
    bytes
}

fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    [
        &id.to_le_bytes()[..],
        &event.to_le_bytes(),
        &value.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn characters_go_both_ways() {
    let (setup, mut rx, mut tx, mut host) = console();
    assert_eq!(
        setup.features,
        (Features::SIZE | Features::EMERG_WRITE).bits()
    );
    tx.round_trip(&[Part::Read(b"hello".to_vec())]);
    assert_eq!(read(&mut host, 5), b"hello");
    host.write_all(b"world").unwrap();
    rx.send(&[Part::Write(100)]);
    assert_eq!(rx.used().bytes, b"world");
    assert!(matches!(
        setup.device().start_queue(2, rx.resources(), None),
        Err(DeviceError::NoQueue(2))
    ));
}

/// THREATS "any framing of the same bytes gives the same result" (vm-virtio #204, Cloud Hypervisor #7803).
#[test]
fn any_framing_of_output_writes_the_same() {
    let (_setup, _, mut tx, mut host) = console();
    for parts in framings(b"some characters") {
        tx.round_trip(&parts);
        assert_eq!(read(&mut host, 15), b"some characters", "{parts:?}");
    }
    tx.round_trip(&[Part::Write(10)]);
    tx.round_trip(&[Part::Read(vec![])]);
}

#[test]
fn input_waits_for_buffers_and_none_is_lost() {
    let (_setup, mut rx, _, mut host) = console();
    let sent: Vec<u8> = (0..20_000u32)
        .map(|i| u8::try_from(i % 253).unwrap())
        .collect();
    host.write_all(&sent).unwrap();
    let mut received = Vec::new();
    while received.len() < sent.len() {
        rx.send(&[Part::Write(1), Part::Write(0), Part::Write(700)]);
        received.extend(rx.used().bytes);
    }
    assert!(received == sent);
    // A buffer without room comes back, and does not cost a character.
    host.write_all(b"x").unwrap();
    rx.send(&[Part::Write(0)]);
    assert_eq!(rx.used().written, 0);
    rx.send(&[Part::Write(9)]);
    assert_eq!(rx.used().bytes, b"x");
}

#[test]
fn output_waits_for_the_host_and_none_is_lost() {
    let (setup, _, mut tx, mut host) = console();
    let chunk: Vec<u8> = (0..100_000u32)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    for _ in 0..30 {
        tx.offer(&[Part::Read(chunk.clone())]);
    }
    tx.kick();
    // The socket is full at some point; the device waits and stays in charge.
    let mut received = read(&mut host, 10);
    let state = setup.device().stop_queue(1);
    tx.start(&setup.device, 1, state);
    while received.len() < 30 * chunk.len() {
        received.extend(read(
            &mut host,
            50_000.min(30 * chunk.len() - received.len()),
        ));
    }
    for (part, _) in received.chunks(chunk.len()).zip(0..30) {
        assert!(part == chunk);
        tx.used();
    }
}

#[test]
fn a_host_that_hangs_up_discards_output_and_ends_input() {
    let (setup, mut rx, mut tx, host) = console();
    drop(host);
    for _ in 0..5 {
        tx.round_trip(&[Part::Read(vec![1; 10_000])]);
    }
    rx.send(&[Part::Write(10)]);
    tx.round_trip(&[Part::Read(vec![1])]);
    assert_eq!(rx.try_used(), None);
    assert!(!setup.reports.needs_reset());
}

/// Queues that run do not keep a device alive that its owner dropped.
#[test]
fn dropping_a_running_device_closes_its_ports() {
    let (setup, _rx, _tx, mut host) = console();
    host.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    drop(setup);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

/// Files cannot be watched by epoll: they are always ready.
#[test]
fn files_serve_as_input_and_output() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 10_000]).unwrap();
    file.rewind().unwrap();
    let mut out = tempfile::tempfile().unwrap();
    let setup = Setup::new(vec![
        Port::console().input(file).output(out.try_clone().unwrap()),
    ]);
    let (mut rx, mut tx) = (setup.ring(0), setup.ring(1));
    let mut received = 0;
    while received < 10_000 {
        rx.send(&[Part::Write(3000)]);
        received += rx.used().bytes.len();
    }
    rx.send(&[Part::Write(3000)]);
    tx.round_trip(&[Part::Read(b"out".to_vec())]);
    out.rewind().unwrap();
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), rx.try_used()), ("out", None));
}

#[test]
fn emergency_writes_need_no_queue() {
    let (port, mut host) = Port::console().connected().unwrap();
    let setup = Setup::new(vec![port]);
    setup.device().write_config(8, &[b'a', 0, 0, 0]);
    setup.device().write_config(7, &[0, b'b']);
    setup.device().write_config(8, b"c");
    setup.device().write_config(9, b"no");
    setup.device().write_config(4, b"none");
    assert_eq!(read(&mut host, 3), b"abc");
}

/// THREATS "config space: offset and width, straddles, write to read-only" (Firecracker d91a74c1b).
#[test]
fn configuration_space_at_all_offsets_and_widths() {
    let setup = Setup::new(vec![Port::console(), Port::named("x")]);
    setup.device.resize(80, 25);
    setup.reports.wait_config_changed();
    let whole = [80, 0, 25, 0, 2, 0, 0, 0, 0, 0, 0, 0];
    for offset in (0..40).chain(u64::MAX - 9..=u64::MAX) {
        for width in 1..=8 {
            setup.device().write_config(offset, &vec![0xff; width]);
            let mut data = vec![0xee; width];
            setup.device().read_config(offset, &mut data);
            for (at, byte) in (0..).zip(data) {
                let wanted = offset
                    .checked_add(at)
                    .and_then(|at| whole.get(usize::try_from(at).unwrap()));
                assert_eq!(byte, *wanted.unwrap_or(&0), "{offset}+{width}");
            }
        }
    }
}

/// What Linux does to find its ports, and what it is told (§5.3.6.2).
#[test]
fn ports_are_announced_named_and_opened() {
    let (console, _console_host) = Port::console().connected().unwrap();
    let (data, mut host) = Port::named("org.example.data").connected().unwrap();
    let setup = Setup::new(vec![console, data]);
    setup.device.resize(132, 43);
    let (mut notices, mut control) = (setup.ring(2), setup.ring(3));
    let (mut rx, mut tx) = (setup.ring(4), setup.ring(5));
    for _ in 0..16 {
        notices.offer(&[Part::Write(200)]);
    }
    notices.kick();
    control.round_trip(&[Part::Read(message(u32::MAX, 0, 1))]);
    // A second time changes nothing: a port is added once.
    control.round_trip(&[Part::Read(message(u32::MAX, 0, 1))]);
    assert_eq!(notices.used().bytes, message(0, 1, 0));
    assert_eq!(notices.used().bytes, message(1, 1, 0));

    control.round_trip(&[Part::Read(message(0, 3, 1))]);
    assert_eq!(notices.used().bytes, message(0, 4, 1));
    assert_eq!(
        notices.used().bytes,
        [&message(0, 5, 0)[..], &[132, 0, 43, 0]].concat()
    );
    assert_eq!(notices.used().bytes, message(0, 6, 1));
    control.round_trip(&[Part::Read(message(1, 3, 1))]);
    assert_eq!(
        notices.used().bytes,
        [&message(1, 7, 0)[..], b"org.example.data"].concat()
    );
    assert_eq!(notices.used().bytes, message(1, 6, 1));

    // Input is held back until the driver has the port open.
    host.write_all(b"early").unwrap();
    rx.send(&[Part::Write(100)]);
    tx.round_trip(&[Part::Read(b"out".to_vec())]);
    assert_eq!(read(&mut host, 3), b"out");
    assert_eq!(rx.try_used(), None);
    control.round_trip(&[Part::Read(message(1, 6, 1))]);
    assert_eq!(rx.used().bytes, b"early");

    // The host goes: the driver is told once.
    drop(host);
    rx.send(&[Part::Write(100)]);
    tx.round_trip(&[Part::Read(b"out".to_vec())]);
    assert_eq!(notices.used().bytes, message(1, 6, 0));

    setup.device.resize(80, 25);
    assert_eq!(
        notices.used().bytes,
        [&message(0, 5, 0)[..], &[80, 0, 25, 0]].concat()
    );
    assert_eq!(notices.try_used(), None);
    setup.reset();
    assert_eq!(
        setup.device.save().ports,
        [PortState::default(), PortState::default()]
    );
}

/// THREATS "any framing" for control messages, and messages that mean nothing.
#[test]
fn control_messages_in_any_framing() {
    let setup = Setup::new(vec![Port::named("data")]);
    let mut control = setup.ring(3);
    for parts in framings(&message(0, 0, 1)) {
        control.round_trip(&parts);
        assert!(setup.device.save().ports[0].added, "{parts:?}");
        setup.device().reset();
    }
    let nothing = [
        vec![],
        message(0, 0, 1)[..7].to_vec(),
        message(0, 0, 0),
        message(0, 0, 2),
        message(0, 3, 1),
        message(1, 3, 1),
        message(0x1_0000, 6, 1),
        message(u32::MAX, 6, 1),
        message(0, 1, 1),
        message(0, 8, 1),
        message(0, u16::MAX, 1),
    ];
    for bytes in nothing {
        control.round_trip(&[Part::Read(bytes.clone())]);
        assert_eq!(
            setup.device.save().ports[0],
            PortState::default(),
            "{bytes:?}"
        );
    }
    assert!(!setup.reports.needs_reset());
}

/// THREATS "host allocation from an inflated length": a driver that asks without end and takes no answers costs nothing.
#[test]
fn announcements_do_not_pile_up() {
    let setup = Setup::new(vec![Port::named("data")]);
    let (mut notices, mut control) = (setup.ring(2), setup.ring(3));
    for _ in 0..2000 {
        control.round_trip(&[Part::Read(message(0, 0, 1))]);
        control.round_trip(&[Part::Read(message(0, 3, 1))]);
    }
    for _ in 0..10 {
        notices.offer(&[Part::Write(40)]);
    }
    notices.kick();
    for wanted in [
        message(0, 1, 0),
        [&message(0, 7, 0)[..], b"data"].concat(),
        message(0, 6, 0),
    ] {
        assert_eq!(notices.used().bytes, wanted);
    }
    assert_eq!(notices.try_used(), None);
    // A buffer too small for its message comes back empty.
    setup.reset();
    let (mut notices, mut control) = (setup.ring(2), setup.ring(3));
    control.round_trip(&[Part::Read(message(0, 0, 1))]);
    notices.send(&[Part::Write(7)]);
    assert_eq!(notices.used().written, 0);
}

/// THREATS "reset while busy" (openvmm #3221).
#[test]
fn reset_while_busy() {
    let (port, mut host) = Port::console().connected().unwrap();
    let setup = Setup::new(vec![port, Port::named("data")]);
    host.set_nonblocking(true).unwrap();
    for round in 0..50 {
        let mut rings: Vec<Ring> = (0..6).map(|index| setup.ring(index)).collect();
        rings[0].offer(&[Part::Write(100)]);
        rings[1].offer(&[Part::Read(vec![0; 5000])]);
        rings[2].offer(&[Part::Write(100)]);
        rings[3].offer(&[Part::Read(message(0, 0, 1))]);
        rings[3].offer(&[Part::Read(message(0, 6, 1))]);
        let _ = host.write(b"typed");
        rings.iter().for_each(Ring::kick);
        if round % 3 == 0 {
            std::thread::yield_now();
        }
        setup.reset();
        for (index, ring) in (0..).zip(&mut rings) {
            while ring.try_used().is_some() {}
            assert_eq!(setup.device().stop_queue(index), None);
        }
    }
    assert!(!setup.reports.needs_reset());
}

/// THREATS "malformed chain" (openvmm #4045, Cloud Hypervisor #8401 #8142): every queue, and the others live on.
#[test]
fn a_malformed_chain_breaks_its_queue_until_reset() {
    let (port, mut host) = Port::console().connected().unwrap();
    let setup = Setup::new(vec![port, Port::named("data")]);
    for index in [0, 1, 2, 3, 5] {
        let mut listen = setup.ring(if index == 3 { 1 } else { 3 });
        let mut ring = if index == 3 {
            setup.ring(3)
        } else {
            setup.ring(index)
        };
        if index == 0 {
            listen.round_trip(&[Part::Read(message(0, 6, 1))]);
            host.write_all(b"x").unwrap();
        }
        if index == 2 {
            listen.round_trip(&[Part::Read(message(0, 0, 1))]);
        }
        ring.write_desc(0, 0, 16, 1, 1);
        ring.write_desc(1, 0, 16, 1, 0);
        ring.offer_head(0);
        ring.kick();
        setup.reports.wait_needs_reset();
        listen.round_trip(&[Part::Read(b"x".to_vec())]);
        setup.reset();
    }
}

#[test]
fn queue_numbers_follow_the_ports() {
    assert_eq!([0, 1, 2].map(receive_queue), [0, 4, 6]);
    let setup = Setup::new(vec![Port::console(), Port::named("a"), Port::named("b")]);
    assert_eq!(setup.device().queue_max_sizes().len(), 8);
    let ring = Ring::new(&setup.memory, 0, 8, setup.features);
    for index in [8, 9, 100, u16::MAX] {
        let error = setup
            .device()
            .start_queue(index, ring.resources(), None)
            .unwrap_err();
        assert!(matches!(error, DeviceError::NoQueue(i) if i == index));
    }
}

#[test]
fn ports_and_names_have_bounds() {
    let console = |ports| Console::new(ports, Worker::spawn("console").unwrap());
    assert!(matches!(console(vec![]), Err(ConsoleError::Ports(0))));
    let many = (0..=MAX_PORTS).map(|_| Port::console()).collect();
    assert!(matches!(console(many), Err(ConsoleError::Ports(_))));
    assert!(matches!(
        console(vec![Port::named(&"x".repeat(MAX_NAME + 1))]),
        Err(ConsoleError::Name(_))
    ));
    assert!(console(vec![Port::named(&"x".repeat(MAX_NAME))]).is_ok());
}

proptest! {
    /// THREATS "snapshot bytes" (CVE-2023-50711): any state is refused, or what the driver then hears is consistent.
    #[test]
    fn saved_states_are_checked(
        ports in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), any::<u8>(), any::<u64>()), 0..3),
    ) {
        let device = Console::new(vec![Port::named("data")], Worker::spawn("console").unwrap()).unwrap();
        let ports: Vec<_> = ports
            .into_iter()
            .map(|(added, ready, open, notices, sent)| {
                PortState { added, ready, open, notices: Notices::from_bits_retain(notices & 0x3f), sent }
            })
            .collect();
        match device.restore(ConsoleState { ports }) {
            Ok(()) => {
                let [port] = &device.save().ports[..] else { panic!("ports") };
                prop_assert!(port.added || !port.ready && port.notices.is_empty());
                prop_assert_eq!(port.notices, Notices::from_bits_truncate(port.notices.bits()));
            }
            Err(_) => prop_assert_eq!(device.save().ports, [PortState::default()]),
        }
    }
}

#[test]
fn a_saved_state_carries_on() {
    let (port, mut host) = Port::named("data").connected().unwrap();
    let setup = Setup::new(vec![port]);
    let mut control = setup.ring(3);
    control.round_trip(&[Part::Read(message(0, 0, 1))]);
    control.round_trip(&[Part::Read(message(0, 3, 1))]);
    control.round_trip(&[Part::Read(message(0, 6, 1))]);
    setup.device().stop_queue(3);
    let state = setup.device.save();
    setup.device().reset();
    setup.device.restore(state).unwrap();
    let mut rx = setup.ring(0);
    rx.send(&[Part::Write(9)]);
    host.write_all(b"on").unwrap();
    assert_eq!(rx.used().bytes, b"on");
}
