//! The models that come with the crate pass the checker, and models with a fault do not.

mod common;

use common::parse;
use vpio_model::check::Finding;
use vpio_model::model::Sharing;
use vpio_model::models;

/// More states than any part of a model has.
const STATES: usize = 100_000;

/// THREATS.md, "passthrough model": exhaustive walks of each model.
#[test]
fn the_models_have_no_findings() {
    std::thread::scope(|scope| {
        for (path, text) in models::ALL {
            scope.spawn(move || {
                let report = parse(text).check(STATES);
                assert_eq!(report.findings, [], "{path}");
                assert!(report.complete, "{path}");
            });
        }
    });
}

/// A model with `from` replaced.
fn seeded(text: &str, from: &str, to: &str) -> Vec<Finding> {
    assert!(text.contains(from), "{from}");
    parse(&text.replace(from, to)).check(STATES).findings
}

/// An address in a descriptor that nothing bounds.
#[test]
fn an_unchecked_address_is_found() {
    let cases = [
        (models::E1000, "write buffer, bsize;", "rxd.buffer"),
        (
            models::RTL8139CP,
            "read buffer, command & 0xffff;",
            "txd.buffer",
        ),
        (
            models::AHCI,
            "write base, (count & 0x3f_ffff) + 1;",
            "prdt[0].base",
        ),
        (
            models::AHCI,
            "follow table, description >> 16 as prdt[n];",
            "",
        ),
        (
            models::PIIX_BMIDE,
            "write base, if(count & 0xfffe, count & 0xfffe, 0x10000);",
            "prd[0].base",
        ),
    ];
    for (text, line, name) in cases {
        assert!(text.contains(line), "{line}");
        let without = text.replace(line, "");
        match vpio_model::model::Model::parse("seeded", &without) {
            Ok(model) => {
                let address = name.to_owned();
                let findings = model.check(1).findings;
                assert!(
                    findings.contains(&Finding::UncheckedAddress { address }),
                    "{name}"
                );
            }
            // A table that nothing follows is no model at all.
            Err(error) => assert!(error.to_string().contains("is nowhere"), "{error}"),
        }
    }
}

/// An address that reaches the device as the guest wrote it.
#[test]
fn a_raw_address_is_found() {
    let cases = [
        (models::E1000, "forward shadow(txd) & LOW;", "TDBAL"),
        (models::AHCI, "forward shadow(command[n]) & LOW;", "CLB[0]"),
        (
            models::RTL8139,
            "tsad[n] = value;\n        forward device(value);",
            "TSAD[0]",
        ),
        (models::PIIX_BMIDE, "forward shadow(prd[c]);", "PRDT[0]"),
    ];
    for (text, line, register) in cases {
        let to = if line.starts_with("tsad") {
            "tsad[n] = value;"
        } else {
            ""
        };
        let register = register.to_owned();
        assert!(
            seeded(text, line, to).contains(&Finding::RawAddress { register }),
            "{line}"
        );
    }
}

const TOY: &str = r#"
model "toy";
space regs: port size 4;
machine power { off, on }
register GO = regs[0]:1;
on write GO {
    match value {
        1 => { power -> on; }
        0, 2 => { power -> off; }
        _ => {}
    }
}
reusable when power is off;
"#;

#[test]
fn a_sound_toy_has_no_findings() {
    let report = parse(TOY).check(100);
    assert!(report.complete && report.is_safe());
    assert_eq!(report.findings, []);
    assert_eq!(report.states, 2);
}

#[test]
fn what_is_odd_is_found() {
    let uncovered = seeded(TOY, "_ => {}", "");
    assert!(
        matches!(uncovered[..], [Finding::Uncovered { .. }]),
        "{uncovered:?}"
    );
    let no_way_back = seeded(TOY, "0, 2 => { power -> off; }", "");
    assert!(
        matches!(no_way_back[..], [Finding::NoWayBack { .. }]),
        "{no_way_back:?}"
    );
    let (machine, state) = ("power".to_owned(), "broken".to_owned());
    let unreachable = seeded(TOY, "off, on }", "off, on, broken }");
    assert_eq!(unreachable, [Finding::Unreachable { machine, state }]);
    let variable = "x".to_owned();
    let unused = seeded(TOY, "machine power", "var x: 8; machine power");
    assert_eq!(
        unused,
        [Finding::Unused {
            variable: variable.clone()
        }]
    );
    let reads = TOY.replace("machine power", "var x: 8; machine power");
    let constant = seeded(&reads, "power is off;", "power is off && x == 0;");
    assert_eq!(constant, [Finding::NeverChanges { variable }]);
}

#[test]
fn only_what_matters_is_hooked() {
    let hooks = parse(TOY).hooks(Sharing::Exclusive);
    assert_eq!(hooks.registers, [], "nobody else wants the device");
    let hooks = parse(TOY).hooks(Sharing::Shared);
    assert_eq!(hooks.registers[0].values, Some(vec![0, 1, 2]));

    let names = |text, sharing| {
        let hooks = parse(text).hooks(sharing);
        let writes = hooks.registers.into_iter().filter(|hook| hook.writes);
        writes.flat_map(|hook| hook.names).collect::<Vec<_>>()
    };
    let exclusive = names(models::NE2000, Sharing::Exclusive);
    let shared = names(models::NE2000, Sharing::Shared);
    for name in ["IMR", "DCR", "PAR[0]", "TCR"] {
        assert!(!exclusive.contains(&name.to_owned()), "{name}");
        assert!(shared.contains(&name.to_owned()), "{name}");
    }
    for name in ["DATA", "ISR", "BNRY"] {
        assert!(!shared.contains(&name.to_owned()), "{name}");
    }
}

#[test]
fn pages_without_hooks_are_mapped() {
    use vpio_model::hooks::PageAccess::{Direct, ReadOnly, Trapped};
    let text = "model \"pages\"; space regs: memory size 0x3000; var x: 8;
        register A = regs[0x1000]:4; register B = regs[0x2000]:4;
        free regs[0..0x3000];
        on write A { require value < 2, \"large\"; }
        on read B { forward 0; }
        reusable when 1;";
    let pages = parse(text).pages(0, Sharing::Exclusive);
    assert_eq!(pages, [Direct, ReadOnly, Trapped]);
}

#[test]
fn the_graph_has_every_state() {
    let model = parse(TOY);
    let graph = model.graph(&model.check(10));
    assert!(
        graph.contains("\"power.off\" -> \"power.on\" [label=\"write GO\"]"),
        "{graph}"
    );
}

/// Machines that differ in their index alone are one row; each state and each arrow of it is there once.
#[test]
fn the_drawing_has_every_state_and_arrow() {
    let text = "model \"drawn\"; space regs: port size 8;
        for n in 0..2 {
            machine m[n] { off, slow, fast }
            register GO[n] = regs[n]:1;
            on write GO[n] { if value == 0 { m[n] -> off; } else if value == 1 { m[n] -> slow; } else { m[n] -> fast; } }
        }
        reusable when m[0] is off && m[1] is off;";
    let model = parse(text);
    let svg = model.svg(&model.check(STATES));
    let count = |what: &str| svg.matches(what).count();
    assert_eq!(count("font-weight=\"bold\">m[n]<"), 1, "{svg}");
    for state in ["off", "slow", "fast"] {
        assert_eq!(count(&format!(">{state}</text>")), 1, "{svg}");
    }
    assert_eq!(count("marker-end"), 6, "{svg}");
    assert_eq!(count(">write GO[n]</text>"), 6, "{svg}");
}
