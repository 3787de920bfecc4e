//! Domains of a paravirtual IOMMU as devices see them (Virtio 1.3, §5.13).
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::{
    collections::BTreeMap,
    hint,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use iommu_emul::{
    dma::{Access, DmaView},
    domain::{
        DomainConfig, DomainError, DomainEvents, DomainState, DomainStateError, Domains,
        DomainsState, Fault, FaultKind, Mapping,
    },
};
use pio_mmio_bus::pci::RequesterId;
use proptest::prelude::*;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryMmap, Permissions,
    VolatileMemory,
};

type Memory = Arc<GuestMemoryMmap<()>>;

const A: RequesterId = RequesterId(0x10);
const B: RequesterId = RequesterId(0x18);
const SIZE: usize = 0x10_0000;

fn domains(config: DomainConfig) -> (Arc<Domains<Memory>>, Memory) {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap());
    (Domains::new(config, Arc::clone(&memory)), memory)
}

fn strict() -> DomainConfig {
    DomainConfig {
        bypass: false,
        ..DomainConfig::default()
    }
}

fn mapping(first: u64, last: u64, physical: u64) -> Mapping {
    Mapping {
        first,
        last,
        physical,
        read: true,
        write: true,
    }
}

fn translate(view: &DmaView<Memory>, address: u64, access: Access) -> Option<u64> {
    let (physical, _) = view.memory().translate(GuestAddress(address), access)?;
    Some(physical.0)
}

#[derive(Default)]
struct Log {
    faults: Mutex<Vec<Fault>>,
    drained: AtomicU64,
}

impl DomainEvents for Log {
    fn drained(&self) {
        self.drained.fetch_add(1, Ordering::SeqCst);
    }

    fn fault(&self, fault: Fault) {
        self.faults.lock().unwrap().push(fault);
    }
}

fn logged(domains: &Domains<Memory>) -> Arc<Log> {
    let log = Arc::new(Log::default());
    let events: Weak<dyn DomainEvents> = Arc::downgrade(&log) as _;
    domains.connect(events);
    log
}

#[test]
fn an_endpoint_reaches_what_its_domain_maps() {
    let (domains, memory) = domains(strict());
    let log = logged(&domains);
    let (a, b) = (domains.view(A), domains.view(B));
    domains.attach(1, A, false).unwrap();
    domains.map(1, mapping(0x1000, 0x2fff, 0x5000)).unwrap();
    memory.write_slice(b"mapped", GuestAddress(0x5ffd)).unwrap();
    let mut bytes = [0; 6];
    a.memory()
        .read_slice(&mut bytes, GuestAddress(0x1ffd))
        .unwrap();
    assert_eq!(&bytes, b"mapped");
    assert!(log.faults.lock().unwrap().is_empty());
    assert_eq!(translate(&a, 0x3000, Access::Write), None);
    assert_eq!(translate(&b, 0x1000, Access::Read), None);
    let fault = |endpoint, address, access, kind| Fault {
        endpoint,
        address,
        access,
        kind,
    };
    assert_eq!(
        *log.faults.lock().unwrap(),
        [
            fault(A, 0x3000, Access::Write, FaultKind::Mapping),
            fault(B, 0x1000, Access::Read, FaultKind::Domain),
        ]
    );
}

#[test]
fn permissions_are_kept_apart() {
    let (domains, _) = domains(strict());
    let a = domains.view(A);
    domains.attach(1, A, false).unwrap();
    for (page, read, write) in [
        (1, true, false),
        (2, false, true),
        (3, false, false),
        (4, true, true),
    ] {
        let first = page << 12;
        let mapping = Mapping {
            read,
            write,
            ..mapping(first, first | 0xfff, first)
        };
        domains.map(1, mapping).unwrap();
        // Twice: the second time from the cache.
        for _ in 0..2 {
            assert_eq!(translate(&a, first, Access::Read).is_some(), read);
            assert_eq!(translate(&a, first, Access::Write).is_some(), write);
        }
    }
}

