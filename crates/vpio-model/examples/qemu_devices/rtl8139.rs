//! A driver of the RTL8139 that receives what it sends to itself.

use super::{Device, Driver, Pairs, Qemu, SIZE, variable};
use vpio_model::engine::At;

const TSD: u64 = 0x10;
const TSAD: u64 = 0x20;
const RBSTART: u64 = 0x30;
const CR: u64 = 0x37;
const CAPR: u64 = 0x38;
const CBR: u64 = 0x3a;
const IMR: u64 = 0x3c;
const ISR: u64 = 0x3e;
const TCR: u64 = 0x40;
const RCR: u64 = 0x44;

/// Receiver and transmitter are on.
const ON: u64 = 0x0c;
const LOOPBACK: u64 = 0x60000;

pub const DRIVER: Driver = Driver {
    start,
    shown,
    go_on,
};

fn write(device: &mut Device, offset: u64, width: u8, value: u64) {
    let at = At {
        space: 0,
        offset,
        width,
    };
    let result = device.write(at, value);
    assert_eq!(result, Ok(()), "{offset:#x} {value:#x}");
}

fn read(device: &mut Device, offset: u64, width: u8) -> u64 {
    let at = At {
        space: 0,
        offset,
        width,
    };
    device.read(at).unwrap()
}

/// A ring somewhere, of any size, into which some packets have come; the driver has taken them, but perhaps the last ones.
fn start(device: &mut Device, random: &mut fastrand::Rng) -> String {
    let kind = random.u64(..4);
    // All that is for this station, or all; at the ring's end, packets go on at its begin or behind it.
    let rcr = kind << 11 | random.u64(..2) << 7 | if random.bool() { 0xa } else { 0xf };
    let ring = random.u64(..(SIZE - (80 << 10)) / 4) * 4;
    // Of what is sent, all is zero, the receiver's address too.
    write(device, 0, 4, 0);
    write(device, 4, 4, 0);
    write(device, RBSTART, 4, ring);
    write(device, CR, 1, ON);
    write(device, RCR, 4, rcr);
    write(device, TCR, 4, LOOPBACK);
    for slot in 0..4 {
        write(device, TSAD + 4 * slot, 4, SIZE - 0x2000);
    }
    write(device, IMR, 2, 5);
    let packets = random.u64(..70);
    let left = random.u64(..3);
    for packet in 0..packets {
        let bytes = random.u64(60..=1792);
        write(device, TSD + packet % 4 * 4, 4, bytes);
        let written = read(device, CBR, 2);
        if packet + left < packets {
            write(device, CAPR, 2, written.wrapping_sub(16) & 0xffff);
        }
    }
    write(device, ISR, 2, 0xffff);
    write(device, TCR, 4, 0);
    let written = read(device, CBR, 2);
    format!(
        "{packets} packets, {left} not taken, to a ring of {} KiB, to {written:#x}",
        8 << kind
    )
}

/// Where the card writes and the driver reads, and whether there is anything to read.
fn shown(card: &Qemu) -> Vec<(&'static str, u64)> {
    vec![
        ("CBR", card.read_register(CBR, 2)),
        ("CAPR", card.read_register(CAPR, 2)),
        ("BUFE", card.read_register(CR, 1) & 1),
        ("RCR", card.read_register(RCR, 4)),
        ("TCR", card.read_register(TCR, 4)),
        ("IMR", card.read_register(IMR, 2)),
        ("IDR", card.read_register(0, 4)),
    ]
}

/// One more packet comes where the last ended, by the slot that is next.
fn go_on(device: &mut Device, pairs: &mut Pairs) {
    let size = 8192 << (variable(device, "rcr") >> 11 & 3);
    let written = read(device, CBR, 2);
    write(device, TCR, 4, LOOPBACK);
    let slot = variable(device, "next");
    write(device, TSD + 4 * slot, 4, 60);
    let next = (written + 68) % size;
    pairs.push(("the next packet".into(), next, read(device, CBR, 2)));
}
