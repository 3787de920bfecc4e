//! No DMA starts that was not checked, and what was checked is what the device gets.

#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use vpio_model::engine::Dma;

use common::{GUEST, Machine, SHADOW, SIZE, words};
use vpio_model::models;

/// THREATS.md, "a DMA that starts outside the guest": a transmit slot of the RTL8139.
#[test]
fn rtl8139_sends_only_what_the_guest_has() {
    let mut card = Machine::new(models::RTL8139);
    card.write(0x30, 4, SIZE).unwrap();
    card.write(0x37, 1, 0x0c).unwrap_err();
    card.write(0x30, 4, 0x8000).unwrap();
    assert_eq!(
        card.given(0x30),
        GUEST + 0x8000,
        "the device gets its own address"
    );
    assert_eq!(
        card.read(0x30, 4).unwrap(),
        0x8000,
        "the guest sees what it wrote"
    );
    card.write(0x37, 1, 0x0c).unwrap();

    card.write(0x20, 4, SIZE - 64).unwrap();
    card.write(0x10, 4, 60).unwrap();
    assert_eq!(card.given(0x20), GUEST + SIZE - 64);
    // The slot is being sent: the card has not set OWN.
    card.registers.set(0, 0x10, 60);
    card.write(0x20, 4, 0x1000).unwrap_err();
    card.write(0x10, 4, 60).unwrap_err();
    // Sent. One byte more than there is, in the same place.
    card.registers.set(0, 0x10, 0x2000 | 60);
    card.write(0x10, 4, 65).unwrap_err();
    assert_eq!(card.given(0x10), 0x2000 | 60);
    // A slot of which the card alone knows where it is.
    card.write(0x18, 4, 60).unwrap_err();
    // Outside altogether; too long; at the end of all addresses.
    for (address, size) in [(SIZE, 60), (0, 1793), (0xffff_ffff, 60)] {
        card.write(0x24, 4, address).unwrap();
        card.write(0x14, 4, size).unwrap_err();
        assert_eq!(card.given(0x14), 0);
    }
}

/// THREATS.md, "a DMA that starts outside the guest": the RTL8139's receive ring, moved, or made longer, while it is in use.
#[test]
fn rtl8139_receives_only_into_what_the_guest_has() {
    let mut card = Machine::new(models::RTL8139);
    card.write(0x30, 4, SIZE - 0x2010).unwrap();
    card.write(0x37, 1, 0x08).unwrap();
    card.write(0x30, 4, 0x1000).unwrap_err();
    card.write(0x44, 4, 0x80).unwrap_err();
    card.write(0x44, 4, 1 << 11).unwrap_err();
    card.write(0x44, 4, 0xf).unwrap();
    assert_eq!(card.given(0x44), 0xf);
    // After a reset the ring is as short as the model believes, whatever the card keeps.
    card.write(0x37, 1, 0x18).unwrap_err();
    card.write(0x37, 1, 0x10).unwrap();
    assert_eq!(card.given(0x44), 0);
}

/// THREATS.md, "an event the model does not know": other widths, other offsets, the C+ mode.
#[test]
fn what_the_model_does_not_know_is_denied() {
    let mut card = Machine::new(models::RTL8139);
    // Parts of an address, and two registers at once.
    for (offset, width) in [(0x20, 1), (0x22, 2), (0x20, 8), (0x36, 2), (0x2c, 8)] {
        card.write(offset, width, 0).unwrap_err();
    }
    card.write(0xe0, 2, 3).unwrap_err();
    card.write(0xe4, 4, 0).unwrap_err();
    card.read(0xf0, 4).unwrap_err();
    for (space, offset) in [(1, 0), (0, 0x100), (0, u64::MAX), (0, u64::MAX - 1)] {
        let at = vpio_model::engine::At {
            space,
            offset,
            width: 4,
        };
        card.device.write(at, 0).unwrap_err();
        card.device.read(at).unwrap_err();
    }
}

const RING: u64 = 0x4000;

