//! The conformance suite on a real Xen: run it as root in domain 0, or in a domain called 0 there.
//!
//! It prints each line of `tests/conformance/expected.txt`, which the hypervisor in this process reports too, followed by `ok` or by what
//! is reported here.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code"
)]

#[cfg(target_os = "linux")]
#[path = "../tests/conformance/linux.rs"]
mod linux;
#[path = "../tests/conformance/suite.rs"]
mod suite;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let expected = include_str!("../tests/conformance/expected.txt");
    let reported = suite::run(&mut linux::Linux::open().unwrap());
    let count = reported.len();
    let mut same = count == expected.lines().count();
    for (expected, reported) in expected.lines().zip(reported) {
        if expected == reported {
            println!("conformance: {expected}: ok");
        } else {
            same = false;
            println!("conformance: {expected}: FAILED: {reported}");
        }
    }
    println!("conformance: {count} lines");
    match same {
        true => std::process::ExitCode::SUCCESS,
        false => std::process::ExitCode::FAILURE,
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("there is no device of Xen's here");
}
