//! The state machines, to look at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{Report, Transition};
use crate::model::Model;

/// Sizes of the drawing, in pixels.
const ROW: i64 = 170;
const STEP: i64 = 300;
/// How much farther an arrow bends away from the states for each one that it passes, clear of what is written at the others.
const BEND: i64 = 120;
const MARGIN: i64 = 110;

impl Model {
    /// The machines' transitions as a graph for Graphviz.
    pub fn graph(&self, report: &Report) -> String {
        let mut text = format!("digraph \"{}\" {{\n  rankdir=LR;\n", self.name);
        for machine in &self.machines {
            text += &format!(
                "  subgraph \"cluster_{0}\" {{\n    label=\"{0}\";\n",
                machine.name
            );
            for (state, number) in machine.states.iter().zip(0..) {
                let shape = if number == 0 {
                    "doublecircle"
                } else {
                    "circle"
                };
                let name = &machine.name;
                text += &format!("    \"{name}.{state}\" [label=\"{state}\", shape={shape}];\n");
            }
            text += "  }\n";
        }
        let mut edges: Vec<(&Transition, Vec<&str>)> = Vec::new();
        for transition in &report.transitions {
            match edges.last_mut() {
                Some((last, events))
                    if (&last.machine, &last.from, &last.to)
                        == (&transition.machine, &transition.from, &transition.to) =>
                {
                    events.push(&transition.event);
                }
                _ => edges.push((transition, vec![&transition.event])),
            }
        }
        for (
            Transition {
                machine, from, to, ..
            },
            events,
        ) in edges
        {
            let label = events.join("\\n");
            text += &format!("  \"{machine}.{from}\" -> \"{machine}.{to}\" [label=\"{label}\"];\n");
        }
        text + "}\n"
    }

    /// The same as a drawing, SVG: a row for each machine, its first state at the left. Of machines that differ in their index alone there
    /// is one.
    pub fn svg(&self, report: &Report) -> String {
        let mut rows: BTreeMap<String, &[String]> = BTreeMap::new();
        for machine in &self.machines {
            rows.insert(family(&machine.name), &machine.states);
        }
        let count = |states: &[String]| {
            i64::try_from(states.len())
                .unwrap_or(i64::MAX / STEP)
                .max(1)
        };
        let height = |states: &[String]| ROW + (count(states) - 2).max(0) * BEND;
        let most = rows.values().map(|states| count(states)).max().unwrap_or(1);
        let whole: i64 = rows.values().map(|states| height(states)).sum();
        let width = 2 * MARGIN + (most - 1) * STEP;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {whole}\" font-family=\"sans-serif\" font-size=\"13\" \
             text-anchor=\"middle\">\n<defs><marker id=\"end\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" \
             markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0 8 4 0 8z\"/></marker></defs>\n"
        );
        let mut top = 0;
        for (name, states) in &rows {
            let middle = top + height(states) / 2;
            svg += &format!(
                "<text x=\"8\" y=\"{}\" text-anchor=\"start\" font-weight=\"bold\">{name}</text>\n",
                top + 20
            );
            for (state, at) in states.iter().zip(0..) {
                let x = MARGIN + at * STEP;
                // Writing to a string does not fail.
                let _ = writeln!(
                    svg,
                    "<ellipse cx=\"{x}\" cy=\"{middle}\" rx=\"56\" ry=\"20\" fill=\"none\" stroke=\"#4a7a9c\" stroke-width=\"{}\"/>\
                     <text x=\"{x}\" y=\"{}\">{state}</text>",
                    if at == 0 { 3 } else { 1 },
                    middle + 5
                );
            }
            for ((from, to), events) in self.edges(report, name, states) {
                svg += &edge(middle, from, to, &events);
            }
            top += height(states);
        }
        svg + "</svg>\n"
    }

    /// By the positions of the states: what leads from one to the other.
    fn edges(
        &self,
        report: &Report,
        name: &str,
        states: &[String],
    ) -> BTreeMap<(i64, i64), BTreeSet<String>> {
        let mut edges: BTreeMap<(i64, i64), BTreeSet<String>> = BTreeMap::new();
        for transition in &report.transitions {
            let position = |state: &String| {
                let mut states = states.iter().zip(0..);
                states.find(|(known, _)| *known == state).map(|(_, at)| at)
            };
            if family(&transition.machine) == name
                && let (Some(from), Some(to)) =
                    (position(&transition.from), position(&transition.to))
            {
                let events = edges.entry((from, to)).or_default();
                events.insert(family(&transition.event));
            }
        }
        edges
    }
}

/// The name without its index.
fn family(name: &str) -> String {
    let (word, rest) = name.split_once('[').unwrap_or((name, ""));
    if rest.is_empty() {
        word.to_owned()
    } else {
        format!("{word}[n]")
    }
}

/// An arrow, above the states if it leads to the right and below if it leads back, and what it is for.
fn edge(middle: i64, from: i64, to: i64, events: &BTreeSet<String>) -> String {
    let (left, right) = (from.min(to), from.max(to));
    let centre = MARGIN + (left + right) * STEP / 2;
    let far = 30 + BEND * (right - left - 1).max(0);
    let (near, control, label) = if from < to {
        (middle - 19, middle - 19 - far, middle - 24 - far / 2)
    } else {
        (middle + 19, middle + 19 + far, middle + 35 + far / 2)
    };
    let ends = [(from, to), (to, from)].map(|(here, there)| {
        let x = MARGIN + here * STEP;
        if here < there { x + 22 } else { x - 22 }
    });
    let [start, end] = ends;
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    format!(
        "<path d=\"M{start} {near}Q{centre} {control} {end} {near}\" fill=\"none\" stroke=\"black\" marker-end=\"url(#end)\"/>\
         <text x=\"{centre}\" y=\"{label}\" font-size=\"11\">{}</text>\n",
        events.join(", ")
    )
}
