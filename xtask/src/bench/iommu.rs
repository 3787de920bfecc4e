//! The tables and plots of "vIOMMU: Efficient IOMMU Emulation" (Amit et al., ATC'11), the paper's figures beside ours.

mod exit_cost;
mod plot;

use std::fmt;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::Section;
use crate::progress::Progress;
use crate::workspace;
use exit_cost::ExitCost;
use plot::{Bar, plot};

/// What an exit takes, in cycles, where it is assumed (Landau, Ben-Yehuda and Gordon, WIOV'11).
const ASSUMED: f64 = 2000.0;

/// What the example of iommu-emul measures.
#[derive(Debug, Deserialize, Serialize)]
struct Measured {
    strict: Strict,
    frames_per_second: f64,
    /// Share of the frames, 0 to 1.
    unprotected: f64,
    card: Vec<Cell>,
}

/// Map + unmap of one page, in cycles.
#[derive(Debug, Deserialize, Serialize)]
struct Strict {
    /// Without any unit.
    logic: f64,
    /// The unit is called.
    call: f64,
    sidecore: f64,
    /// Counted.
    exits: f64,
}

/// A strategy's shares of the frames, 0 to 1.
#[derive(Debug, Deserialize, Serialize)]
struct Cell {
    strategy: String,
    /// Of one frame.
    exits: f64,
    bare: f64,
    /// With the assumed and with the measured cost of an exit.
    trap: [f64; 2],
    sidecore: f64,
    /// The sidecore's time with work to do.
    busy: f64,
}

#[derive(Debug, Serialize)]
struct Figures {
    exit: ExitCost,
    #[serde(flatten)]
    measured: Measured,
}

/// Below this share of the frames without an IOMMU the machine had other work to do, and the card's figures say nothing.
const UNDISTURBED: f64 = 0.95;

/// The paper's strict map + unmap in cycles: interaction with the hardware, logic.
const PAPER_STRICT: [(&str, f64, f64); 3] = [
    ("bare", 2316.0, 4593.0),
    ("trap and emulate", 30_645.0, 4324.0),
    ("sidecore", 7321.0, 1904.0),
];
/// The paper's netperf in % of 9.3 Gb/s: bare, trap and emulate, sidecore.
const PAPER_CARD: [[f64; 3]; 3] = [[43.0, 10.0, 30.0], [91.0, 11.0, 49.0], [100.0, 82.0, 100.0]];

/// Measures, and writes the book's page and its plots.
pub fn measure(progress: &Progress) -> Result<Section> {
    progress.note("what an exit costs");
    let exit = ExitCost::measured(progress)?;
    progress.note("iommu-emul, example paper_tables");
    let mut command = workspace::cargo()?;
    command.args(["run", "--release", "-p", "iommu-emul"]);
    command.args(["--example", "paper_tables", "--"]);
    let costs = [ASSUMED, exit.cycles].map(|cycles| cycles.to_string());
    let output = command.args(costs).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let measured = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())?;
    let figures = Figures { exit, measured };
    let text = figures.to_string();
    let book = workspace::root()?.join("docs/src");
    let plots = book.join("figures");
    fs::write(plots.join("iommu-strict.svg"), figures.strict_plot())?;
    if figures.measured.undisturbed() {
        fs::write(plots.join("iommu-card.svg"), figures.card_plot())?;
    }
    let page = text.replacen("## ", "# ", 1).replace("\n### ", "\n## ");
    fs::write(book.join("iommu-emulation.md"), page)?;
    Section::new(&figures, text)
}

impl Measured {
    /// Whether each run had the two threads to itself for a while; the example reports 0 of one that had not.
    fn undisturbed(&self) -> bool {
        let seen = |cell: &Cell| {
            let mut shares = cell.trap.iter().chain([&cell.bare, &cell.sidecore]);
            shares.all(|share| *share > 0.0)
        };
        self.unprotected >= UNDISTURBED && self.card.iter().all(seen)
    }
}

impl Figures {
    /// Map + unmap in the three arms, each exit taking so many cycles.
    fn totals(&self, exit: f64) -> [f64; 3] {
        let Strict {
            call,
            sidecore,
            exits,
            ..
        } = self.measured.strict;
        [call, call + exits * exit, sidecore]
    }

    fn strict_plot(&self) -> String {
        let here = self.totals(ASSUMED);
        let bars = PAPER_STRICT
            .iter()
            .zip(here)
            .flat_map(|((name, interaction, logic), here)| {
                [Bar::paper(name, interaction + logic), Bar::here(name, here)]
            });
        let title = format!("Strict map + unmap of a page, cycles; an exit is {ASSUMED}");
        plot(&title, &bars.collect::<Vec<_>>())
    }

