//! The network device between a driver and a network in memory (Virtio 1.3, §5.1).
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod driver;

use std::sync::Arc;

use driver::{EVENT_IDX, Memory, Part, Reports, Ring, framings, memory, wait_until};
use virtio_devices::net::spec::{Features, HEADER};
use virtio_devices::net::{
    MAX_COMMAND, MEMORY_PORT_FRAMES, MacAddress, MemoryNet, MemoryPort, Net, NetError, NetState,
};
use virtio_devices::{DeviceError, VirtioDevice, Worker};

const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const OFFLOADS: Features = Features::GUEST_OFFLOADS.union(Features::HOST_OFFLOADS);

struct Setup {
    device: Net<MemoryNet>,
    memory: Memory,
    reports: Arc<Reports>,
    features: Features,
    ring_features: u64,
}

impl Setup {
    fn new(pairs: u16, features: Features) -> Self {
        let workers = vec![
            Worker::spawn("net 0").unwrap(),
            Worker::spawn("net 1").unwrap(),
        ];
        let device = Net::new(MemoryNet::new(pairs, OFFLOADS).unwrap(), OWN, workers).unwrap();
        let reports = Arc::new(Reports::default());
        VirtioDevice::<Memory>::connect(&device, reports.clone());
        Self {
            device,
            memory: memory(usize::from(pairs) * 2 + 1),
            reports,
            features,
            ring_features: 1 << 32,
        }
    }

    fn ring(&self, index: u16, size: u16) -> Ring {
        let ring = Ring::new(
            &self.memory,
            index.into(),
            size,
            self.features.bits() | self.ring_features,
        );
        ring.start(&self.device, index, None);
        ring
    }

    fn port(&self, pair: usize) -> &MemoryPort {
        use virtio_devices::net::NetBackend;
        &self.device.backend().ports()[pair]
    }

    fn stop(&self, index: u16) -> Option<vring::QueueState> {
        VirtioDevice::<Memory>::stop_queue(&self.device, index)
    }

    fn reset(&self) {
        for index in 0..5 {
            self.stop(index);
        }
        VirtioDevice::<Memory>::reset(&self.device);
    }
}

/// A frame with its header, of `len` bytes without.
fn frame(to: MacAddress, len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(to.0);
    frame.extend((0..len - 6).map(|i| u8::try_from(i % 251).unwrap()));
    frame
}

fn command(bytes: &[u8]) -> Vec<Part> {
    vec![Part::Read(bytes.to_vec()), Part::Write(1)]
}

#[test]
fn frames_go_both_ways() {
    let setup = Setup::new(1, Features::empty());
    let (mut rx, mut tx) = (setup.ring(0, 8), setup.ring(1, 8));
    let out = frame(OTHER, 60);
    assert_eq!(tx.round_trip(&[Part::Read(out.clone())]).written, 0);
    assert_eq!(setup.port(0).sent().unwrap(), out);

    rx.send(&[Part::Write(2000)]);
    let mut wanted = frame(OWN, 60);
    assert!(setup.port(0).inject(wanted.clone()));
    wanted[10] = 1;
    assert_eq!(rx.used().bytes, wanted);
    let statistics = setup.device.statistics();
    assert_eq!((statistics.received, statistics.transmitted), (1, 1));
}

/// A driver that kicks only when asked to, and is interrupted only when it asks to be, loses nothing.
#[test]
fn suppressed_notifications_lose_nothing() {
    for ring_features in [1 << 32, 1 << 32 | EVENT_IDX] {
        let setup = Setup {
            ring_features,
            ..Setup::new(1, Features::empty())
        };
        let (mut rx, mut tx) = (setup.ring(0, 8), setup.ring(1, 8));
        for round in 0u8..200 {
            if round.is_multiple_of(3) {
                std::thread::yield_now();
            }
            tx.round_trip(&[Part::Read(frame(OTHER, 60))]);
            assert!(setup.port(0).sent().is_some());
            rx.send(&[Part::Write(100)]);
            setup.port(0).inject(frame(OWN, 60));
            assert_eq!(rx.used().written, 72);
        }
    }
}

