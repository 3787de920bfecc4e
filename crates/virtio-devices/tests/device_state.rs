//! What a device keeps besides its queues goes with its transport's state.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use std::sync::Arc;

use support::{Line, Memory, memory};
use virtio_devices::block::{Block, BlockOptions, MemoryDisk};
use virtio_devices::console::{Console, ConsoleError, Notices, Port};
use virtio_devices::net::spec::Features;
use virtio_devices::net::{MacAddress, MemoryNet, Net, NetError};
use virtio_devices::rng::Rng;
use virtio_devices::transport::{MmioTransport, RestoreError};
use virtio_devices::{DeviceState, DeviceStateError, VirtioDevice, Worker};

fn transport(device: Arc<dyn VirtioDevice<Memory>>) -> MmioTransport<Memory> {
    MmioTransport::new(device, memory(), Arc::new(Line::default())).unwrap()
}

fn console() -> Arc<Console> {
    Console::new(vec![Port::named("a"), Port::named("b")], worker())
        .map(Arc::new)
        .unwrap()
}

fn net() -> Arc<Net<MemoryNet>> {
    let backend = MemoryNet::new(1, Features::empty()).unwrap();
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    Net::new(backend, mac, vec![worker()])
        .map(Arc::new)
        .unwrap()
}

fn worker() -> Worker {
    Worker::spawn("state").unwrap()
}

#[test]
fn consoles_and_network_devices_carry_on() {
    let before = transport(console());
    let mut state = before.save();
    let DeviceState::Console(console_state) = &mut state.transport.device else {
        panic!("{state:?}");
    };
    let [first, _] = &mut *console_state.ports else {
        panic!("{console_state:?}");
    };
    (first.added, first.sent) = (true, 3);
    let after = transport(console());
    after.restore(state.clone()).unwrap();
    assert_eq!(after.save(), state);

    let before = net();
    let mut state = transport(Arc::clone(&before) as _).save();
    let DeviceState::Net(net_state) = &mut state.transport.device else {
        panic!("{state:?}");
    };
    assert_eq!(*net_state, before.save());
    net_state.features = Some(Features::MAC);
    net_state.filter.negotiate(Features::MAC);
    let after = transport(net());
    after.restore(state.clone()).unwrap();
    assert_eq!(after.save(), state);
}

/// THREATS "snapshot bytes" (CVE-2023-50711, openvmm InvalidSavedState): the state of another kind of device, or one that no driver can
/// bring about, is refused by every device, and a reset device is left.
#[test]
fn states_of_other_devices_and_impossible_ones_are_refused() {
    let disk = MemoryDisk::new(vec![0; 512], false);
    let block = Block::new(disk, vec![worker()], BlockOptions::default()).unwrap();
    let devices: [Arc<dyn VirtioDevice<Memory>>; 4] = [
        Arc::new(block),
        Arc::new(Rng::new(std::io::empty(), worker())),
        net(),
        console(),
    ];
    let transports = devices.map(transport);
    let own: Vec<DeviceState> = transports
        .iter()
        .map(|transport| transport.save().transport.device)
        .collect();
    for transport in &transports {
        let good = transport.save();
        for other in &own {
            let mut state = good.clone();
            state.transport.device = other.clone();
            let restored = transport.restore(state);
            if *other == good.transport.device {
                restored.unwrap();
            } else {
                let kind = RestoreError::Device(DeviceStateError::Kind);
                assert_eq!(restored.unwrap_err().to_string(), kind.to_string());
            }
            assert_eq!(transport.save(), good);
        }
    }
    let [_, _, net, console] = &transports;
    let mut state = net.save();
    if let DeviceState::Net(net) = &mut state.transport.device {
        net.queue_pairs = 2;
    }
    assert!(matches!(
        net.restore(state),
        Err(RestoreError::Device(DeviceStateError::Net(
            NetError::QueuePairs(2)
        )))
    ));
    let mut state = console.save();
    if let DeviceState::Console(console) = &mut state.transport.device {
        for port in &mut console.ports {
            port.notices = Notices::OPEN;
        }
    }
    assert!(matches!(
        console.restore(state),
        Err(RestoreError::Device(DeviceStateError::Console(
            ConsoleError::SavedPort(0)
        )))
    ));
}
