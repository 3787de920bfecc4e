//! Instructions of one update of each model, and of an access that needs none, counted by valgrind: exact, and the same on every machine,
//! so that a regression shows.
//!
//! With `check` it compares them with what is recorded here, as `cargo xtask test` does.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark")]

use std::process::ExitCode;

mod cases;

/// What is recorded for one update, in the order of [`cases::CASES`].
const UPDATES: [f64; cases::CASES.len()] = [111.5, 159.4, 181.5, 562.5, 111.5, 250.5, 400.5, 321.5];
/// The same for an access through the bus with the model and without.
const BUS: [f64; 2] = [110.4, 82.0];
/// So many that what starting takes, which is not always the same, does not show.
const TURNS: [u32; 2] = [1000, 51_000];
/// How far a count may be from the record: compilers differ.
const TOLERANCE: f64 = 0.05;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, run, what, turns] = args.as_slice()
        && run == "run"
    {
        turn(what, turns.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    if !cachegrind::is_there() {
        println!("SKIPPED: valgrind is not installed");
        return ExitCode::SUCCESS;
    }
    let names = cases::CASES.iter().map(|case| case.name);
    let updates = names.zip(UPDATES.map(|recorded| (recorded, 2.0)));
    let bus = ["with the model", "without"]
        .into_iter()
        .zip(BUS.map(|recorded| (recorded, 1.0)));
    let mut off = false;
    for (name, (recorded, each)) in updates.chain(bus) {
        let [few, many] =
            TURNS.map(|turns| cachegrind::instructions(&["run", name, &turns.to_string()]));
        let count = (many - few) / f64::from(TURNS[1] - TURNS[0]) / each;
        println!("{name:<18}{count:>8.1}, recorded {recorded:.1}");
        off |= (count - recorded).abs() > TOLERANCE * recorded;
    }
    if off && args.iter().any(|arg| arg == "check") {
        println!("not what is recorded in benches/instructions.rs");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What is counted.
fn turn(what: &str, turns: u32) {
    match cases::CASES.iter().find(|case| case.name == what) {
        Some(case) => {
            let mut updates = case.updates();
            (0..turns).for_each(|_| updates());
        }
        None => {
            let mut reader = cases::on_bus(what == "with the model");
            (0..turns).for_each(|_| cases::write_data(&mut reader));
        }
    }
}