/// THREATS "DMA to 0xFEEx_xxxx": not in bypass, and not behind a mapping.
#[test]
fn interrupt_addresses_are_never_memory() {
    let memory = Arc::new(
        GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0xfed0_0000), 0x40_0000)]).unwrap(),
    );
    let domains = Domains::new(DomainConfig::default(), memory);
    let a = domains.view(A);
    let blocked = |address| translate(&a, address, Access::Write).is_none();
    let window = || {
        assert!(!blocked(0xfedf_ffff) && !blocked(0xfef0_0000));
        assert!(blocked(0xfee0_0000) && blocked(0xfeef_ffff));
    };
    window();
    domains.attach(1, A, true).unwrap();
    window();
    domains.attach(2, A, false).unwrap();
    let all = mapping(0x1_0000_0000, 0x1_ffff_ffff, 0);
    domains.map(2, all).unwrap();
    assert!(blocked(0x1_fee0_0000) && blocked(0x1_feef_ffff));
    assert!(!blocked(0x1_fedf_ffff) && !blocked(0x1_fef0_0000));
    assert!(matches!(
        domains.map(2, mapping(0xfee0_0000, 0xfee0_0fff, 0x1000)),
        Err(DomainError::Reserved(_))
    ));
}

#[test]
fn large_mappings_are_not_cut_into_pages() {
    let memory =
        Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
    let domains = Domains::new(strict(), memory);
    let a = domains.view(A);
    domains.attach(1, A, false).unwrap();
    let rest = |address| {
        let memory = a.memory();
        memory
            .translate(GuestAddress(address), Access::Read)
            .unwrap()
            .1
    };
    domains
        .map(1, mapping(0x4000_0000, 0xbfff_ffff, 0x1_8000_0000))
        .unwrap();
    assert_eq!(rest(0x4000_1234), 0x4000_0000 - 0x1234);
    assert_eq!(rest(0x8000_0000), 0x4000_0000);
    // Not at the same place in a larger page on both sides.
    domains
        .map(1, mapping(0x1_0000_0000, 0x1_ffff_ffff, 0x4020_0000))
        .unwrap();
    assert_eq!(rest(0x1_0000_0000), 0x20_0000);
    domains
        .map(1, mapping(0x2_0000_0000, 0x2_ffff_ffff, 0x1000))
        .unwrap();
    assert_eq!(rest(0x2_0000_0000), 0x1000);
}

/// Linux and QEMU caching-mode bugs: what is removed is in use until the guard is gone, and only by that.
#[test]
fn what_was_taken_away_settles_with_the_last_older_guard() {
    for take_away in [
        (|domains| domains.unmap(1, 0..=u64::MAX)) as fn(&Domains<Memory>) -> _,
        |domains| domains.detach(1, A),
        |domains| domains.attach(2, A, false),
    ] {
        let (domains, _) = domains(strict());
        let log = logged(&domains);
        let (a, b) = (domains.view(A), domains.view(B));
        domains.attach(1, A, false).unwrap();
        domains.map(1, mapping(0x1000, 0x1fff, 0x5000)).unwrap();
        assert!(domains.settled());
        let old = a.memory();
        let other = b.memory();
        old.translate(GuestAddress(0x1000), Access::Read).unwrap();
        take_away(&domains).unwrap();
        assert!(!domains.settled());
        // Neither later guards nor those of others are waited for.
        let new = a.memory();
        assert!(new.translate(GuestAddress(0x1000), Access::Read).is_none());
        let copy = old.clone();
        drop(old);
        assert!(!domains.settled());
        assert_eq!(log.drained.load(Ordering::SeqCst), 0);
        drop(copy);
        assert_eq!(log.drained.load(Ordering::SeqCst), 1);
        assert!(domains.settled());
        // All are, after a reset.
        domains.reset();
        assert!(!domains.settled());
        drop(new);
        assert!(!domains.settled());
        drop(other);
        assert!(domains.settled());
    }
}