fn e1000() -> Machine {
    let mut card = Machine::new(models::E1000);
    for (offset, value) in [
        (0x3804, 0),
        (0x3800, RING),
        (0x3808, 8 * 16),
        (0x3818, 0),
        (0x3810, 0),
        (0x400, 2),
    ] {
        card.write(offset, 4, value).unwrap();
    }
    card
}

fn transmit(buffer: u64, length: u32) -> Vec<u8> {
    let low = u32::try_from(buffer & 0xffff_ffff).unwrap();
    let high = u32::try_from(buffer >> 32).unwrap();
    // Legacy, end of packet, report status.
    words(&[low, high, length | 0x0900_0000, 0])
}

/// THREATS.md, "a DMA that starts outside the guest": descriptors, also changed after the check.
#[test]
fn e1000_sees_the_descriptors_that_were_checked() {
    let mut card = e1000();
    let ring = card.given(0x3800);
    assert_eq!(ring, SHADOW);
    card.store(RING, &transmit(0x1000, 60));
    card.store(RING + 16, &transmit(SIZE - 60, 60));
    card.write(0x3818, 4, 2).unwrap();
    assert_eq!(card.given(0x3818), 2);
    card.store(RING, &transmit(SIZE, 60));
    assert_eq!(
        card.shadow::<16>(ring)[..],
        transmit(GUEST + 0x1000, 60)[..]
    );
    assert_eq!(
        card.shadow::<16>(ring + 16)[..],
        transmit(GUEST + SIZE - 60, 60)[..]
    );

    for (buffer, length) in [
        (SIZE - 59, 60),
        (SIZE, 1),
        (u64::MAX, 2),
        (u64::MAX - 59, 60),
    ] {
        card.store(RING + 32, &transmit(buffer, length));
        card.write(0x3818, 4, 3).unwrap_err();
        assert_eq!(card.given(0x3818), 2, "the device is not told");
    }
    // A context has no buffer: what is in its place is no address.
    card.store(
        RING + 32,
        &words(&[u32::MAX, u32::MAX, 0x2000_0000 | 54, 0]),
    );
    card.write(0x3818, 4, 3).unwrap();
}

/// The ring itself: too long, not the guest's, changed while it is in use.
#[test]
fn e1000_rings_are_the_guests() {
    let mut card = e1000();
    for offset in [0x3800, 0x3804, 0x3808, 0x3810] {
        card.write(offset, 4, 0).unwrap_err();
    }
    card.write(0x3818, 4, 8).unwrap_err();
    card.write(0x400, 4, 0).unwrap();
    card.write(0x3808, 4, 0x10080).unwrap_err();
    card.write(0x3800, 4, SIZE - 16).unwrap();
    card.write(0x400, 4, 2).unwrap();
    card.store(SIZE - 16, &transmit(0, 60));
    card.write(0x3818, 4, 1).unwrap();
    card.write(0x3818, 4, 2).unwrap_err();
}

/// What the device writes into its copy, the guest sees in its own when it is interrupted.
#[test]
fn e1000_gives_descriptors_back() {
    let mut card = e1000();
    card.store(RING, &transmit(0x1000, 60));
    card.write(0x3818, 4, 1).unwrap();
    card.device.interrupt().unwrap();
    assert_eq!(card.load::<16>(RING)[12], 0);
    card.memory.write_shadow(12, &[1]);
    card.device.interrupt().unwrap();
    assert_eq!(card.load::<16>(RING)[12], 1);
    assert_eq!(card.load::<16>(RING)[..8], transmit(0x1000, 60)[..8]);
}