/// THREATS "any framing of the same bytes gives the same result" (vm-virtio #204, Cloud Hypervisor #7803).
#[test]
fn any_framing_of_a_frame_sends_the_same() {
    let setup = Setup::new(1, Features::empty());
    let mut tx = setup.ring(1, 64);
    let out = frame(OTHER, 20);
    for parts in framings(&out) {
        tx.round_trip(&parts);
        assert_eq!(setup.port(0).sent().unwrap(), out, "{parts:?}");
    }
}

/// THREATS "any framing" for receive buffers: the frame lies in the writable bytes in order, whatever the descriptors.
#[test]
fn any_framing_of_a_buffer_receives_the_same() {
    let setup = Setup::new(1, Features::empty());
    let mut rx = setup.ring(0, 64);
    let mut wanted = frame(OWN, 20);
    wanted[10] = 1;
    for cut in 0..wanted.len() {
        rx.send(&[
            Part::Write(cut),
            Part::Write(0),
            Part::Write(wanted.len() - cut),
        ]);
        setup.port(0).inject(frame(OWN, 20));
        assert_eq!(rx.used().bytes, wanted);
    }
}

/// THREATS "host allocation or loop from an inflated length": frames above the largest are not copied, nor below the least.
#[test]
fn frames_of_impossible_lengths_are_dropped() {
    let setup = Setup::new(1, Features::empty());
    let mut tx = setup.ring(1, 64);
    for parts in [
        vec![Part::Read(vec![0; HEADER + 13])],
        vec![Part::Write(100)],
        vec![Part::Raw(0x10_0000, 70_000, false)],
        vec![Part::Raw(0, 0x80_0000, false); 30],
    ] {
        assert_eq!(tx.round_trip(&parts).written, 0);
    }
    assert_eq!(setup.port(0).sent(), None);
    assert_eq!(setup.device.statistics().transmit_dropped, 4);
    assert!(!setup.reports.needs_reset());
}

#[test]
fn mergeable_buffers_hold_a_frame_together() {
    let setup = Setup::new(1, Features::MRG_RXBUF);
    let mut rx = setup.ring(0, 256);
    for _ in 0..100 {
        rx.offer(&[Part::Write(1000)]);
    }
    rx.kick();
    let mut wanted = frame(OWN, 65_589);
    setup.port(0).inject(wanted.clone());
    wanted[10] = 66;
    let mut received = Vec::new();
    for _ in 0..66 {
        received.extend(rx.used().bytes);
    }
    assert!(received == wanted);
    // The buffers that were not needed are used by the next frame.
    setup.port(0).inject(frame(OWN, 60));
    assert_eq!(rx.used().bytes[10], 1);
}

#[test]
fn a_frame_waits_for_enough_mergeable_buffers() {
    let setup = Setup::new(1, Features::MRG_RXBUF);
    let mut rx = setup.ring(0, 8);
    rx.send(&[Part::Write(40)]);
    setup.port(0).inject(frame(OWN, 60));
    setup.port(0).inject(frame(OWN, 14));
    wait_until("the first frame is not taken", || {
        setup.port(0).pending() == 1
    });
    rx.send(&[Part::Write(40)]);
    assert_eq!((rx.used().written, rx.used().written), (40, 32));
    // The frame behind was not lost either.
    rx.send(&[Part::Write(40)]);
    assert_eq!(rx.used().written, 26);
    assert_eq!(setup.device.statistics().receive_dropped, 0);
}

#[test]
fn without_merging_a_frame_that_does_not_fit_is_dropped() {
    let setup = Setup::new(1, Features::empty());
    let mut rx = setup.ring(0, 8);
    rx.offer(&[Part::Write(40)]);
    rx.send(&[Part::Write(40)]);
    setup.port(0).inject(frame(OWN, 60));
    setup.port(0).inject(frame(OWN, 28));
    assert_eq!(rx.used().written, 40);
    assert_eq!(rx.try_used(), None);
    assert_eq!(setup.device.statistics().receive_dropped, 1);
}

