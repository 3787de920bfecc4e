//! The IOMMU device (Virtio 1.3, §5.13), request by request. THREATS "virtio-iommu compliance" (Cloud Hypervisor #8105): one test an
//! item.
#![cfg(feature = "iommu")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod driver;

use std::sync::Arc;

use driver::{Memory, Part, Reports, Ring, framings, memory, wait_until};
use iommu_emul::dma::{Access, DmaView};
use iommu_emul::domain::{DomainConfig, Domains};
use pio_mmio_bus::pci::RequesterId;
use virtio_devices::iommu::spec::{
    Attach, Config, Detach, FaultReport, Head, Map, Probe, ReservedMemory, Status, Unmap, kind,
};
use virtio_devices::iommu::{Iommu, IommuState};
use virtio_devices::{DeviceState, DeviceStateError, DeviceType, VirtioDevice, Worker};
use vm_memory::{GuestAddress, GuestAddressSpace};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Features 0 to 2 and 4 to 6.
const ALL: u64 = 0b111_0111;
const VERSION_1: u64 = 1 << 32;
const A: u32 = 0x10;
const B: u32 = 0x18;
const BYPASS: u32 = 1;
const READ: u32 = 1;
const WRITE: u32 = 2;
const MMIO: u32 = 4;

struct Guest {
    device: Iommu<Memory>,
    memory: Memory,
    requests: Ring,
    reports: Arc<Reports>,
    a: DmaView<Memory>,
    _b: DmaView<Memory>,
}

fn guest_with(config: DomainConfig, features: u64) -> Guest {
    let memory = memory(2);
    let domains = Domains::new(config, memory.clone());
    let view = |id| domains.view(RequesterId(u16::try_from(id).unwrap()));
    let (a, b) = (view(A), view(B));
    let device = Iommu::new(domains, Worker::spawn("iommu").unwrap());
    let reports = Arc::new(Reports::default());
    VirtioDevice::<Memory>::connect(&device, reports.clone());
    let requests = Ring::new(&memory, 0, 64, VERSION_1 | features);
    requests.start(&device, 0, None);
    Guest {
        device,
        memory,
        requests,
        reports,
        a,
        _b: b,
    }
}

fn guest() -> Guest {
    let config = DomainConfig {
        bypass: false,
        ..DomainConfig::default()
    };
    guest_with(config, ALL)
}

fn request(kind: u8, body: &(impl IntoBytes + Immutable)) -> Vec<u8> {
    let head = Head {
        kind,
        // To be ignored.
        reserved: [0xa5; 3],
    };
    [head.as_bytes(), body.as_bytes()].concat()
}

fn attach(domain: u32, endpoint: u32, flags: u32) -> Vec<u8> {
    request(
        kind::ATTACH,
        &Attach {
            domain: domain.into(),
            endpoint: endpoint.into(),
            flags: flags.into(),
            reserved: [0; 4],
        },
    )
}

fn detach(domain: u32, endpoint: u32) -> Vec<u8> {
    request(
        kind::DETACH,
        &Detach {
            domain: domain.into(),
            endpoint: endpoint.into(),
            // To be ignored.
            reserved: [0xa5; 8],
        },
    )
}

fn map(domain: u32, start: u64, end: u64, physical: u64, flags: u32) -> Vec<u8> {
    request(
        kind::MAP,
        &Map {
            domain: domain.into(),
            virt_start: start.into(),
            virt_end: end.into(),
            phys_start: physical.into(),
            flags: flags.into(),
        },
    )
}

fn unmap(domain: u32, start: u64, end: u64) -> Vec<u8> {
    request(
        kind::UNMAP,
        &Unmap {
            domain: domain.into(),
            virt_start: start.into(),
            virt_end: end.into(),
            reserved: [0; 4],
        },
    )
}

fn probe(endpoint: u32) -> Vec<u8> {
    request(
        kind::PROBE,
        &Probe {
            endpoint: endpoint.into(),
            // To be ignored.
            reserved: [0xa5; 64],
        },
    )
}

impl Guest {
    /// The status of a request.
    fn ask(&mut self, request: Vec<u8>) -> u8 {
        let used = self
            .requests
            .round_trip(&[Part::Read(request), Part::Write(4)]);
        assert_eq!(used.written, 4);
        assert_eq!(used.bytes[1..], [0; 3]);
        used.bytes[0]
    }

    #[track_caller]
    fn expect(&mut self, request: Vec<u8>, status: Status) {
        assert_eq!(self.ask(request), status as u8);
    }

