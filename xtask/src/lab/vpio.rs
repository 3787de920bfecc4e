//! Old devices behind a real kernel's VT-d, driven by a guest of reference-vmm as far as models of them allow, and by one that tries to get
//! out.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::attempts::{attempts, reported};
use super::boot::program;
use super::host::{Finished, Host};
use super::initramfs;
use super::kernel::{Kernel, Series};
use super::programs;
use crate::process::quoted;
use crate::progress::Progress;
use crate::workspace;

const HOST_SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/behind-ports.sh"),
    include_str!("../../lab/vpio-host.sh")
);
const PHASES_SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/behind-ports.sh"),
    include_str!("../../lab/vpio-phases-host.sh")
);
const GUEST_INIT: &str = concat!(
    include_str!("../../lab/guest-begins.sh"),
    include_str!("../../lab/guest-checks.sh"),
    include_str!("../../lab/vpio-guest.sh")
);
/// The guest's drivers.
const MODULES: [&str; 6] = ["ne2k-pci", "8139cp", "e1000", "ahci", "sd_mod", "ext4"];
/// The devices of the guest: each alone behind a root port, so that the host can reset it.
const DEVICES: [&str; 4] = ["ne2k_pci", "rtl8139", "e1000", "ich9-ahci,id=disks"];
/// Bytes of the disk.
const SIZE: u64 = 64 << 20;
/// What the guests and the host must have reported.
const EXPECTED: [&str; 39] = [
    "host: bind: ok",
    "guest: ne2k-pci finds its card: ok",
    "guest: ne2k-pci: answers: ok",
    "guest: ne2k-pci: session: ok",
    "guest: ne2k-pci: small download: ok",
    "guest: ne2k-pci: large download: ok",
    "guest: 8139cp finds its card: ok",
    "guest: 8139cp: answers: ok",
    "guest: 8139cp: session: ok",
    "guest: 8139cp: small download: ok",
    "guest: 8139cp: large download: ok",
    "guest: e1000 finds its card: ok",
    "guest: e1000: answers: ok",
    "guest: e1000: session: ok",
    "guest: e1000: small download: ok",
    "guest: e1000: large download: ok",
    "guest: ahci finds its disk: ok",
    "guest: make a file system: ok",
    "guest: mount: ok",
    "guest: read again: ok",
    "host: the drivers' VMM ended: ok",
    "host: no driver was denied anything: ok",
    "host: no DMA of a driver was blocked: ok",
    "host: the hostile guest's VMM ended: ok",
    "host: no DMA of a hostile guest was blocked: ok",
    "host: what changes after the check has no effect: ok",
    "host: what changes during the check is denied or has no effect: ok",
    "host: without a model its DMA is blocked: rtl8139: a descriptor: ok",
    "host: without a model its DMA is blocked: rtl8139: a descriptor, by ports: ok",
    "host: without a model its DMA is blocked: rtl8139: a slot of the other mode: ok",
    "host: without a model its DMA is blocked: rtl8139: receive descriptors that change: ok",
    "host: without a model its DMA is blocked: ahci: received FISes: ok",
    "host: without a model its DMA is blocked: ahci: received FISes, by index and data: ok",
    "host: without a model its DMA is blocked: ahci: a part of an address: ok",
    "host: without a model its DMA is blocked: ahci: a region: ok",
    "host: without a model its DMA is blocked: e1000: a descriptor: ok",
    "host: without a model its DMA is blocked: e1000: a part of the ring's address: ok",
    "host: without a model its DMA is blocked: e1000: receive descriptors that change: ok",
    LAST_WORDS,
];
/// How many checks a run makes: the last ones, that three models denied something, by the hostile guest's report.
pub const CHECKS: u64 = (EXPECTED.len() + HOSTILE.len()) as u64;
/// The models of the devices that the hostile guest programs.
const HOSTILE: [&str; 3] = ["rtl8139cp", "e1000", "ahci"];
/// Each guest's last words: two have them.
const LAST_WORDS: &str = "guest: done";

