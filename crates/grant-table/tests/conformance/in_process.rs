//! What Linux's drivers do, on the hypervisor in this process.

use std::cell::Cell;
use std::sync::Arc;

use grant_table::event::{EventCaller, EventChannels, EventConfig, TwoLevelEvents, Upcall};
use grant_table::frame::Frame;
use grant_table::guest::{Access, Grants};
use grant_table::hypervisor::{Caller, DomainConfig, Hypervisor, Pages};
use grant_table::spec::event::Port;
use grant_table::spec::grant::{
    self, CopyFlags, CopySide, GrantRef, MapFlags, MapGrantRef, Refusal, UnmapGrantRef,
};
use grant_table::spec::{DomId, Errno};

use super::suite::{Copy, DOMAIN, End, OnUnmap, Refused, System};

/// The page numbers of what is granted, of what is mapped, and of the program's memory.
const OWN: std::ops::Range<u64> = 0..16;
const MAPPED: std::ops::Range<u64> = 16..32;
const BUFFER: u64 = 0;

/// The events wait until they are taken.
struct NoUpcall;

impl Upcall for NoUpcall {
    fn raise(&self, _vcpu: usize) {}
}

/// A domain that grants to itself.
pub struct InProcess {
    hypervisor: Hypervisor,
    pages: Arc<Pages>,
    grants: Grants,
    /// Numbers of pages that are not granted.
    own: Vec<u64>,
    /// Numbers that have no page.
    free: Vec<u64>,
    /// What was released while it was used.
    ending: Vec<(GrantRef, u64)>,
    channels: EventChannels,
    events: TwoLevelEvents,
}

pub struct Shared {
    pages: Vec<(GrantRef, u64)>,
    on_release: Cell<Option<OnUnmap>>,
}

pub struct Mapped {
    /// The handle and the number of each page.
    pages: Vec<(u32, u64)>,
    read_only: bool,
    on_unmap: Cell<Option<OnUnmap>>,
}

impl InProcess {
    pub fn new() -> Self {
        let hypervisor = Hypervisor::new();
        let pages = Arc::new(Pages::new(32, 16, 16));
        let config = DomainConfig {
            privileged: true,
            ..DomainConfig::default()
        };
        hypervisor.create(DOMAIN, config, pages.clone()).unwrap();
        let table = hypervisor
            .caller(DOMAIN, 0)
            .unwrap()
            .setup_table(DomId::SELF, 1)
            .unwrap();
        let shared_info = Frame::allocate();
        let channels = EventChannels::new();
        let config = EventConfig {
            vcpus: 1,
            shared_info: shared_info.clone(),
            upcall: Box::new(NoUpcall),
            privileged: true,
            pirqs: Vec::new(),
            max_ports: 64,
        };
        channels.create(DOMAIN, config).unwrap();
        Self {
            hypervisor,
            pages,
            grants: Grants::new(table),
            own: OWN.filter(|&number| number != BUFFER).collect(),
            free: MAPPED.collect(),
            ending: Vec::new(),
            channels,
            events: TwoLevelEvents::new(shared_info, 0).unwrap(),
        }
    }

    fn caller(&self) -> Caller<'_> {
        self.hypervisor.caller(DOMAIN, 0).unwrap()
    }

    fn ports(&self) -> EventCaller<'_> {
        self.channels.caller(DOMAIN).unwrap()
    }

    /// A port is unmasked when it is bound.
    fn bound(&self, port: Result<Port, Errno>) -> Result<Port, Refused> {
        let port = port.map_err(|_| Refused)?;
        self.ports().unmask(port).unwrap();
        Ok(port)
    }

    fn page(&self, number: u64) -> Frame {
        self.pages.reach(number).unwrap().0
    }

    fn unmapped(&self, page: u64, what: Option<OnUnmap>) {
        let Some(OnUnmap { clear, notify }) = what else {
            return;
        };
        assert!(self.page(page).write(clear.into(), &[0]));
        if let Some(port) = notify {
            self.ports().send(port).unwrap();
        }
    }

    fn unmap_pages(&mut self, pages: &[(u32, u64)]) {
        let mut operations: Vec<_> = pages
            .iter()
            .map(|&(handle, number)| UnmapGrantRef {
                host_address: number * 4096,
                handle,
                ..UnmapGrantRef::default()
            })
            .collect();
        self.caller().unmap(&mut operations);
        assert!(operations.iter().all(|operation| operation.status == 0));
        self.free.extend(pages.iter().map(|(_, number)| number));
    }

    /// One operation, as the driver makes it, which refuses what leaves a page.
    fn copy_one(&self, source: Side, dest: Side, length: usize) -> Result<(), Refusal> {
        let (flags, source) = source.operand(CopyFlags::SOURCE_REF);
        let (more, dest) = dest.operand(CopyFlags::DEST_REF);
        let mut operation = [grant::Copy {
            source,
            dest,
            length: length.try_into().unwrap(),
            flags: (flags | more).bits(),
            ..grant::Copy::default()
        }];
        self.caller().copy(&mut operation);
        match operation[0].status {
            0 => Ok(()),
            status => Err(Refusal::from_status(status)),
        }
    }
}

/// Of a copy: a grant, or the program's memory.
enum Side {
    Grant(End),
    Buffer,
}

impl Side {
    fn operand(&self, flag: CopyFlags) -> (CopyFlags, CopySide) {
        match *self {
            Self::Grant(end) => (
                flag,
                CopySide {
                    page: end.reference.0.into(),
                    domain: end.domain,
                    offset: end.offset,
                    padding: 0,
                },
            ),
            Self::Buffer => (
                CopyFlags::empty(),
                CopySide {
                    page: BUFFER,
                    domain: DomId::SELF,
                    ..CopySide::default()
                },
            ),
        }
    }
}