/// The same on threads (DETACH and UNMAP races): once settled, no access uses the old mapping.
#[test]
fn no_access_through_a_mapping_after_its_removal_settled() {
    const POISON: u64 = 0xdead;
    let (domains, memory) = domains(strict());
    let view = domains.view(A);
    domains.attach(1, A, false).unwrap();
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let devices = [(); 2].map(|()| {
            let view = view.clone();
            let (stop, reads) = (&stop, &reads);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let guard = view.memory();
                    let mut slices = guard
                        .get_slices(GuestAddress(0x1000), 8, Permissions::Read)
                        .unwrap();
                    let Some(Ok(slice)) = slices.next() else {
                        continue;
                    };
                    reads.fetch_add(1, Ordering::Relaxed);
                    for _ in 0..1000 {
                        let word = slice.get_atomic_ref::<AtomicU64>(0).unwrap();
                        assert_ne!(word.load(Ordering::Relaxed), POISON);
                        hint::spin_loop();
                    }
                }
            })
        });
        for round in 0..60 {
            let before = reads.load(Ordering::Relaxed);
            let target = GuestAddress(0x6000);
            memory.store(0_u64, target, Ordering::Relaxed).unwrap();
            domains.map(1, mapping(0x1000, 0x1fff, 0x6000)).unwrap();
            while reads.load(Ordering::Relaxed) == before {
                assert!(devices.iter().all(|device| !device.is_finished()));
                thread::yield_now();
            }
            if round % 2 == 0 {
                domains.unmap(1, 0x1000..=0x1fff).unwrap();
            } else {
                domains.detach(1, A).unwrap();
                domains.attach(1, A, false).unwrap();
            }
            while !domains.settled() {
                thread::yield_now();
            }
            memory.store(POISON, target, Ordering::Relaxed).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn bypass_is_for_endpoints_in_no_domain() {
    let (domains, _) = domains(DomainConfig::default());
    let (a, b) = (domains.view(A), domains.view(B));
    domains.attach(1, A, false).unwrap();
    assert_eq!(translate(&a, 0x1000, Access::Read), None);
    assert_eq!(translate(&b, 0x1000, Access::Read), Some(0x1000));
    domains.set_bypass(false);
    assert_eq!(translate(&b, 0x1000, Access::Read), None);
    domains.attach(2, B, true).unwrap();
    assert_eq!(translate(&b, 0x1000, Access::Read), Some(0x1000));
    domains.reset();
    assert!(!domains.bypass());
    assert_eq!(translate(&b, 0x1000, Access::Read), None);
    domains.set_bypass(true);
    assert_eq!(translate(&a, 0x1000, Access::Read), Some(0x1000));
}

#[test]
fn a_renumbered_endpoint_is_another() {
    let (domains, _) = domains(strict());
    let a = domains.view(A);
    domains.attach(1, A, false).unwrap();
    domains.map(1, mapping(0x1000, 0x1fff, 0x5000)).unwrap();
    assert!(translate(&a, 0x1000, Access::Read).is_some());
    a.set_requester(B);
    assert!(translate(&a, 0x1000, Access::Read).is_none());
    assert!(domains.has_endpoint(B) && !domains.has_endpoint(A));
    a.set_requester(A);
    assert!(translate(&a, 0x1000, Access::Read).is_some());
    drop(a);
    assert!(!domains.has_endpoint(A));
    domains.detach(1, A).unwrap();
    assert_eq!(domains.attach(1, A, false), Err(DomainError::NoEndpoint(A)));
}

/// THREATS "snapshot bytes", by kind of lie.
#[test]
fn impossible_states_are_refused() {
    let domain = |id, bypass, endpoints: &[u16], mappings: &[Mapping]| DomainState {
        id,
        bypass,
        endpoints: endpoints.to_vec(),
        mappings: mappings.to_vec(),
    };
    let page = mapping(0x1000, 0x1fff, 0x5000);
    let config = DomainConfig {
        domains: 1..=9,
        max_mappings: 2,
        ..strict()
    };
    let (domains, _) = domains(config);
    let restore = |list: &[DomainState]| {
        domains.restore(DomainsState {
            bypass: true,
            domains: list.to_vec(),
        })
    };
    let page_at = |n: u64| mapping(n << 12, n << 12 | 0xfff, 0);
    for (list, refused) in [
        (
            vec![domain(0, false, &[1], &[])],
            DomainStateError::Domain(0),
        ),
        (
            vec![domain(1, false, &[], &[])],
            DomainStateError::Domain(1),
        ),
        (
            vec![domain(1, true, &[1], &[page])],
            DomainStateError::Domain(1),
        ),
        (
            vec![domain(1, false, &[1], &[]), domain(1, false, &[2], &[])],
            DomainStateError::Domain(1),
        ),
        (
            vec![domain(1, false, &[1], &[]), domain(2, false, &[1], &[])],
            DomainStateError::Endpoint(1),
        ),
        (
            vec![domain(1, false, &[1, 1], &[])],
            DomainStateError::Endpoint(1),
        ),
        (
            vec![domain(1, false, &[1], &[page, page])],
            DomainStateError::Mapping {
                domain: 1,
                source: DomainError::Mapped(0x1000..=0x1fff),
            },
        ),
        (
            vec![
                domain(1, false, &[1], &[page_at(1), page_at(2)]),
                domain(2, false, &[2], &[page_at(1)]),
            ],
            DomainStateError::Mapping {
                domain: 2,
                source: DomainError::Full(2),
            },
        ),
        (
            vec![domain(1, false, &[1], &[mapping(0x1000, 0x1ffe, 0)])],
            DomainStateError::Mapping {
                domain: 1,
                source: DomainError::Range(0x1000..=0x1ffe),
            },
        ),
    ] {
        assert_eq!(restore(&list), Err(refused));
        assert_eq!(domains.save().domains, []);
    }
    let good = [
        domain(1, false, &[1, 2], &[page]),
        domain(2, true, &[3], &[]),
    ];
    restore(&good).unwrap();
    assert_eq!(domains.save().domains, good);
    assert!(domains.save().bypass);
}

#[derive(Clone, Debug)]
enum Op {
    Attach(u32, u16, bool),
    Detach(u32, u16),
    Map(u32, u64, u64, u64, bool, bool),
    Unmap(u32, u64, u64),
    Bypass(bool),
    Access(u16, u64, bool),
    Reset,
    Migrate,
}

const PAGES: u64 = 12;

fn op() -> impl Strategy<Value = Op> {
    let domain = || 0_u32..4;
    let endpoint = || 0_u16..4;
    let page = || 0..PAGES;
    prop_oneof![
        4 => (domain(), endpoint(), prop::bool::weighted(0.2)).prop_map(|(d, e, b)| Op::Attach(d, e, b)),
        2 => (domain(), endpoint()).prop_map(|(d, e)| Op::Detach(d, e)),
        8 => (domain(), page(), page(), page(), any::<bool>(), any::<bool>())
            .prop_map(|(d, first, last, physical, read, write)| Op::Map(d, first, last, physical, read, write)),
        4 => (domain(), page(), page()).prop_map(|(d, first, last)| Op::Unmap(d, first, last)),
        1 => any::<bool>().prop_map(Op::Bypass),
        12 => (endpoint(), page(), any::<bool>()).prop_map(|(e, page, write)| Op::Access(e, page, write)),
        1 => Just(Op::Reset),
        1 => Just(Op::Migrate),
    ]
}

/// In pages: first, last, physical; read, write.
type ModelMapping = (u64, u64, u64, bool, bool);

/// A domain as a list of mappings.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    bypass: bool,
    domains: BTreeMap<u32, (bool, Vec<ModelMapping>)>,
    attached: BTreeMap<u16, u32>,
}