/// Buffers must not grow once the card has them.
#[test]
fn e1000_receives_as_much_as_was_checked() {
    let mut card = Machine::new(models::E1000);
    for (offset, value) in [(0x2800, RING), (0x2808, 8 * 16), (0x2818, 0), (0x100, 2)] {
        card.write(offset, 4, value).unwrap();
    }
    // A driver's buffer at the end of memory is as long as a packet, not as long as the card is told.
    card.store(RING, &(SIZE - 1526).to_le_bytes());
    card.write(0x2818, 4, 1).unwrap();
    let (long, bad) = (1 << 5, 1 << 2);
    for larger in [long, bad, 1 << 25 | 3 << 16] {
        card.write(0x100, 4, 2 | larger).unwrap_err();
    }
    card.store(RING + 16, &(SIZE - 1525).to_le_bytes());
    card.write(0x2818, 4, 2).unwrap_err();

    card.write(0x100, 4, 0).unwrap();
    card.write(0x100, 4, 2 | long).unwrap_err();
    card.store(RING, &(SIZE - 2048).to_le_bytes());
    card.write(0x100, 4, 2 | long).unwrap();
    card.store(RING + 16, &(SIZE - 2047).to_le_bytes());
    card.write(0x2818, 4, 2).unwrap_err();
}

/// THREATS.md, "a DMA that starts outside the guest": a list, its table, and a region in it, in AHCI.
#[test]
fn ahci_sees_the_commands_that_were_checked() {
    let mut hba = Machine::new(models::AHCI);
    let (list, table) = (0x4000_u64, 0x5000_u64);
    hba.write(0x108, 4, SIZE).unwrap();
    hba.write(0x118, 4, 0x10).unwrap_err();
    hba.write(0x108, 4, SIZE - 256).unwrap();
    hba.write(0x100, 4, list).unwrap();
    hba.write(0x138, 4, 1).unwrap_err();
    hba.write(0x118, 4, 0x11).unwrap();
    let header = |count: u32, table: u64| {
        words(&[
            count << 16 | 5,
            0,
            u32::try_from(table).unwrap(),
            0,
            0,
            0,
            0,
            0,
        ])
    };
    let region = |base: u64, count: u32| words(&[u32::try_from(base).unwrap(), 0, 0, count - 1]);
    let slot = 3;
    hba.store(list + 32 * slot, &header(2, table));
    hba.store(table, b"a command");
    hba.store(table + 128, &region(0x8000, 512));
    hba.store(table + 144, &region(SIZE - 4096, 4097));
    hba.write(0x138, 4, 1 << slot).unwrap_err();
    assert_eq!(hba.given(0x138), 0);
    hba.store(table + 144, &region(SIZE - 4096, 4096));
    hba.write(0x138, 4, 1 << slot).unwrap();
    hba.store(table + 128, &region(SIZE, 512));

    let at = hba.given(0x100) + 32 * slot;
    let copy: [u8; 32] = hba.shadow(at);
    let copied = u64::from_le_bytes(copy[8..16].try_into().unwrap());
    assert!(copied >= SHADOW);
    assert_eq!(&hba.shadow::<9>(copied), b"a command");
    assert_eq!(
        hba.shadow::<16>(copied + 128)[..],
        region(GUEST + 0x8000, 512)[..]
    );
    assert_eq!(
        hba.shadow::<16>(copied + 144)[..],
        region(GUEST + SIZE - 4096, 4096)[..]
    );

    // More regions than there is room for; a table outside.
    for bad in [
        header(249, table),
        header(1, SIZE - 128),
        header(0xffff, table),
    ] {
        hba.store(list, &bad);
        hba.write(0x138, 4, 1).unwrap_err();
    }
    // What the device counted reaches the guest once the command is done.
    hba.memory
        .write_shadow(at - SHADOW + 4, &512_u32.to_le_bytes());
    hba.device.interrupt().unwrap();
    assert_eq!(
        hba.load::<8>(list + 32 * slot)[4..],
        [0; 4],
        "it is still running"
    );
    hba.registers.set(0, 0x138, 0);
    hba.device.interrupt().unwrap();
    assert_eq!(hba.load::<8>(list + 32 * slot)[4..], 512_u32.to_le_bytes());
}

