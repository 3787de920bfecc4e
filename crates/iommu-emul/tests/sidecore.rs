//! The sidecore: what a guest does in a page of memory has the effect that trapped accesses have.

#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use iommu_emul::{
    sidecore::{Backoff, GCMD_TAKEN, PageControl, PolledUnit, Sidecore},
    spec::register::{Global, offset},
    vtd::{Access, Config},
};
use pio_mmio_bus::bus::BusDevice;
use proptest::prelude::*;
use support::{CONTEXT, Guest, Memory, QUEUE, ROOT, iotlb_global, iotlb_pages, wait};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const BASE: u64 = 0xfed9_0000;

#[derive(Default)]
struct Trap {
    trapped: AtomicBool,
    switches: AtomicU64,
}

struct Control(Arc<Trap>);

impl PageControl for Control {
    fn set_trapped(&self, trapped: bool) {
        assert_ne!(self.0.trapped.swap(trapped, Ordering::SeqCst), trapped);
        self.0.switches.fetch_add(1, Ordering::SeqCst);
    }
}

/// A guest whose registers are a page of memory. `exits` counts accesses that trap.
struct PagedGuest {
    guest: Guest,
    page: Memory,
    trap: Arc<Trap>,
    exits: AtomicU64,
}

impl PagedGuest {
    fn new() -> (Self, PolledUnit<Memory, Memory>) {
        let guest = Guest::new(Config::default().on_second_page());
        let page: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), 4096)]).unwrap());
        let trap = Arc::new(Trap::default());
        let polled = PolledUnit::new(
            guest.unit.clone(),
            page.clone(),
            GuestAddress(BASE),
            Box::new(Control(trap.clone())),
        );
        let paged = Self {
            guest,
            page,
            trap,
            exits: AtomicU64::new(0),
        };
        (paged, polled)
    }

    fn traps(&self, at: u16) -> bool {
        let traps = at >= 0x1000 || self.trap.trapped.load(Ordering::SeqCst);
        if traps {
            self.exits.fetch_add(1, Ordering::Relaxed);
        }
        traps
    }

    fn read32(&self, at: u16) -> u32 {
        if self.traps(at) {
            return self.guest.read32(at);
        }
        self.page
            .load(GuestAddress(BASE + u64::from(at)), Ordering::Acquire)
            .unwrap()
    }

    fn read64(&self, at: u16) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write32(&self, at: u16, value: u32) {
        if self.traps(at) {
            return self.guest.write32(at, value);
        }
        self.page
            .store(value, GuestAddress(BASE + u64::from(at)), Ordering::Release)
            .unwrap();
    }

    fn write64(&self, at: u16, value: u64) {
        if self.traps(at) {
            return self.guest.write64(at, value);
        }
        self.page
            .store(value, GuestAddress(BASE + u64::from(at)), Ordering::Release)
            .unwrap();
    }
}

#[test]
fn the_page_shows_the_registers() {
    let (paged, mut polled) = PagedGuest::new();
    for at in (0..0x100).step_by(4) {
        let expected = match at {
            offset::GCMD => GCMD_TAKEN,
            _ => paged.guest.read32(at),
        };
        assert_eq!(paged.read32(at), expected, "{at:#x}");
    }
    assert_eq!(polled.poll(), 0);
    // A guest that scribbles over read-only registers changes nothing, and sees them again.
    paged.write64(offset::IQH, 0x40);
    paged.write64(offset::CAP, 0);
    assert_eq!(polled.poll(), 1);
    assert_eq!(
        (paged.read64(offset::IQH), paged.guest.read64(offset::IQH)),
        (0, 0)
    );
    assert_ne!(paged.guest.read64(offset::CAP), 0);
}

