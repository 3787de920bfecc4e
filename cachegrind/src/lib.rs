//! Instructions as valgrind counts them: exact, and the same on every machine.

#![expect(clippy::unwrap_used, reason = "a benchmark cannot go on")]

use std::process::Command;

/// Whether there is valgrind to count with.
pub fn is_there() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok()
}

/// The instructions of this program, run with these arguments.
///
/// # Panics
///
/// It cannot be counted.
pub fn instructions(args: &[&str]) -> f64 {
    let program = std::env::current_exe().unwrap();
    let output = Command::new("valgrind")
        .args([
            "--tool=cachegrind",
            "--cache-sim=no",
            "--cachegrind-out-file=/dev/null",
        ])
        .arg(program)
        .args(args)
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = report
        .lines()
        .find(|line| line.contains("I refs:") || line.contains("I   refs:"));
    let digits: String = line
        .unwrap()
        .split(':')
        .next_back()
        .unwrap()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap()
}