/// No loss while the driver has no buffers, as long as the host's queue lasts.
#[test]
fn frames_wait_for_a_driver_without_buffers() {
    let setup = Setup::new(1, Features::empty());
    let mut rx = setup.ring(0, 8);
    for len in 14..30 {
        assert!(setup.port(0).inject(frame(OWN, len)));
    }
    for len in 14u32..30 {
        rx.send(&[Part::Write(100)]);
        assert_eq!(rx.used().written, len + 12);
    }
    assert!(setup.port(0).pending() == 0 && MEMORY_PORT_FRAMES >= 16);
}

/// Checksum hints that were not negotiated do not reach the driver (§5.1.6.4.1).
#[test]
fn header_flags_need_the_negotiated_feature() {
    for (features, flags) in [(Features::empty(), 0), (Features::GUEST_CSUM, 2)] {
        let setup = Setup::new(1, features);
        let mut rx = setup.ring(0, 8);
        rx.send(&[Part::Write(100)]);
        let mut frame = frame(OWN, 14);
        frame[0] = 2;
        setup.port(0).inject(frame);
        assert_eq!(rx.used().bytes[0], flags);
    }
}

#[test]
fn control_commands_set_the_filter_that_frames_pass() {
    let setup = Setup::new(
        1,
        Features::CTRL_VQ | Features::CTRL_RX | Features::CTRL_MAC_ADDR | Features::CTRL_VLAN,
    );
    let (mut rx, mut control) = (setup.ring(0, 64), setup.ring(2, 8));
    for _ in 0..32 {
        rx.offer(&[Part::Write(100)]);
    }
    rx.kick();
    let mut passes = |frame: Vec<u8>| {
        // A frame that always passes shows that the one before it did not.
        let before = setup.device.statistics();
        setup.port(0).inject(frame);
        let done = || {
            let now = setup.device.statistics();
            now.received + now.receive_filtered > before.received + before.receive_filtered
        };
        wait_until("the frame is neither received nor filtered", done);
        rx.try_used().is_some()
    };
    assert!(passes(frame(OTHER, 60)));
    assert_eq!(control.round_trip(&command(&[0, 0, 0])).bytes, [0]);
    assert!(
        !passes(frame(OTHER, 60))
            && passes(frame(OWN, 60))
            && passes(frame(MacAddress::BROADCAST, 60))
    );
    let table = [&[1, 0, 1, 0, 0, 0][..], &OTHER.0, &[0, 0, 0, 0]].concat();
    assert_eq!(control.round_trip(&command(&table)).bytes, [0]);
    assert!(passes(frame(OTHER, 60)));
    let third = MacAddress([2, 0, 0, 0, 0, 3]);
    assert!(!passes(frame(third, 60)));
    assert_eq!(
        control
            .round_trip(&command(&[&[1, 1][..], &third.0].concat()))
            .bytes,
        [0]
    );
    assert!(passes(frame(third, 60)) && !passes(frame(OWN, 60)));
    let tagged = |to: MacAddress| {
        let mut frame = frame(to, 60);
        frame[HEADER + 12..HEADER + 16].copy_from_slice(&[0x81, 0, 0, 5]);
        frame
    };
    assert!(!passes(tagged(third)));
    assert_eq!(control.round_trip(&command(&[2, 0, 5, 0])).bytes, [0]);
    assert!(passes(tagged(third)));
    let mut mac = [0; 6];
    VirtioDevice::<Memory>::read_config(&setup.device, 0, &mut mac);
    assert_eq!(mac, third.0);

    setup.reset();
    VirtioDevice::<Memory>::read_config(&setup.device, 0, &mut mac);
    assert_eq!(mac, OWN.0);
    assert_eq!(setup.device.save().features, None);
}