/// What a guest did with a device.
#[derive(Debug, Deserialize, Serialize)]
pub struct Use {
    /// The model's name.
    pub model: String,
    /// Accesses of registers.
    pub accesses: u64,
    /// Those that the model had to see.
    pub hooked: u64,
    /// Those that it denied.
    pub denied: u64,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.hooked * 1000 / self.accesses.max(1);
        write!(
            f,
            "{}: {} accesses, {}.{} % hooked",
            self.model,
            self.accesses,
            tenths / 10,
            tenths % 10
        )
    }
}

/// What there is of the VMM's report to be read here.
#[derive(Debug, Deserialize)]
struct Report {
    models: Vec<Use>,
    user: Vec<Exits>,
    buses: Vec<Bus>,
}

#[derive(Debug, Deserialize)]
struct Exits {
    kind: String,
    count: u64,
}

#[derive(Debug, Deserialize)]
struct Bus {
    space: String,
    unclaimed: u64,
    regions: Vec<Region>,
}

#[derive(Debug, Deserialize)]
struct Region {
    name: String,
    reads: u64,
    writes: u64,
}

impl Report {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Accesses to the only device, those hooked, and exits that were for its ports: whatever the exits at ports were not for the others,
    /// which nobody accesses by strings.
    fn counts(&self) -> Result<[u64; 3]> {
        let [device] = &self.models[..] else {
            bail!("{} devices behind models", self.models.len());
        };
        let at_ports = self.user.iter().filter(|of| of.kind.starts_with("port-"));
        let exits: u64 = at_ports.map(|of| of.count).sum();
        let ports = self.buses.iter().filter(|bus| bus.space == "Pio");
        let others = ports.map(|bus| {
            let other = |region: &&Region| !region.name.starts_with("assigned BAR");
            let regions = bus.regions.iter().filter(other);
            bus.unclaimed + regions.map(|of| of.reads + of.writes).sum::<u64>()
        });
        let exits = exits.saturating_sub(others.sum());
        Ok([device.accesses, device.hooked, exits])
    }
}

/// The phases that [`phases`] returns, after the one that there is for comparison.
pub const PHASES: [&str; 3] = ["session", "small", "large"];
/// In this one the driver has nothing to do but to start.
const NO_PHASE: &str = "none";

/// What ne2k-pci did with its card in each of [`PHASES`], less what it does in a boot without one; the accesses, those hooked, the exits.
pub fn phases(progress: &Progress) -> Result<Vec<[u64; 3]>> {
    let script = format!(
        "{}PHASES={}\n{PHASES_SCRIPT}",
        variables(progress)?,
        quoted(&format!("{NO_PHASE} {}", PHASES.join(" ")))
    );
    let (counts, _) = attempts("vpio-phases", || {
        let expected = [
            "guest: ne2k-pci: session: ok",
            "guest: ne2k-pci: small download: ok",
            "guest: ne2k-pci: large download: ok",
        ];
        let finished = finish("vpio-phases", &script, progress)?;
        reported(&finished, &expected, LAST_WORDS, 1 + PHASES.len())?;
        let count = |phase| Report::read(&finished.folder.join(format!("{phase}.json")))?.counts();
        let nothing = count(NO_PHASE)?;
        let counts = PHASES.iter().map(|phase| {
            let mut counts = count(phase)?;
            for (count, nothing) in counts.iter_mut().zip(nothing) {
                *count = count.saturating_sub(nothing);
            }
            Ok(counts)
        });
        counts.collect::<Result<Vec<_>>>()
    })?;
    Ok(counts)
}

/// Runs the scenario. Returns what the drivers did, and at which attempt the guests lived, from 1.
pub fn run(progress: &Progress) -> Result<(Vec<Use>, u32)> {
    let script = format!("{}{HOST_SCRIPT}", variables(progress)?);
    attempts("vpio", || {
        let finished = finish("vpio", &script, progress)?;
        reported(&finished, &EXPECTED, LAST_WORDS, 2)?;
        let report = |name: &str| Report::read(&finished.folder.join(name));
        let denied = report("hostile.json")?.models;
        for model in HOSTILE {
            let denied = denied
                .iter()
                .any(|used| used.model == model && used.denied > 0);
            denied
                .then_some(())
                .with_context(|| format!("{model} denied nothing"))?;
        }
        Ok(report("driven.json")?.models)
    })
}

