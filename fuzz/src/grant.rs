//! Guests that do anything to each other's grants, rings and the store.
//!
//! The hypervisor is compared with a model that keeps, for each entry, a list of who uses it and how.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use grant_table::block::{BlockBack, Disk, Limits};
use grant_table::foreign::InProcess;
use grant_table::frame::Frame;
use grant_table::guest::{Access, Grants};
use grant_table::hypervisor::{DomainConfig, Hypervisor, Pages, Pin};
use grant_table::net::NetBack;
use grant_table::spec::DomId;
use grant_table::spec::grant::{
    Copy, CopyFlags, CopySide, EntryFlags, GrantRef, Header, MapFlags, MapGrantRef, UnmapGrantRef,
};
use grant_table::xenstore::{Connection, Quota, XenStore};

/// Entries that the guests play with.
const ENTRIES: u32 = 4;
/// Pages that each domain owns, and numbers that it has to map at.
const OWN: u64 = 4;
const ROOM: u64 = 24;

/// A mapping, as the model knows it.
struct Mapping {
    handle: u32,
    reference: GrantRef,
    flags: MapFlags,
    address: u64,
}

/// Domain 0 rewrites its entries and domain 1 maps, unmaps and copies: five bytes a step.
///
/// # Panics
///
/// The counts of an entry are not those of the model, or its marks do not fit the counts.
pub fn grant(data: &[u8]) {
    let [version, steps @ ..] = data else { return };
    let hypervisor = Hypervisor::new();
    let config = DomainConfig {
        device_mappings: true,
        ..DomainConfig::default()
    };
    for id in [0, 1] {
        let pages = Pages::new(64, 4, 8);
        assert!(hypervisor.create(DomId(id), config, pages).is_ok());
    }
    let (Some(zero), Some(one)) = (
        hypervisor.caller(DomId(0), 0),
        hypervisor.caller(DomId(1), 0),
    ) else {
        return;
    };
    let version = u32::from(version % 2) + 1;
    assert!(zero.set_version(version).is_ok());
    let Ok(table) = zero.setup_table(DomId::SELF, 1) else {
        return;
    };
    let grants = Grants::new(table);
    let mut mappings: Vec<Mapping> = Vec::new();
    for step in steps.chunks_exact(5) {
        let &[what, which, a, b, c] = step else { break };
        let reference = GrantRef(8 + u32::from(which) % ENTRIES);
        let status = match what % 6 {
            0 => {
                rewrite(&grants, reference, [a, b, c]);
                continue;
            }
            1 => {
                // The guest's own side keeps to the rules.
                let _ended = grants.end(reference);
                let access = if a % 2 == 0 {
                    Access::ReadOnly
                } else {
                    Access::ReadWrite
                };
                let _granted = grants.grant(reference, DomId(1), u64::from(b) % (OWN + 1), access);
                continue;
            }
            2 | 3 => map(&one, reference, [a, b], &mut mappings),
            4 => unmap(&one, [a, b], &mut mappings),
            _ => copy(&one, reference, [a, b, c]),
        };
        assert!((-13..=0).contains(&status), "{status}");
        for reference in (8..8 + ENTRIES).map(GrantRef) {
            let expected = mappings
                .iter()
                .filter(|mapping| mapping.reference == reference)
                .fold(Pin::default(), count);
            assert_eq!(zero.pin(reference), Some(expected), "{reference:?}");
        }
    }
    for mapping in &mappings {
        let mut op = [UnmapGrantRef {
            host_address: mapping.address,
            handle: mapping.handle,
            ..UnmapGrantRef::default()
        }];
        one.unmap(&mut op);
    }
    for reference in (8..8 + ENTRIES).map(GrantRef) {
        let left = mappings
            .iter()
            .filter(|mapping| mapping.reference == reference);
        if left
            .clone()
            .all(|mapping| !mapping.flags.contains(MapFlags::DEVICE))
        {
            assert_eq!(zero.pin(reference), Some(Pin::default()));
        }
    }
}

fn count(mut pin: Pin, mapping: &Mapping) -> Pin {
    let read = mapping.flags.contains(MapFlags::READONLY);
    let (host, device) = match read {
        true => (&mut pin.host_read, &mut pin.device_read),
        false => (&mut pin.host_write, &mut pin.device_write),
    };
    *host += u8::from(mapping.flags.contains(MapFlags::HOST));
    *device += u8::from(mapping.flags.contains(MapFlags::DEVICE));
    pin
}

/// Anything at all in the entry, at any time.
fn rewrite(grants: &Grants, reference: GrantRef, [a, b, c]: [u8; 3]) {
    let flags = EntryFlags::from_bits_retain(u16::from_le_bytes([a, b & 1]));
    let header = Header {
        flags,
        domain: DomId(u16::from(c % 3)),
    };
    let _fits = grants
        .table()
        .set_frame(reference, u64::from(c) % (OWN + 1));
    if let Some(word) = grants.table().header(reference) {
        word.store(header.word(), Ordering::SeqCst);
    }
}

fn map(
    one: &grant_table::hypervisor::Caller<'_>,
    reference: GrantRef,
    [a, b]: [u8; 2],
    mappings: &mut Vec<Mapping>,
) -> i16 {
    let flags = MapFlags::from_bits_retain(u32::from(a % 32));
    let address = (OWN + u64::from(b) % ROOM) * 4096;
    let mut op = [MapGrantRef {
        host_address: address,
        flags: flags.bits(),
        reference,
        ..MapGrantRef::default()
    }];
    one.map(&mut op);
    let [MapGrantRef { status, handle, .. }] = op;
    if status == 0 {
        mappings.push(Mapping {
            handle,
            reference,
            flags,
            address,
        });
    }
    status
}