/// THREATS "any framing" and "malformed chain" for control commands: every cut of a good command works, every bad command is
/// refused, and the queue lives on.
#[test]
fn control_commands_in_any_framing() {
    let setup = Setup::new(1, Features::CTRL_VQ | Features::CTRL_RX);
    let mut control = setup.ring(2, 64);
    let table = [&[1, 0, 1, 0, 0, 0][..], &OTHER.0, &[0, 0, 0, 0]].concat();
    for mut parts in framings(&table) {
        parts.push(Part::Write(0));
        parts.push(Part::Write(1));
        assert_eq!(control.round_trip(&parts).bytes, [0], "{parts:?}");
    }
    for bad in [
        &[][..],
        &[0],
        &[0, 0],
        &[0, 0, 2],
        &[0, 9, 0],
        &[9, 0, 0],
        &[2, 0, 1, 0],
        &[4, 0, 1, 0],
    ] {
        assert_eq!(control.round_trip(&command(bad)).bytes, [1], "{bad:?}");
    }
    // One that would be good if it were not too long to be looked at.
    let long = [
        &[1, 0, 0, 0, 0, 0][..],
        &513u32.to_le_bytes(),
        &[1; 6 * 513],
    ]
    .concat();
    assert!(long.len() < MAX_COMMAND);
    assert_eq!(control.round_trip(&command(&long)).bytes, [0]);
    let long = [
        &[1, 0, 0, 0, 0, 0][..],
        &1100u32.to_le_bytes(),
        &[1; 6 * 1100],
    ]
    .concat();
    assert_eq!(control.round_trip(&command(&long)).bytes, [1]);
    assert_eq!(
        control.round_trip(&command(&[0; MAX_COMMAND * 2])).bytes,
        [1]
    );
    // Nowhere to acknowledge: not carried out.
    let before = setup.device.save();
    assert_eq!(control.round_trip(&[Part::Read(vec![0, 0, 0])]).written, 0);
    assert_eq!(setup.device.save(), before);
    // Only the first byte is the acknowledgement.
    assert_eq!(
        control
            .round_trip(&[Part::Read(vec![0, 0, 0]), Part::Write(9)])
            .written,
        1
    );
    assert!(!setup.reports.needs_reset());
}

