//! Where a packet's transport header is. Whoever leaves a checksum blank does not tell: it is that of TCP or UDP.

/// What carries a transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// RFC 791.
    Ipv4,
    /// RFC 8200.
    Ipv6,
}

/// A header of TCP or UDP, in bytes from the packet's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// What it follows.
    pub network: Network,
    /// Whether it is TCP's, which can be cut into segments.
    pub tcp: bool,
    /// Where it begins, and with it what the checksum is of.
    pub start: usize,
    /// Where the checksum is, two bytes.
    pub checksum: usize,
    /// Where the payload begins.
    pub payload: usize,
}

/// Bytes of the two addresses of an Ethernet header.
const ADDRESSES: usize = 12;
/// Types of what an Ethernet header precedes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: [u16; 2] = [0x8100, 0x88a8];
/// Numbers of protocols (IANA), of which some are IPv6's extension headers.
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

impl Transport {
    /// Finds it in a packet that begins with its Ethernet header. A fragment has none, and one that is cut off is none.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let mut at = ADDRESSES;
        let mut kind = word(packet, at)?;
        while VLAN.contains(&kind) {
            at += 4;
            kind = word(packet, at)?;
        }
        at += 2;
        let (network, protocol, start) = match kind {
            IPV4 => {
                let words = byte(packet, at)? & 0xf;
                // More fragments, or not the first.
                let fragment = word(packet, at + 6)? & 0x3fff != 0;
                if words < 5 || fragment {
                    return None;
                }
                let protocol = byte(packet, at + 9)?;
                (Network::Ipv4, protocol, at + usize::from(words) * 4)
            }
            IPV6 => {
                let mut next = byte(packet, at + 6)?;
                at += 40;
                loop {
                    let length = match next {
                        HOP_BY_HOP | ROUTING | DESTINATION => {
                            (usize::from(byte(packet, at + 1)?) + 1) * 8
                        }
                        AUTHENTICATION => (usize::from(byte(packet, at + 1)?) + 2) * 4,
                        protocol => break (Network::Ipv6, protocol, at),
                    };
                    next = byte(packet, at)?;
                    at += length;
                }
            }
            _ => return None,
        };
        let (tcp, checksum, length) = match protocol {
            TCP => (true, 16, usize::from(byte(packet, start + 12)? >> 4) * 4),
            UDP => (false, 6, 8),
            _ => return None,
        };
        let payload = start + length;
        let whole = payload <= packet.len() && length >= checksum + 2;
        whole.then_some(Self {
            network,
            tcp,
            start,
            checksum: start + checksum,
            payload,
        })
    }
}

/// Makes the checksum (RFC 1071) of `packet` from its byte `start` on, and stores it in the two bytes at `field`, which are among those and
/// hold the sum of what else it covers. False if they are not in the packet.
#[must_use]
pub fn complete_checksum(packet: &mut [u8], start: usize, field: usize) -> bool {
    let Some(covered) = packet.get(start..) else {
        return false;
    };
    let sum = covered.chunks(2).fold(0u64, |sum, pair| {
        let pair = [pair.first(), pair.get(1)].map(|byte| byte.copied().unwrap_or(0));
        sum + u64::from(u16::from_be_bytes(pair))
    });
    let folded = u16::try_from(sum % 0xffff).unwrap_or(0);
    let place = field
        .checked_add(2)
        .and_then(|end| packet.get_mut(field..end));
    place.is_some_and(|place| {
        // Never 0, by which UDP means that there is none.
        place.copy_from_slice(&(!folded).to_be_bytes());
        true
    })
}
