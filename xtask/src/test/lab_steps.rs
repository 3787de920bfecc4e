//! The steps that need KVM: this machine's, or that of the lab.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser as _;
use serde_json::Value;

use super::cargo_steps::TESTS;
use super::summary::Counts;
use super::{Outcome, Session, Step};
use crate::lab::attempts::attempts;
use crate::lab::boot::{self, BootArgs};
use crate::lab::host::Host;
use crate::lab::{
    disk, programs, shared, sriov, vfio, vhost, virtual_functions, vpio, xen, xen_guest, xen_peers,
};
use crate::process::{self, quoted};
use crate::workspace;

/// On this machine itself, one after another.
pub const ALONE: &[Step] = &[("kvm, this machine", kvm_here), ("vhost-user", vhost_user)];

/// In an emulated host each; the longest first, so that all hosts are busy to the end.
pub const SIDE_BY_SIDE: &[Step] = &[
    ("models", models),
    ("shared ne2000", |session| {
        shared_card(session, &shared::NE2000)
    }),
    ("shared rtl8139", |session| {
        shared_card(session, &shared::RTL8139)
    }),
    ("assigned function", assigned_function),
    ("kvm, lab", kvm_in_the_lab),
    ("assigned disk", assigned_disk),
    ("boot, vhost-user", |session| {
        boots(session, &["--vhost-user"])
    }),
    ("boot, elf kernel, root ports, reboot", |session| {
        boots(session, &["--elf", "--transport", "pci-ports", "--reboot"])
    }),
    ("boot, xen", boot_xen),
    ("boot, xen peers", boot_xen_peers),
    ("xen", on_xen),
    ("virtual functions of ours", our_virtual_functions),
    ("boot, kernel 6.1", |session| {
        boots(session, &["--kernel", "6.1"])
    }),
    ("boot, iommu, lazy", |session| iommu(session, "lazy")),
    ("boot, iommu, sidecore", |session| {
        iommu(session, "sidecore")
    }),
    ("boot, iommu, sidecore, faults", |session| {
        iommu(session, "sidecore-faults")
    }),
    ("boot, iommu, strict", |session| iommu(session, "strict")),
    ("boot, iommu, scalable", |session| {
        iommu(session, "scalable")
    }),
    ("boot, iommu, virtio", |session| iommu(session, "virtio")),
    ("boot", |session| boots(session, &[])),
    ("boot, 2 cpus", |session| boots(session, &["--cpus", "2"])),
    ("boot, mmio", |session| {
        boots(session, &["--transport", "mmio"])
    }),
    ("sr-iov", sr_iov),
];

/// A `boot` command line, parsed as the command line is.
#[derive(clap::Parser)]
struct Boot {
    #[command(flatten)]
    args: BootArgs,
}

fn boots(session: &Session, flags: &[&str]) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let args = Boot::try_parse_from(["boot"].iter().chain(flags))?.args;
    let name = format!("boot{}", flags.concat());
    let booted = boot::run(&args, &name, &session.progress)?;
    let mut note = format!("{} exits to init", booted.measured.exits_to_init.total());
    note.push_str(&at_attempt(booted.attempt));
    Ok(Outcome {
        counts: Counts {
            passed: boot::CHECKS,
            ..Counts::default()
        },
        note,
    })
}

fn iommu(session: &Session, mode: &str) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let args = Boot::try_parse_from(["boot"])?.args;
    let (used, attempt) = boot::iommu::run(mode, &args, &session.progress)?;
    let mut note = format!(
        "{} of {} exits by the unit's registers",
        used.register_exits, used.exits
    );
    note.push_str(&at_attempt(attempt));
    Ok(Outcome {
        counts: Counts {
            passed: used.checks,
            ..Counts::default()
        },
        note,
    })
}

/// Said of what did not live at the first attempt.
fn at_attempt(attempt: u32) -> String {
    match attempt {
        1 => String::new(),
        later => format!(", at attempt {later}"),
    }
}

fn vhost_user(session: &Session) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let checks = vhost::run(&session.progress)?;
    Ok(Outcome {
        counts: Counts {
            passed: u64::try_from(checks.len())?,
            ..Counts::default()
        },
        note: checks.last().cloned().unwrap_or_default(),
    })
}

fn sr_iov(session: &Session) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let checks = sriov::run(&session.progress)?;
    Ok(Outcome {
        counts: Counts {
            passed: u64::try_from(checks.len())?,
            ..Counts::default()
        },
        note: checks.last().cloned().unwrap_or_default(),
    })
}

fn assigned_function(session: &Session) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let transfer = vfio::run(&session.progress)?;
    Ok(Outcome {
        counts: Counts {
            passed: transfer.checks,
            ..Counts::default()
        },
        note: transfer.to_string(),
    })
}