#[test]
fn receive_offloads_follow_negotiation_and_commands() {
    let setup = Setup::new(
        1,
        Features::CTRL_VQ
            | Features::CTRL_GUEST_OFFLOADS
            | Features::GUEST_CSUM
            | Features::GUEST_TSO4,
    );
    let offloads = || setup.device.backend().guest_offloads();
    assert_eq!(offloads(), Features::empty());
    let mut control = setup.ring(2, 8);
    assert_eq!(offloads(), Features::GUEST_CSUM | Features::GUEST_TSO4);
    let csum = [5, 0, 2, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(control.round_trip(&command(&csum)).bytes, [0]);
    assert_eq!(offloads(), Features::GUEST_CSUM);
    setup.reset();
    assert_eq!(offloads(), Features::empty());
}

#[test]
fn queue_pairs_are_enabled_by_command() {
    let setup = Setup::new(2, Features::CTRL_VQ | Features::MQ);
    let mut rings: Vec<Ring> = (0..5).map(|index| setup.ring(index, 8)).collect();
    let enabled = || [setup.port(0).enabled(), setup.port(1).enabled()];
    assert_eq!(enabled(), [true, false]);
    let mut set = |pairs: u8| rings[4].round_trip(&command(&[4, 0, pairs, 0])).bytes;
    assert_eq!((set(2), enabled()), (vec![0], [true, true]));
    assert_eq!(
        (set(0), set(3), enabled()),
        (vec![1], vec![1], [true, true])
    );
    rings[3].round_trip(&[Part::Read(frame(OTHER, 20))]);
    assert!(setup.port(1).sent().is_some());
    rings[2].send(&[Part::Write(100)]);
    setup.port(1).inject(frame(OWN, 20));
    assert_eq!(rings[2].used().written, 32);
    setup.reset();
    assert_eq!(enabled(), [true, false]);
}

/// Without VIRTIO_NET_F_MQ the control queue is the third, whatever the number of pairs (§5.1.2).
#[test]
fn the_control_queue_moves_with_the_negotiated_features() {
    let setup = Setup::new(2, Features::CTRL_VQ | Features::CTRL_RX);
    assert_eq!(setup.ring(2, 8).round_trip(&command(&[0, 0, 1])).bytes, [0]);
    let ring = Ring::new(&setup.memory, 3, 8, setup.features.bits());
    for index in [3, 4, 5, u16::MAX] {
        let error = setup
            .device
            .start_queue(index, ring.resources(), None)
            .unwrap_err();
        assert!(matches!(error, DeviceError::NoQueue(i) if i == index));
    }
    let error = setup
        .device
        .start_queue(2, ring.resources(), None)
        .unwrap_err();
    assert!(matches!(error, DeviceError::AlreadyStarted(2)));
}

/// THREATS "malformed chain spins, kills the worker or leaks the head" (openvmm #4045, Cloud Hypervisor #8401 #8142): the device
/// asks for a reset, its other queues live, and a reset brings it back.
#[test]
fn a_malformed_chain_breaks_its_queue_until_reset() {
    let setup = Setup::new(1, Features::CTRL_VQ | Features::CTRL_RX);
    for index in [0, 1, 2] {
        let mut ring = setup.ring(index, 8);
        // A loop.
        ring.write_desc(0, 0x10_0000, 100, 1, 0);
        ring.offer_head(0);
        ring.kick();
        if index == 0 {
            setup.port(0).inject(frame(OWN, 60));
        }
        setup.reports.wait_needs_reset();
        let other = if index == 1 { 2 } else { 1 };
        let mut live = setup.ring(other, 8);
        live.round_trip(&[Part::Read(frame(OTHER, 60)), Part::Write(1)]);
        setup.reset();
    }
    let mut tx = setup.ring(1, 8);
    tx.round_trip(&[Part::Read(frame(OTHER, 60))]);
}

/// THREATS "reset while busy" (openvmm #3221): queues stop and start amid traffic, and no frame is torn.
#[test]
fn reset_while_busy() {
    let setup = Setup::new(1, Features::MRG_RXBUF);
    for round in 0..50 {
        let (mut rx, mut tx) = (setup.ring(0, 16), setup.ring(1, 16));
        for _ in 0..round % 16 {
            rx.offer(&[Part::Write(32)]);
            tx.offer(&[Part::Read(frame(OTHER, 50))]);
            setup.port(0).inject(frame(OWN, 50));
        }
        rx.kick();
        tx.kick();
        if round % 3 == 0 {
            std::thread::yield_now();
        }
        setup.reset();
        while let Some(used) = rx.try_used() {
            assert!(used.written <= 32);
        }
        while let Some(sent) = setup.port(0).sent() {
            assert_eq!(sent, frame(OTHER, 50));
        }
        assert_eq!((setup.stop(0), setup.stop(1)), (None, None));
    }
    assert!(!setup.reports.needs_reset());
}

#[test]
fn a_stopped_queue_carries_on_from_its_state() {
    let setup = Setup::new(1, Features::MRG_RXBUF);
    let mut rx = setup.ring(0, 8);
    // A chain that waits for more is put back and not lost.
    rx.send(&[Part::Write(40)]);
    setup.port(0).inject(frame(OWN, 60));
    wait_until("the frame is not taken", || setup.port(0).pending() == 0);
    let state = setup.stop(0);
    assert!(state.is_some());
    rx.offer(&[Part::Write(40)]);
    rx.start(&setup.device, 0, state);
    setup.port(0).inject(frame(OWN, 60));
    assert_eq!((rx.used().written, rx.used().written), (40, 32));
}

/// THREATS "double fetch": a thread rewrites descriptors, lengths and data while frames and commands are processed. Nothing may
/// panic, and the device answers after a reset.
#[test]
fn a_driver_that_rewrites_everything_meanwhile() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let setup = Setup::new(
        1,
        Features::MRG_RXBUF | Features::CTRL_VQ | Features::CTRL_RX,
    );
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use vm_memory::{Bytes, GuestAddress};
            let mut random: u64 = 1;
            while !done.load(Ordering::Relaxed) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                // A descriptor of any of the rings, or the first bytes of their buffers.
                let area = [0, 0x1_0000][usize::from(random & 0x100 != 0)];
                let at = (random % 3) * 0x40_0000 + area + (random >> 16) % 128;
                setup
                    .memory
                    .write_obj(random.to_le_bytes()[5], GuestAddress(at))
                    .unwrap();
            }
        });
        for _ in 0..40 {
            let mut rings: Vec<Ring> = (0..3).map(|index| setup.ring(index, 8)).collect();
            for _ in 0..8 {
                rings[0].offer(&[Part::Write(40)]);
                rings[1].offer(&[Part::Read(frame(OTHER, 60))]);
                rings[2].offer_head(0);
                setup.port(0).inject(frame(OWN, 60));
                rings.iter().for_each(Ring::kick);
            }
            std::thread::yield_now();
            setup.reset();
            while setup.port(0).sent().is_some() {}
        }
        done.store(true, Ordering::Relaxed);
    });
    setup.reset();
    let mut tx = setup.ring(1, 8);
    tx.round_trip(&[Part::Read(frame(OTHER, 60))]);
}

