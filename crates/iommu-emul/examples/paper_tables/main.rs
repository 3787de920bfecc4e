//! What the two tables of "vIOMMU: Efficient IOMMU Emulation" (Amit, Ben-Yehuda, Tsafrir and Schuster, ATC'11) have, measured in one
//! process, as JSON for `cargo xtask bench iommu`: `paper_tables EXIT…` with what an exit costs, in cycles.
//!
//! Nothing runs in a guest. The driver's code and the unit are those that a guest and its VMM run; where a guest would exit, the
//! driver's thread calls the unit and, if that is asked for, spins as long as an exit takes.

#![expect(clippy::unwrap_used, reason = "a measuring program")]

mod card;
mod machine;
mod strict;

use std::time::Duration;

use iommu_emul::mapping::Strategy;
use serde_json::{Value, json};

use card::{Rate, frames};
use machine::Arm;

/// The strategies of the paper's second table, the last with the numbers of the second.
const STRATEGIES: [(&str, Strategy); 3] = [
    ("strict", Strategy::Strict),
    ("deferred", Strategy::LINUX_DEFERRED),
    (
        "optimistic",
        Strategy::Optimistic {
            quota: 256,
            age: Duration::from_millis(10),
        },
    ),
];

/// Cycles of a nanosecond, as the kernel says.
fn cycles_per_nanosecond() -> f64 {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("cpu MHz"));
    let mhz = line.and_then(|line| line.split(':').nth(1)).unwrap();
    mhz.trim().parse::<f64>().unwrap() / 1000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    *values.get(values.len() / 2).unwrap()
}

fn main() {
    let frequency = cycles_per_nanosecond();
    let exits: Vec<f64> = std::env::args()
        .skip(1)
        .map(|cycles| cycles.parse().unwrap())
        .collect();
    let trap = |cycles: f64| Arm::Call {
        exit: Duration::from_secs_f64(cycles / frequency / 1e9),
    };
    let cycles = |nanoseconds: f64| (nanoseconds * frequency).round();
    let (call, exits_each) = strict::map_unmap(Arm::BARE);
    let (sidecore, _) = strict::map_unmap(Arm::Sidecore);

    let rate = Rate::calibrated();
    let cells: Vec<Value> = STRATEGIES
        .iter()
        .map(|(name, strategy)| {
            let run = |arm| frames(arm, Some(*strategy), rate);
            let bare = run(Arm::BARE);
            let sidecore = run(Arm::Sidecore);
            let trapped: Vec<f64> = exits.iter().map(|cost| run(trap(*cost)).share).collect();
            json!({
                "strategy": name,
                "exits": bare.exits,
                "bare": bare.share,
                "trap": trapped,
                "sidecore": sidecore.share,
                "busy": sidecore.busy,
            })
        })
        .collect();
    let tables = json!({
        "strict": {
            "logic": cycles(strict::logic()),
            "call": cycles(call),
            "sidecore": cycles(sidecore),
            "exits": exits_each,
        },
        "frames_per_second": rate.per_second(),
        "unprotected": frames(Arm::BARE, None, rate).share,
        "card": cells,
    });
    println!("{tables:#}");
}
