//! Old devices behind a real kernel's VT-d, driven by a guest of reference-vmm as far as models of them allow, and by one that tries to get
//! out.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::attempts::{attempts, reported};
use super::host::Host;
use super::initramfs;
use super::kernel::{Kernel, Series};
use super::programs;
use crate::process::quoted;
use crate::progress::Progress;
use crate::workspace;

const HOST_SCRIPT: &str = concat!(
    include_str!("../../lab/checks.sh"),
    include_str!("../../lab/vpio-host.sh")
);
const GUEST_INIT: &str = include_str!("../../lab/vpio-guest.sh");
/// The guest's drivers.
const MODULES: [&str; 6] = ["ne2k-pci", "8139cp", "e1000", "ahci", "sd_mod", "ext4"];
/// The devices of the guest: each alone behind a root port, so that the host can reset it.
const DEVICES: [&str; 4] = ["ne2k_pci", "rtl8139", "e1000", "ich9-ahci,id=disks"];
/// Bytes of the disk.
const SIZE: u64 = 64 << 20;
/// What the guests and the host must have reported.
const EXPECTED: [&str; 29] = [
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
    "host: without a model its DMA is blocked: 0x8139: ok",
    "host: without a model its DMA is blocked: 0x100e: ok",
    "host: without a model its DMA is blocked: 0x2922: ok",
    LAST_WORDS,
];
/// How many checks a run makes: the last ones, that three models denied something, by the hostile guest's report.
pub const CHECKS: u64 = (EXPECTED.len() + HOSTILE.len()) as u64;
/// The models of the devices that the hostile guest programs.
const HOSTILE: [&str; 3] = ["rtl8139cp", "e1000", "ahci"];
/// Each guest's last words: two have them.
const LAST_WORDS: &str = "guest: done";

/// What a guest did with a device.
#[derive(Debug, Deserialize)]
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

/// The part of the VMM's report that is about models.
#[derive(Debug, Deserialize)]
struct Report {
    models: Vec<Use>,
}

/// Runs the scenario. Returns what the drivers did, and at which attempt the guests lived, from 1.
pub fn run(progress: &Progress) -> Result<(Vec<Use>, u32)> {
    progress.step("building sriov and reference-vmm");
    let (sriov, vmm) = (programs::sriov()?, programs::reference_vmm()?);
    let lab = workspace::lab()?;
    let kernel = Kernel::obtain(&lab, Series::V6_12)?;
    let archive = initramfs::build(&lab, &kernel, &MODULES, GUEST_INIT, &[])?;
    let initrd = initramfs::store(&lab, "vpio-guest.initrd", &archive)?;
    let quote = |path: &Path| quoted(&path.to_string_lossy());
    let vmm = format!(
        "{} run --kernel {} --initrd {} --memory 256M",
        quote(&vmm),
        quote(&kernel.image),
        quote(&initrd)
    );
    let models = workspace::root()?.join("crates/vpio-model/models");
    let script = format!(
        "SRIOV={}\nVMM={}\nMODELS={}\nWORK=/run/lab\n{HOST_SCRIPT}",
        quote(&sriov),
        quoted(&vmm),
        quote(&models)
    );
    attempts("vpio", || {
        let mut host = Host {
            append: "intel_iommu=on".to_owned(),
            ..Host::new("vpio", Duration::from_secs(480))
        };
        let folder = host.folder()?;
        host.hardware = hardware(&folder)?;
        let finished = host.run(folder, &script, progress)?;
        reported(&finished, &EXPECTED, LAST_WORDS, 2)?;
        let report = |name: &str| -> Result<Vec<Use>> {
            let text = fs::read_to_string(finished.folder.join(name))?;
            let report: Report = serde_json::from_str(&text)?;
            Ok(report.models)
        };
        let denied = report("hostile.json")?;
        for model in HOSTILE {
            let denied = denied
                .iter()
                .any(|used| used.model == model && used.denied > 0);
            denied
                .then_some(())
                .with_context(|| format!("{model} denied nothing"))?;
        }
        report("driven.json")
    })
}

/// One machine with an IOMMU, the devices, and a card of its own at the same cable as the network cards.
fn hardware(folder: &Path) -> Result<Vec<String>> {
    let image = folder.join("disk.img");
    fs::File::create(&image)?.set_len(SIZE)?;
    let image = image.to_string_lossy().replace(',', ",,");
    let mut arguments = vec!["intel-iommu,intremap=on,caching-mode=on,aw-bits=48".to_owned()];
    let mut networks = Vec::new();
    for (device, number) in DEVICES.iter().chain(&["e1000e"]).zip(0..) {
        arguments.push(format!(
            "pcie-root-port,id=rp{number},chassis={}",
            number + 1
        ));
        let network = !device.starts_with("ich9");
        let cable = if network {
            networks.push(format!("hubport,id=n{number},hubid=0"));
            format!(",netdev=n{number},mac=52:54:00:12:34:5{number}")
        } else {
            String::new()
        };
        arguments.push(format!("{device},bus=rp{number}{cable}"));
    }
    arguments.push("ide-hd,bus=disks.0,drive=image".to_owned());
    let drive = format!("file={image},format=raw,if=none,id=image");
    let networks = networks.into_iter().map(|network| ("-netdev", network));
    let arguments = arguments.into_iter().map(|device| ("-device", device));
    let all = [("-drive", drive)]
        .into_iter()
        .chain(networks)
        .chain(arguments);
    Ok(all
        .flat_map(|(option, value)| [option.to_owned(), value])
        .collect())
}