#[test]
fn commands_are_taken_once_and_can_be_repeated() {
    let (paged, mut polled) = PagedGuest::new();
    paged.write64(offset::RTADDR, ROOT);
    paged.write32(offset::GCMD, Global::ROOT_TABLE_POINTER.bits());
    assert_eq!(polled.poll(), 2);
    assert_eq!(paged.read32(offset::GCMD), GCMD_TAKEN);
    assert_eq!(
        paged.read32(offset::GSTS),
        Global::ROOT_TABLE_POINTER.bits()
    );
    assert_eq!(polled.poll(), 0);
    // The same value again is the same command again, and so is 0.
    paged.guest.context(CONTEXT.0, CONTEXT.1);
    paged.write32(offset::GCMD, Global::ROOT_TABLE_POINTER.bits());
    assert_eq!(polled.poll(), 1);
    paged.write32(offset::GCMD, Global::TRANSLATION.bits());
    assert_eq!(polled.poll(), 1);
    assert!(paged.read32(offset::GSTS) & Global::TRANSLATION.bits() != 0);
    paged.write32(offset::GCMD, 0);
    assert_eq!(polled.poll(), 1);
    assert!(paged.read32(offset::GSTS) & Global::TRANSLATION.bits() == 0);
    for _ in 0..2 {
        paged.write64(offset::CCMD, 1 << 63 | 1 << 61);
        assert_eq!(polled.poll(), 2);
        assert_eq!(paged.read64(offset::CCMD), 1 << 61 | 1 << 59);
    }
}

#[test]
fn write_1_to_clear_registers_trap_while_they_are_set() {
    let (paged, mut polled) = PagedGuest::new();
    paged.write32(offset::GCMD, Global::TRANSLATION.bits());
    polled.poll();
    let fault = paged
        .guest
        .translate(&paged.guest.view(), 0x5000, Access::Read);
    assert_eq!(fault, None);
    polled.poll();
    assert!(paged.trap.trapped.load(Ordering::SeqCst));
    assert_eq!(paged.read32(offset::FSTS), 2);
    // The guest clears the record on the second page, writes back what it read, and goes on without exits.
    paged.write32(0x1010 + 12, 1 << 31);
    paged.write32(offset::FSTS, 2);
    polled.poll();
    assert!(!paged.trap.trapped.load(Ordering::SeqCst));
    assert_eq!(paged.read32(offset::FSTS), 0);
    paged.write32(offset::FEDATA, 0x31);
    polled.poll();
    assert_eq!(paged.guest.read32(offset::FEDATA), 0x31);
    // What was written just before the trap is not lost.
    let fault = paged
        .guest
        .translate(&paged.guest.view(), 0x5000, Access::Read);
    assert_eq!(fault, None);
    paged.write32(offset::FEDATA, 0x32);
    polled.poll();
    assert_eq!(paged.guest.read32(offset::FEDATA), 0x32);
    assert_eq!(paged.trap.switches.load(Ordering::SeqCst), 3);
}

/// A handler that reads FSTS as soon as it has the fault event must find the fault there: Linux takes an event without one for nothing.
#[test]
fn the_fault_event_comes_when_the_guest_can_see_the_fault() {
    let (paged, mut polled) = PagedGuest::new();
    paged.write32(offset::FEDATA, 0x31);
    paged.write32(offset::FEADDR, 0xfee0_0000);
    paged.write32(offset::FECTL, 0);
    paged.write32(offset::GCMD, Global::TRANSLATION.bits());
    polled.poll();
    let fault = || {
        let view = paged.guest.view();
        assert_eq!(paged.guest.translate(&view, 0x5000, Access::Read), None);
        assert_eq!(paged.guest.messages(), []);
    };
    let clear = || {
        paged.write32(0x1010 + 12, 1 << 31);
        paged.write32(offset::FSTS, 2);
    };
    fault();
    assert_eq!(paged.read32(offset::FSTS), 0);
    polled.poll();
    assert_eq!(paged.read32(offset::FSTS), 2);
    assert_eq!(paged.guest.messages().len(), 1);
    // An event that was not shown yet is lost neither with a snapshot nor with the sidecore.
    clear();
    polled.poll();
    fault();
    paged.guest.unit.save();
    assert_eq!(paged.guest.messages().len(), 1);
    polled.poll();
    clear();
    polled.poll();
    fault();
    drop(polled);
    assert_eq!(paged.guest.messages().len(), 1);
}