/// THREATS "config space: offset and width, straddles, write to read-only" (Firecracker d91a74c1b).
#[test]
fn configuration_space_at_all_offsets_and_widths() {
    let setup = Setup::new(3, Features::empty());
    let device: &dyn VirtioDevice<Memory> = &setup.device;
    let whole = [&OWN.0[..], &[1, 0], &[3, 0]].concat();
    for offset in (0..40).chain(u64::MAX - 9..=u64::MAX) {
        for width in 1..=8 {
            device.write_config(offset, &vec![0xff; width]);
            let mut data = vec![0xee; width];
            device.read_config(offset, &mut data);
            for (at, byte) in (0..).zip(data) {
                let wanted = offset
                    .checked_add(at)
                    .and_then(|at| whole.get(usize::try_from(at).unwrap()));
                assert_eq!(byte, *wanted.unwrap_or(&0), "{offset}+{width}");
            }
        }
    }
}

#[test]
fn features_are_accepted_with_what_they_require() {
    let setup = Setup::new(2, Features::empty());
    let device: &dyn VirtioDevice<Memory> = &setup.device;
    assert_eq!(device.features(), Features::all().bits());
    for (features, accepted) in [
        (Features::empty(), true),
        (Features::all(), true),
        (Features::MQ, false),
        (Features::HOST_ECN | Features::CSUM, false),
        (
            Features::HOST_ECN | Features::HOST_TSO6 | Features::CSUM,
            true,
        ),
        (Features::GUEST_TSO4, false),
        (Features::CTRL_VLAN, false),
    ] {
        assert_eq!(device.accepts(features.bits()), accepted, "{features:?}");
    }
}

