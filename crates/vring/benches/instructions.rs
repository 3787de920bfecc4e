//! Instructions a chain, counted by valgrind: exact, and the same on every machine, so that a regression shows.
//!
//! Runs itself under cachegrind with two numbers of turns and divides the difference.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "benchmark")]

use std::process::Command;

mod workload;

const TURNS: [u32; 2] = [100, 300];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, run, side, case, turns] = args.as_slice()
        && run == "run"
    {
        let (shape, batch) = workload::CASES[case.parse::<usize>().unwrap()];
        let memory = workload::memory();
        let turns = turns.parse().unwrap();
        match side.as_str() {
            "split" => repeat(turns, workload::split(&memory, shape, batch)),
            "packed" => repeat(turns, workload::packed(&memory, shape, batch)),
            _ => repeat(turns, workload::peer(&memory, shape, batch)),
        }
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: valgrind is not installed");
        return;
    }
    println!(
        "{:<24}{:>10}{:>10}{:>16}",
        "instructions a chain", "split", "packed", "virtio-queue"
    );
    for (case, (shape, batch)) in workload::CASES.iter().enumerate() {
        let counts: Vec<_> = ["split", "packed", "peer"]
            .iter()
            .map(|side| instructions(side, case, *batch))
            .collect();
        let name = format!("{shape}, batch {batch}");
        println!(
            "{name:<24}{:>10.1}{:>10.1}{:>16.1}",
            counts[0], counts[1], counts[2]
        );
    }
}

fn repeat(turns: u32, mut turn: impl FnMut()) {
    for _ in 0..turns {
        turn();
    }
}

/// Instructions a chain.
fn instructions(side: &str, case: usize, batch: u16) -> f64 {
    let [few, many] = TURNS.map(|turns| {
        let program = std::env::current_exe().unwrap();
        let output = Command::new("valgrind")
            .args([
                "--tool=cachegrind",
                "--cache-sim=no",
                "--cachegrind-out-file=/dev/null",
            ])
            .arg(program)
            .args(["run", side, &case.to_string(), &turns.to_string()])
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
        digits.parse::<f64>().unwrap()
    });
    (many - few) / (f64::from(TURNS[1] - TURNS[0]) * f64::from(batch))
}
