//! Horizontal bars with their values, as SVG.

use std::fmt::Write as _;

/// A bar.
pub struct Bar {
    name: String,
    value: f64,
    colour: &'static str,
}

impl Bar {
    /// A figure of the paper.
    pub fn paper(name: &str, value: f64) -> Self {
        Self {
            name: format!("{name}, paper"),
            value,
            colour: "#4a7a9c",
        }
    }

    /// A figure of ours.
    pub fn here(name: &str, value: f64) -> Self {
        Self {
            name: name.to_owned(),
            value,
            colour: "#b5482f",
        }
    }
}

const LABELS: f64 = 220.0;
const LENGTH: f64 = 420.0;
const ROW: f64 = 24.0;

/// Bars of one scale, from 0 on.
pub fn plot(title: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.value).fold(1.0, f64::max);
    let height = ROW * (bars.len() as f64 + 2.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <text x=\"8\" y=\"16\">{title}</text>\n"
    );
    let mut top = ROW + 6.0;
    for Bar {
        name,
        value,
        colour,
    } in bars
    {
        let length = LENGTH * value / most;
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{LABELS}\" y=\"{top}\" width=\"{length:.1}\" height=\"18\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{base}\">{value:.0}</text>",
            LABELS - 8.0,
            LABELS + length + 6.0,
            base = top + 14.0,
        );
        top += ROW;
    }
    svg.push_str("</svg>\n");
    svg
}