fn unmap(
    one: &grant_table::hypervisor::Caller<'_>,
    [a, b]: [u8; 2],
    mappings: &mut Vec<Mapping>,
) -> i16 {
    let index = usize::from(a) % mappings.len().max(1);
    let mut op = [UnmapGrantRef {
        host_address: 4096,
        handle: a.into(),
        ..UnmapGrantRef::default()
    }];
    if let Some(mapping) = mappings.get(index) {
        // Sometimes at another address.
        let address = if b % 8 == 0 {
            mapping.address ^ 4096
        } else {
            mapping.address
        };
        op = [UnmapGrantRef {
            host_address: address,
            handle: mapping.handle,
            ..UnmapGrantRef::default()
        }];
    }
    one.unmap(&mut op);
    let [
        UnmapGrantRef {
            status,
            host_address,
            ..
        },
    ] = op;
    if let Some(mapping) = mappings.get_mut(index)
        && status == 0
        && host_address == mapping.address
    {
        mapping.flags -= MapFlags::HOST;
        if !mapping.flags.contains(MapFlags::DEVICE) {
            mappings.remove(index);
        }
    }
    status
}

fn copy(one: &grant_table::hypervisor::Caller<'_>, reference: GrantRef, [a, b, c]: [u8; 3]) -> i16 {
    let offset = u16::from_le_bytes([a, b & 0x1f]);
    let foreign = CopySide {
        page: reference.0.into(),
        offset,
        ..CopySide::default()
    };
    let own = CopySide {
        page: u64::from(a) % OWN,
        domain: DomId::SELF,
        ..CopySide::default()
    };
    let (source, dest, flags) = match c % 2 {
        0 => (foreign, own, CopyFlags::SOURCE_REF),
        _ => (own, foreign, CopyFlags::DEST_REF),
    };
    let length = u16::from(c) * 33;
    let mut op = [Copy {
        source,
        dest,
        length,
        flags: flags.bits(),
        ..Copy::default()
    }];
    one.copy(&mut op);
    let [Copy { status, .. }] = op;
    status
}

struct Zeros;

impl Disk for Zeros {
    fn sectors(&self) -> u64 {
        64
    }

    fn read(&mut self, sector: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        assert!(sector * 512 + bytes.len() as u64 <= 64 * 512);
        bytes.fill(0);
        Ok(())
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> std::io::Result<()> {
        assert!(sector * 512 + bytes.len() as u64 <= 64 * 512);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Any bytes in the rings of a disk and a network device: their back ends survive, and use no page when they have answered.
///
/// # Panics
///
/// A page stays in use, or the disk is asked for sectors that it does not have.
pub fn grant_rings(data: &[u8]) {
    let hypervisor = Arc::new(Hypervisor::new());
    let (front, back) = (
        Arc::new(Pages::new(16, 16, 16)),
        Arc::new(Pages::new(256, 1, 1)),
    );
    for (id, pages) in [(1, &front), (0, &back)] {
        assert!(
            hypervisor
                .create(DomId(id), DomainConfig::default(), Arc::clone(pages))
                .is_ok()
        );
    }
    let table = hypervisor
        .caller(DomId(1), 0)
        .and_then(|caller| caller.setup_table(DomId::SELF, 1).ok());
    let Some(table) = table else { return };
    let grants = Grants::new(table);
    for page in 0..8 {
        let reference = grants.allocate().unwrap_or_default();
        assert!(
            grants
                .grant(reference, DomId(0), page, Access::ReadWrite)
                .is_ok()
        );
    }
    let ring = Frame::allocate();
    let foreign = || {
        InProcess::new(
            Arc::clone(&hypervisor),
            DomId(0),
            Arc::clone(&back),
            0,
            1..256,
        )
    };
    let limits = Limits {
        indirect_segments: 64,
        persistent: 0,
        read_only: false,
    };
    let block = BlockBack::new(vec![ring.clone()], DomId(1), foreign(), Zeros, limits);
    let net = NetBack::new(
        vec![ring.clone()],
        vec![Frame::allocate()],
        DomId(1),
        foreign(),
    );
    let (Ok(mut block), Ok(mut net)) = (block, net) else {
        return;
    };
    for part in data.chunks(4096) {
        assert!(ring.write(0, part));
        let _broken = block.serve();
        let _broken = net.serve(|packet| assert!(packet.bytes.len() >= 14));
    }
    for reference in (8..16).map(GrantRef) {
        assert_eq!(grants.is_used(reference), Ok(false), "{reference:?}");
    }
}

/// Any bytes in a domain's page of the store.
///
/// # Panics
///
/// Never: that is the point.
pub fn xenstore(data: &[u8]) {
    let mut store = XenStore::new(Quota::default());
    store.introduce(DomId(1));
    let page = Frame::allocate();
    let mut connection = Connection::new(DomId(1), page.clone());
    let mut produced = 0u32;
    for part in data.chunks(256) {
        // Where the ring is now, and as if the domain had taken all answers.
        for (index, byte) in part.iter().enumerate() {
            let at = (usize::try_from(produced).unwrap_or(0) + index) % 1024;
            assert!(page.write(at, &[*byte]));
        }
        produced = produced.wrapping_add(u32::try_from(part.len()).unwrap_or(0));
        let words = [2052, 2056, 2060].map(|at| page.u32(at));
        if let [Some(producer), Some(taken), Some(answers)] = words {
            producer.store(produced, Ordering::SeqCst);
            taken.store(answers.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        if connection.serve(&mut store).is_err() {
            return;
        }
    }
}
