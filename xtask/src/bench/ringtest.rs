//! Driver and device on two cores, beside the kernel's own ring benchmark.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::Section;
use crate::lab::{debian, kernel_source};
use crate::process;
use crate::progress::Progress;
use crate::workspace;

/// Where the C rings are in the kernel's source.
const RINGTEST: &str = "tools/virtio/ringtest";
const PROGRAMS: [&str; 3] = ["virtio_ring_0_9", "ring", "virtio_ring_inorder"];

/// Builds the C rings and runs vring's benchmark, which runs them beside our own and prints rows of a table.
pub fn measure(progress: &Progress) -> Result<Section> {
    progress.note("building the kernel's ringtest");
    let ringtest = ringtest()?;
    progress.note("10 million buffers through each ring");
    let mut bench = workspace::cargo()?;
    bench.args(["bench", "--quiet", "-p", "vring", "--bench", "two_threads"]);
    let rows = process::output_text(bench.env("RINGTEST", ringtest))?;
    let text = format!(
        "## Driver and device on two cores\n\n\
         Nanoseconds a buffer, of 10 million that one thread adds and takes and another one uses, one at a time; the best of three runs. The \
         peers are the C rings of the kernel's `tools/virtio/ringtest`, with as many buffers in flight on the same cores.\n\n\
         | ring | here | peer | its time |\n|---|---:|---|---:|\n{rows}"
    );
    let figures: Vec<Vec<&str>> = rows
        .lines()
        .map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    Section::new(&figures, text)
}

/// The folder of the C rings, built from Debian's package of the kernel's source.
fn ringtest() -> Result<PathBuf> {
    for program in ["gcc", "make"] {
        debian::ensure_program(program, &[program, "libc6-dev"], false)?;
    }
    let folder = kernel_source::part(RINGTEST)?;
    let mut make = Command::new("make");
    process::run_quietly(make.arg("-C").arg(&folder).args(PROGRAMS))?;
    Ok(folder)
}
