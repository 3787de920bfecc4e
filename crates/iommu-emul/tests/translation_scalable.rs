//! Scalable-mode translation: PASID tables, both stages and their nesting (VT-d §3.4.3, §3.6, §3.8, §7.1).

mod support;

use iommu_emul::{
    spec::register::offset,
    vtd::{Access, Config},
};
use support::{
    CONTEXTS, DEVICE, FIRST, Guest, MEMORY, PASID_DIRECTORY, PASID_TABLE, ROOT, SECOND, STATUS,
};

const FIRST_STAGE: u64 = 1 << 6;
const SECOND_STAGE: u64 = 2 << 6;
const NESTED: u64 = 3 << 6;
const PASS_THROUGH: u64 = 4 << 6;
const FOUR_LEVELS: u64 = 2 << 2;
/// Present, writable, user.
const FIRST_FLAGS: u64 = 7;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

fn guest(pasid: u64, entry: [u64; 3]) -> Guest {
    let guest = Guest::new(Config {
        scalable: true,
        first_stage: true,
        nested: true,
        pasid_bits: 20,
        ..Config::default()
    });
    guest.pasid_entry(pasid, entry);
    guest.start(1);
    guest
}

fn first_stage() -> Guest {
    guest(0, [FIRST_STAGE | 1, 9, FIRST])
}

fn second_stage() -> Guest {
    guest(0, [SECOND | SECOND_STAGE | FOUR_LEVELS | 1, 9, 0])
}

fn nested() -> Guest {
    guest(0, [SECOND | NESTED | FOUR_LEVELS | 1, 9, FIRST])
}

#[test]
fn second_stage_and_pass_through() {
    let guest = second_stage();
    guest.map_page(0x5000, 0x6000);
    let view = guest.view();
    assert_eq!(guest.translate(&view, 0x5008, Access::Write), Some(0x6008));
    assert_eq!(guest.translate(&view, 0x7000, Access::Write), None);
    assert_eq!(guest.take_fault(), Some((0x85, DEVICE.0, 0x7000)));

    let guest = self::guest(0, [PASS_THROUGH | 1, 9, 0]);
    let view = guest.view();
    assert_eq!(
        guest.translate(&view, 0x12_3456, Access::Write),
        Some(0x12_3456)
    );
}

