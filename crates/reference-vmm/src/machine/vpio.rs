//! Functions of the host that the guest drives as far as a model of the device allows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, fs, io};

use sriov_vfio::sysfs::PciAddress;
use sriov_vfio::vfio::{DmaSpace, VfioDevice};
use vpio_model::bus::DenialSink;
use vpio_model::check::{Finding, Report, STATES};
use vpio_model::engine::{At, Denied};
use vpio_model::language::{Access, LanguageError, Policy};
use vpio_model::model::Model;
use vpio_model::serve::{Remote, RemoteError};
use vpio_model::vfio::{Counts, GuestDma, GuestDmaError, Modelled, ModelledError};

use super::Memory;
use super::layout::PCI_WINDOW_32;
use super::stop::{Stop, StopSwitch};

/// Where a function sees copies of its descriptors: where the guest has BARs and never memory.
const COPIES: u64 = PCI_WINDOW_32.start;

/// A function of this host, bound to `vfio-pci`, and the model that says what the guest may do with it.
#[derive(Clone, Debug)]
pub struct ModelledFunction {
    /// Where the host has it.
    pub address: PciAddress,
    /// Its model, which was checked.
    pub model: Arc<Model>,
}

/// Why a function could not be put behind a model.
#[derive(Debug, thiserror::Error)]
pub enum VpioError {
    /// The model's file.
    #[error("cannot open the model {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds no model.
    #[error(transparent)]
    Language(#[from] LanguageError),
    /// It holds a model by which a guest can get out.
    #[error("the model {path} is unsafe: {}", first(findings))]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        findings: Vec<Finding>,
    },
    /// It has too many states to be looked into.
    #[error(
        "the model {0}: a part of it has more than {STATES} states: what they hold is not known"
    )]
    Unexplored(PathBuf),
    /// Its DMA would pass by the IOMMU.
    #[error("{0}: a function with a model cannot be behind `--iommu`")]
    Iommu(PciAddress),
    /// The same of one that is shared.
    #[error("{0}: a shared function cannot be behind `--iommu`")]
    SharedIommu(PathBuf),
    /// It is not shared with this guest.
    #[error("{socket}: {source}")]
    Shared {
        /// Where it is shared.
        socket: PathBuf,
        /// Why.
        source: RemoteError,
    },
    /// The arbiter says nothing that names a function.
    #[error("{socket}: the arbiter shares something called {name:?}")]
    Name {
        /// Where it is shared.
        socket: PathBuf,
        /// What it says.
        name: String,
    },
    /// The guest's memory, or memory for copies of descriptors, was not mapped for it.
    #[error("{function}: {source}")]
    Memory {
        /// The function.
        function: PciAddress,
        /// Why.
        source: GuestDmaError,
    },
    /// It is not the device that the model describes, or cannot be reset.
    #[error("{function}: {source}")]
    Model {
        /// The function.
        function: PciAddress,
        /// Why.
        source: ModelledError,
    },
}

/// The findings on one line.
fn first(findings: &[Finding]) -> String {
    let all: Vec<String> = findings.iter().map(Finding::to_string).collect();
    all.join("; ")
}

impl ModelledFunction {
    /// Reads the model from a file and checks it.
    ///
    /// # Errors
    ///
    /// There is no such file, it holds no model, an unsafe one, or one of more than [`STATES`] states.
    pub fn new(address: PciAddress, path: &Path) -> Result<Self, VpioError> {
        let file = |source| VpioError::File {
            path: path.to_owned(),
            source,
        };
        let text = fs::read_to_string(path).map_err(file)?;
        let model = Model::parse(&path.display().to_string(), &text)?;
        trusted(path, model.check(STATES))?;
        let model = Arc::new(model);
        Ok(Self { address, model })
    }
}

/// Whether a model may be used.
fn trusted(path: &Path, report: Report) -> Result<(), VpioError> {
    let (path, complete) = (path.to_owned(), report.complete);
    let mut findings = report.findings;
    findings.retain(Finding::is_unsafe);
    if !findings.is_empty() {
        return Err(VpioError::Unsafe { path, findings });
    }
    if !complete {
        return Err(VpioError::Unexplored(path));
    }
    Ok(())
}

/// What a guest did with a function behind a model.
#[derive(Clone, Debug)]
pub struct ModelledUse {
    /// The function.
    pub function: PciAddress,
    /// What the model calls itself.
    pub model: String,
    /// How much.
    pub counts: Counts,
    /// Why accesses were denied by the model. What is to no BAR of the model is counted only.
    pub denials: BTreeMap<Arc<str>, Denial>,
}

/// Accesses that were denied for one reason.
#[derive(Clone, Copy, Debug)]
pub struct Denial {
    /// The first of them.
    pub at: At,
    /// Whether that was a write.
    pub write: bool,
    /// How many.
    pub count: u64,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, write, count } = self;
        let access = if *write { "write" } else { "read" };
        let At {
            space: _,
            offset,
            width,
        } = at;
        write!(
            f,
            "{count} times, first a {access} of {width} at {offset:#x}"
        )
    }
}