    fn translate(&self, address: u64, access: Access) -> Option<u64> {
        let (physical, _) = self.a.memory().translate(GuestAddress(address), access)?;
        Some(physical.0)
    }

    fn reaches(&self, address: u64) -> bool {
        self.translate(address, Access::Read).is_some()
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0xee; size_of::<Config>() + 4];
        VirtioDevice::<Memory>::read_config(&self.device, 0, &mut config);
        config
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        VirtioDevice::<Memory>::write_config(&self.device, offset, data);
    }
}

#[test]
fn a_mapping_comes_and_goes() {
    let mut guest = guest();
    guest.expect(attach(1, A, 0), Status::Ok);
    guest.expect(map(1, 0x1000, 0x2fff, 0x5000, READ), Status::Ok);
    assert_eq!(guest.translate(0x2001, Access::Read), Some(0x6001));
    assert_eq!(guest.translate(0x2001, Access::Write), None);
    guest.expect(map(1, 0x3000, 0x3fff, 0x9000, WRITE | READ), Status::Ok);
    assert_eq!(guest.translate(0x3fff, Access::Write), Some(0x9fff));
    guest.expect(unmap(1, 0x1000, 0x2fff), Status::Ok);
    assert!(!guest.reaches(0x1000) && guest.reaches(0x3000));
    guest.expect(detach(1, A), Status::Ok);
    assert!(!guest.reaches(0x3000));
    // The domain is gone, and its mappings with it.
    guest.expect(map(1, 0, 0xfff, 0, READ), Status::NoEnt);
    guest.expect(attach(1, A, 0), Status::Ok);
    assert!(!guest.reaches(0x3000));
    assert!(!guest.reports.needs_reset());
}

/// §5.13.6.4, examples 1 to 7 in pages.
#[test]
fn unmap_never_splits_a_mapping() {
    type Pages = (u64, u64);
    let cases: [(&[Pages], Pages, Status, &[u64]); 7] = [
        (&[], (0, 4), Status::Ok, &[]),
        (&[(0, 9)], (0, 9), Status::Ok, &[]),
        (&[(0, 4), (5, 9)], (0, 9), Status::Ok, &[]),
        (&[(0, 9)], (0, 4), Status::Range, &[0, 4, 5, 9]),
        (&[(0, 4), (5, 9)], (0, 4), Status::Ok, &[5, 9]),
        (&[(0, 4)], (0, 9), Status::Ok, &[]),
        (&[(0, 4), (10, 14)], (0, 14), Status::Ok, &[]),
    ];
    let mut guest = guest();
    for (mappings, (first, last), status, left) in cases {
        guest.expect(attach(1, A, 0), Status::Ok);
        for (first, last) in mappings {
            guest.expect(map(1, first << 12, last << 12 | 0xfff, 0, READ), Status::Ok);
        }
        guest.expect(unmap(1, first << 12, last << 12 | 0xfff), status);
        let reached: Vec<u64> = [0, 4, 5, 9, 10, 14]
            .into_iter()
            .filter(|page| guest.reaches(page << 12))
            .collect();
        assert_eq!(reached, left);
        guest.expect(detach(1, A), Status::Ok);
    }
    guest.expect(unmap(1, 0, u64::MAX), Status::NoEnt);
    guest.expect(attach(1, A, 0), Status::Ok);
    guest.expect(map(1, 0x1000, 0x2fff, 0, READ), Status::Ok);
    for (start, end) in [
        (0x2000, 0x2fff),
        (0x1001, 0x2fff),
        (0, 0x1fff),
        (0x2fff, 0x1000),
    ] {
        guest.expect(unmap(1, start, end), Status::Range);
    }
    guest.expect(unmap(1, 0, u64::MAX), Status::Ok);
    assert!(!guest.reaches(0x1000));
}

#[test]
fn map_never_overlaps_a_mapping() {
    let mut guest = guest();
    guest.expect(attach(1, A, 0), Status::Ok);
    guest.expect(map(1, 0x5000, 0x7fff, 0x1_0000, READ), Status::Ok);
    for (first, last) in [(5, 7), (6, 6), (4, 5), (7, 8), (4, 8), (5, 5), (7, 7)] {
        let again = map(1, first << 12, last << 12 | 0xfff, 0, READ);
        guest.expect(again, Status::Inval);
    }
    assert!(!guest.reaches(0x4000) && !guest.reaches(0x8000));
    assert_eq!(guest.translate(0x6000, Access::Read), Some(0x1_1000));
}

