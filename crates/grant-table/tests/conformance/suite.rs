//! The steps of the conformance suite, and what it asks of a system. Each step reports one line, `WHAT: RESULT`.

use std::fmt::Debug;

use grant_table::frame::Frame;
use grant_table::guest::Access::{self, ReadOnly, ReadWrite};
use grant_table::spec::DomId;
use grant_table::spec::event::Port;
use grant_table::spec::grant::{GrantRef, Refusal};

/// This domain, which grants to itself.
pub const DOMAIN: DomId = DomId(0);
/// No domain.
const NOBODY: DomId = DomId(0x7777);
/// A virtual interrupt of the whole domain, which nobody else binds: that of a domain that goes.
const VIRQ: u32 = 3;

/// It failed. What a program is told differs by system where this says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// One end of a copy.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub domain: DomId,
    pub reference: GrantRef,
    pub offset: u16,
}

/// A copy.
#[derive(Debug)]
pub enum Copy<'a> {
    Read(End, &'a mut [u8]),
    Write(&'a [u8], End),
    Between(End, End, u16),
}

/// What happens when a page is unmapped: a byte is cleared, and an event sent.
#[derive(Clone, Copy, Debug)]
pub struct OnUnmap {
    pub clear: u16,
    pub notify: Option<Port>,
}

/// Grants and event channels of domain 0.
pub trait System {
    /// Pages that are granted, until this is released.
    type Shared;
    /// Pages that are mapped, until this is unmapped.
    type Mapped;

    /// Grants new pages of zeros to a domain.
    fn share(&mut self, domain: DomId, count: u32, access: Access)
    -> Result<Self::Shared, Refused>;
    /// The references of pages, and the pages.
    fn shared(&self, shared: &Self::Shared) -> Vec<(GrantRef, Frame)>;
    /// Arranges what happens when the first page is released.
    fn on_release(&mut self, shared: &Self::Shared, what: OnUnmap) -> Result<(), Refused>;
    /// Ends the grants. Those in use end some time after the last use.
    fn release(&mut self, shared: Self::Shared);
    /// Waits until what was released and is not used any more has ended.
    fn settle(&mut self);

    /// Maps pages that a domain grants, all or none.
    fn map(
        &mut self,
        domain: DomId,
        references: &[GrantRef],
        access: Access,
    ) -> Result<Self::Mapped, Refused>;
    /// The pages.
    fn mapped(&self, mapped: &Self::Mapped) -> Vec<Frame>;
    /// Arranges what happens when the first page is unmapped.
    fn on_unmap(&mut self, mapped: &Self::Mapped, what: OnUnmap) -> Result<(), Refused>;
    /// Unmaps them.
    fn unmap(&mut self, mapped: Self::Mapped);

    /// Copies.
    fn copy(&mut self, copies: &mut [Copy<'_>]) -> Result<Vec<Result<(), Refusal>>, Refused>;

    /// Makes a port to which a domain may connect.
    fn bind_unbound(&mut self, remote: DomId) -> Result<Port, Refused>;
    /// Connects to one.
    fn bind_interdomain(&mut self, remote: DomId, port: Port) -> Result<Port, Refused>;
    /// Binds a virtual interrupt.
    fn bind_virq(&mut self, virq: u32) -> Result<Port, Refused>;
    /// Closes a port.
    fn unbind(&mut self, port: Port) -> Result<(), Refused>;
    /// Notifies the other end.
    fn notify(&mut self, port: Port) -> Result<(), Refused>;
    /// Takes the events that have come, or come soon; their ports are masked.
    fn take(&mut self) -> Vec<Port>;
    /// Unmasks a port.
    fn unmask(&mut self, port: Port);
}

/// Runs all steps on a system.
pub fn run(system: &mut impl System) -> Vec<String> {
    let mut suite = Suite {
        system,
        lines: Vec::new(),
    };
    suite.map();
    suite.read_only();
    suite.copy();
    suite.several();
    suite.end_of_access();
    suite.events();
    suite.unmap_notify();
    suite.lines
}

struct Suite<'s, S> {
    system: &'s mut S,
    lines: Vec<String>,
}

/// The text at the start of a page.
fn text(frame: &Frame) -> String {
    let mut bytes = [0; 8];
    assert!(frame.read(0, &mut bytes));
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(8);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn end(reference: GrantRef, offset: u16) -> End {
    End {
        domain: DOMAIN,
        reference,
        offset,
    }
}

fn outcome<T>(result: &Result<T, Refused>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(Refused) => "refused",
    }
}

/// 0, or the status of the refusal.
fn status(result: Result<(), Refusal>) -> i16 {
    result.map_or_else(|refusal| refusal as i16, |()| 0)
}

impl<S: System> Suite<'_, S> {
    fn report(&mut self, what: &str, result: impl Debug) {
        self.lines.push(format!("{what}: {result:?}"));
    }

    fn one(&mut self, access: Access) -> (S::Shared, GrantRef, Frame) {
        let shared = self.system.share(DOMAIN, 1, access).unwrap();
        let (reference, frame) = self.system.shared(&shared)[0].clone();
        (shared, reference, frame)
    }

    /// Makes one copy; its status, or what the system says of all.
    fn copied(&mut self, what: &str, copy: Copy<'_>) {
        match self.system.copy(&mut [copy]) {
            Ok(results) => self.report(what, status(results[0])),
            Err(Refused) => self.report(what, "refused"),
        }
    }

    fn mapping(&mut self, what: &str, domain: DomId, reference: GrantRef, access: Access) {
        let mapped = self.system.map(domain, &[reference], access);
        self.report(what, outcome(&mapped));
        if let Ok(mapped) = mapped {
            self.system.unmap(mapped);
        }
    }

    fn map(&mut self) {
        let (shared, reference, own) = self.one(ReadWrite);
        self.report("share: a new page", text(&own));
        assert!(own.write(0, b"owner\0"));
        let mapped = self.system.map(DOMAIN, &[reference], ReadWrite).unwrap();
        let foreign = self.system.mapped(&mapped)[0].clone();
        self.report("map: what the owner wrote", text(&foreign));
        assert!(foreign.write(0, b"user\0"));
        self.report("map: what the user wrote", text(&own));
        self.mapping("map: once more", DOMAIN, reference, ReadWrite);
        self.report("map: after that was unmapped", text(&foreign));
        drop(foreign);
        self.system.unmap(mapped);
        self.mapping("map: after all were unmapped", DOMAIN, reference, ReadWrite);
        self.mapping(
            "map: beyond the table",
            DOMAIN,
            GrantRef(0x7fff_ff00),
            ReadWrite,
        );
        self.mapping("map: of no domain", NOBODY, reference, ReadWrite);
        self.mapping("map: of DOMID_SELF", DomId::SELF, reference, ReadWrite);
        drop(own);
        self.system.release(shared);
        self.mapping("map: released", DOMAIN, reference, ReadWrite);

        let shared = self.system.share(NOBODY, 1, ReadWrite).unwrap();
        let (reference, _) = self.system.shared(&shared)[0].clone();
        self.mapping(
            "map: granted to another domain",
            DOMAIN,
            reference,
            ReadWrite,
        );
        self.copied(
            "copy: granted to another domain",
            Copy::Read(end(reference, 0), &mut [0; 8]),
        );
        self.system.release(shared);
    }

    fn read_only(&mut self) {
        let (shared, reference, own) = self.one(ReadOnly);
        assert!(own.write(0, b"owner\0"));
        self.mapping("read-only: map to write", DOMAIN, reference, ReadWrite);
        let mapped = self.system.map(DOMAIN, &[reference], ReadOnly).unwrap();
        let foreign = self.system.mapped(&mapped)[0].clone();
        self.report("read-only: map to read", text(&foreign));
        self.report("read-only: write there", foreign.write(0, b"user\0"));
        let on_unmap = OnUnmap {
            clear: 0,
            notify: None,
        };
        let arranged = self.system.on_unmap(&mapped, on_unmap);
        self.report("read-only: clear a byte on unmap", outcome(&arranged));
        self.copied(
            "read-only: copy from it",
            Copy::Read(end(reference, 0), &mut [0; 8]),
        );
        self.copied(
            "read-only: copy to it",
            Copy::Write(b"user\0", end(reference, 0)),
        );
        self.report("read-only: the page", text(&own));
        drop((own, foreign));
        self.system.unmap(mapped);
        self.system.release(shared);
    }

    fn copy(&mut self) {
        let (shared, reference, own) = self.one(ReadWrite);
        let (other, other_reference, other_own) = self.one(ReadWrite);
        let there = end(reference, 0);
        let mut page = [0x5a; 4096];
        self.copied("copy: write a page", Copy::Write(&page, there));
        page.fill(0);
        self.copied("copy: read a page", Copy::Read(there, &mut page));
        self.report("copy: what was read", page.iter().all(|&byte| byte == 0x5a));
        self.copied(
            "copy: the last bytes",
            Copy::Write(b"last\0", end(reference, 4091)),
        );
        let mut last = [0; 6];
        assert!(own.read(4090, &mut last));
        self.report("copy: what they are", last);
        self.copied("copy: nothing", Copy::Write(b"", there));
        self.copied(
            "copy: nothing, at the end",
            Copy::Write(b"", end(reference, 4096)),
        );
        self.copied(
            "copy: across the end",
            Copy::Write(b"far\0", end(reference, 4093)),
        );
        self.copied(
            "copy: across the end, reading",
            Copy::Read(end(reference, 4093), &mut [0; 4]),
        );
        assert!(own.write(0, b"owner\0"));
        self.copied(
            "copy: from grant to grant",
            Copy::Between(there, end(other_reference, 0), 6),
        );
        self.report("copy: what it brought", text(&other_own));
        let bad = end(GrantRef(0x7fff_ff00), 0);
        self.copied("copy: beyond the table", Copy::Read(bad, &mut [0; 8]));
        let nobody = End {
            domain: NOBODY,
            ..there
        };
        self.copied("copy: of no domain", Copy::Read(nobody, &mut [0; 8]));
        let myself = End {
            domain: DomId::SELF,
            ..there
        };
        self.copied("copy: of DOMID_SELF", Copy::Read(myself, &mut [0; 6]));
        let (mut first, mut second) = ([0; 6], [0; 6]);
        let results = self.system.copy(&mut [
            Copy::Read(there, &mut first),
            Copy::Read(bad, &mut [0; 8]),
            Copy::Read(end(other_reference, 0), &mut second),
        ]);
        let results: Vec<_> = results.unwrap().into_iter().map(status).collect();
        self.report("copy: three, the second of which is bad", results);
        self.report("copy: the first and the third", first == second);
        // Memory that crosses pages of the program's own.
        let mut large = vec![0; 3 * 4096];
        let there = end(reference, 0);
        self.copied(
            "copy: to anywhere",
            Copy::Read(there, &mut large[100..4196]),
        );
        self.report("copy: what is there", &large[100..106] == b"owner\0");
        drop((own, other_own));
        self.system.release(shared);
        self.system.release(other);
        self.copied("copy: released", Copy::Read(there, &mut [0; 8]));
    }

    fn several(&mut self) {
        let shared = self.system.share(DOMAIN, 5, ReadWrite).unwrap();
        let pages = self.system.shared(&shared);
        for ((_, own), name) in pages.iter().zip([b"a\0", b"b\0", b"c\0", b"d\0", b"e\0"]) {
            assert!(own.write(0, name));
        }
        // In another order, one of them twice.
        let references: Vec<_> = [4, 0, 2, 0].map(|index: usize| pages[index].0).into();
        let mapped = self.system.map(DOMAIN, &references, ReadWrite).unwrap();
        let texts: Vec<_> = self.system.mapped(&mapped).iter().map(text).collect();
        self.report("several: mapped together", texts);
        self.system.unmap(mapped);
        let with_bad = [pages[0].0, GrantRef(0x7fff_ff00), pages[1].0];
        let mapped = self.system.map(DOMAIN, &with_bad, ReadWrite);
        self.report("several: one of them bad", outcome(&mapped));
        let none = self.system.map(DOMAIN, &[], ReadWrite);
        self.report("several: none", outcome(&none));
        drop(pages);
        self.system.release(shared);
    }

    fn end_of_access(&mut self) {
        let (shared, reference, own) = self.one(ReadWrite);
        assert!(own.write(0, b"owner\0"));
        drop(own);
        let mapped = self.system.map(DOMAIN, &[reference], ReadWrite).unwrap();
        let foreign = self.system.mapped(&mapped)[0].clone();
        self.system.release(shared);
        self.report("end: released while mapped", text(&foreign));
        self.report("end: write there", foreign.write(0, b"user\0"));
        self.report("end: read again", text(&foreign));
        drop(foreign);
        self.system.unmap(mapped);
        self.system.settle();
        self.mapping("end: after the last use", DOMAIN, reference, ReadWrite);
    }

    /// Takes events: which of both ports have one.
    fn pending(&mut self, what: &str, ports: (Port, Port)) -> Vec<Port> {
        let taken = self.system.take();
        let name = |port: &Port| match *port {
            port if port == ports.0 => "first",
            port if port == ports.1 => "second",
            _ => "another",
        };
        let names: Vec<_> = taken.iter().map(name).collect();
        self.report(what, names);
        taken
    }

    fn connected(&mut self) -> (Port, Port) {
        let first = self.system.bind_unbound(DOMAIN).unwrap();
        let second = self.system.bind_interdomain(DOMAIN, first).unwrap();
        (first, second)
    }

    fn events(&mut self) {
        let first = self.system.bind_unbound(DOMAIN).unwrap();
        let notified = self.system.notify(first);
        self.report("events: notify from an unbound port", outcome(&notified));
        let second = self.system.bind_interdomain(DOMAIN, first).unwrap();
        let ports = (first, second);
        for port in self.pending("events: the new port has one at once", ports) {
            self.system.unmask(port);
        }
        let twice = self.system.bind_interdomain(DOMAIN, first);
        self.report("events: connect to it once more", outcome(&twice));
        let nobody = self.system.bind_interdomain(NOBODY, first);
        self.report("events: connect to no domain", outcome(&nobody));

        self.system.notify(first).unwrap();
        self.pending("events: from the first", ports);
        self.system.notify(first).unwrap();
        self.system.notify(first).unwrap();
        self.pending("events: from the first, while it is masked", ports);
        self.system.unmask(second);
        for port in self.pending("events: after that is unmasked, one", ports) {
            self.system.unmask(port);
        }
        self.system.notify(second).unwrap();
        for port in self.pending("events: from the second", ports) {
            self.system.unmask(port);
        }
        self.pending("events: no more", ports);

        self.system.unbind(second).unwrap();
        let notified = self.system.notify(first);
        self.report("events: notify whom is gone", outcome(&notified));
        let notified = self.system.notify(second);
        self.report("events: notify from a closed port", outcome(&notified));
        let unbound = self.system.unbind(second);
        self.report("events: close it again", outcome(&unbound));
        let again = self.system.bind_interdomain(DOMAIN, first);
        self.report("events: connect to it again", outcome(&again));
        self.system.take();
        if let Ok(port) = again {
            self.system.unbind(port).unwrap();
        }
        self.system.unbind(first).unwrap();

        let port = self.system.bind_unbound(NOBODY).unwrap();
        let taken = self.system.bind_interdomain(DOMAIN, port);
        self.report("events: connect to another's", outcome(&taken));
        self.system.unbind(port).unwrap();

        let virq = self.system.bind_virq(VIRQ).unwrap();
        let again = self.system.bind_virq(VIRQ);
        self.report("events: bind an interrupt twice", outcome(&again));
        self.system.unbind(virq).unwrap();
        let again = self.system.bind_virq(VIRQ);
        self.report("events: bind it after it was closed", outcome(&again));
        if let Ok(port) = again {
            self.system.unbind(port).unwrap();
        }
        let beyond = self.system.bind_virq(24);
        self.report("events: bind no interrupt", outcome(&beyond));
    }

    fn unmap_notify(&mut self) {
        let (first, second) = self.connected();
        let ports = (first, second);
        for port in self.system.take() {
            self.system.unmask(port);
        }
        let (shared, reference, own) = self.one(ReadWrite);
        assert!(own.write(0, b"owner\0"));
        let mapped = self.system.map(DOMAIN, &[reference], ReadWrite).unwrap();
        let what = OnUnmap {
            clear: 2,
            notify: Some(first),
        };
        self.system.on_unmap(&mapped, what).unwrap();
        self.report("unmap: before", text(&own));
        self.pending("unmap: events before", ports);
        self.system.unmap(mapped);
        self.report("unmap: after, the byte is cleared", text(&own));
        for port in self.pending("unmap: events after", ports) {
            self.system.unmask(port);
        }

        assert!(own.write(0, b"owner\0"));
        drop(own);
        let mapped = self.system.map(DOMAIN, &[reference], ReadWrite).unwrap();
        let what = OnUnmap {
            clear: 3,
            notify: Some(second),
        };
        self.system.on_release(&shared, what).unwrap();
        self.system.release(shared);
        let foreign = self.system.mapped(&mapped)[0].clone();
        self.report("release: after, the byte is cleared", text(&foreign));
        self.pending("release: events after", ports);
        drop(foreign);
        self.system.unmap(mapped);
        self.system.unbind(second).unwrap();
        self.system.unbind(first).unwrap();
    }
}