impl Model {
    /// Whether the operation succeeds.
    fn apply(&mut self, op: &Op) -> bool {
        match *op {
            Op::Attach(domain, endpoint, bypass) => {
                if endpoint == 3 || self.domains.get(&domain).is_some_and(|d| d.0 != bypass) {
                    return false;
                }
                if self.attached.get(&endpoint) != Some(&domain) {
                    self.leave(endpoint);
                    self.domains.entry(domain).or_insert((bypass, Vec::new()));
                    self.attached.insert(endpoint, domain);
                }
                true
            }
            Op::Detach(domain, endpoint) => {
                let attached = self.attached.get(&endpoint) == Some(&domain);
                if attached {
                    self.leave(endpoint);
                }
                attached
            }
            Op::Map(domain, first, last, physical, read, write) => {
                let Some((false, mappings)) = self.domains.get_mut(&domain) else {
                    return false;
                };
                let overlap = mappings.iter().any(|m| m.0 <= last && first <= m.1);
                let good = first <= last && !overlap;
                if good {
                    mappings.push((first, last, physical, read, write));
                }
                good
            }
            Op::Unmap(domain, first, last) => {
                let Some((false, mappings)) = self.domains.get_mut(&domain) else {
                    return false;
                };
                let whole = |m: &ModelMapping| first <= m.0 && m.1 <= last;
                let none = |m: &ModelMapping| m.1 < first || last < m.0;
                let good = first <= last && mappings.iter().all(|m| whole(m) || none(m));
                if good {
                    mappings.retain(none);
                }
                good
            }
            Op::Bypass(bypass) => {
                self.bypass = bypass;
                true
            }
            Op::Reset => {
                self.domains.clear();
                self.attached.clear();
                true
            }
            Op::Access(..) | Op::Migrate => true,
        }
    }

    fn leave(&mut self, endpoint: u16) {
        if let Some(domain) = self.attached.remove(&endpoint)
            && !self.attached.values().any(|other| *other == domain)
        {
            self.domains.remove(&domain);
        }
    }