/// THREATS.md, "a DMA that starts outside the guest": a list of regions of the IDE bus master, also without an end.
#[test]
fn piix_sees_the_regions_that_were_checked() {
    let mut ide = Machine::new(models::PIIX_BMIDE);
    ide.write(4, 4, 0x4000).unwrap();
    ide.store(0x4000, &words(&[0x8000, 512, 0xf_0000, 1 << 31]));
    ide.write(0, 1, 1).unwrap();
    let table = ide.given(4);
    assert_eq!(ide.shadow::<4>(table), (0x1000_8000_u32).to_le_bytes());
    ide.write(4, 4, 0x5000).unwrap_err();
    ide.write(0, 1, 0).unwrap();
    ide.store(0x4008, &words(&[0xf_0002, 1 << 31]));
    ide.write(0, 1, 9).unwrap_err();
    ide.store(0x4000, &[0x10, 0, 0, 0, 0, 2, 0, 0].repeat(256));
    ide.write(0, 1, 1).unwrap_err();
    assert_eq!(ide.given(0), 0);
}

/// C+ descriptors say themselves whose they are: the device sees those that were checked, and no others.
#[test]
fn rtl8139cp_sees_the_descriptors_that_were_checked() {
    let mut card = Machine::new(models::RTL8139CP);
    for (offset, width, value) in [(0xe0, 2, 3), (0x37, 1, 0x0c)] {
        card.write(offset, width, value).unwrap();
    }
    card.write(0x37, 1, 0).unwrap();
    card.write(0x20, 4, RING).unwrap();
    card.write(0x37, 1, 0x0c).unwrap();
    let ring = card.given(0x20);
    card.store(RING, &words(&[0xb000_0000 | 60, 0, 0x1000, 0]));
    card.write(0xd9, 1, 0x40).unwrap();
    assert_eq!(
        card.shadow::<16>(ring)[..],
        words(&[0xb000_0000 | 60, 0, 0x1000_1000, 0])[..]
    );
    assert_eq!(card.state("tx_next"), 1);
    card.store(RING + 16, &words(&[0xf000_0000 | 60, 0, 0xf_ffff, 0]));
    card.write(0xd9, 1, 0x40).unwrap_err();
    assert_eq!(card.shadow::<16>(ring + 16), [0; 16]);
    card.store(RING + 16, &words(&[0xf000_0000 | 60, 0, 0x2000, 0]));
    card.write(0xd9, 1, 0x40).unwrap();
    assert_eq!(card.state("tx_next"), 0, "the last of the ring");
}

/// THREATS.md, "a DMA that starts outside the guest": on the NE2000 the memory is the card's.
#[test]
fn ne2000_stays_in_its_memory() {
    let mut card = Machine::new(models::NE2000);
    let program = |card: &mut Machine, at: u64, count: u64| {
        for (offset, value) in [
            (8, at & 0xff),
            (9, at >> 8),
            (10, count & 0xff),
            (11, count >> 8),
        ] {
            card.write(offset, 1, value).unwrap();
        }
    };
    card.write(0, 1, 0x21).unwrap();
    program(&mut card, 0, 32);
    card.write(0, 1, 0x0a).unwrap();
    program(&mut card, 0xbff0, 17);
    card.write(0, 1, 0x12).unwrap();
    // What is outside by its value alone: remote DMA, a packet to send, the next page of the ring.
    for (offset, value) in [
        (9, 0x3f),
        (9, 0xc0),
        (11, 0x80),
        (4, 0x3f),
        (4, 0xbb),
        (6, 6),
    ] {
        card.write(offset, 1, value).unwrap_err();
    }
    // The same offset in page 1 is a part of the address, and no part of the count.
    card.write(0, 1, 0x61).unwrap();
    card.write(10, 1, 0xff).unwrap();
    card.write(7, 1, 0xc0).unwrap_err();
    card.write(0, 1, 0x21).unwrap();
    assert_eq!(card.state("rbcr"), 17);
    card.write(0, 1, 0xe1).unwrap_err();
    // A ring that is not in the memory must not be switched on.
    card.write(12, 1, 0).unwrap();
    card.write(0, 1, 0x22).unwrap_err();
    card.write(1, 1, 0x46).unwrap();
    card.write(2, 1, 0xc1).unwrap();
    card.write(0, 1, 0x22).unwrap_err();
    card.write(2, 1, 0xc0).unwrap();
    card.write(0, 1, 0x22).unwrap();
    card.write(1, 1, 0x00).unwrap_err();
}
