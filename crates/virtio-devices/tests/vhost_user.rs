//! A driver, the frontend, a socket, the backend, a device.
#![expect(clippy::unwrap_used, reason = "test code")]

mod driver;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use driver::{Memory, Part, Reports, Ring, wait_until};
use virtio_devices::block::{Block, BlockOptions, MemoryDisk};
use virtio_devices::net::spec::{Features as NetFeatures, HEADER};
use virtio_devices::net::{MacAddress, MemoryNet, MemoryPort, Net, NetBackend};
use virtio_devices::transport::vhost_user::{
    FrontendError, FrontendOptions, SharedMemory, VhostUserBackend, VhostUserError,
    VhostUserFrontend,
};
use virtio_devices::{DeviceType, VirtioDevice, Worker};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vring::QueueState;

const VERSION_1: u64 = 1 << 32;

/// Memory that can be shared: four rings' worth, and what it lies in.
fn shared_memory() -> Memory {
    let file = tempfile::tempfile().unwrap();
    let len = 0x100_0000;
    file.set_len(len).unwrap();
    let range = (
        GuestAddress(0),
        usize::try_from(len).unwrap(),
        Some(FileOffset::new(file, 0)),
    );
    Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap())
}

fn disk() -> Arc<Block<Arc<SharedMemory>, MemoryDisk>> {
    let disk = MemoryDisk::new(vec![0; 64 * 512], false);
    let workers = vec![Worker::spawn("disk").unwrap()];
    Arc::new(Block::new(disk, workers, BlockOptions::default()).unwrap())
}

type Serving = JoinHandle<Result<(), VhostUserError>>;

/// Serves `backend` to a frontend.
fn connect(backend: &Arc<VhostUserBackend>) -> (UnixStream, Serving) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let backend = Arc::clone(backend);
    (ours, thread::spawn(move || backend.serve(theirs)))
}

fn options(device_type: DeviceType, queues: u16) -> FrontendOptions {
    FrontendOptions {
        device_type,
        queues,
        queue_size: 64,
        hidden_features: 0,
        config: Vec::new(),
    }
}

fn frontend(
    stream: UnixStream,
    options: FrontendOptions,
) -> (Arc<VhostUserFrontend<Memory>>, Arc<Reports>) {
    let worker = Worker::spawn("relay").unwrap();
    let device = Arc::new(VhostUserFrontend::new(stream, worker, options).unwrap());
    let reports = Arc::new(Reports::default());
    device.connect(reports.clone());
    (device, reports)
}

fn request(kind: u32, sector: u64) -> Part {
    let mut header = [kind.to_le_bytes(), [0; 4]].concat();
    header.extend(sector.to_le_bytes());
    Part::Read(header)
}

fn write_sector(ring: &mut Ring, sector: u8) {
    let data = Part::Read(vec![sector + 1; 512]);
    let used = ring.round_trip(&[request(1, sector.into()), data, Part::Write(1)]);
    assert_eq!(used.bytes, [0]);
}

fn read_sector(ring: &mut Ring, sector: u8) {
    let used = ring.round_trip(&[request(0, sector.into()), Part::Write(513)]);
    assert_eq!(used.bytes, [&[sector + 1; 512][..], &[0]].concat());
}

#[test]
fn a_disk_in_another_process() {
    let disk = disk();
    let backend = Arc::new(VhostUserBackend::new(disk.clone()));
    // Twice over the same backend: the second frontend finds it as new.
    for first in [0, 30] {
        let (stream, serving) = connect(&backend);
        let (device, reports) = frontend(stream, options(DeviceType::BLOCK, 1));
        let mut capacity = [0; 8];
        device.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 64);
        let memory = shared_memory();
        for extra in [0, driver::EVENT_IDX] {
            let mut ring = Ring::new(&memory, 0, 64, VERSION_1 | extra);
            ring.start(&*device, 0, None);
            for sector in first..first + 10 {
                write_sector(&mut ring, sector);
                read_sector(&mut ring, sector);
            }
            // It goes on where it stopped, also where nothing was in flight.
            let state = device.stop_queue(0).unwrap();
            let QueueState::Split(split) = &state else {
                panic!("{state:?}");
            };
            assert_eq!((split.next_avail, split.next_used), (20, 20));
            assert!(device.stop_queue(0).is_none());
            ring.start(&*device, 0, Some(state));
            read_sector(&mut ring, first);
            device.stop_queue(0);
            device.reset();
        }
        assert!(!reports.needs_reset());
        drop(device);
        serving.join().unwrap().unwrap();
    }
    assert_eq!(disk.backend().contents()[33 * 512], 34);
}

