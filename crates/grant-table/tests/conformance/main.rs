//! The conformance suite on the hypervisor in this process. The example `conformance` runs the same on a real Xen.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code"
)]

mod in_process;
mod suite;

/// What each line must be, in process and on a real Xen.
const EXPECTED: &str = include_str!("expected.txt");

#[test]
fn the_suite_reports_in_process_what_it_reports_on_a_real_xen() {
    let lines = suite::run(&mut in_process::InProcess::new());
    assert_eq!(lines.join("\n") + "\n", EXPECTED);
}
