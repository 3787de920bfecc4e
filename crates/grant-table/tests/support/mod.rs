//! Domains with memory and grants in this process.
#![allow(dead_code, reason = "each test uses some of it")]
#![allow(clippy::cast_possible_truncation, reason = "test code")]

use std::sync::Arc;

use grant_table::frame::Frame;
use grant_table::guest::{Access, Grants};
use grant_table::hypervisor::{Caller, DomainConfig, Hypervisor, Pages};
use grant_table::spec::DomId;
use grant_table::spec::grant::{
    Copy, CopyFlags, CopySide, EntryFlags, GrantRef, Header, MapFlags, MapGrantRef, Refusal,
    UnmapGrantRef,
};

pub const OWN: u64 = 16;
pub const PAGES: u64 = 600;
/// Addresses from here on have no pages.
pub const FREE: u64 = OWN * 4096;

pub const READ: u32 = MapFlags::HOST.bits() | MapFlags::READONLY.bits();
pub const WRITE: u32 = MapFlags::HOST.bits();
pub const DEVICE: u32 = MapFlags::DEVICE.bits();

/// Domains 0, 1 and 2, each with 16 pages and room for more, that may map for devices.
pub struct World {
    pub hypervisor: Hypervisor,
    pub pages: Vec<Arc<Pages>>,
}

impl World {
    pub fn new() -> Self {
        Self::with(DomainConfig {
            device_mappings: true,
            vcpus: 2,
            ..DomainConfig::default()
        })
    }

    pub fn with(config: DomainConfig) -> Self {
        let hypervisor = Hypervisor::new();
        let pages = (0..3)
            .map(|id| {
                let pages = Arc::new(Pages::new(PAGES as usize, OWN as usize, OWN as usize + 2));
                let privileged = id == 0;
                let config = DomainConfig {
                    privileged,
                    ..config
                };
                hypervisor
                    .create(DomId(id), config, Arc::clone(&pages))
                    .unwrap();
                pages
            })
            .collect();
        Self { hypervisor, pages }
    }

    pub fn caller(&self, id: u16) -> Caller<'_> {
        self.hypervisor.caller(DomId(id), 0).unwrap()
    }

    /// The guest side of a domain's table, as it is now.
    pub fn grants(&self, id: u16) -> Grants {
        Grants::new(self.caller(id).setup_table(DomId::SELF, 1).unwrap())
    }

    pub fn version2(&self, id: u16) -> Grants {
        self.caller(id).set_version(2).unwrap();
        self.grants(id)
    }

    pub fn page(&self, id: u16, number: u64) -> Frame {
        self.pages[usize::from(id)].reach(number).unwrap().0
    }

    /// What maps `reference` of domain 0 into domain `user` at `address`.
    pub fn map(
        &self,
        user: u16,
        reference: GrantRef,
        flags: u32,
        address: u64,
    ) -> Result<u32, i16> {
        let mut op = [MapGrantRef {
            host_address: address,
            flags,
            reference,
            ..MapGrantRef::default()
        }];
        self.caller(user).map(&mut op);
        answer(op[0].status, op[0].handle)
    }

    pub fn unmap(&self, user: u16, handle: u32, address: u64, device: u64) -> i16 {
        let mut op = [UnmapGrantRef {
            host_address: address,
            device_address: device,
            handle,
            ..UnmapGrantRef::default()
        }];
        self.caller(user).unmap(&mut op);
        op[0].status
    }

    pub fn copy(
        &self,
        user: u16,
        source: CopySide,
        dest: CopySide,
        length: u16,
        flags: CopyFlags,
    ) -> i16 {
        let mut op = [Copy {
            source,
            dest,
            length,
            flags: flags.bits(),
            ..Copy::default()
        }];
        self.caller(user).copy(&mut op);
        op[0].status
    }

    /// Copies the start of a grant of domain `from` to page 0 of domain `user`.
    pub fn read(&self, user: u16, from: u16, reference: GrantRef, length: u16) -> i16 {
        self.copy(
            user,
            side(from, reference.0, 0),
            own(0, 0),
            length,
            CopyFlags::SOURCE_REF,
        )
    }

    /// Copies page 0 of domain `user` to the start of a grant of domain `to`.
    pub fn write(&self, user: u16, to: u16, reference: GrantRef, length: u16) -> i16 {
        self.copy(
            user,
            own(0, 0),
            side(to, reference.0, 0),
            length,
            CopyFlags::DEST_REF,
        )
    }

    /// Nobody uses any entry of the domain.
    pub fn assert_unused(&self, id: u16) {
        let caller = self.caller(id);
        for reference in (0..).map(GrantRef) {
            match caller.pin(reference) {
                Some(pin) => assert!(pin.is_free(), "{reference:?} {pin:?}"),
                None => break,
            }
        }
    }
}

fn answer<T>(status: i16, value: T) -> Result<T, i16> {
    if status == 0 { Ok(value) } else { Err(status) }
}

pub fn side(domain: u16, page: u32, offset: u16) -> CopySide {
    CopySide {
        page: page.into(),
        domain: DomId(domain),
        offset,
        padding: 0,
    }
}

pub fn own(frame: u64, offset: u16) -> CopySide {
    CopySide {
        page: frame,
        domain: DomId::SELF,
        offset,
        padding: 0,
    }
}

/// A reference of `grants` by which domain 1 may use page `frame`.
pub fn grant(grants: &Grants, frame: u64, access: Access) -> GrantRef {
    let reference = grants.allocate().unwrap();
    grants.grant(reference, DomId(1), frame, access).unwrap();
    reference
}

/// The header of an entry.
pub fn header(grants: &Grants, reference: GrantRef) -> Header {
    let word = grants.table().header(reference).unwrap();
    Header::from_word(word.load(std::sync::atomic::Ordering::SeqCst))
}

/// Overwrites the header of an entry, as a guest can at any time.
pub fn set_header(grants: &Grants, reference: GrantRef, flags: EntryFlags, domain: u16) {
    let header = Header {
        flags,
        domain: DomId(domain),
    };
    let word = grants.table().header(reference).unwrap();
    word.store(header.word(), std::sync::atomic::Ordering::SeqCst);
}

pub fn status(refusal: Refusal) -> i16 {
    refusal as i16
}

pub fn bytes(frame: &Frame, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    assert!(frame.read(offset, &mut bytes));
    bytes
}