#[test]
fn adjacent_mappings_stay_apart() {
    let mut guest = guest();
    guest.expect(attach(1, A, 0), Status::Ok);
    for page in [4, 6, 5] {
        let first = page << 12;
        guest.expect(map(1, first, first | 0xfff, first, READ), Status::Ok);
    }
    guest.expect(unmap(1, 0x5000, 0x5fff), Status::Ok);
    assert!(guest.reaches(0x4fff) && !guest.reaches(0x5000) && guest.reaches(0x6000));
}

#[test]
fn unaligned_and_out_of_range_is_refused() {
    let config = DomainConfig {
        input: 0x1000..=0xf_ffff,
        bypass: false,
        ..DomainConfig::default()
    };
    let mut guest = guest_with(config, ALL);
    guest.expect(attach(1, A, 0), Status::Ok);
    for (start, end, physical) in [
        (0x1001, 0x1fff, 0),
        (0x1000, 0x1ffe, 0),
        (0x1000, 0x2000, 0),
        (0x1000, 0x1fff, 1),
        (0x2000, 0x1fff, 0),
        (0, 0xfff, 0),
        (0xf_f000, 0x10_0fff, 0),
        (0x1000, u64::MAX, 0),
    ] {
        guest.expect(map(1, start, end, physical, READ), Status::Range);
    }
    guest.expect(map(1, 0x1000, 0x2fff, !0xfff, READ), Status::Fault);
    guest.expect(map(1, 0x1000, 0x1fff, !0xfff, READ), Status::Ok);
    // A page where there is no memory: no access, and no panic.
    let mut byte = [0];
    let view = guest.a.memory();
    assert!(vm_memory::Bytes::read_slice(&*view, &mut byte, GuestAddress(0x1fff)).is_err());
}

#[test]
fn unknown_flags_and_reserved_bytes() {
    let mut guest = guest();
    guest.expect(attach(1, A, 2), Status::Inval);
    let mut odd = attach(1, A, 0);
    odd[16] = 1;
    guest.expect(odd, Status::Inval);
    guest.expect(attach(1, A, 0), Status::Ok);
    guest.expect(map(1, 0, 0xfff, 0, 8 | READ), Status::Inval);
    let mut odd = unmap(1, 0, 0xfff);
    odd[24] = 1;
    guest.expect(odd, Status::Inval);
    guest.expect(map(1, 0, 0xfff, 0, READ | MMIO), Status::Ok);
    // What was not negotiated is unknown.
    let mut guest = guest_with(DomainConfig::default(), 0b100);
    guest.expect(attach(1, A, BYPASS), Status::Inval);
    guest.expect(attach(1, A, 0), Status::Ok);
    guest.expect(map(1, 0, 0xfff, 0, READ | MMIO), Status::Inval);
    let probe = [Part::Read(probe(A)), Part::Write(200)];
    assert_eq!(guest.requests.round_trip(&probe).written, 0);
    let mut guest = guest_with(DomainConfig::default(), 0);
    guest.expect(attach(1, A, 0), Status::Ok);
    for request in [map(1, 0, 0xfff, 0, READ), unmap(1, 0, 0xfff)] {
        let parts = [Part::Read(request), Part::Write(4)];
        assert_eq!(guest.requests.round_trip(&parts).written, 0);
    }
}

/// §5.13.6: such a buffer is given back as it is.
#[test]
fn what_is_no_request_is_not_answered() {
    let mut guest = guest();
    for kind in (0..=255).filter(|kind| !(1..=5).contains(kind)) {
        let parts = [Part::Read(vec![kind; 80]), Part::Write(4)];
        assert_eq!(guest.requests.round_trip(&parts).written, 0);
    }
    for whole in [
        attach(1, A, 0),
        detach(1, A),
        map(1, 0, 0xfff, 0, 1),
        unmap(1, 0, 1),
        probe(A),
    ] {
        for length in 0..whole.len() {
            let parts = [Part::Read(whole[..length].to_vec()), Part::Write(4)];
            assert_eq!(guest.requests.round_trip(&parts).written, 0);
        }
        for room in 0..4 {
            let parts = [Part::Read(whole.clone()), Part::Write(room)];
            assert_eq!(guest.requests.round_trip(&parts).written, 0);
        }
    }
    assert_eq!(guest.device.save().domains.domains, []);
    assert!(!guest.reports.needs_reset());
}

