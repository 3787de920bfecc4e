use std::fmt::Write;

use super::Report;

const WIDTH: f64 = 720.0;
const ROW: f64 = 24.0;
const LABELS: f64 = 220.0;
const NUMBERS: f64 = 100.0;

/// Horizontal bars, one for each kind of exit to user space and each counter of KVM. The scale is logarithmic, since kinds differ by
/// orders of magnitude.
pub(super) fn svg(report: &Report) -> String {
    let user = report
        .user
        .iter()
        .map(|exits| (exits.kind.to_string(), exits.count, "#b5482f"));
    let kernel = report
        .kernel
        .iter()
        .map(|counter| (counter.name.clone(), counter.count, "#4a7a9c"));
    let bars: Vec<(String, u64, &str)> = user.chain(kernel).collect();
    let most = bars.iter().map(|bar| bar.1).max().unwrap_or(1);
    let rows = u32::try_from(bars.len()).unwrap_or(u32::MAX);
    let height = ROW * (f64::from(rows) + 2.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <text x=\"8\" y=\"16\">Exits to user space (red) and what KVM counted (blue), logarithmic</text>\n"
    );
    for ((name, count, colour), index) in bars.iter().zip(1u32..) {
        let top = ROW * f64::from(index) + 6.0;
        let length = (WIDTH - LABELS - NUMBERS) * scale(*count, most);
        let base = top + 14.0;
        let end = LABELS + length + 6.0;
        let name = escaped(name);
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{base:.0}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{LABELS:.0}\" y=\"{top:.0}\" width=\"{length:.1}\" height=\"18\" fill=\"{colour}\"/>\
             <text x=\"{end:.1}\" y=\"{base:.0}\">{count}</text>",
            LABELS - 8.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The length of a bar, 0 to 1: 1 for `most`, by powers of two.
fn scale(count: u64, most: u64) -> f64 {
    let log = |value: u64| f64::from(value.saturating_add(1).ilog2()) + 1.0;
    log(count) / log(most)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{KernelCount, UserExits};
    use crate::vcpu::ExitKind;

    #[test]
    fn a_bar_for_each_kind_and_no_longer_than_its_room() {
        let report = Report {
            vcpus: 1,
            tsc_khz: 1,
            user: vec![UserExits {
                kind: ExitKind::PortRead,
                count: 7,
                nanoseconds: 0,
                cycles_per_exit: 0,
            }],
            kernel: vec![KernelCount {
                name: "a<b".to_owned(),
                count: u64::MAX,
            }],
            buses: Vec::new(),
            sidecore: None,
            models: Vec::new(),
        };
        let svg = svg(&report);
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains("a&lt;b") && svg.contains("width=\"400.0\""));
        assert!(scale(0, 10) > 0.0);
    }
}
