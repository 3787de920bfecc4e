//! Instructions a chain, counted by valgrind: exact, and the same on every machine, so that a regression shows.
//!
//! Runs itself under cachegrind with two numbers of turns and divides the difference. With `check` it compares ours with what is recorded
//! here, as `cargo xtask test` does.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "benchmark")]

use std::process::ExitCode;

use vring::Features;

mod workload;

const TURNS: [u32; 2] = [100, 300];

/// What is recorded for each of [`workload::CASES`]: split and packed, the device's side.
const DEVICE: [[f64; 2]; workload::CASES.len()] = [
    [274.0, 334.1],
    [198.1, 227.1],
    [193.3, 220.9],
    [481.1, 607.5],
    [563.1, 587.1],
    [1237.1, 1645.1],
    [1259.1, 1211.1],
];

/// Both sides, buffers of one descriptor in batches of 16, and what is recorded.
const BOTH: [(&str, Features, f64); 4] = [
    ("split", Features::empty(), 375.4),
    ("packed", Features::RING_PACKED, 409.4),
    ("split, in order", Features::IN_ORDER, 380.4),
    (
        "packed, in order",
        Features::RING_PACKED.union(Features::IN_ORDER),
        454.9,
    ),
];
const BOTH_BATCH: u16 = 16;

/// How far a count may be from the record: compilers differ.
const TOLERANCE: f64 = 0.05;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, run, side, case, turns] = args.as_slice()
        && run == "run"
    {
        turn(side, case.parse().unwrap(), turns.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    if !cachegrind::is_there() {
        println!("SKIPPED: valgrind is not installed");
        return ExitCode::SUCCESS;
    }
    let check = args.iter().any(|arg| arg == "check");
    let mut off = Vec::new();
    let mut compare = |name: String, count: f64, recorded: f64| {
        if (count - recorded).abs() > TOLERANCE * recorded {
            off.push(format!("{name}: {count:.1}, recorded {recorded:.1}"));
        }
    };
    println!(
        "{:<28}{:>9}{:>9}{:>14}",
        "instructions a chain", "split", "packed", "virtio-queue"
    );
    for (case, (shape, batch)) in workload::CASES.iter().enumerate() {
        let name = format!("{shape}, batch {batch}");
        let counts = ["split", "packed"].map(|side| {
            let count = instructions(side, case, *batch);
            let recorded = DEVICE[case][usize::from(side == "packed")];
            compare(format!("{name}, {side}"), count, recorded);
            count
        });
        let peer = if check {
            "-".to_owned()
        } else {
            format!("{:.1}", instructions("peer", case, *batch))
        };
        println!("{name:<28}{:>9.1}{:>9.1}{peer:>14}", counts[0], counts[1]);
    }
    for (case, (name, _, recorded)) in BOTH.into_iter().enumerate() {
        let count = instructions("both", case, BOTH_BATCH);
        compare(format!("both ends, {name}"), count, recorded);
        println!("{:<28}{count:>9.1}", format!("both ends, {name}"));
    }
    if check && !off.is_empty() {
        println!(
            "not what is recorded in benches/instructions.rs:\n{}",
            off.join("\n")
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What is counted.
fn turn(side: &str, case: usize, turns: u32) {
    let memory = workload::memory();
    if side == "both" {
        let (_, features, _) = BOTH[case];
        return repeat(turns, workload::both(&memory, features, BOTH_BATCH));
    }
    let (shape, batch) = workload::CASES[case];
    match side {
        "split" => repeat(turns, workload::split(&memory, shape, batch)),
        "packed" => repeat(turns, workload::packed(&memory, shape, batch)),
        _ => repeat(turns, workload::peer(&memory, shape, batch)),
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
        cachegrind::instructions(&["run", side, &case.to_string(), &turns.to_string()])
    });
    (many - few) / (f64::from(TURNS[1] - TURNS[0]) * f64::from(batch))
}