impl System for InProcess {
    type Shared = Shared;
    type Mapped = Mapped;

    fn share(&mut self, domain: DomId, count: u32, access: Access) -> Result<Shared, Refused> {
        let pages = (0..count).map(|_| {
            let reference = self.grants.allocate().unwrap();
            let number = self.own.pop().unwrap();
            self.page(number).clear();
            self.grants
                .grant(reference, domain, number, access)
                .unwrap();
            (reference, number)
        });
        let pages = pages.collect::<Vec<_>>();
        Ok(Shared {
            pages,
            on_release: Cell::default(),
        })
    }

    fn shared(&self, shared: &Shared) -> Vec<(GrantRef, Frame)> {
        let page = |&(reference, number)| (reference, self.page(number));
        shared.pages.iter().map(page).collect()
    }

    fn on_release(&mut self, shared: &Shared, what: OnUnmap) -> Result<(), Refused> {
        shared.on_release.set(Some(what));
        Ok(())
    }

    fn release(&mut self, shared: Shared) {
        self.unmapped(shared.pages[0].1, shared.on_release.get());
        self.ending.extend(shared.pages);
        self.settle();
    }

    fn settle(&mut self) {
        for (reference, number) in std::mem::take(&mut self.ending) {
            if self.grants.end(reference).is_ok() {
                self.grants.release(reference).unwrap();
                self.own.push(number);
            } else {
                self.ending.push((reference, number));
            }
        }
    }

    fn map(
        &mut self,
        domain: DomId,
        references: &[GrantRef],
        access: Access,
    ) -> Result<Mapped, Refused> {
        if references.is_empty() {
            return Err(Refused);
        }
        let read_only = access == Access::ReadOnly;
        let mut flags = MapFlags::HOST;
        flags.set(MapFlags::READONLY, read_only);
        let mut operations: Vec<_> = references
            .iter()
            .map(|&reference| MapGrantRef {
                host_address: self.free.pop().unwrap() * 4096,
                flags: flags.bits(),
                reference,
                domain,
                ..MapGrantRef::default()
            })
            .collect();
        self.caller().map(&mut operations);
        let mut pages = Vec::new();
        for operation in &operations {
            let number = operation.host_address / 4096;
            match operation.status {
                0 => pages.push((operation.handle, number)),
                _ => self.free.push(number),
            }
        }
        if pages.len() < references.len() {
            self.unmap_pages(&pages);
            return Err(Refused);
        }
        Ok(Mapped {
            pages,
            read_only,
            on_unmap: Cell::default(),
        })
    }

    fn mapped(&self, mapped: &Mapped) -> Vec<Frame> {
        let page = |&(_, number)| self.page(number);
        mapped.pages.iter().map(page).collect()
    }

    fn on_unmap(&mut self, mapped: &Mapped, what: OnUnmap) -> Result<(), Refused> {
        if mapped.read_only {
            return Err(Refused);
        }
        mapped.on_unmap.set(Some(what));
        Ok(())
    }

    fn unmap(&mut self, mapped: Mapped) {
        self.unmapped(mapped.pages[0].1, mapped.on_unmap.get());
        self.unmap_pages(&mapped.pages);
    }

    fn copy(&mut self, copies: &mut [Copy<'_>]) -> Result<Vec<Result<(), Refusal>>, Refused> {
        let buffer = self.page(BUFFER);
        let within = |end: &End, length: usize| usize::from(end.offset) + length <= 4096;
        let mut results = Vec::new();
        for copy in copies {
            results.push(match copy {
                Copy::Read(from, into) => {
                    if !within(from, into.len()) {
                        return Err(Refused);
                    }
                    let result = self.copy_one(Side::Grant(*from), Side::Buffer, into.len());
                    assert!(result.is_err() || buffer.read(0, into));
                    result
                }
                Copy::Write(from, to) => {
                    if !within(to, from.len()) {
                        return Err(Refused);
                    }
                    assert!(buffer.write(0, from));
                    self.copy_one(Side::Buffer, Side::Grant(*to), from.len())
                }
                Copy::Between(from, to, length) => {
                    self.copy_one(Side::Grant(*from), Side::Grant(*to), (*length).into())
                }
            });
        }
        Ok(results)
    }

    fn bind_unbound(&mut self, remote: DomId) -> Result<Port, Refused> {
        let port = self.ports().alloc_unbound(DomId::SELF, remote);
        self.bound(port)
    }

    fn bind_interdomain(&mut self, remote: DomId, port: Port) -> Result<Port, Refused> {
        let port = self.ports().bind_interdomain(remote, port);
        self.bound(port)
    }

    fn bind_virq(&mut self, virq: u32) -> Result<Port, Refused> {
        self.bound(self.ports().bind_virq(virq, 0))
    }

    fn unbind(&mut self, port: Port) -> Result<(), Refused> {
        self.ports().close(port).map_err(|_| Refused)
    }

    fn notify(&mut self, port: Port) -> Result<(), Refused> {
        self.ports().send(port).map_err(|_| Refused)
    }

    fn take(&mut self) -> Vec<Port> {
        let ports = self.events.take();
        ports.iter().for_each(|&port| self.events.mask(port));
        ports
    }

    fn unmask(&mut self, port: Port) {
        self.ports().unmask(port).unwrap();
    }
}