/// THREATS "snapshot bytes" (CVE-2023-50711): what a driver cannot have set up is refused, what it can have is taken over.
#[test]
fn saved_states_are_checked() {
    let setup = Setup::new(2, Features::empty());
    let good = {
        let mut state = setup.device.save();
        let features =
            Features::CTRL_VQ | Features::CTRL_VLAN | Features::MQ | Features::GUEST_CSUM;
        state.features = Some(features);
        state.filter.negotiate(features);
        state.filter.set_vlan(7, true);
        state.queue_pairs = 2;
        state.guest_offloads = Features::GUEST_CSUM;
        state
    };
    let bad: [fn(&mut NetState); 9] = [
        |state| state.features = None,
        |state| state.features = Some(Features::MQ),
        |state| state.features = Some(Features::from_bits_retain(1 << 60)),
        |state| state.queue_pairs = 0,
        |state| state.queue_pairs = 3,
        |state| state.guest_offloads = Features::GUEST_TSO4,
        |state| state.filter.vlans = None,
        |state| state.filter.vlans = Some([4096].into()),
        |state| {
            state.filter.unicast = Some((0..65).map(|i| MacAddress([2, 0, 0, 0, 0, i])).collect())
        },
    ];
    let before = setup.device.save();
    for (case, spoil) in bad.iter().enumerate() {
        let mut state = good.clone();
        spoil(&mut state);
        assert!(setup.device.restore(state).is_err(), "{case}");
        assert_eq!(setup.device.save(), before);
    }
    setup.device.restore(good.clone()).unwrap();
    assert_eq!(setup.device.save(), good);
    assert!(setup.port(1).enabled());
    assert_eq!(
        setup.device.backend().guest_offloads(),
        Features::GUEST_CSUM
    );
}

#[test]
fn a_device_needs_a_station_address_ports_and_a_worker() {
    let net = |pairs| MemoryNet::new(pairs, OFFLOADS).unwrap();
    let worker = || vec![Worker::spawn("net").unwrap()];
    assert!(matches!(
        Net::new(net(0), OWN, worker()),
        Err(NetError::QueuePairs(0))
    ));
    assert!(matches!(
        Net::new(net(1), OWN, vec![]),
        Err(NetError::NoWorker)
    ));
    assert!(matches!(
        Net::new(net(1), MacAddress::BROADCAST, worker()),
        Err(NetError::Mac(_))
    ));
}

/// Receive buffers that are readable, empty, aliases of one another or of the ring itself: the device writes where it is told to
/// and nowhere else, and a reset brings it back. A buffer outside memory is an error (CVE-2019-18960).
#[test]
fn hostile_receive_buffers() {
    let setup = Setup::new(1, Features::MRG_RXBUF);
    let hostile: [&[Part]; 6] = [
        &[Part::Read(vec![0; 2000])],
        &[Part::Write(0)],
        // Both halves at one place.
        &[Part::Raw(0x2_0000, 40, true), Part::Raw(0x2_0000, 60, true)],
        // The descriptors, the available ring, the used ring.
        &[Part::Raw(0, 4096, true)],
        &[Part::Raw(0x4000, 4096, true)],
        &[Part::Raw(0x6000, 4096, true)],
    ];
    for parts in hostile {
        let mut rx = setup.ring(0, 8);
        for _ in 0..2 {
            rx.offer(parts);
        }
        rx.kick();
        setup.port(0).inject(frame(OWN, 4000));
        setup.port(0).inject(frame(OWN, 60));
        setup.reset();
        let mut rx = setup.ring(0, 8);
        for _ in 0..4 {
            rx.offer(&[Part::Write(5000)]);
        }
        setup.port(0).inject(frame(OWN, 100));
        rx.kick();
        while rx.used().written != 112 {}
        setup.reset();
    }
    for addr in [0xff_0000, u64::MAX - 10, u64::MAX] {
        let setup = Setup::new(1, Features::MRG_RXBUF);
        setup.ring(0, 8).send(&[Part::Raw(addr, 2000, true)]);
        setup.port(0).inject(frame(OWN, 60));
        setup.reports.wait_needs_reset();
    }
}

/// Queues that run do not keep a device alive that its owner dropped.
#[test]
fn dropping_a_running_device_frees_its_ports() {
    use virtio_devices::net::NetBackend;
    let setup = Setup::new(1, Features::CTRL_VQ);
    let _rings: Vec<Ring> = (0..3).map(|index| setup.ring(index, 8)).collect();
    let port = setup.device.backend().ports()[0].clone();
    drop(setup);
    assert_eq!(Arc::strong_count(&port), 1);
}
