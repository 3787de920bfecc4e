//! The network device and Linux: a tap interface in a network namespace of the test's own, with the kernel's stack behind it.
//!
//! Where the process may not make a namespace or an interface, a test says SKIPPED and why.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "test code"
)]

mod driver;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;

use driver::{Memory, Part, Ring, memory, wait_until};
use virtio_devices::Worker;
use virtio_devices::net::spec::{Features, HEADER};
use virtio_devices::net::{MacAddress, Net, NetBackend, Tap, TapError};

const GUEST: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const GUEST_IP: [u8; 4] = [10, 0, 0, 2];
const HOST_IP: [u8; 4] = [10, 0, 0, 1];

/// Runs `test` in a network namespace of its own, which ends with it.
fn in_namespace(queues: u16, test: impl FnOnce(Tap) + Send + 'static) {
    let run = move || {
        // SAFETY: no memory is touched; the namespace is that of this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!(
                "SKIPPED: no network namespace: {}",
                std::io::Error::last_os_error()
            );
            return;
        }
        match Tap::open("guest%d", queues) {
            Ok(tap) => test(tap),
            Err(error) => eprintln!("SKIPPED: {error}"),
        }
    };
    std::thread::spawn(run).join().unwrap();
}

/// Gives the interface its address and brings it up.
fn configure(tap: &Tap) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: `ifreq` is made of integers, arrays and pointers, which zeroes are values of.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(tap.name().bytes()) {
        *to = i8::try_from(from).unwrap();
    }
    let family = u16::try_from(libc::AF_INET).unwrap().to_ne_bytes();
    let address: Vec<u8> = [&family[..], &[0, 0], &HOST_IP].concat();
    let set = |command, value: &[u8], mut request: libc::ifreq| {
        let mut data = [0; 14];
        let mut bytes = [0; 16];
        bytes[..value.len()].copy_from_slice(value);
        data.copy_from_slice(&bytes[2..]);
        request.ifr_ifru.ifru_addr = libc::sockaddr {
            sa_family: u16::from_ne_bytes([bytes[0], bytes[1]]),
            sa_data: data.map(|byte: u8| i8::from_ne_bytes([byte])),
        };
        // SAFETY: the command reads one `ifreq`, which `request` is.
        let status = unsafe { libc::ioctl(socket.as_raw_fd(), command, &raw const request) };
        assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
    };
    set(libc::SIOCSIFADDR, &address, request);
    set(
        libc::SIOCSIFNETMASK,
        &[&family[..], &[0, 0, 255, 255, 255, 0]].concat(),
        request,
    );
    let up = u16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap();
    set(libc::SIOCSIFFLAGS, &up.to_ne_bytes(), request);
}

struct Guest {
    device: Net<Tap>,
    rings: Vec<Ring>,
}

impl Guest {
    fn new(tap: Tap, features: Features) -> Self {
        let pairs = tap.ports().len();
        let device = Net::new(tap, GUEST, vec![Worker::spawn("net").unwrap()]).unwrap();
        let memory: Memory = memory(2 * pairs + 1);
        let mut rings = Vec::new();
        for index in 0..=2 * u16::try_from(pairs).unwrap() {
            let mut ring = Ring::new(&memory, index.into(), 64, features.bits() | 1 << 32);
            if index % 2 == 0 {
                for _ in 0..32 {
                    ring.offer(&[Part::Write(2000)]);
                }
            }
            rings.push(ring);
        }
        let mut guest = Self { device, rings };
        let queues = if features.contains(Features::CTRL_VQ) {
            guest.rings.len()
        } else {
            2
        };
        guest.rings[2 * pairs] =
            Ring::new(&memory, 2 * pairs as u64, 64, features.bits() | 1 << 32);
        for (index, ring) in (0..).zip(&guest.rings).take(queues) {
            ring.start(&guest.device, index, None);
        }
        guest
    }

    fn send(&mut self, to: MacAddress, ethertype: u16, payload: &[u8]) {
        let frame = [
            &[0; HEADER][..],
            &to.0,
            &GUEST.0,
            &ethertype.to_be_bytes(),
            payload,
        ]
        .concat();
        self.rings[1].round_trip(&[Part::Read(frame)]);
    }

    /// The next frame of this type, with its header; the kernel sends others as well.
    fn receive(&mut self, ethertype: u16, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        loop {
            let mut frame = self.rings[0].used().bytes;
            for _ in 1..frame[10] {
                frame.extend(self.rings[0].used().bytes);
            }
            while self.rings[0].has_room(33) {
                self.rings[0].send(&[Part::Write(2000)]);
            }
            if frame[HEADER + 12..HEADER + 14] == ethertype.to_be_bytes()
                && wanted(&frame[HEADER + 14..])
            {
                return frame;
            }
        }
    }

