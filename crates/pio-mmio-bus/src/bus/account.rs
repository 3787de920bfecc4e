use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use histogram::Histogram;
use serde::{Deserialize, Serialize};

use super::reclaim::{Mutex, lock};
use super::region::{Region, Request};
use super::{AddressSpace, Outcome, RegionId};

/// What happened on a bus, since it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusReport {
    /// Which address space.
    pub space: AddressSpace,
    /// Accesses to addresses in no region. Always counted.
    pub unclaimed: u64,
    /// Accesses that failed. Always counted.
    pub failed: u64,
    /// The regions that were accessed while accounting was on, removed ones included, oldest first.
    pub regions: Vec<RegionReport>,
}

/// What happened in a region while accounting was on. Writes that a hypervisor turned into a doorbell's signal never come
/// to the bus and are not counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionReport {
    /// The region's name.
    pub name: String,
    /// Reads, the failed and suspended ones included.
    pub reads: u64,
    /// Writes, the failed and suspended ones included.
    pub writes: u64,
    /// Of these, how many failed.
    pub failed: u64,
    /// Of these, how many were suspended.
    pub suspended: u64,
    /// How long they took in the hooks and the device.
    pub times: Times,
}

/// A distribution of times in nanoseconds. Quantiles are exact to 4 %.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Sum.
    pub total: u64,
    /// Least.
    pub min: u64,
    /// Median.
    pub p50: u64,
    /// 99 of 100 were no longer than this.
    pub p99: u64,
    /// Most.
    pub max: u64,
    /// By powers of two; empty buckets are left out.
    pub buckets: Vec<Bucket>,
}

/// A part of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Upper end in nanoseconds, inclusive.
    pub up_to: u64,
    /// How many.
    pub count: u64,
}

/// What one reader counts. It alone writes here; reports read.
#[derive(Default)]
#[repr(align(128))]
pub struct Meter {
    unclaimed: AtomicU64,
    failed: AtomicU64,
    /// Locked by a report now and then, otherwise free.
    accounts: Mutex<Accounts>,
}

/// Times below two to the power of this, in nanoseconds (17 s), count as what they are, longer ones as the longest of these. Bounds
/// the memory of a histogram, with the power below: 8 KiB.
const MAX_VALUE_POWER: u8 = 34;
/// A bucket is not wider than its start over two to the power of this.
const GROUPING_POWER: u8 = 5;

type Accounts = BTreeMap<RegionId, Account>;

struct Account {
    name: Arc<str>,
    reads: u64,
    writes: u64,
    failed: u64,
    suspended: u64,
    total: u64,
    min: u64,
    max: u64,
    times: Histogram,
}

impl Meter {
    #[inline]
    pub fn unclaimed(&self) {
        add(&self.unclaimed, 1);
    }

    #[inline]
    pub fn failed(&self) {
        add(&self.failed, 1);
    }

    pub fn access(
        &self,
        region: &Region,
        request: &Request<'_>,
        outcome: &Outcome,
        took: Duration,
    ) {
        let mut accounts = lock(&self.accounts);
        let account = accounts
            .entry(region.id)
            .or_insert_with(|| Account::new(&region.name));
        match request {
            Request::Read(_) => account.reads += 1,
            Request::Write(_) => account.writes += 1,
        }
        match outcome {
            Outcome::Failed(_) => account.failed += 1,
            Outcome::Suspended(_) => account.suspended += 1,
            Outcome::Done | Outcome::Unclaimed => {}
        }
        account.time(took);
    }

    /// Adds what `other` has counted.
    fn absorb(&self, other: &Self) {
        for (counter, more) in [
            (&self.unclaimed, &other.unclaimed),
            (&self.failed, &other.failed),
        ] {
            add(counter, more.load(Ordering::Relaxed));
        }
        let mut accounts = lock(&self.accounts);
        for (id, more) in lock(&other.accounts).iter() {
            accounts
                .entry(*id)
                .or_insert_with(|| Account::new(&more.name))
                .add(more);
        }
    }
}