/// Runs a script in the host with the devices.
fn finish(name: &str, script: &str, progress: &Progress) -> Result<Finished> {
    let mut host = Host {
        append: "intel_iommu=on".to_owned(),
        ..Host::new(name, Duration::from_secs(600))
    };
    let folder = host.folder()?;
    host.hardware = hardware(&folder)?;
    host.run(folder, script, progress)
}

/// Builds what the scripts need, and says where it is.
fn variables(progress: &Progress) -> Result<String> {
    progress.step("building sriov and reference-vmm");
    let (sriov, vmm) = (programs::sriov()?, programs::reference_vmm()?);
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let hostile = [program(&lab, "hostile")?];
    let archive = initramfs::build(&lab, &kernel, &MODULES, GUEST_INIT, &hostile)?;
    let initrd = initramfs::store(&lab, "vpio-guest.initrd", &archive)?;
    let quote = |path: &Path| quoted(&path.to_string_lossy());
    let vmm = format!(
        "{} run --kernel {} --initrd {} --memory 256M",
        quote(&vmm),
        quote(&kernel.image),
        quote(&initrd)
    );
    let models = workspace::root()?.join("crates/vpio-model/models");
    Ok(format!(
        "SRIOV={}\nVMM={}\nMODELS={}\nWORK=/run/lab\n",
        quote(&sriov),
        quoted(&vmm),
        quote(&models)
    ))
}

/// One machine with an IOMMU, the devices, and a card of its own at the same cable as the network cards.
fn hardware(folder: &Path) -> Result<Vec<String>> {
    let image = folder.join("disk.img");
    fs::File::create(&image)?.set_len(SIZE)?;
    let image = image.to_string_lossy().replace(',', ",,");
    let mut hardware = vec![
        "-drive".to_owned(),
        format!("file={image},format=raw,if=none,id=image"),
    ];
    hardware.extend(behind_ports(&DEVICES));
    hardware.extend(["-device", "ide-hd,bus=disks.0,drive=image"].map(str::to_owned));
    Ok(hardware)
}

/// An IOMMU, each of `devices` behind a root port, and a network card of the host's own behind the last one; all network cards are at one
/// cable.
pub fn behind_ports(devices: &[&str]) -> Vec<String> {
    let mut words = vec![
        "-device".to_owned(),
        "intel-iommu,intremap=on,caching-mode=on,aw-bits=48".to_owned(),
    ];
    for (device, number) in devices.iter().chain(&["e1000e"]).zip(0..) {
        let mut add = |option: &str, value| words.extend([option.to_owned(), value]);
        let chassis = number + 1;
        add(
            "-device",
            format!("pcie-root-port,id=rp{number},chassis={chassis}"),
        );
        let mut cable = String::new();
        if !device.starts_with("ich9") {
            add("-netdev", format!("hubport,id=n{number},hubid=0"));
            cable = format!(",netdev=n{number},mac=52:54:00:12:34:5{number}");
        }
        add("-device", format!("{device},bus=rp{number}{cable}"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_of_the_device_are_those_of_no_other_port() {
        let report = r#"{
            "user": [{ "kind": "port-read", "count": 30 }, { "kind": "port-write", "count": 70 }, { "kind": "memory-read", "count": 5 }],
            "models": [{ "model": "ne2000", "accesses": 1000, "hooked": 20, "denied": 0 }],
            "buses": [
                { "space": "Pio", "unclaimed": 2, "regions": [
                    { "name": "serial port", "reads": 3, "writes": 10 },
                    { "name": "assigned BAR 0", "reads": 900, "writes": 100 }
                ] },
                { "space": "Mmio", "unclaimed": 1, "regions": [{ "name": "assigned BAR 1", "reads": 4, "writes": 0 }] }
            ]
        }"#;
        let report: Report = serde_json::from_str(report).unwrap();
        assert_eq!(report.counts().unwrap(), [1000, 20, 85]);
    }
}
