//! Looks at the frames that come in on an interface until a file appears: `frames to|from INTERFACE FILE MAC IP [MAC IP]...`. Those that are
//! not `to` one of these stations (or to a group), or not `from` one of them, went astray. It ends with
//! `NAME: N frames, N astray, N missed`. The lab's shared network cards are watched with it, on both ends of the cable; nothing but the
//! standard library and C's, so that `rustc` alone builds it.
//!
//! Names and numbers: include/uapi/linux/if_packet.h and if_ether.h, RFC 826, RFC 791.

#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes and offsets of this program's own; a panic ends it, and its check fails"
)]

use std::ffi::{c_int, c_void};
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::time::Duration;
use std::{env, mem, ptr};

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(socket: c_int, address: *const Link, length: u32) -> c_int;
    fn recvfrom(
        socket: c_int,
        buffer: *mut c_void,
        size: usize,
        flags: c_int,
        address: *mut Link,
        length: *mut u32,
    ) -> isize;
    fn setsockopt(s: c_int, level: c_int, name: c_int, value: *const c_int, length: u32) -> c_int;
    fn getsockopt(s: c_int, level: c_int, name: c_int, value: *mut [u32; 2], l: *mut u32) -> c_int;
}

const AF_PACKET: u16 = 17;
const SOCK_RAW: c_int = 3;
const ETH_P_ALL: u16 = 3;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const PACKET_OUTGOING: u8 = 4;
const SOL_SOCKET: c_int = 1;
const SO_RCVBUFFORCE: c_int = 33;
const SOL_PACKET: c_int = 263;
const PACKET_STATISTICS: c_int = 6;
/// Bytes of frames that wait to be looked at.
const WAITING: c_int = 8 << 20;
/// Frames that are shown.
const SHOWN: u64 = 8;

/// `struct sockaddr_ll`
#[repr(C)]
#[derive(Default)]
struct Link {
    family: u16,
    protocol: u16,
    index: i32,
    hardware: u16,
    kind: u8,
    length: u8,
    address: [u8; 8],
}

/// Which end of a frame is looked at: where its Ethernet, IPv4 and ARP addresses are.
struct End {
    mac: usize,
    ip: usize,
    arp: usize,
    groups: bool,
}

const TO: End = End {
    mac: 0,
    ip: 30,
    arp: 38,
    groups: true,
};
const FROM: End = End {
    mac: 6,
    ip: 26,
    arp: 28,
    groups: false,
};

struct Station {
    mac: [u8; 6],
    ip: [u8; 4],
}

impl End {
    /// Whether this end of the frame is one of the stations, by both its addresses.
    fn is_one_of(&self, stations: &[Station], frame: &[u8]) -> bool {
        let part = |at: usize, length: usize| frame.get(at..at + length).unwrap_or_default();
        let mac = part(self.mac, 6);
        if self.groups && mac.first().is_some_and(|first| first & 1 == 1) {
            return true;
        }
        let kind = part(12, 2);
        let ip = if kind == ETH_P_IP.to_be_bytes() {
            part(self.ip, 4)
        } else if kind == ETH_P_ARP.to_be_bytes() {
            part(self.arp, 4)
        } else {
            return false;
        };
        let mut stations = stations.iter();
        stations.any(|station| mac == station.mac && ip == station.ip)
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Frames of one interface. `UdpSocket` is only what has a time limit and is closed.
fn listen(index: i32) -> io::Result<UdpSocket> {
    let everything = ETH_P_ALL.to_be();
    // SAFETY: plain numbers; the result is a file of our own or an error.
    let file = check(unsafe { socket(AF_PACKET.into(), SOCK_RAW, everything.into()) })?;
    // SAFETY: nobody else has it.
    let listener = unsafe { UdpSocket::from_raw_fd(file) };
    let place = Link {
        family: AF_PACKET,
        protocol: everything,
        index,
        ..Link::default()
    };
    // SAFETY: the address and its size.
    check(unsafe { bind(file, &place, mem::size_of::<Link>() as u32) })?;
    // SAFETY: the option is a number.
    check(unsafe { setsockopt(file, SOL_SOCKET, SO_RCVBUFFORCE, &WAITING, 4) })?;
    listener.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(listener)
}

/// The start of the next frame that comes in. None: it goes out, or there is none for now.
fn next<'a>(listener: &UdpSocket, bytes: &'a mut [u8; 64]) -> io::Result<Option<&'a [u8]>> {
    let mut about = Link::default();
    let mut length = mem::size_of::<Link>() as u32;
    let start = ptr::from_mut(bytes).cast();
    // SAFETY: the buffers and their sizes.
    let got = unsafe { recvfrom(listener.as_raw_fd(), start, 64, 0, &mut about, &mut length) };
    match usize::try_from(got) {
        Ok(_) if about.kind == PACKET_OUTGOING => Ok(None),
        Ok(size) => Ok(bytes.get(..size)),
        Err(_) => match io::Error::last_os_error() {
            error if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(None)
            }
            error => Err(error),
        },
    }
}

/// Frames that came while too many waited.
fn missed(listener: &UdpSocket) -> io::Result<u32> {
    let (mut counts, mut length) = ([0; 2], 8);
    let file = listener.as_raw_fd();
    // SAFETY: two numbers: what came, and what was dropped.
    check(unsafe {
        getsockopt(
            file,
            SOL_PACKET,
            PACKET_STATISTICS,
            &mut counts,
            &mut length,
        )
    })?;
    Ok(counts[1])
}

fn station(mac: &str, ip: &str) -> Option<Station> {
    let bytes: Option<Vec<u8>> = mac
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    Some(Station {
        mac: bytes?.try_into().ok()?,
        ip: ip.parse::<Ipv4Addr>().ok()?.octets(),
    })
}

fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: frames to|from INTERFACE FILE MAC IP [MAC IP]...");
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [end, interface, file, stations @ ..] = arguments.as_slice() else {
        return Err(usage());
    };
    let end = match end.as_str() {
        "to" => TO,
        "from" => FROM,
        _ => return Err(usage()),
    };
    let stations: Option<Vec<Station>> = stations
        .chunks(2)
        .map(|pair| station(pair.first()?, pair.get(1)?))
        .collect();
    let stations = stations.filter(|all| !all.is_empty()).ok_or_else(usage)?;
    let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?;
    let listener = listen(index.trim().parse().map_err(io::Error::other)?)?;
    let (mut frames, mut astray) = (0u64, 0);
    let mut bytes = [0; 64];
    loop {
        match next(&listener, &mut bytes)? {
            Some(frame) => {
                frames += 1;
                if !end.is_one_of(&stations, frame) {
                    astray += 1;
                    if astray <= SHOWN {
                        println!("{interface}: astray: {frame:02x?}");
                    }
                }
            }
            None if Path::new(file).exists() => break,
            None => {}
        }
    }
    let missed = missed(&listener)?;
    println!("{interface}: {frames} frames, {astray} astray, {missed} missed");
    Ok(())
}
