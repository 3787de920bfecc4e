//! The lab's comparison of VMMs: what a whole boot and a guest's I/O take.

use std::fmt;

use anyhow::Result;
use clap::Parser as _;
use serde::Serialize;

use super::Section;
use crate::lab::boot::{self, BootArgs, Measured, Vmm};
use crate::progress::Progress;

/// One VMM in the lab.
#[derive(Debug, Serialize)]
struct Boot {
    vmm: String,
    #[serde(flatten)]
    measured: Measured,
}

/// A `boot` command line without flags.
#[derive(clap::Parser)]
struct Defaults {
    #[command(flatten)]
    args: BootArgs,
}

/// Boots the same guest under each VMM.
pub fn measure(progress: &Progress) -> Result<Section> {
    let vmms = [Vmm::Reference, Vmm::Microvm, Vmm::Q35];
    let mut args = Defaults::try_parse_from(["boot"])?.args;
    args.append = "lab.measure".to_owned();
    args.emulated = true;
    args.bound = 300;
    let mut boots = Vec::new();
    for vmm in vmms {
        args.vmm = vmm;
        let measured = boot::run(&args, "compare", progress)?.measured;
        boots.push(Boot {
            vmm: vmm.to_string(),
            measured,
        });
    }
    let text = Tables(&boots).to_string();
    Section::new(&boots, text)
}

struct Tables<'a>(&'a [Boot]);

impl fmt::Display for Tables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## A whole boot\n")?;
        writeln!(
            f,
            "The same Debian guest, each in an emulated host of its own. Exits are those to user space, from power-on \
             to the guest's init and to the end of its work; time is the host's, to init, and means something only as a ratio.\n"
        )?;
        writeln!(
            f,
            "| VMM | exits to init | exits in all | time to init | memory beyond the guest's |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---:|")?;
        for Boot { vmm, measured } in self.0 {
            let (to_init, all) = (measured.exits_to_init.total(), measured.exits.total());
            let time = duration_cs(measured.init_after_cs);
            writeln!(
                f,
                "| {vmm} | {to_init} | {all} | {time} | {} KiB |",
                measured.resident_kib
            )?;
        }
        writeln!(f, "\n## I/O in the guest\n")?;
        writeln!(
            f,
            "Block: 4 KiB direct reads. Exits are those to user space for MMIO; kicks are MMIO writes, in the kernel or beyond; \
             all per request, or per packet received.\n"
        )?;
        writeln!(f, "| work | VMM | requests | exits | kicks | interrupts |")?;
        writeln!(f, "|---|---|---:|---:|---:|---:|")?;
        for Boot { vmm, measured } in self.0 {
            for io in &measured.io {
                write!(f, "| {} | {vmm} | {}", io.work, io.requests)?;
                for count in [io.exits, io.writes, io.interrupts] {
                    write!(f, " | {}", per(count, io.requests))?;
                }
                writeln!(f, " |")?;
            }
        }
        Ok(())
    }
}

/// `count` for each of `requests`, to two decimals.
pub(super) fn per(count: u64, requests: u64) -> String {
    match (count * 100).checked_div(requests) {
        Some(hundredths) => format!("{}.{:02}", hundredths / 100, hundredths % 100),
        None => "–".to_owned(),
    }
}

fn duration_cs(centiseconds: u64) -> String {
    format!("{}.{:02} s", centiseconds / 100, centiseconds % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_readable() {
        assert_eq!(per(1, 3), "0.33");
        assert_eq!(per(1, 0), "–");
    }
}