/// §3.6.3: a walk sets the accessed flag of every entry it uses, a write the dirty flag of the page; a page that was only read is
/// not written from the cache, for its dirty flag would stay clear.
#[test]
fn first_stage_sets_accessed_and_dirty_flags() {
    let guest = first_stage();
    guest.map(FIRST, 4, 0x5000, (1, 0x6000 | FIRST_FLAGS), FIRST_FLAGS);
    let view = guest.view();
    assert_eq!(guest.load(FIRST) & ACCESSED, 0);
    assert_eq!(guest.translate(&view, 0x5008, Access::Read), Some(0x6008));
    assert_eq!(guest.load(FIRST) & (ACCESSED | DIRTY), ACCESSED);
    let mut place = FIRST;
    for level in [4, 3, 2] {
        let entry = guest.load(place);
        assert_eq!(entry & (ACCESSED | DIRTY), ACCESSED, "level {level}");
        place = entry & !0xfff;
    }
    place += 5 * 8;
    assert_eq!(guest.load(place) & (ACCESSED | DIRTY), ACCESSED);
    assert_eq!(guest.translate(&view, 0x5008, Access::Write), Some(0x6008));
    assert_eq!(guest.load(place) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
}

#[test]
fn first_stage_faults() {
    for (what, entry, access, code) in [
        ("not present", 0x6000, Access::Read, 0x71),
        (
            "reserved of a 2 MiB page",
            0x2000 | 1 << 7 | FIRST_FLAGS,
            Access::Read,
            0x72,
        ),
        ("supervisor", 0x20_0000 | 1 << 7 | 3, Access::Read, 0x81),
        ("read-only", 0x20_0000 | 1 << 7 | 5, Access::Write, 0x85),
        (
            "table beyond memory",
            MEMORY | FIRST_FLAGS,
            Access::Read,
            0x70,
        ),
        (
            "into the interrupt range",
            0xfee0_0000 | 1 << 7 | FIRST_FLAGS,
            Access::Write,
            0x87,
        ),
    ] {
        let guest = first_stage();
        guest.map(FIRST, 4, 0x5000, (2, entry), FIRST_FLAGS);
        let view = guest.view();
        assert_eq!(guest.translate(&view, 0x5000, access), None, "{what}");
        assert_eq!(guest.take_fault(), Some((code, DEVICE.0, 0x5000)), "{what}");
    }
    let guest = self::guest(0, [FIRST_STAGE | 1, 9, MEMORY]);
    assert_eq!(guest.translate(&guest.view(), 0x5000, Access::Read), None);
    assert_eq!(guest.take_fault(), Some((0x73, DEVICE.0, 0x5000)));
    let guest = nested();
    assert_eq!(guest.translate(&guest.view(), 0x5000, Access::Read), None);
    assert_eq!(guest.take_fault(), Some((0x75, DEVICE.0, 0x5000)));
    let guest = first_stage();
    let at = 0x0000_8000_0000_0000;
    assert_eq!(guest.translate(&guest.view(), at, Access::Read), None);
    assert_eq!(guest.take_fault(), Some((0x80, DEVICE.0, at)));
    let canonical = 0xffff_8000_0000_5000;
    guest.map(FIRST, 4, canonical, (1, 0x6000 | FIRST_FLAGS), FIRST_FLAGS);
    assert_eq!(
        guest.translate(&guest.view(), canonical, Access::Read),
        Some(0x6000)
    );
}

#[test]
fn nested_translation_goes_through_both_stages() {
    let guest = nested();
    // The second stage moves the first stage's tables and pages by 8 MiB.
    let moved = 0x80_0000;
    guest.map(SECOND, 4, 0, (2, moved | 0x83), 3);
    guest.map(SECOND, 4, 0x20_0000, (2, (0x20_0000 + moved) | 0x83), 3);
    let table = |i: u64| 0x21_0000 + 0x1000 * i;
    guest.store(FIRST + moved, table(0) | FIRST_FLAGS);
    guest.store(table(0) + moved, table(1) | FIRST_FLAGS);
    guest.store(table(1) + moved, table(2) | FIRST_FLAGS);
    guest.store(table(2) + moved + 5 * 8, 0x6000 | FIRST_FLAGS);
    let view = guest.view();
    assert_eq!(
        guest.translate(&view, 0x5008, Access::Write),
        Some(0x6008 + moved)
    );
    assert_eq!(
        guest.translate(&view, 0x5008, Access::Read),
        Some(0x6008 + moved)
    );

    // A page whose address the second stage does not map, and a table.
    guest.store(table(2) + moved + 6 * 8, 0x100_0000 | FIRST_FLAGS);
    assert_eq!(guest.translate(&view, 0x6000, Access::Read), None);
    assert_eq!(guest.take_fault(), Some((0x86, DEVICE.0, 0x6000)));
    guest.store(table(1) + moved + 8, 0x100_0000 | FIRST_FLAGS);
    assert_eq!(guest.translate(&view, 0x20_0000, Access::Read), None);
    assert_eq!(guest.take_fault(), Some((0x76, DEVICE.0, 0x20_0000)));
    // Beyond the second stage's 48 bits cannot be written in an entry that a 48-bit host allows: reserved.
    guest.store(table(1) + moved + 16, 1 << 48 | FIRST_FLAGS);
    assert_eq!(guest.translate(&view, 0x40_0000, Access::Read), None);
    assert_eq!(guest.take_fault(), Some((0x72, DEVICE.0, 0x40_0000)));
}

#[test]
fn requests_with_pasid() {
    let guest = guest(3, [SECOND | SECOND_STAGE | FOUR_LEVELS | 1, 9, 0]);
    guest.map_page(0x5000, 0x6000);
    let with = |pasid| guest.unit.view_with_pasid(DEVICE, pasid);
    assert_eq!(
        guest.translate(&with(3), 0x5000, Access::Read),
        Some(0x6000)
    );
    let blocked = |pasid| {
        assert_eq!(guest.translate(&with(pasid), 0x5000, Access::Read), None);
        let at = guest.unit.capabilities().config().fault_record_offset + 8;
        let high = guest.read64(at);
        assert_eq!(high >> 31 & 1, 1, "PASID present");
        assert_eq!(high >> 40 & 0xf_ffff, u64::from(pasid));
        guest.take_fault().unwrap().0
    };
    assert_eq!(blocked(4), 0x59);
    assert_eq!(blocked(64), 0x51);
    assert_eq!(blocked(128 * 64), 0x46);
    assert_eq!(guest.translate(&with(3), 0xfee0_0000, Access::Write), None);
    assert_eq!(guest.take_fault(), Some((0x87, DEVICE.0, 0xfee0_0000)));

    let legacy = support::legacy();
    let view = legacy.unit.view_with_pasid(DEVICE, 3);
    assert_eq!(legacy.translate(&view, 0x5000, Access::Read), None);
    assert_eq!(legacy.take_fault(), Some((0x31, DEVICE.0, 0x5000)));
}

#[test]
fn scalable_table_faults() {
    let context = CONTEXTS + 32 * 0x13;
    let entry = SECOND | SECOND_STAGE | FOUR_LEVELS | 1;
    for (what, at, word, code) in [
        ("root not present", ROOT + 16, CONTEXTS, 0x39),
        ("root reserved", ROOT + 16, CONTEXTS | 3, 0x3a),
        ("context beyond memory", ROOT + 16, MEMORY | 1, 0x40),
        ("context not present", context, PASID_DIRECTORY, 0x41),
        (
            "context reserved",
            context,
            PASID_DIRECTORY | 1 << 5 | 1,
            0x42,
        ),
        ("context's upper half reserved", context + 24, 1, 0x42),
        (
            "RID_PASID beyond the directory",
            context + 8,
            128 * 64,
            0x48,
        ),
        ("directory beyond memory", context, MEMORY | 1, 0x50),
        (
            "directory entry not present",
            PASID_DIRECTORY,
            PASID_TABLE,
            0x51,
        ),
        (
            "directory entry reserved",
            PASID_DIRECTORY,
            PASID_TABLE | 5,
            0x52,
        ),
        ("table beyond memory", PASID_DIRECTORY, MEMORY | 1, 0x58),
        ("entry not present", PASID_TABLE, entry & !1, 0x59),
        ("entry reserved", PASID_TABLE, entry | 1 << 10, 0x5a),
        ("entry's last word reserved", PASID_TABLE + 56, 1, 0x5a),
        (
            "reserved translation type",
            PASID_TABLE,
            entry | 7 << 6,
            0x5b,
        ),
        ("unsupported width", PASID_TABLE, entry | 1 << 2, 0x5b),
    ] {
        let guest = second_stage();
        guest.map_page(0x5000, 0x6000);
        guest.store(at, word);
        assert_eq!(
            guest.translate(&guest.view(), 0x5000, Access::Read),
            None,
            "{what}"
        );
        assert_eq!(guest.take_fault(), Some((code, DEVICE.0, 0x5000)), "{what}");
    }
    let guest = second_stage();
    guest.write64(offset::RTADDR, ROOT | 3 << 10);
    guest.command(iommu_emul::spec::register::Global::ROOT_TABLE_POINTER);
    assert_eq!(guest.translate(&guest.view(), 0x5000, Access::Read), None);
    assert_eq!(guest.take_fault(), Some((0x30, DEVICE.0, 0x5000)));
}

#[test]
fn the_upper_half_of_a_root_entry_serves_the_upper_functions() {
    let guest = second_stage();
    guest.map_page(0x5000, 0x6000);
    let upper = pio_mmio_bus::pci::RequesterId(0x0180 | 0x13);
    guest.store(support::CONTEXTS_UPPER + 32 * 0x13, PASID_DIRECTORY | 1);
    let view = guest.unit.view(upper);
    assert_eq!(guest.translate(&view, 0x5000, Access::Read), Some(0x6000));
}

#[test]
fn pasid_selective_invalidation() {
    let guest = first_stage();
    guest.map(FIRST, 4, 0x5000, (1, 0x6000 | FIRST_FLAGS), FIRST_FLAGS);
    guest.map(FIRST, 4, 0x7000, (1, 0x8000 | FIRST_FLAGS), FIRST_FLAGS);
    let view = guest.view();
    let both = || {
        (
            guest.translate(&view, 0x5000, Access::Read),
            guest.translate(&view, 0x7000, Access::Read),
        )
    };
    let cached = (Some(0x6000), Some(0x8000));
    assert_eq!(both(), cached);
    guest.store(FIRST, 0);
    let pages =
        |domain: u64, pasid: u64, address: u64| [pasid << 32 | domain << 16 | 3 << 4 | 6, address];
    let all = |domain: u64, pasid: u64| [pasid << 32 | domain << 16 | 2 << 4 | 6, 0];
    guest.submit_and_wait(&[pages(8, 0, 0x5000), pages(9, 1, 0x5000), all(9, 1)], 1);
    assert_eq!((guest.status(), both()), (1, cached));
    guest.submit_and_wait(&[pages(9, 0, 0x5000)], 2);
    assert_eq!(both(), (None, Some(0x8000)));
    guest.submit_and_wait(&[all(9, 0)], 3);
    assert_eq!(both(), (None, None));

    // The PASID-cache: a new entry counts after its invalidation.
    guest.store(PASID_TABLE, PASS_THROUGH | 1);
    assert_eq!(guest.translate(&view, STATUS, Access::Read), None);
    guest.submit_and_wait(&[[9 << 16 | 1 << 4 | 7, 0]], 4);
    assert_eq!(guest.status(), 4);
    assert_eq!(guest.translate(&view, STATUS, Access::Read), Some(STATUS));
}