fn assigned_disk(session: &Session) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let cost = disk::run(&session.progress)?;
    Ok(Outcome {
        counts: Counts {
            passed: disk::CHECKS,
            ..Counts::default()
        },
        note: cost.to_string(),
    })
}

fn our_virtual_functions(session: &Session) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let carried = virtual_functions::run(&session.progress)?;
    Ok(Outcome {
        counts: Counts {
            passed: virtual_functions::CHECKS,
            ..Counts::default()
        },
        note: carried.to_string(),
    })
}

fn kvm_here(session: &Session) -> Result<Outcome> {
    let kvm = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    if let Err(error) = kvm {
        return Ok(Outcome::skipped(&format!("/dev/kvm: {error}")));
    }
    let mut counts = Counts::default();
    for binary in kvm_tests()? {
        let mut command = Command::new(&binary);
        let outcome = session.tests("kvm-here", command.arg("--show-output"))?;
        counts = counts.and(outcome.counts);
    }
    let mut demo = Command::new(programs::reference_vmm()?);
    let outcome = session.check("demo-here", demo.arg("demo"))?;
    Ok(Outcome {
        counts: counts.and(outcome.counts),
        note: String::new(),
    })
}

fn on_xen(session: &Session) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let report = xen::run(&session.progress)?;
    Ok(Outcome {
        counts: Counts {
            passed: u64::try_from(report.checks)?,
            ..Counts::default()
        },
        note: format!("conformance on a real Xen{}", at_attempt(report.attempt)),
    })
}

fn models(session: &Session) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let (used, attempt) = vpio::run(&session.progress)?;
    let used: Vec<String> = used.iter().map(ToString::to_string).collect();
    Ok(Outcome {
        counts: Counts {
            passed: vpio::CHECKS,
            ..Counts::default()
        },
        note: format!("{}{}", used.join("; "), at_attempt(attempt)),
    })
}

fn shared_card(session: &Session, card: &shared::Card) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let turns = shared::run(card, &session.progress)?;
    Ok(Outcome {
        counts: Counts {
            passed: shared::CHECKS,
            ..Counts::default()
        },
        note: turns.to_string(),
    })
}

fn boot_xen(session: &Session) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let (counts, attempt) = xen_guest::run(&session.progress)?;
    Ok(Outcome {
        counts: Counts {
            passed: xen_guest::CHECKS,
            ..Counts::default()
        },
        note: format!("requests and hypercalls: {counts}{}", at_attempt(attempt)),
    })
}

fn boot_xen_peers(session: &Session) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let attempt = xen_peers::run(&session.progress)?;
    Ok(Outcome {
        counts: Counts {
            passed: xen_peers::CHECKS,
            ..Counts::default()
        },
        note: format!("two guests share pages{}", at_attempt(attempt)),
    })
}

fn kvm_in_the_lab(session: &Session) -> Result<Outcome> {
    if let Some(skipped) = unavailable(session)? {
        return Ok(skipped);
    }
    let mut script = String::from("failed=0\n");
    for binary in kvm_tests()? {
        let binary = quoted(&binary.to_string_lossy());
        script.push_str(&format!("{binary} --show-output || failed=1\n"));
    }
    let vmm = programs::reference_vmm()?;
    script.push_str(&format!(
        "{} demo || failed=1\nexit $failed\n",
        quoted(&vmm.to_string_lossy())
    ));
    let host = Host::new("kvm", Duration::from_secs(300));
    let (finished, _) = attempts(&host.name, || {
        host.run(host.folder()?, &script, &session.progress)
    })?;
    let counts = Counts::of_tests(&finished.output);
    if finished.status != 0 {
        bail!(
            "{}\nthe logs are in {}",
            finished.output,
            finished.folder.display()
        );
    }
    Ok(Outcome {
        counts: counts.and(Counts::PASSED),
        note: String::new(),
    })
}

/// Why the lab cannot run here, if it cannot; on CI that is an error.
fn unavailable(session: &Session) -> Result<Option<Outcome>> {
    let why = if cfg!(not(target_arch = "x86_64")) {
        "the lab emulates x86-64 on x86-64"
    } else if !Path::new("/etc/debian_version").exists() {
        "the lab needs Debian's packages"
    } else {
        return Ok(None);
    };
    if session.on_ci {
        bail!("{why}: on CI the lab must run");
    }
    Ok(Some(Outcome::skipped(why)))
}

/// The test binaries of the crate that drives KVM.
fn kvm_tests() -> Result<Vec<PathBuf>> {
    let mut build = workspace::cargo()?;
    build
        .args(TESTS)
        .args(["--no-run", "--message-format=json"]);
    let messages = process::output_text(&mut build)?;
    Ok(messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            let field = |name: &str| {
                message
                    .get(name)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            let is_test = message.pointer("/profile/test") == Some(&Value::Bool(true));
            is_test && field("package_id").contains("reference-vmm")
        })
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .collect())
}