/// Adds to a counter that only this thread writes: no locked instruction.
#[inline]
fn add(counter: &AtomicU64, more: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(more),
        Ordering::Relaxed,
    );
}

impl Account {
    #[expect(
        clippy::expect_used,
        reason = "the bounds are constants, and valid ones"
    )]
    fn new(name: &Arc<str>) -> Self {
        Self {
            name: Arc::clone(name),
            reads: 0,
            writes: 0,
            failed: 0,
            suspended: 0,
            total: 0,
            min: u64::MAX,
            max: 0,
            times: Histogram::new(GROUPING_POWER, MAX_VALUE_POWER).expect("constant bounds"),
        }
    }

    #[expect(clippy::expect_used, reason = "longer times were cut to the longest")]
    fn time(&mut self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.total = self.total.saturating_add(took);
        self.min = self.min.min(took);
        self.max = self.max.max(took);
        let longest = (1 << MAX_VALUE_POWER) - 1;
        self.times.increment(took.min(longest)).expect("in range");
    }

    #[expect(
        clippy::expect_used,
        reason = "all histograms here have the same bounds"
    )]
    fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.failed += other.failed;
        self.suspended += other.suspended;
        self.total = self.total.saturating_add(other.total);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.times = self.times.wrapping_add(&other.times).expect("same bounds");
    }

    /// What `share` of the accesses took at most, in nanoseconds.
    fn quantile(&self, share: f64) -> u64 {
        let bucket = self.times.quantile_bucket(share).ok().flatten();
        bucket.map_or(0, |bucket| bucket.end().min(self.max))
    }

    fn buckets(&self) -> Vec<Bucket> {
        let mut counts = BTreeMap::new();
        for bucket in self.times.iter().filter(|bucket| bucket.count() > 0) {
            let zeros = bucket.end().leading_zeros();
            let up_to = u64::MAX.checked_shr(zeros).unwrap_or(0);
            *counts.entry(up_to).or_default() += bucket.count();
        }
        let bucket = |(up_to, count)| Bucket { up_to, count };
        counts.into_iter().map(bucket).collect()
    }

    fn report(&self) -> RegionReport {
        RegionReport {
            name: self.name.to_string(),
            reads: self.reads,
            writes: self.writes,
            failed: self.failed,
            suspended: self.suspended,
            times: Times {
                total: self.total,
                min: self.min,
                p50: self.quantile(0.5),
                p99: self.quantile(0.99),
                max: self.max,
                buckets: self.buckets(),
            },
        }
    }
}

/// What the readers of a bus count, together.
#[derive(Default)]
pub struct Meters(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    meters: Vec<Arc<Meter>>,
    /// What readers that are gone have counted.
    gone: Meter,
}

impl Meters {
    /// A meter for a new reader.
    pub fn meter(&self) -> Arc<Meter> {
        let meter = Arc::<Meter>::default();
        lock(&self.0).meters.push(Arc::clone(&meter));
        meter
    }

    /// Keeps what a reader has counted, and forgets the reader.
    pub fn retire(&self, meter: &Arc<Meter>) {
        let mut inner = lock(&self.0);
        inner.meters.retain(|other| !Arc::ptr_eq(other, meter));
        inner.gone.absorb(meter);
    }

    /// What all of them have counted so far.
    pub fn report(&self, space: AddressSpace) -> BusReport {
        let inner = lock(&self.0);
        let sum = Meter::default();
        for meter in inner
            .meters
            .iter()
            .map(|meter| &**meter)
            .chain([&inner.gone])
        {
            sum.absorb(meter);
        }
        let accounts = lock(&sum.accounts);
        BusReport {
            space,
            unclaimed: sum.unclaimed.load(Ordering::Relaxed),
            failed: sum.failed.load(Ordering::Relaxed),
            regions: accounts.values().map(Account::report).collect(),
        }
    }
}