    /// Asks for the host's address, by which the host also learns the guest's.
    fn resolve(&mut self) -> MacAddress {
        let request = [
            &[0, 1, 8, 0, 6, 4, 0, 1][..],
            &GUEST.0,
            &GUEST_IP,
            &[0; 6],
            &HOST_IP,
        ]
        .concat();
        self.send(MacAddress::BROADCAST, 0x0806, &request);
        let reply = self.receive(0x0806, |arp| arp[6..8] == [0, 2]);
        MacAddress(reply[HEADER + 22..HEADER + 28].try_into().unwrap())
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut packet = [
        &[0x45, 0][..],
        &length,
        &[0, 0, 0, 0, 64, protocol, 0, 0],
        &GUEST_IP,
        &HOST_IP,
    ]
    .concat();
    let sum = checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend(payload);
    packet
}

#[test]
fn the_kernel_answers_a_ping() {
    in_namespace(1, |tap| {
        configure(&tap);
        let mut guest = Guest::new(tap, Features::empty());
        let host = guest.resolve();
        let mut echo = [&[8, 0, 0, 0, 0x12, 0x34, 0, 1][..], &[0xa5; 1400]].concat();
        let sum = checksum(&echo).to_be_bytes();
        echo[2..4].copy_from_slice(&sum);
        guest.send(host, 0x0800, &ipv4(1, &echo));
        let reply = guest.receive(0x0800, |ip| ip[9] == 1);
        let icmp = &reply[HEADER + 14 + 20..];
        assert_eq!((icmp[0], checksum(icmp)), (0, 0));
        assert_eq!(icmp[4..], echo[4..]);
        assert_eq!(reply[10], 1);
    });
}

/// The kernel leaves checksums to a driver that takes them, and computes them for one that does not.
#[test]
fn checksums_are_left_out_as_negotiated() {
    for features in [Features::empty(), Features::GUEST_CSUM] {
        in_namespace(1, move |tap| {
            configure(&tap);
            let mut guest = Guest::new(tap, features);
            guest.resolve();
            let socket = UdpSocket::bind((Ipv4Addr::from(HOST_IP), 0)).unwrap();
            socket
                .send_to(&[7; 501], (Ipv4Addr::from(GUEST_IP), 9))
                .unwrap();
            let frame = guest.receive(0x0800, |ip| ip[9] == 17);
            let ip = &frame[HEADER + 14..];
            let udp = &ip[20..];
            let pseudo = [&ip[12..20], &[0, 17], &udp[4..6], udp].concat();
            let partial = !features.is_empty();
            assert_eq!(
                (frame[0] & 1 != 0, checksum(&pseudo) != 0),
                (partial, partial),
                "{features:?}"
            );
        });
    }
}

/// A checksum the driver left out is completed on the way (§5.1.6.2).
#[test]
fn a_partial_checksum_of_the_driver_is_completed() {
    in_namespace(1, |tap| {
        configure(&tap);
        let mut guest = Guest::new(tap, Features::CSUM);
        let host = guest.resolve();
        let socket = UdpSocket::bind((Ipv4Addr::from(HOST_IP), 0)).unwrap();
        let port = socket.local_addr().unwrap().port().to_be_bytes();
        let data = [9; 100];
        let mut udp = [&[0, 9][..], &port, &[0, 108, 0, 0], &data].concat();
        let pseudo = [&GUEST_IP[..], &HOST_IP, &[0, 17, 0, 108]].concat();
        udp[6..8].copy_from_slice(&(!checksum(&pseudo)).to_be_bytes());
        let mut frame = [
            &[0; HEADER][..],
            &host.0,
            &GUEST.0,
            &[8, 0],
            &ipv4(17, &udp),
        ]
        .concat();
        // NEEDS_CSUM, from the UDP header on, at its seventh byte.
        frame[0] = 1;
        frame[6..10].copy_from_slice(&[34, 0, 6, 0]);
        guest.rings[1].round_trip(&[Part::Read(frame)]);
        let mut received = [0; 200];
        assert_eq!(socket.recv(&mut received).unwrap(), 100);
        assert_eq!(received[..100], data);
    });
}

/// A large segment goes each way in one frame, where the driver negotiated that (§5.1.6.2, §5.1.6.4).
#[test]
fn large_segments_go_both_ways() {
    in_namespace(1, |tap| {
        configure(&tap);
        let features = Features::GUEST_CSUM
            | Features::GUEST_TSO4
            | Features::CSUM
            | Features::HOST_TSO4
            | Features::MRG_RXBUF;
        let mut guest = Guest::new(tap, features);
        let host = guest.resolve();
        let listener = TcpListener::bind((Ipv4Addr::from(HOST_IP), 0)).unwrap();
        let port = listener.local_addr().unwrap().port();

        let segment = |seq: u32, ack: u32, flags: u8, data: &[u8]| {
            // The option says that segments of 1460 bytes are fine.
            let mut tcp = [&4000u16.to_be_bytes()[..], &port.to_be_bytes()].concat();
            tcp.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
            tcp.extend([0x60, flags, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 0x05, 0xb4]);
            tcp.extend(data);
            let length = u16::try_from(tcp.len()).unwrap().to_be_bytes();
            let pseudo = !checksum(&[&GUEST_IP[..], &HOST_IP, &[0, 6], &length].concat());
            tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
            // NEEDS_CSUM, and TCPV4 if it is longer than a segment.
            let mut header = [1, 0, 58, 0, 0xb4, 0x05, 34, 0, 16, 0, 0, 0];
            header[1] = u8::from(data.len() > 1460);
            [&header[..], &host.0, &GUEST.0, &[8, 0], &ipv4(6, &tcp)].concat()
        };
        let is_tcp = |ip: &[u8]| ip[9] == 6;
        guest.rings[1].round_trip(&[Part::Read(segment(0, 0, 0x02, &[]))]);
        let answer = guest.receive(0x0800, is_tcp);
        let theirs = u32::from_be_bytes(answer[HEADER + 38..HEADER + 42].try_into().unwrap()) + 1;
        guest.rings[1].round_trip(&[Part::Read(segment(1, theirs, 0x10, &[]))]);
        let (mut stream, _) = listener.accept().unwrap();

        let data: Vec<u8> = (0..20_000u32)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect();
        guest.rings[1].round_trip(&[Part::Read(segment(1, theirs, 0x18, &data))]);
        let mut received = vec![0; data.len()];
        stream.read_exact(&mut received).unwrap();
        assert!(received == data);

        stream.write_all(&data).unwrap();
        let large = guest.receive(0x0800, |ip| is_tcp(ip) && ip.len() > 1500);
        assert_eq!(large[1], 1);
        let begin = HEADER + 14 + 20 + usize::from(large[HEADER + 14 + 20 + 12] >> 4) * 4;
        assert!(large[begin..] == data[..large.len() - begin]);
    });
}

/// Queues of the interface follow the pairs in use, and frames reach the guest whichever of them they come by.
#[test]
fn a_multiqueue_interface_attaches_and_detaches_queues() {
    in_namespace(2, |tap| {
        configure(&tap);
        let mut guest = Guest::new(tap, Features::MQ | Features::CTRL_VQ);
        let port = guest.device.backend().ports()[1].clone();
        let attached = || {
            // SAFETY: zeroes are values of `ifreq`, and TUNGETIFF writes one.
            let flags = unsafe {
                let mut request: libc::ifreq = std::mem::zeroed();
                assert_eq!(
                    libc::ioctl(port.as_raw_fd(), libc::TUNGETIFF, &raw mut request),
                    0
                );
                request.ifr_ifru.ifru_flags
            };
            libc::c_int::from(flags) & libc::IFF_DETACH_QUEUE == 0
        };
        assert!(!attached());
        for pairs in [2, 1, 1, 2] {
            let command = [Part::Read(vec![4, 0, pairs, 0]), Part::Write(1)];
            assert_eq!(guest.rings[4].round_trip(&command).bytes, [0]);
            assert_eq!(attached(), pairs == 2);
        }
        let request = [
            &[0, 1, 8, 0, 6, 4, 0, 1][..],
            &GUEST.0,
            &GUEST_IP,
            &[0; 6],
            &HOST_IP,
        ]
        .concat();
        let frame = [
            &[0; HEADER][..],
            &MacAddress::BROADCAST.0,
            &GUEST.0,
            &[8, 6],
            &request,
        ]
        .concat();
        for ring in [1, 3] {
            guest.rings[ring].round_trip(&[Part::Read(frame.clone())]);
            wait_until("no reply", || {
                let used = [guest.rings[0].try_used(), guest.rings[2].try_used()];
                used.into_iter().flatten().any(|used| {
                    used.bytes[HEADER + 12..HEADER + 22] == [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]
                })
            });
        }
    });
}

#[test]
fn names_and_queue_counts_are_checked() {
    for name in ["sixteen-bytes-xx", "a\0b"] {
        assert!(matches!(Tap::open(name, 1), Err(TapError::Name(n)) if n == name));
    }
    for queues in [0, 257, u16::MAX] {
        assert!(matches!(Tap::open("x", queues), Err(TapError::Queues(q)) if q == queues));
    }
}
