//! The examples that compare with QEMU's device models over qtest.

use anyhow::{Result, bail};

use super::summary::Counts;
use super::{Outcome, Session, Step};
use crate::lab::host::ensure_qemu;
use crate::process::shown;
use crate::workspace;

/// In this order.
pub const STEPS: &[Step] = &[
    ("vt-d beside qemu", |session| {
        beside_qemu(session, "iommu-emul", "qemu_vtd", "1000")
    }),
    ("vpio beside qemu", |session| {
        beside_qemu(session, "vpio-model", "qemu_devices", "200")
    }),
    ("sr-iov beside qemu", |session| {
        beside_qemu(session, "sriov-vfio", "qemu_igb", "200")
    }),
];

/// Runs the example of `package` that makes so many programs for both.
fn beside_qemu(session: &Session, package: &str, example: &str, programs: &str) -> Result<Outcome> {
    if let Err(error) = ensure_qemu() {
        if session.on_ci {
            return Err(error);
        }
        return Ok(Outcome::skipped(&format!("{error:#}")));
    }
    let mut command = workspace::cargo()?;
    command.args(["run", "--locked", "--release", "-p", package]);
    command.args(["--example", example, programs]);
    let logged = session.logged(example, &mut command)?;
    if !logged.success || logged.output.contains("SKIPPED") {
        bail!("`{}`\n{}", shown(&command), logged.tail());
    }
    let counted = |line: &&str| line.contains("programs") && line.contains("operations");
    let counts: Vec<&str> = logged.output.lines().filter(counted).collect();
    Ok(Outcome {
        counts: Counts::PASSED,
        note: counts.join("; "),
    })
}
