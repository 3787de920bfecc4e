//! Network devices.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use grant_table::foreign::InProcess;
use grant_table::net::{
    Checksum, Delivery, NetBack, NetError, Network, Packet, Segmentation, Transport,
    complete_checksum,
};
use grant_table::spec::PAGE_SIZE;
use virtio_devices::net::spec::{Features, GSO_NONE, GSO_TCPV4, GSO_TCPV6, Header, HeaderFlags};
use virtio_devices::net::{
    FrameReceiver as _, FrameSender as _, MacAddress, NetBackend as _, NetPort as _, Tap, TapQueue,
};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::GUEST;
use super::device::{BackEnd, Front};
use super::host::{GuestChannel, Server, Wake};

/// Packets for the guest between two looks at what it sends.
const BURST: usize = 64;
/// `gso_kind`: TCP over IPv4, and over IPv6.
const KINDS: [(u8, u8, Network); 2] =
    [(1, GSO_TCPV4, Network::Ipv4), (2, GSO_TCPV6, Network::Ipv6)];

/// A network interface of the guest's (`vif`).
#[derive(Clone, Debug)]
pub struct Vif {
    /// The host's side.
    pub tap: Tap,
    /// The guest's address.
    pub mac: MacAddress,
}

/// The header by which a tap learns of a packet what the guest says; none if that cannot be done to it.
fn header(packet: &Packet) -> Option<Header> {
    let mut header = Header::default();
    match (packet.checksum, packet.segmentation) {
        (Checksum::Blank, segmentation) => {
            let transport = Transport::of(&packet.bytes)?;
            header.flags = HeaderFlags::NEEDS_CSUM.bits();
            header.csum_start.set(u16::try_from(transport.start).ok()?);
            header
                .csum_offset
                .set(u16::try_from(transport.checksum - transport.start).ok()?);
            if let Some(Segmentation { size, kind }) = segmentation {
                let known = KINDS.into_iter().find(|(known, ..)| *known == kind);
                let (_, kind, network) = known?;
                if !transport.tcp || transport.network != network {
                    return None;
                }
                header.gso_type = kind;
                header.gso_size.set(size);
                header.hdr_len.set(u16::try_from(transport.payload).ok()?);
            }
        }
        // Each segment has a checksum of its own.
        (_, Some(_)) => return None,
        (Checksum::Validated, None) => header.flags = HeaderFlags::DATA_VALID.bits(),
        (Checksum::Unknown, None) => {}
    }
    Some(header)
}

/// What the guest takes.
#[derive(Clone, Copy, Debug, Default)]
struct Takes {
    /// Packets in more than one page.
    parts: bool,
    /// Blank checksums of IPv4, and of IPv6.
    blank: [bool; 2],
    /// What is to be cut into segments, of IPv4, and of IPv6.
    segments: [bool; 2],
}

impl Takes {
    fn new(front: &mut Front<'_>) -> Self {
        let parts = front.has("feature-sg");
        let blank = [
            !front.has("feature-no-csum-offload"),
            front.has("feature-ipv6-csum-offload"),
        ];
        let [v4, v6] = ["feature-gso-tcpv4", "feature-gso-tcpv6"].map(|node| front.has(node));
        Self {
            parts,
            blank,
            segments: [parts && blank[0] && v4, parts && blank[1] && v6],
        }
    }

    /// What the tap may leave to do.
    fn offloads(self) -> Features {
        let [v4, v6] = self.segments;
        let mut offloads = Features::empty();
        offloads.set(Features::GUEST_CSUM, self.blank.contains(&true));
        offloads.set(Features::GUEST_TSO4, v4);
        offloads.set(Features::GUEST_TSO6, v6);
        offloads
    }

    /// The packet of a frame from the tap; none if the guest could not take it.
    fn packet(self, frame: &[u8]) -> Option<Packet> {
        let (header, bytes) = Header::read_from_prefix(frame).ok()?;
        let mut packet = Packet {
            bytes: bytes.to_vec(),
            ..Packet::default()
        };
        if packet.bytes.len() > PAGE_SIZE && !self.parts {
            return None;
        }
        let flags = HeaderFlags::from_bits_truncate(header.flags);
        if flags.contains(HeaderFlags::NEEDS_CSUM) {
            let start = usize::from(header.csum_start.get());
            let field = start + usize::from(header.csum_offset.get());
            // The guest is not told where it is, and finds that of TCP and UDP.
            let found = Transport::of(bytes).filter(|found| {
                let [v4, v6] = self.blank;
                let takes = match found.network {
                    Network::Ipv4 => v4,
                    Network::Ipv6 => v6,
                };
                takes && (found.start, found.checksum) == (start, field)
            });
            if found.is_some() {
                packet.checksum = Checksum::Blank;
            } else if !complete_checksum(&mut packet.bytes, start, field) {
                return None;
            }
        } else if flags.contains(HeaderFlags::DATA_VALID) {
            packet.checksum = Checksum::Validated;
        }
        if header.gso_type != GSO_NONE {
            let known = KINDS
                .into_iter()
                .find(|(_, kind, _)| *kind == header.gso_type);
            let (kind, ..) = known.filter(|_| packet.checksum == Checksum::Blank)?;
            packet.segmentation = Some(Segmentation {
                size: header.gso_size.get(),
                kind,
            });
        }
        Some(packet)
    }
}