#[test]
fn a_network_card_with_two_queue_pairs_in_another_process() {
    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    let net = MemoryNet::new(2, NetFeatures::empty()).unwrap();
    let ports: Vec<Arc<MemoryPort>> = net.ports().to_vec();
    let net = Net::new(net, MAC, vec![Worker::spawn("net").unwrap()]).unwrap();
    let backend = Arc::new(VhostUserBackend::new(Arc::new(net)));
    let (stream, serving) = connect(&backend);
    let (device, _) = frontend(stream, options(DeviceType::NET, 4));
    let offered = NetFeatures::from_bits_truncate(device.features());
    assert!(offered.contains(NetFeatures::MQ | NetFeatures::MAC));
    assert!(!offered.contains(NetFeatures::CTRL_VQ));
    let features = VERSION_1 | NetFeatures::MQ.bits();
    let memory = shared_memory();
    let mut rings: Vec<Ring> = (0..4)
        .map(|index| {
            let ring = Ring::new(&memory, index.into(), 64, features);
            ring.start(&*device, index, None);
            ring
        })
        .collect();
    for pair in 0..2 {
        let byte = u8::try_from(pair).unwrap();
        let frame = [vec![0; HEADER], vec![byte + 7; 60]].concat();
        rings[2 * pair + 1].round_trip(&[Part::Read(frame.clone())]);
        assert_eq!(ports[pair].sent().unwrap(), frame);
        assert!(ports[pair].enabled(), "pair {pair}");
        rings[2 * pair].send(&[Part::Write(200)]);
        assert!(ports[pair].inject(frame.clone()));
        let received = rings[2 * pair].used();
        assert_eq!(received.bytes[HEADER..], frame[HEADER..]);
    }
    drop(device);
    serving.join().unwrap().unwrap();
}

#[test]
fn a_backend_that_goes_away_needs_a_reset() {
    let backend = Arc::new(VhostUserBackend::new(disk()));
    let (stream, serving) = connect(&backend);
    let socket = stream.try_clone().unwrap();
    let (device, reports) = frontend(stream, options(DeviceType::BLOCK, 1));
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    serving.join().unwrap().unwrap();
    let mut bytes = [1; 8];
    device.read_config(0, &mut bytes);
    assert_eq!(bytes, [0; 8]);
    reports.wait_needs_reset();
    let ring = Ring::new(&shared_memory(), 0, 64, VERSION_1);
    assert!(device.start_queue(0, ring.resources(), None).is_err());
}

#[test]
fn a_broken_ring_is_reported_to_the_frontend() {
    let backend = Arc::new(VhostUserBackend::new(disk()));
    let (stream, _serving) = connect(&backend);
    let (device, reports) = frontend(stream, options(DeviceType::BLOCK, 1));
    let memory = shared_memory();
    let mut ring = Ring::new(&memory, 0, 64, VERSION_1);
    ring.start(&*device, 0, None);
    ring.offer_head(1000);
    ring.kick();
    reports.wait_needs_reset();
    // A reset brings it back.
    device.stop_queue(0);
    device.reset();
    let mut ring = Ring::new(&memory, 0, 64, VERSION_1);
    ring.start(&*device, 0, None);
    write_sector(&mut ring, 3);
}

#[test]
fn a_backend_with_too_few_queues_is_refused() {
    let backend = Arc::new(VhostUserBackend::new(disk()));
    let (stream, _serving) = connect(&backend);
    let worker = Worker::spawn("relay").unwrap();
    let refused = VhostUserFrontend::<Memory>::new(stream, worker, options(DeviceType::BLOCK, 2));
    assert!(matches!(
        refused.err(),
        Some(FrontendError::Queues {
            wanted: 2,
            present: 1
        })
    ));
}

#[test]
fn a_second_frontend_waits_for_the_first() {
    let backend = Arc::new(VhostUserBackend::new(disk()));
    let (first, first_served) = connect(&backend);
    let (device, _) = frontend(first, options(DeviceType::BLOCK, 1));
    let (second, second_served) = connect(&backend);
    let setup = thread::spawn(|| frontend(second, options(DeviceType::BLOCK, 1)));
    let mut ring = Ring::new(&shared_memory(), 0, 64, VERSION_1);
    ring.start(&*device, 0, None);
    write_sector(&mut ring, 0);
    assert!(!setup.is_finished());
    drop(device);
    first_served.join().unwrap().unwrap();
    let (device, _) = setup.join().unwrap();
    drop(device);
    second_served.join().unwrap().unwrap();
    wait_until("the disk is let go", || Arc::strong_count(&backend) == 1);
}

/// A backend that answers requests for features, and takes all others.
fn answers(features: u64, protocol_features: u64) -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        // Request, flags and length (vhost-user, "Message Specification").
        let mut header = [0; 12];
        while theirs.read_exact(&mut header).is_ok() {
            let mut payload = vec![0; header[8].into()];
            theirs.read_exact(&mut payload).unwrap();
            let answer = match header[0] {
                1 => features,
                15 => protocol_features,
                _ => continue,
            };
            let header = [header[0].into(), 0b101, 8].map(u32::to_ne_bytes).concat();
            theirs
                .write_all(&[header, answer.to_ne_bytes().to_vec()].concat())
                .unwrap();
        }
    });
    ours
}

#[test]
fn backends_that_offer_too_little_are_refused() {
    const PROTOCOL_FEATURES: u64 = 1 << 30;
    let refusal = |features, protocol_features| {
        let stream = answers(features, protocol_features);
        let worker = Worker::spawn("relay").unwrap();
        let options = options(DeviceType::BLOCK, 1);
        VhostUserFrontend::<Memory>::new(stream, worker, options).err()
    };
    for features in [VERSION_1, PROTOCOL_FEATURES] {
        let error = refusal(features, 0);
        assert!(matches!(error, Some(FrontendError::Features(offered)) if offered == features));
    }
    let error = refusal(VERSION_1 | PROTOCOL_FEATURES, 0);
    assert!(matches!(error, Some(FrontendError::NoConfig)));
    const CONFIG: u64 = 1 << 9;
    assert!(refusal(VERSION_1 | PROTOCOL_FEATURES, CONFIG).is_none());
}