    fn card_plot(&self) -> String {
        let bars = self
            .measured
            .card
            .iter()
            .zip(PAPER_CARD)
            .flat_map(|(cell, paper)| {
                let here = [cell.bare, cell.trap[0], cell.sidecore];
                let arms = ["bare", "trap", "sidecore"].iter().zip(paper).zip(here);
                arms.flat_map(|((arm, paper), here)| {
                    let name = format!("{}, {arm}", cell.strategy);
                    [Bar::paper(&name, paper), Bar::here(&name, 100.0 * here)]
                })
            });
        let title = format!("Share of the frames that are received, %; an exit is {ASSUMED}");
        plot(&title, &bars.collect::<Vec<_>>())
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exit, measured } = self;
        let (cycles, place) = (exit.cycles, exit.place);
        writeln!(
            f,
            "## IOMMU emulation\n\n\
             Written by `cargo xtask bench iommu`; do not edit. The paper is \"vIOMMU: Efficient IOMMU Emulation\" (Amit, Ben-Yehuda, Tsafrir \
             and Schuster, ATC'11), on a Xeon X5570 with KVM of its time. Ours runs in one process, on two threads and without a guest: \
             the driver's code (IOVA allocator, page tables, invalidation queue) and the unit are what a guest and its VMM run. \
             *Bare* is the driver's thread calling the unit, where the paper has hardware. *Trap and emulate* is the same and the cost of an exit \
             each time: {ASSUMED} cycles, as in the literature, or what one measures {place}: {cycles} cycles for a write to the unit's \
             tail register by a guest that does nothing else. *Sidecore* is measured as it is: the register is memory, and another thread \
             polls it. Interaction is what is left without the logic, which was measured with nothing to invalidate.\n\n\
             ### Strict map + unmap of a page\n\n\
             In cycles; ours are medians.\n\n\
             | | paper: interaction | logic | total | here: exits | interaction | logic | total | total, measured exits |\n\
             |---|{}",
            "---:|".repeat(8)
        )?;
        let exits = [0.0, measured.strict.exits, 0.0];
        let totals = self.totals(ASSUMED).into_iter().zip(self.totals(cycles));
        for (((name, interaction, logic), exits), (total, with)) in
            PAPER_STRICT.iter().zip(exits).zip(totals)
        {
            let paper = interaction + logic;
            let logic_here = measured.strict.logic;
            let interaction_here = (total - logic_here).max(0.0);
            writeln!(
                f,
                "| {name} | {interaction} | {logic} | {paper} | {exits:.1} | {interaction_here:.0} | {logic_here:.0} | {total:.0} | {with:.0} |",
            )?;
        }
        let [_, paper_trap, paper_sidecore] = PAPER_STRICT.map(|(_, a, b)| a + b);
        let ratio = |exit| {
            let [_, trap, sidecore] = self.totals(exit);
            trap / sidecore
        };
        writeln!(
            f,
            "\nThe sidecore is {:.1} times as fast as trap and emulate in the paper, {:.1} times here with {ASSUMED} cycles an exit, \
             {:.1} times with measured exits.\n\n\
             ![Strict map + unmap](figures/iommu-strict.svg)\n",
            paper_trap / paper_sidecore,
            ratio(ASSUMED),
            ratio(cycles)
        )?;
        writeln!(
            f,
            "### A network card\n\n\
             The paper has netperf over a 10 Gb/s card, in % of 9.3 Gb/s. Here frames of 1,500 bytes arrive at a simulated card, {} in a second: \
             at this rate the driver without an IOMMU, which copies and sums each frame, is busy half the time. A frame that finds no posted buffer is \
             lost; shown is the share of those that are not, in the window of 2 ms that one in ten is better than. The card's engine and the sidecore share a thread. Without an IOMMU it is {:.0} %.\n",
            measured.frames_per_second,
            100.0 * measured.unprotected,
        )?;
        if !measured.undisturbed() {
            return writeln!(
                f,
                "The machine had other work to do when this was measured, so that there is nothing to show."
            );
        }
        writeln!(
            f,
            "| strategy | paper: bare | trap | sidecore | here: bare | trap | trap, measured exits | sidecore | sidecore busy | exits a frame |\n\
             |---|{}",
            "---:|".repeat(9)
        )?;
        for (cell, [bare, trap, sidecore]) in measured.card.iter().zip(PAPER_CARD) {
            let [assumed, with] = cell.trap.map(|share| 100.0 * share);
            writeln!(
                f,
                "| {} | {bare} % | {trap} % | {sidecore} % | {:.0} % | {assumed:.0} % | {with:.0} % | {:.0} % | {:.0} % | {:.3} |",
                cell.strategy,
                100.0 * cell.bare,
                100.0 * cell.sidecore,
                100.0 * cell.busy,
                cell.exits
            )?;
        }
        writeln!(f, "\n![Share of the frames](figures/iommu-card.svg)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trap_is_a_call_and_its_exits() {
        let cell = Cell {
            strategy: "strict".to_owned(),
            exits: 1.0,
            bare: 0.5,
            trap: [0.25, 0.03],
            sidecore: 0.4,
            busy: 0.3,
        };
        let figures = Figures {
            exit: ExitCost {
                cycles: 25_000.0,
                place: "here",
            },
            measured: Measured {
                strict: Strict {
                    logic: 50.0,
                    call: 100.0,
                    sidecore: 300.0,
                    exits: 1.0,
                },
                frames_per_second: 500_000.0,
                unprotected: 1.0,
                card: vec![cell],
            },
        };
        assert_eq!(figures.totals(2000.0), [100.0, 2100.0, 300.0]);
        let text = figures.to_string();
        let strict = "| trap and emulate | 30645 | 4324 | 34969 | 1.0 | 2050 | 50 | 2100 | 25100 |";
        assert!(text.contains(strict), "{text}");
        let card = "| strict | 43 % | 10 % | 30 % | 50 % | 25 % | 3 % | 40 % | 30 % | 1.000 |";
        assert!(text.contains(card), "{text}");
        assert_eq!(figures.strict_plot().matches("<rect").count(), 6);
        assert_eq!(figures.card_plot().matches("<rect").count(), 6);
    }
}
