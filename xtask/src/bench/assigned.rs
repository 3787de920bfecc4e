//! An assigned function under our VMM and under QEMU's vfio-pci, in one emulated host.

use std::fmt::Write as _;

use anyhow::Result;

use super::Section;
use super::boots::per;
use crate::lab::assigned::{self, Took};
use crate::progress::Progress;

/// Counts.
pub fn measure(progress: &Progress) -> Result<Section> {
    let took = assigned::run(progress)?;
    let text = table(&took)?;
    Section::new(&took, text)
}

fn table(took: &[Took]) -> Result<String> {
    let mut text = "## An assigned function\n\n\
        A virtual function of QEMU's `igb` behind a real kernel's VT-d, driven by Debian's `igbvf`: 1 MiB down, 1 MiB up. Calls are those of VFIO that \
        map and unmap memory, exits those to user space. Behind its VMM's emulated VT-d, in caching mode, the guest maps and unmaps each buffer.\n\n\
        | function | VMM | frames | exits per frame | map calls per frame | unmap calls per frame |\n\
        |---|---|---:|---:|---:|---:|\n"
        .to_owned();
    for each in took {
        let place = match each.behind {
            true => "behind VT-d",
            false => "plain",
        };
        let vmm = match each.ours {
            true => "reference-vmm",
            false => "QEMU, vfio-pci",
        };
        let per = |count| per(count, each.frames);
        let [exits, maps, unmaps] = [each.exits, each.maps, each.unmaps].map(per);
        let frames = each.frames;
        writeln!(
            text,
            "| {place} | {vmm} | {frames} | {exits} | {maps} | {unmaps} |"
        )?;
    }
    Ok(text)
}