/// What the tap has for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// Nothing now, or more.
    Perhaps,
    /// A packet for which the guest has no room.
    Packet,
    /// Nothing any more: the interface is gone.
    Gone,
}

/// Two rings that are served.
struct Serving {
    back: NetBack<InProcess>,
    port: Arc<TapQueue>,
    transmit: GuestChannel,
    /// If it is not the same.
    receive: Option<GuestChannel>,
    takes: Takes,
    /// A packet for which the guest had no room.
    next: Option<Packet>,
}

impl Serving {
    /// Serves until the thread is to end, or the guest has broken its rings and has no network any more.
    fn run(&mut self, wake: &Wake) -> io::Result<()> {
        let epoll = Epoll::new()?;
        let watch = |operation, source: &dyn AsRawFd| {
            let descriptor = source.as_raw_fd();
            let tag = u64::try_from(descriptor).unwrap_or_default();
            epoll.ctl(operation, descriptor, EpollEvent::new(EventSet::IN, tag))
        };
        watch(ControlOperation::Add, wake)?;
        let mut listening = false;
        while !wake.is_stopped() {
            let Ok(waiting) = self.serve() else {
                return Ok(());
            };
            let listen = waiting == Waiting::Perhaps;
            if listen != listening {
                let operation = match listen {
                    true => ControlOperation::Add,
                    false => ControlOperation::Delete,
                };
                watch(operation, &*self.port)?;
                listening = listen;
            }
            if self.back.is_waiting() {
                continue;
            }
            let mut events = [EpollEvent::default(); 2];
            let count = match epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => count?,
            };
            let kicked = |event: &EpollEvent| event.fd() == wake.as_raw_fd();
            if events.iter().take(count).any(kicked) {
                wake.wait();
            }
        }
        Ok(())
    }

    /// Moves packets both ways.
    fn serve(&mut self) -> Result<Waiting, NetError> {
        let mut sender = self.port.sender();
        let notify = self.back.serve(|mut packet| {
            let Some(mut header) = header(&packet) else {
                return;
            };
            let parts = [header.as_mut_bytes(), packet.bytes.as_mut_slice()];
            // What the tap does not take is lost, as in any network.
            let _sent = sender.send(parts.into_iter().map(VolatileSlice::from));
        })?;
        if notify {
            self.transmit.notify();
        }
        let mut notify = false;
        let waiting = self.deliver(&mut notify)?;
        if notify {
            self.receive.as_ref().unwrap_or(&self.transmit).notify();
        }
        Ok(waiting)
    }

    /// Gives the guest what the tap has for it.
    fn deliver(&mut self, notify: &mut bool) -> Result<Waiting, NetError> {
        let mut receiver = self.port.receiver();
        for _ in 0..BURST {
            let packet = match self.next.take() {
                Some(packet) => packet,
                None => match receiver.peek() {
                    Ok(frame) => {
                        let packet = self.takes.packet(frame);
                        receiver.take();
                        match packet {
                            Some(packet) => packet,
                            None => continue,
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return Ok(Waiting::Gone),
                },
            };
            match self.back.deliver(&packet)? {
                Delivery::Done { notify: wanted } => *notify |= wanted,
                Delivery::NoRoom => {
                    self.next = Some(packet);
                    return Ok(Waiting::Packet);
                }
            }
        }
        Ok(Waiting::Perhaps)
    }
}

/// A network interface that the guest finds.
pub(super) struct NetDevice {
    vif: Vif,
    handle: u32,
}

impl NetDevice {
    /// The interface number `handle`.
    pub(super) fn new(vif: Vif, handle: u32) -> Self {
        Self { vif, handle }
    }
}

impl BackEnd for NetDevice {
    fn kind(&self) -> &'static str {
        "vif"
    }

    fn front_nodes(&self) -> Vec<(&'static str, String)> {
        vec![
            ("handle", self.handle.to_string()),
            ("mac", self.vif.mac.to_string()),
        ]
    }

    fn offers(&self) -> Vec<(&'static str, String)> {
        let features = [
            "feature-sg",
            "feature-gso-tcpv4",
            "feature-gso-tcpv6",
            "feature-ipv6-csum-offload",
            "feature-rx-copy",
            "feature-split-event-channels",
        ];
        let nodes = features.map(|feature| (feature, "1".to_owned()));
        nodes.into_iter().collect()
    }

    fn connect(&self, front: &mut Front<'_>) -> Option<Server> {
        // Without, the guest would have to ask for packets all the time.
        if !front.has("request-rx-copy") || !front.has("feature-rx-notify") {
            return None;
        }
        let takes = Takes::new(front);
        self.vif.tap.set_guest_offloads(takes.offloads()).ok()?;
        let (transmit, receive) = (front.ring("tx-ring-ref")?, front.ring("rx-ring-ref")?);
        let back = NetBack::new(vec![transmit], vec![receive], GUEST, front.foreign()).ok()?;
        let wake = Wake::new().ok()?;
        let (transmit, receive) = match front.channel("event-channel", &wake) {
            Some(both) => (both, None),
            None => (
                front.channel("event-channel-tx", &wake)?,
                Some(front.channel("event-channel-rx", &wake)?),
            ),
        };
        let mut serving = Serving {
            back,
            port: self.vif.tap.ports().first()?.clone(),
            transmit,
            receive,
            takes,
            next: None,
        };
        let name = format!("xen-net{}", self.handle);
        // If it cannot wait the guest has no network.
        let serve = move |wake: &Wake| drop(serving.run(wake));
        Server::spawn(name, wake, serve).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of TCP over IPv4, or IPv6, with `payload` bytes.
    fn tcp(network: Network, payload: usize) -> Vec<u8> {
        let (kind, length) = match network {
            Network::Ipv4 => ([8, 0], 20),
            Network::Ipv6 => ([0x86, 0xdd], 40),
        };
        let mut bytes = vec![0; 14 + length + 20 + payload];
        bytes[12..14].copy_from_slice(&kind);
        match network {
            Network::Ipv4 => {
                bytes[14] = 0x45;
                bytes[23] = 6;
            }
            Network::Ipv6 => bytes[20] = 6,
        }
        bytes[14 + length + 12] = 5 << 4;
        bytes
    }

    fn blank(network: Network, payload: usize, segmentation: Option<Segmentation>) -> Packet {
        Packet {
            bytes: tcp(network, payload),
            checksum: Checksum::Blank,
            segmentation,
        }
    }

    fn frame(packet: &Packet) -> Vec<u8> {
        let header = header(packet).unwrap();
        [header.as_bytes(), &packet.bytes].concat()
    }

    const ALL: Takes = Takes {
        parts: true,
        blank: [true; 2],
        segments: [true; 2],
    };

    #[test]
    fn packets_are_the_same_after_both_ways() {
        let size = 1000;
        for (network, kind) in [(Network::Ipv4, 1), (Network::Ipv6, 2)] {
            for segmentation in [None, Some(Segmentation { size, kind })] {
                let packet = blank(network, 5000, segmentation);
                assert_eq!(ALL.packet(&frame(&packet)), Some(packet));
            }
        }
        for checksum in [Checksum::Unknown, Checksum::Validated] {
            let packet = Packet {
                bytes: vec![7; 60],
                checksum,
                segmentation: None,
            };
            assert_eq!(ALL.packet(&frame(&packet)), Some(packet));
        }
    }

    #[test]
    fn what_the_guest_says_has_to_fit() {
        let segments = |kind| Some(Segmentation { size: 1000, kind });
        for packet in [
            blank(Network::Ipv4, 5000, segments(2)),
            blank(Network::Ipv6, 5000, segments(1)),
            blank(Network::Ipv4, 5000, segments(3)),
            Packet {
                checksum: Checksum::Validated,
                ..blank(Network::Ipv4, 5000, segments(1))
            },
            Packet {
                bytes: vec![7; 60],
                ..blank(Network::Ipv4, 0, None)
            },
        ] {
            assert_eq!(header(&packet), None, "{packet:?}");
        }
    }

    #[test]
    fn what_the_guest_does_not_take_is_done_for_it() {
        let packet = blank(Network::Ipv6, 100, None);
        let takes = Takes {
            blank: [true, false],
            ..ALL
        };
        let done = takes.packet(&frame(&packet)).unwrap();
        assert_eq!(done.checksum, Checksum::Unknown);
        let mut bytes = packet.bytes;
        assert!(complete_checksum(&mut bytes, 54, 70));
        assert_eq!(done.bytes, bytes);
        // A checksum elsewhere than the guest would look for it: SCTP's, or of a packet in a packet.
        let mut frame = frame(&blank(Network::Ipv4, 100, None));
        let (header, _) = Header::mut_from_prefix(&mut frame).unwrap();
        header.csum_start.set(54);
        assert_eq!(ALL.packet(&frame).unwrap().checksum, Checksum::Unknown);
        let (header, _) = Header::mut_from_prefix(&mut frame).unwrap();
        header.csum_start.set(u16::MAX);
        assert_eq!(ALL.packet(&frame), None);
    }

    #[test]
    fn packets_in_parts_go_to_guests_that_take_them() {
        let takes = Takes {
            parts: false,
            ..ALL
        };
        let of = |payload| frame(&blank(Network::Ipv4, payload, None));
        assert!(takes.packet(&of(PAGE_SIZE - 54)).is_some());
        assert_eq!(takes.packet(&of(PAGE_SIZE - 53)), None);
        assert_eq!(takes.packet(&[0; 5]), None);
    }
}
