//! Linux's drivers, on a real Xen.

use std::time::Duration;

use grant_table::frame::Frame;
use grant_table::guest::Access;
use grant_table::linux::{
    self, EventDevice, GrantAllocator, GrantCopy, GrantDevice, GrantPart, LinuxError, MappedPages,
    SharedPages,
};
use grant_table::spec::DomId;
use grant_table::spec::event::Port;
use grant_table::spec::grant::{GrantRef, Refusal};

use super::suite::{Copy, End, OnUnmap, Refused, System};

/// How long an event may take. Those that never come take as long.
const PATIENCE: Duration = Duration::from_millis(200);

pub struct Linux {
    allocator: GrantAllocator,
    device: GrantDevice,
    events: EventDevice,
}

impl Linux {
    pub fn open() -> Result<Self, LinuxError> {
        Ok(Self {
            allocator: GrantAllocator::open()?,
            device: GrantDevice::open()?,
            events: EventDevice::open()?,
        })
    }
}

fn refused<T>(result: Result<T, LinuxError>) -> Result<T, Refused> {
    result.map_err(|error| {
        let why = std::error::Error::source(&error).map(ToString::to_string);
        eprintln!("conformance: {error}: {}", why.unwrap_or_default());
        Refused
    })
}

fn part(end: &End) -> GrantPart {
    GrantPart {
        domain: end.domain,
        reference: end.reference,
        offset: end.offset,
    }
}

fn on_unmap(what: OnUnmap) -> linux::OnUnmap {
    linux::OnUnmap {
        clear: Some(what.clear),
        notify: what.notify,
    }
}

impl System for Linux {
    type Shared = SharedPages;
    type Mapped = MappedPages;

    fn share(&mut self, domain: DomId, count: u32, access: Access) -> Result<SharedPages, Refused> {
        refused(self.allocator.allocate(domain, count, access))
    }

    fn shared(&self, shared: &SharedPages) -> Vec<(GrantRef, Frame)> {
        let references = shared.references().iter().copied();
        let pages = (0..).map_while(|page| shared.frame(page));
        references.zip(pages).collect()
    }

    fn on_release(&mut self, shared: &SharedPages, what: OnUnmap) -> Result<(), Refused> {
        refused(shared.on_unmap(0, on_unmap(what)))
    }

    fn release(&mut self, shared: SharedPages) {
        drop(shared);
    }

    fn settle(&mut self) {
        // The kernel looks each second.
        std::thread::sleep(Duration::from_secs(3));
    }

    fn map(
        &mut self,
        domain: DomId,
        references: &[GrantRef],
        access: Access,
    ) -> Result<MappedPages, Refused> {
        refused(self.device.map(domain, references, access))
    }

    fn mapped(&self, mapped: &MappedPages) -> Vec<Frame> {
        (0..).map_while(|page| mapped.frame(page)).collect()
    }

    fn on_unmap(&mut self, mapped: &MappedPages, what: OnUnmap) -> Result<(), Refused> {
        refused(mapped.on_unmap(0, on_unmap(what)))
    }

    fn unmap(&mut self, mapped: MappedPages) {
        drop(mapped);
    }

    fn copy(&mut self, copies: &mut [Copy<'_>]) -> Result<Vec<Result<(), Refusal>>, Refused> {
        let mut copies: Vec<_> = copies
            .iter_mut()
            .map(|copy| match copy {
                Copy::Read(from, into) => GrantCopy::Read {
                    from: part(from),
                    into,
                },
                Copy::Write(from, to) => GrantCopy::Write { from, to: part(to) },
                Copy::Between(from, to, length) => GrantCopy::Between {
                    from: part(from),
                    to: part(to),
                    length: *length,
                },
            })
            .collect();
        refused(self.device.copy(&mut copies))
    }

    fn bind_unbound(&mut self, remote: DomId) -> Result<Port, Refused> {
        refused(self.events.bind_unbound(remote))
    }

    fn bind_interdomain(&mut self, remote: DomId, port: Port) -> Result<Port, Refused> {
        refused(self.events.bind_interdomain(remote, port))
    }

    fn bind_virq(&mut self, virq: u32) -> Result<Port, Refused> {
        refused(self.events.bind_virq(virq))
    }

    fn unbind(&mut self, port: Port) -> Result<(), Refused> {
        refused(self.events.unbind(port))
    }

    fn notify(&mut self, port: Port) -> Result<(), Refused> {
        refused(self.events.notify(port))
    }

    fn take(&mut self) -> Vec<Port> {
        self.events.wait(PATIENCE).unwrap();
        self.events.take().unwrap()
    }

    fn unmask(&mut self, port: Port) {
        self.events.unmask(&[port]).unwrap();
    }
}
