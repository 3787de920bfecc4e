//! Exit accounting: where the guest's time in the hypervisor went, in the form in which the literature gives it.

mod plot;
mod table;

use pio_mmio_bus::bus::BusReport;
use serde::Serialize;
use vpio_model::vfio::Counts;

use crate::kvm::read_stats;
use crate::machine::{ModelledUse, Stopped};
use crate::vcpu::{ExitCounts, ExitKind};

/// What a machine's guest cost, from power-on to its end.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Frequency of the guest's time-stamp counter in kHz, by which times become cycles; zero if the host does not say.
    pub tsc_khz: u32,
    /// Exits to user space, the sum over all vCPUs.
    pub user: Vec<UserExits>,
    /// KVM's own counters, the sum over all vCPUs, without those that are zero. Empty if the kernel has none.
    pub kernel: Vec<KernelCount>,
    /// What the exits to user space accessed: ports, then memory.
    pub buses: Vec<BusReport>,
    /// The thread that emulated the IOMMU, if there was one.
    pub sidecore: Option<SidecoreReport>,
    /// The functions of the host behind models.
    pub models: Vec<ModelReport>,
}

/// What a guest did with a function of the host behind a model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// The function.
    pub function: String,
    /// What its model calls itself.
    pub model: String,
    /// Accesses of its registers. Each element of a string instruction is one.
    pub accesses: u64,
    /// Those that the model of a device with one guest has to see.
    pub hooked: u64,
    /// Those that were denied.
    pub denied: u64,
    /// Its interrupts.
    pub interrupts: u64,
}

/// What a sidecore did.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SidecoreReport {
    /// Register writes of the guest that it found.
    pub writes: u64,
    /// How often it looked.
    pub polls: u64,
    /// How often it found something.
    pub busy_polls: u64,
    /// The share of time, 0 to 1, in which it had something to do.
    pub busy_share: f64,
    /// The longest time that one look with its work took, in nanoseconds.
    pub longest_nanoseconds: u64,
}

impl ModelReport {
    fn new(used: &ModelledUse) -> Self {
        let Counts {
            accesses,
            hooked,
            denied,
            interrupts,
        } = used.counts;
        Self {
            function: used.function.to_string(),
            model: used.model.clone(),
            accesses,
            hooked,
            denied,
            interrupts,
        }
    }
}

/// Exits to user space of one kind.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct UserExits {
    /// Why.
    pub kind: ExitKind,
    /// How often.
    pub count: u64,
    /// Time of their handling in user space, in nanoseconds, all together; zero if it was not measured.
    pub nanoseconds: u64,
    /// The same for one exit on average, in cycles.
    pub cycles_per_exit: u64,
}

/// A counter of KVM.
#[derive(Clone, Debug, Serialize)]
pub struct KernelCount {
    /// KVM's name for it (`io_exits`, `halt_exits`, ...).
    pub name: String,
    /// How often.
    pub count: u64,
}

impl Report {
    /// Collects everything that was counted.
    pub fn new(stopped: &Stopped) -> Self {
        let mut exits = ExitCounts::default();
        let mut kernel: Vec<KernelCount> = Vec::new();
        let mut tsc_khz = 0;
        for finished in &stopped.vcpus {
            exits.merge(&finished.exits);
            tsc_khz = finished.vcpu.get_tsc_khz().unwrap_or(tsc_khz);
            // Linux before 5.14 has no statistics: then this part stays empty.
            for stat in read_stats(&*finished.vcpu).unwrap_or_default() {
                match kernel.iter_mut().find(|count| count.name == stat.name) {
                    Some(sum) => sum.count = sum.count.saturating_add(stat.count),
                    None => kernel.push(KernelCount {
                        name: stat.name,
                        count: stat.count,
                    }),
                }
            }
        }
        kernel.retain(|counter| counter.count > 0);
        let user = exits
            .iter()
            .map(|(kind, count, time)| {
                let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                UserExits {
                    kind,
                    count,
                    nanoseconds,
                    cycles_per_exit: cycles(nanoseconds, tsc_khz) / count.max(1),
                }
            })
            .collect();
        Self {
            vcpus: stopped.vcpus.len(),
            tsc_khz,
            user,
            kernel,
            buses: stopped.buses.to_vec(),
            sidecore: stopped.sidecore.map(|counters| SidecoreReport {
                writes: counters.writes,
                polls: counters.polls,
                busy_polls: counters.busy_polls,
                busy_share: counters.busy_share(),
                longest_nanoseconds: u64::try_from(counters.longest_busy.as_nanos())
                    .unwrap_or(u64::MAX),
            }),
            models: stopped.modelled.iter().map(ModelReport::new).collect(),
        }
    }

    /// Exits to user space of all kinds.
    pub fn user_total(&self) -> u64 {
        self.user.iter().map(|exits| exits.count).sum()
    }

    /// A plot of the exits by kind and number, as an SVG document.
    pub fn svg(&self) -> String {
        plot::svg(self)
    }
}

fn cycles(nanoseconds: u64, khz: u32) -> u64 {
    let cycles = u128::from(nanoseconds) * u128::from(khz) / 1_000_000;
    u64::try_from(cycles).unwrap_or(u64::MAX)
}