/// THREATS "any framing of the same bytes gives the same result".
#[test]
fn framing_does_not_matter() {
    let mut guest = guest();
    for request in [attach(1, A, 0), map(1, 0x1000, 0x1fff, 0, READ)] {
        for mut parts in framings(&request) {
            parts.extend([Part::Write(1), Part::Write(0), Part::Write(3)]);
            let used = guest.requests.round_trip(&parts);
            // The mapping is there from the second time on.
            let again = request[0] == kind::MAP && parts.len() > 4;
            assert!(used.bytes[0] == 0 || again && used.bytes[0] == Status::Inval as u8);
            assert_eq!(used.written, 4);
        }
    }
    assert!(guest.reaches(0x1000));
}

#[test]
fn endpoints_and_domains_that_are_not_there() {
    let config = DomainConfig {
        domains: 1..=7,
        ..DomainConfig::default()
    };
    let mut guest = guest_with(config, ALL);
    for endpoint in [0, 0x11, 0x1_0010, u32::MAX] {
        guest.expect(attach(1, endpoint, 0), Status::NoEnt);
        guest.expect(detach(1, endpoint), Status::NoEnt);
        let room = 24 + 4;
        let used = guest
            .requests
            .round_trip(&[Part::Read(probe(endpoint)), Part::Write(room)]);
        assert_eq!(used.bytes[24], Status::NoEnt as u8);
    }
    for domain in [0, 8, u32::MAX] {
        guest.expect(attach(domain, A, 0), Status::Range);
        guest.expect(detach(domain, A), Status::Inval);
        guest.expect(map(domain, 0, 0xfff, 0, READ), Status::NoEnt);
        guest.expect(unmap(domain, 0, 0xfff), Status::NoEnt);
    }
    // A refused ATTACH creates nothing and leaves the endpoint where it is.
    guest.expect(attach(1, A, 0), Status::Ok);
    guest.expect(attach(8, A, 0), Status::Range);
    guest.expect(detach(2, A), Status::Inval);
    guest.expect(detach(1, B), Status::Inval);
    guest.expect(map(1, 0x1000, 0x1fff, 0, READ), Status::Ok);
    assert!(guest.reaches(0x1000));
}

#[test]
fn domains_and_mappings_are_capped_and_nothing_is_left_of_what_failed() {
    let config = DomainConfig {
        max_mappings: 3,
        ..DomainConfig::default()
    };
    let mut guest = guest_with(config, ALL);
    guest.expect(attach(1, A, 0), Status::Ok);
    guest.expect(attach(2, B, 0), Status::Ok);
    // As many domains as endpoints are in one.
    for domain in 3..100 {
        guest.expect(attach(domain, B, 0), Status::Ok);
        assert_eq!(guest.device.save().domains.domains.len(), 2);
    }
    for page in 0..2 {
        guest.expect(map(1, page << 12, page << 12 | 0xfff, 0, READ), Status::Ok);
    }
    guest.expect(map(99, 0, 0xfff, 0, READ), Status::Ok);
    guest.expect(map(1, 0x5000, 0x5fff, 0, READ), Status::NoMem);
    assert!(!guest.reaches(0x5000));
    // The domain's end gives back what it had.
    guest.expect(detach(99, B), Status::Ok);
    guest.expect(map(1, 0x5000, 0x5fff, 0, READ), Status::Ok);
    guest.expect(map(1, 0x6000, 0x6fff, 0, READ), Status::NoMem);
    guest.expect(unmap(1, 0, 0x1fff), Status::Ok);
    guest.expect(map(1, 0x6000, 0x6fff, 0, READ), Status::Ok);
}

#[test]
fn attach_moves_an_endpoint() {
    let mut guest = guest();
    guest.expect(attach(1, A, 0), Status::Ok);
    guest.expect(map(1, 0x1000, 0x1fff, 0x5000, READ), Status::Ok);
    assert!(guest.reaches(0x1000));
    guest.expect(attach(1, A, 0), Status::Ok);
    assert!(guest.reaches(0x1000));
    guest.expect(attach(2, B, 0), Status::Ok);
    guest.expect(map(2, 0x1000, 0x1fff, 0x9000, READ), Status::Ok);
    guest.expect(attach(2, A, 0), Status::Ok);
    assert_eq!(guest.translate(0x1000, Access::Read), Some(0x9000));
    guest.expect(map(1, 0x2000, 0x2fff, 0, READ), Status::NoEnt);
}