/// A driver on one thread, the sidecore on another: set-up, 2,000 strict unmaps that are each waited for, without one exit.
#[test]
fn a_driver_runs_without_exits() {
    let (paged, polled) = PagedGuest::new();
    let sidecore = Sidecore::start(Backoff {
        spins: 100,
        yields: 100,
        longest_sleep: Duration::from_micros(50),
    })
    .unwrap();
    sidecore.attach(polled);
    let until = |done: &dyn Fn() -> bool| {
        while !done() {
            thread::yield_now();
        }
    };
    let guest = &paged.guest;
    guest.context(CONTEXT.0, CONTEXT.1);
    let command = |set: Global| {
        let one_shot = Global::ROOT_TABLE_POINTER.bits();
        let status = paged.read32(offset::GSTS) & !one_shot;
        paged.write32(offset::GCMD, status | set.bits());
        until(&|| paged.read32(offset::GSTS) & set.bits() == set.bits());
    };
    paged.write64(offset::RTADDR, ROOT);
    command(Global::ROOT_TABLE_POINTER);
    paged.write64(offset::CCMD, 1 << 63 | 1 << 61);
    until(&|| paged.read64(offset::CCMD) >> 63 == 0);
    paged.write64(offset::IQA, QUEUE);
    paged.write64(offset::IQT, 0);
    command(Global::QUEUED_INVALIDATION);
    command(Global::TRANSLATION);

    let view = guest.view();
    let mut tail = 0;
    let mut submit = |descriptor: [u64; 2], round: u32| {
        for [low, high] in [descriptor, wait(round)] {
            guest.store(QUEUE + tail, low);
            guest.store(QUEUE + tail + 8, high);
            tail = (tail + 16) % 4096;
        }
        paged.write64(offset::IQT, tail);
        until(&|| guest.status() == round);
    };
    submit(iotlb_global(), 1);
    for round in 2..300 {
        guest.map_page(0x5000, 0x6000);
        assert_eq!(guest.translate(&view, 0x5000, Access::Write), Some(0x6000));
        guest.map_page(0x5000, 0x7000);
        submit(iotlb_pages(5, 0x5000, 0), round);
        assert_eq!(guest.translate(&view, 0x5000, Access::Write), Some(0x7000));
        guest.map_page(0x5000, 0x6000);
        submit(iotlb_pages(5, 0x5000, 0), round + 10_000);
    }
    assert_eq!(paged.exits.load(Ordering::Relaxed), 0);
    assert_eq!(paged.trap.switches.load(Ordering::SeqCst), 0);
    let counters = sidecore.counters();
    assert!(counters.writes >= 600 && counters.busy_polls <= counters.polls);
    assert!(counters.busy <= counters.elapsed);
    drop(sidecore);
    paged.write64(offset::IQT, 0);
}

proptest! {
    /// Any writes to the page between two looks end in the same registers as the same writes trapped, data first.
    #[test]
    fn polled_is_trapped(writes in prop::collection::vec((0..6_usize, any::<u64>(), any::<bool>()), 1..60)) {
        let (paged, mut polled) = PagedGuest::new();
        let trapped = Guest::new(Config::default().on_second_page());
        let registers = [offset::RTADDR, offset::FEADDR, offset::IQA, offset::IEADDR, offset::IRTA, offset::IQT];
        for (register, value, look) in writes {
            paged.write64(registers[register], value);
            trapped.unit.write(registers[register].into(), &value.to_le_bytes()).unwrap();
            if look {
                polled.poll();
            }
        }
        polled.poll();
        prop_assert_eq!(paged.guest.unit.save(), trapped.unit.save());
        for register in registers {
            prop_assert_eq!(paged.read64(register), trapped.read64(register));
        }
    }
}