/// A function behind its model.
pub(super) struct Behind {
    address: PciAddress,
    name: String,
    device: Arc<dyn VfioDevice>,
    counts: Box<dyn Fn() -> Counts + Send + Sync>,
    denials: Arc<Denials>,
}

impl Behind {
    /// Resets the device and lets it reach the guest's memory, by `space`, which is empty but for the device.
    pub(super) fn new(
        function: &ModelledFunction,
        device: Arc<dyn VfioDevice>,
        space: &dyn DmaSpace,
        memory: &Memory,
        stop: &Arc<StopSwitch>,
    ) -> Result<Self, VpioError> {
        let ModelledFunction { address, model } = function;
        let (address, name) = (*address, model.name().to_owned());
        let denials = Denials::new(address.to_string(), stop);
        let dma = GuestDma::map(space, Arc::clone(memory), COPIES, model.shadow_bytes());
        let dma = dma.map_err(|source| VpioError::Memory {
            function: address,
            source,
        })?;
        let sink: Arc<dyn DenialSink> = denials.clone();
        let device = Modelled::new(device, model, dma, &sink);
        let device = device.map_err(|source| VpioError::Model {
            function: address,
            source,
        })?;
        let device = Arc::new(device);
        let counted = Arc::clone(&device);
        Ok(Self {
            address,
            name,
            device,
            counts: Box::new(move || counted.counts()),
            denials,
        })
    }

    /// Takes part in a function that an arbiter shares at `socket`, which maps the guest's memory.
    pub(super) fn join(
        socket: &Path,
        memory: &Memory,
        stop: &Arc<StopSwitch>,
    ) -> Result<Self, VpioError> {
        let denials = Denials::new(socket.display().to_string(), stop);
        let device = Remote::connect(socket, memory, denials.clone());
        let device = Arc::new(device.map_err(|source| VpioError::Shared {
            socket: socket.to_owned(),
            source,
        })?);
        let address = device.address().parse().map_err(|_| VpioError::Name {
            socket: socket.to_owned(),
            name: device.address().to_owned(),
        })?;
        let counted = Arc::clone(&device);
        Ok(Self {
            address,
            name: device.model().to_owned(),
            device,
            counts: Box::new(move || counted.counts()),
            denials,
        })
    }

    /// Where a machine has it: this one, or the arbiter's.
    pub(super) fn address(&self) -> PciAddress {
        self.address
    }

    /// The function, to be put on a bus.
    pub(super) fn device(&self) -> Arc<dyn VfioDevice> {
        self.device.clone()
    }

    /// What was done with it until now.
    pub(super) fn used(&self) -> ModelledUse {
        ModelledUse {
            function: self.address,
            model: self.name.clone(),
            counts: (self.counts)(),
            denials: self.denials.reasons().clone(),
        }
    }
}

/// Counts why accesses were denied, and does what a model wants beyond the device.
struct Denials {
    /// What the function is called.
    function: String,
    stop: Arc<StopSwitch>,
    /// As many as the model has.
    reasons: Mutex<BTreeMap<Arc<str>, Denial>>,
}

impl Denials {
    fn new(function: String, stop: &Arc<StopSwitch>) -> Arc<Self> {
        Arc::new(Self {
            function,
            stop: Arc::clone(stop),
            reasons: Mutex::default(),
        })
    }

    fn reasons(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Denial>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DenialSink for Denials {
    fn denied(&self, at: At, access: Access, denied: &Denied) {
        let first = Denial {
            at,
            write: access == Access::Write,
            count: 0,
        };
        let mut reasons = self.reasons();
        let denial = reasons.entry(denied.reason.clone()).or_insert(first);
        denial.count = denial.count.saturating_add(1);
        if denied.policy == Policy::MachineCheck {
            let (function, offset) = (&self.function, at.offset);
            let why = format!("{function}: access to {offset:#x}: {denied}");
            self.stop.throw(Stop::Host(why));
        }
    }
}

#[cfg(test)]
mod tests {
    use vpio_model::models;

    use super::*;

    #[test]
    fn a_model_is_used_if_all_of_it_is_known_to_be_safe() {
        let judged = |text: &str, states| {
            let model = Model::parse("m.vpio", text).unwrap();
            trusted(Path::new("m.vpio"), model.check(states))
        };
        for (_, text) in models::ALL {
            judged(text, STATES).unwrap();
        }
        let cut = judged(models::NE2000, 10).unwrap_err();
        assert!(matches!(cut, VpioError::Unexplored(_)), "{cut}");
        let check = "check rx_dma;";
        let faulty = judged(&models::RTL8139.replace(check, ""), STATES).unwrap_err();
        assert!(matches!(faulty, VpioError::Unsafe { .. }), "{faulty}");
    }
}