#[test]
fn bypass_domains_and_bypass_of_endpoints_in_none() {
    let mut guest = guest();
    assert!(!guest.reaches(0x7000));
    guest.expect(attach(1, A, BYPASS), Status::Ok);
    assert_eq!(guest.translate(0x7000, Access::Write), Some(0x7000));
    assert!(!guest.reaches(0xfee0_0000));
    guest.expect(map(1, 0, 0xfff, 0, READ), Status::Inval);
    guest.expect(unmap(1, 0, 0xfff), Status::Inval);
    guest.expect(attach(1, B, 0), Status::Inval);
    guest.expect(attach(1, B, BYPASS), Status::Ok);
    guest.expect(detach(1, A), Status::Ok);
    assert!(!guest.reaches(0x7000));
    // Field `bypass`: 0 or 1, whatever is written; all else is read-only.
    assert_eq!(guest.config()[36], 0);
    guest.write_config(36, &[2]);
    assert_eq!(guest.config()[36], 0);
    let before = guest.config();
    guest.write_config(0, &[1; 36]);
    guest.write_config(37, &[1; 8]);
    guest.write_config(u64::MAX, &[1; 8]);
    assert_eq!(guest.config(), before);
    guest.write_config(33, &[9, 9, 9, 1, 9]);
    assert_eq!(guest.config()[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(guest.reaches(0x7000));
    // It survives a reset of the device (§5.13.4); domains do not (§5.13.5).
    guest.expect(attach(2, A, 0), Status::Ok);
    assert!(!guest.reaches(0x7000));
    let device = &guest.device;
    VirtioDevice::<Memory>::stop_queue(device, 0);
    VirtioDevice::<Memory>::reset(device);
    assert_eq!(guest.config()[36], 1);
    assert!(guest.reaches(0x7000));
}

#[test]
fn probe_tells_the_reserved_ranges() {
    let config = DomainConfig {
        reserved: vec![0xa_0000..=0xf_ffff, 0x1_0000_0000..=0x1_0000_ffff],
        ..DomainConfig::default()
    };
    let mut guest = guest_with(config, ALL);
    let size = 3 * size_of::<ReservedMemory>();
    assert_eq!(
        guest.config()[32..36],
        u32::try_from(size).unwrap().to_le_bytes()
    );
    let used = guest
        .requests
        .round_trip(&[Part::Read(probe(A)), Part::Write(size + 4)]);
    assert_eq!(used.bytes.len(), size + 4);
    let property = |subtype: u8, start: u64, end: u64| {
        let head = [1, 0, 20, 0, subtype, 0, 0, 0];
        [&head[..], &start.to_le_bytes(), &end.to_le_bytes()].concat()
    };
    let expected = [
        property(1, 0xfee0_0000, 0xfeef_ffff),
        property(0, 0xa_0000, 0xf_ffff),
        property(0, 0x1_0000_0000, 0x1_0000_ffff),
        vec![0; 4],
    ];
    assert_eq!(used.bytes, expected.concat());
    // A list that is too small has no property, and the tail is at its end.
    for short in 0..size {
        let used = guest
            .requests
            .round_trip(&[Part::Read(probe(A)), Part::Write(short + 4)]);
        let mut expected = vec![0; short + 4];
        expected[short] = Status::Inval as u8;
        assert_eq!(used.bytes, expected);
    }
    guest.expect(attach(1, A, 0), Status::Ok);
    for start in [0xfee0_0000, 0xfeef_f000, 0xa_0000, 0xf_f000, 0x1_0000_f000] {
        guest.expect(map(1, start, start | 0xfff, 0, READ), Status::Inval);
    }
    guest.expect(map(1, 0xfed0_0000, 0xfeff_ffff, 0, READ), Status::Inval);
    guest.expect(map(1, 0x9_f000, 0x9_ffff, 0, READ), Status::Ok);
}

/// THREATS "DETACH race": the used entry is the completion; no access through the old mapping follows it.
#[test]
fn a_request_is_answered_when_no_io_uses_what_it_took_away() {
    for take_away in [unmap(1, 0, u64::MAX), detach(1, A), attach(2, A, 0)] {
        let mut guest = guest();
        guest.expect(attach(1, A, 0), Status::Ok);
        guest.expect(map(1, 0x1000, 0x1fff, 0x5000, READ), Status::Ok);
        let old = guest.a.memory();
        old.translate(GuestAddress(0x1000), Access::Read).unwrap();
        let request = [Part::Read(take_away), Part::Write(4)];
        let first = guest.requests.send(&request);
        let second = guest
            .requests
            .send(&[Part::Read(attach(3, B, 0)), Part::Write(4)]);
        // Carried out, but not answered.
        wait_until("the mapping to go", || !guest.reaches(0x1000));
        guest.requests.kick();
        guest.requests.kick();
        // The state has the answer.
        let state = VirtioDevice::<Memory>::stop_queue(&guest.device, 0);
        assert_eq!(guest.requests.try_used(), None);
        assert_eq!(guest.device.save().pending, Some(Status::Ok));
        guest.requests.start(&guest.device, 0, state);
        assert_eq!(guest.requests.try_used(), None);
        drop(old);
        let used = guest.requests.used();
        assert_eq!((used.head, used.bytes), (first, vec![0; 4]));
        let used = guest.requests.used();
        assert_eq!((used.head, used.bytes), (second, vec![0; 4]));
    }
}

#[test]
fn faults_are_events() {
    let mut guest = guest();
    let mut events = Ring::new(&guest.memory, 1, 64, VERSION_1 | ALL);
    events.start(&guest.device, 1, None);
    // Without a buffer they wait, but not without bound.
    for page in 0..200 {
        assert!(!guest.reaches(page << 12));
    }
    guest.expect(attach(1, A, 0), Status::Ok);
    for _ in 0..64 {
        events.send(&[Part::Write(24)]);
    }
    for page in 0_u64..64 {
        let used = events.used();
        let report = FaultReport::read_from_bytes(&used.bytes).unwrap();
        assert_eq!(report.reason, FaultReport::DOMAIN);
        assert_eq!(report.endpoint.get(), A);
        assert_eq!(report.flags.get(), 1 | 1 << 8);
        assert_eq!(report.address.get(), page << 12);
        assert_eq!((report.reserved, report.reserved1.get()), ([0; 3], 0));
    }
    assert!(guest.translate(0x5000, Access::Write).is_none());
    let used = events.round_trip(&[Part::Write(10), Part::Write(30)]);
    let report = FaultReport::read_from_prefix(&used.bytes).unwrap().0;
    assert_eq!(used.written, 24);
    assert_eq!(report.reason, FaultReport::MAPPING);
    assert_eq!(report.flags.get(), 2 | 1 << 8);
    // One that does not fit is lost.
    assert!(!guest.reaches(0x6000));
    assert_eq!(events.round_trip(&[Part::Write(23)]).written, 0);
    assert!(!guest.reports.needs_reset());
}

#[test]
fn state_survives_and_lies_are_refused() {
    let mut guest = guest();
    guest.expect(attach(1, A, 0), Status::Ok);
    guest.expect(map(1, 0x1000, 0x1fff, 0x5000, READ | WRITE), Status::Ok);
    let state = VirtioDevice::<Memory>::device_state(&guest.device);
    let other = guest_with(DomainConfig::default(), ALL);
    VirtioDevice::<Memory>::restore_device_state(&other.device, state.clone()).unwrap();
    assert_eq!(other.translate(0x1000, Access::Write), Some(0x5000));
    assert_eq!(VirtioDevice::<Memory>::device_state(&other.device), state);
    let restore = |state| VirtioDevice::<Memory>::restore_device_state(&other.device, state);
    assert!(matches!(
        restore(DeviceState::None),
        Err(DeviceStateError::Kind)
    ));
    let DeviceState::Iommu(state) = state else {
        panic!("another kind of state");
    };
    let lie = IommuState {
        pending: Some(Status::Inval),
        ..state
    };
    assert!(matches!(
        restore(DeviceState::Iommu(lie)),
        Err(DeviceStateError::Iommu(_))
    ));
}

#[test]
fn what_the_device_says_of_itself() {
    let guest = guest_with(DomainConfig::default(), ALL);
    let device: &dyn VirtioDevice<Memory> = &guest.device;
    assert_eq!(device.device_type(), DeviceType::IOMMU);
    assert_eq!(
        (device.features(), device.queue_max_sizes().len()),
        (ALL, 2)
    );
    let mut expected = (!0xfff_u64).to_le_bytes().to_vec();
    expected.extend(0_u64.to_le_bytes());
    expected.extend(((1_u64 << 48) - 1).to_le_bytes());
    expected.extend(0_u32.to_le_bytes());
    expected.extend(u32::MAX.to_le_bytes());
    expected.extend(24_u32.to_le_bytes());
    expected.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.config(), expected);
}
