//! Fuzzed tables against a model walk (THREATS: page walk — reserved bits, non-canonical, superpage misalignment, read-only + write,
//! loops through tables that the guest rewrites; QEMU intel-iommu history).

mod support;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use iommu_emul::vtd::{Access, Config};
use proptest::prelude::*;
use support::{FIRST, Guest, MEMORY, SECOND, iotlb_global, legacy};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

/// Tables are the pages from here on; entries point among them, so that loops are common.
const TABLES: u64 = SECOND;
const PAGES: u64 = 6;

/// An entry: often a pointer to a table or a page, sometimes with something wrong, sometimes anything.
fn entry() -> impl Strategy<Value = u64> {
    let pointer =
        (0..PAGES + 2, 0..4_u64, prop::bool::weighted(0.2)).prop_map(|(page, flags, large)| {
            let large = if large { 1 << 7 } else { 0 };
            (TABLES + 0x1000 * page) | flags | large
        });
    let page = (0..4_u64, 0..8_u64).prop_map(|(flags, n)| n << 30 | n << 21 | 1 << 7 | flags);
    let wrong = (0..64_u32).prop_map(|bit| TABLES | 3 | 1 << bit);
    prop_oneof![6 => pointer, 2 => page, 1 => wrong, 1 => any::<u64>(), 1 => Just(0xfee0_0003)]
}

/// An address whose indices are small in every level, so that it finds the few entries that exist.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..3_u64, 0..3_u64, 0..3_u64, 0..3_u64, 0..4096_u64)
            .prop_map(|(a, b, c, d, low)| a << 39 | b << 30 | c << 21 | d << 12 | low),
        1 => any::<u64>(),
    ]
}

/// The specification's walk, as plainly as it can be said: the translation, or the fault.
fn model(load: &impl Fn(u64) -> Option<u64>, address: u64, write: bool) -> Result<u64, u8> {
    if (0xfee0_0000..=0xfeef_ffff).contains(&address) {
        return Err(0xe);
    }
    if address >= 1 << 48 {
        return Err(4);
    }
    let (mut table, mut readable, mut writable) = (SECOND, true, true);
    for level in [4_u32, 3, 2, 1] {
        let shift = 12 + 9 * (level - 1);
        let entry = load(table + (address >> shift & 511) * 8).ok_or(7)?;
        let page = level == 1 || level < 4 && entry >> 7 & 1 == 1;
        if entry & 3 != 0 {
            let low = if page { (1 << shift) - 4096 } else { 0 };
            let top = if level == 4 { 1 << 7 } else { 0 };
            let high = 0x000f_0000_0000_0000;
            if entry & (1 << 62 | 1 << 11 | low | top | high) != 0 {
                return Err(0xc);
            }
        }
        readable &= entry & 1 == 1;
        writable &= entry & 2 == 2;
        if write && !writable {
            return Err(5);
        }
        if !write && !readable {
            return Err(6);
        }
        table = entry & 0x000f_ffff_ffff_f000;
        if page {
            let to = table | address & ((1 << shift) - 1);
            return if (0xfee0_0000..=0xfeef_ffff).contains(&to) {
                Err(0xe)
            } else {
                Ok(to)
            };
        }
    }
    Err(u8::MAX)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn second_stage_walks_agree_with_the_model(
        flags in prop::collection::vec(prop_oneof![6 => Just(3_u64), 2 => 0..3_u64], 12),
        entries in prop::collection::vec((0..PAGES, 0..3_u64, entry()), 0..8),
        accesses in prop::collection::vec((address(), any::<bool>()), 1..24),
    ) {
        let guest = legacy();
        // A table for each level whose first entries all lead to the next, then what spoils them.
        for (flags, i) in flags.into_iter().zip(0..) {
            let (page, index) = (i / 3, i % 3);
            guest.store(TABLES + 0x1000 * page + 8 * index, (TABLES + 0x1000 * (page + 1)) | flags);
        }
        for (page, index, entry) in entries {
            guest.store(TABLES + 0x1000 * page + 8 * index, entry);
        }
        let view = guest.view();
        let load = |at: u64| (at <= MEMORY - 8).then(|| guest.load(at));
        for (address, write) in accesses {
            let access = if write { Access::Write } else { Access::Read };
            let expected = model(&load, address, write);
            let got = guest.translate(&view, address, access);
            prop_assert_eq!(got, expected.ok());
            let fault = guest.take_fault();
            prop_assert_eq!(fault.map(|(code, _, at)| (code, at)), expected.err().map(|code| (code, address & !0xfff)));
            // What is cached now answers the same for either access, to the last byte that it says is contiguous.
            if let Some((to, length)) = view.memory().translate(GuestAddress(address), access) {
                let last = address + (length - 1);
                prop_assert_eq!(model(&load, last, write), Ok(to.0 + (length - 1)));
                for (access, write) in [(Access::Read, false), (Access::Write, true)] {
                    let cached = guest.translate(&view, address, access);
                    prop_assert_eq!(cached, model(&load, address, write).ok());
                }
                guest.submit_and_wait(&[iotlb_global()], 1);
            }
            let _ = guest.take_fault();
        }
    }
}

/// Tables that change while they are walked, in both stages: every walk ends, and what it finds is one of the pages that existed.
#[test]
fn tables_that_change_meanwhile() {
    let guest = Guest::new(Config {
        scalable: true,
        first_stage: true,
        nested: true,
        ..Config::default()
    });
    guest.pasid_entry(0, [SECOND | 3 << 6 | 2 << 2 | 1, 9, FIRST]);
    guest.start(1);
    guest.map(SECOND, 4, 0, (2, 0x83), 3);
    guest.map(SECOND, 4, 0x20_0000, (2, 0x20_0083), 3);
    guest.map(FIRST, 4, 0x5000, (1, 0x6007), 7);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut seed = 1_u64;
            while !stop.load(Ordering::Relaxed) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = if seed >> 63 == 0 { FIRST } else { SECOND };
                let old = guest.load(at);
                guest.store(at, seed >> 20);
                guest
                    .memory
                    .store(old, GuestAddress(at), Ordering::Relaxed)
                    .unwrap();
            }
        });
        let view = guest.view();
        for round in 0..20_000_u32 {
            let access = if round % 2 == 0 {
                Access::Read
            } else {
                Access::Write
            };
            let found = view.memory().translate(GuestAddress(0x5008), access);
            if let Some((to, _)) = found {
                assert!(to.0 & 0xfff == 8 || to.0 & 0x1f_ffff == 0x5008);
            }
            if round % 16 == 0 {
                guest.submit_and_wait(&[iotlb_global()], round);
            }
            let _ = guest.take_fault();
        }
        stop.store(true, Ordering::Relaxed);
    });
}