    fn translate(&self, endpoint: u16, page: u64, is_write: bool) -> Option<u64> {
        match self
            .attached
            .get(&endpoint)
            .map(|domain| &self.domains[domain])
        {
            None => self.bypass.then_some(page),
            Some((true, _)) => Some(page),
            Some((false, mappings)) => mappings
                .iter()
                .find(|(first, last, _, read, write)| {
                    (*first..=*last).contains(&page) && if is_write { *write } else { *read }
                })
                .map(|(first, _, physical, ..)| physical + (page - first)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Endpoints 0 to 2 exist, 3 does not.
    #[test]
    fn domains_do_what_a_list_of_mappings_does(ops in prop::collection::vec(op(), 1..120)) {
        let (mut domains, memory) = domains(strict());
        let make = |domains: &Arc<Domains<Memory>>| [0, 1, 2].map(|e| domains.view(RequesterId(e)));
        let mut views = make(&domains);
        let mut model = Model::default();
        for op in ops {
            let expected = model.apply(&op);
            let page = |n: u64| n << 12;
            let done = match op {
                Op::Attach(d, e, bypass) => domains.attach(d, RequesterId(e), bypass).is_ok(),
                Op::Detach(d, e) => domains.detach(d, RequesterId(e)).is_ok(),
                Op::Map(d, first, last, physical, read, write) => {
                    let mapping = Mapping { read, write, ..mapping(page(first), page(last) | 0xfff, page(physical)) };
                    domains.map(d, mapping).is_ok()
                }
                Op::Unmap(d, first, last) => domains.unmap(d, page(first)..=page(last) | 0xfff).is_ok(),
                Op::Bypass(bypass) => {
                    domains.set_bypass(bypass);
                    true
                }
                Op::Reset => {
                    domains.reset();
                    true
                }
                Op::Migrate => {
                    let state = domains.save();
                    domains = Domains::new(strict(), Arc::clone(&memory));
                    domains.restore(state.clone()).unwrap();
                    prop_assert_eq!(domains.save(), state);
                    views = make(&domains);
                    true
                }
                Op::Access(endpoint, n, write) => {
                    if let Some(view) = views.get(usize::from(endpoint)) {
                        let access = if write { Access::Write } else { Access::Read };
                        let found = translate(view, page(n) | 0x123, access);
                        let expected = model.translate(endpoint, n, write);
                        prop_assert_eq!(found, expected.map(|n| page(n) | 0x123));
                    }
                    true
                }
            };
            prop_assert_eq!(done, expected);
            prop_assert!(domains.settled());
        }
    }

    /// THREATS "snapshot bytes": whatever is accepted is what is saved, and translates.
    #[test]
    fn any_state_is_refused_or_kept(
        bypass: bool,
        list in prop::collection::vec(
            (0_u32..3, any::<bool>(), prop::collection::vec(0_u16..4, 0..3),
             prop::collection::vec((0_u64..20, 0_u64..20, any::<u64>(), any::<bool>()), 0..4)),
            0..3),
        odd in prop::option::of((0_usize..3, 0_usize..4, any::<u64>(), any::<u64>())),
    ) {
        let mut state = DomainsState { bypass, domains: Vec::new() };
        for (id, bypass, endpoints, mappings) in list {
            let mappings = mappings
                .into_iter()
                .map(|(first, last, physical, read)| Mapping { read, ..mapping(first << 12, last << 12 | 0xfff, physical & !0xfff) })
                .collect();
            state.domains.push(DomainState { id, bypass, endpoints, mappings });
        }
        if let Some((domain, place, first, last)) = odd
            && let Some(mapping) = state.domains.get_mut(domain).and_then(|d| d.mappings.get_mut(place))
        {
            mapping.first = first;
            mapping.last = last;
        }
        let (domains, _) = domains(strict());
        let views = [0, 1, 2, 3].map(|e| domains.view(RequesterId(e)));
        let text = serde_json::to_string(&state).unwrap();
        let mut state: DomainsState = serde_json::from_str(&text).unwrap();
        if domains.restore(state.clone()).is_ok() {
            state.domains.sort_by_key(|domain| domain.id);
            for domain in &mut state.domains {
                domain.endpoints.sort_unstable();
                domain.mappings.sort_by_key(|mapping| mapping.first);
            }
            prop_assert_eq!(domains.save(), state);
            for view in &views {
                for page in 0..20 {
                    translate(view, page << 12, Access::Read);
                }
            }
        }
    }
}
