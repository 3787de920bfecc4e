//! A network card on the network without end.

mod driver;

use driver::{Memory, Part, Ring, memory};
use virtio_devices::net::spec::HEADER;
use virtio_devices::net::{FloodNet, MacAddress, Net};
use virtio_devices::{VirtioDevice, Worker};

const VERSION_1: u64 = 1 << 32;

#[test]
fn every_buffer_is_filled_and_every_frame_taken() {
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    let workers = vec![Worker::spawn("net").unwrap()];
    let net = Net::new(FloodNet::new(1).unwrap(), mac, workers).unwrap();
    let memory = memory(2);
    let [mut receive, mut transmit] = [0, 1].map(|index| {
        let ring = Ring::new(&memory, index, 64, VERSION_1);
        ring.start(&net, u16::try_from(index).unwrap(), None);
        ring
    });
    for _ in 0..500 {
        let received = receive.round_trip(&[Part::Write(200)]);
        assert_eq!(received.bytes.len(), HEADER + 60);
        transmit.round_trip(&[Part::Read(received.bytes)]);
    }
    for index in [0, 1] {
        VirtioDevice::<Memory>::stop_queue(&net, index);
    }
    let counted = net.statistics();
    assert_eq!((counted.received, counted.transmitted), (500, 500));
    assert_eq!((counted.receive_dropped, counted.transmit_dropped), (0, 0));
}
