//! What is a model and what is not, and how that is said.

#![expect(clippy::unwrap_used, reason = "a test")]

use proptest::prelude::*;
use vpio_model::model::Model;
use vpio_model::models;

#[test]
fn every_model_compiles_under_its_files_name() {
    for (path, text) in models::ALL {
        match Model::parse(path, text) {
            Ok(model) => assert_eq!(format!("{}.vpio", model.name()), path),
            Err(error) => panic!("{error}"),
        }
    }
}

fn error(text: &str) -> String {
    Model::parse("x.vpio", text).unwrap_err().to_string()
}

#[test]
fn an_error_points_at_line_and_column() {
    let shown = error("model \"x\";\nspace regs: port size 32;\nregister A regs[0]:1;\n");
    assert!(shown.contains("x.vpio:3:12"), "{shown}");
    assert!(shown.contains("register A regs[0]:1;"), "{shown}");
    assert!(shown.contains("^"), "{shown}");
    let text = "model \"x\";\n  const A = B;\n";
    let error = Model::parse("x.vpio", text).unwrap_err();
    assert_eq!(error.diagnostics[0].position(text), (2, 13));
}

const HEAD: &str =
    "model \"x\"; space s: port size 8; machine m { a, b } register R = s[0]:1; var v: 8;
    reusable when 1; ";

#[test]
fn what_makes_no_sense_is_refused() {
    let cases = [
        ("on write Q {}", "nothing is called `Q`"),
        ("on write R { m -> c; }", "no such state"),
        ("on write R { m = 1; }", "this is no variable"),
        ("on write R { value = 1; }", "nothing is called `value`"),
        ("on write R {} on write R {}", "a rule for this already"),
        ("register S = s[7]:2;", "no register of 2 bytes fits"),
        ("register S = s[0]:3;", "1, 2, 4 or 8"),
        ("var v: 8;", "something else already"),
        ("var w: 65;", "not between 1 and 64"),
        ("const C = v;", "not known before"),
        (
            "register S = s[1]:1 ro; on write S {}",
            "not accessed this way",
        ),
        ("on write R { v = foo(1); }", "there is no `foo`"),
        ("for n in 0..5000 { var y[n]: 8; }", "repeats too often"),
        ("table t max 4 entry 8 {}", "is nowhere"),
        (
            "table t at v, 4 max 4 entry 8 { device 0..4; }",
            "belong together",
        ),
        ("for n in 0..300 { var y[n]: 8; }", "too large"),
    ];
    for (text, expected) in cases {
        let shown = error(&format!("{HEAD}{text}"));
        assert!(shown.contains(expected), "{text}: {shown}");
    }
    assert!(error("").contains("no name"));
    assert!(error("model \"x\";").contains("reusable"));
}

/// Texts that would exhaust the stack of a recursive parser, or of what walks its tree.
#[test]
fn depth_is_bounded() {
    for (open, close) in [("(", ")"), ("!", ""), ("~(", ")"), ("1+", "")] {
        let expr = format!("{}1{}", open.repeat(50_000), close.repeat(50_000));
        error(&format!("{HEAD} const C = {expr};"));
    }
    error(&format!("{HEAD} {}", "for n in 0..2 {".repeat(30_000)));
    error(&format!(
        "{HEAD} on write R {{ {} ",
        "if 1 {".repeat(30_000)
    ));
    error(&"#\n".repeat(200_000));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is left out or changed, the answer is a model or an error that can be shown.
    #[test]
    fn a_changed_model_is_a_model_or_an_error(at in 0_usize..6000, length in 0_usize..40, with in "[ -~]{0,6}") {
        let text = models::NE2000;
        let (at, end) = (at.min(text.len()), (at + length).min(text.len()));
        let changed = format!("{}{with}{}", &text[..at], &text[end..]);
        if let Err(error) = Model::parse("x.vpio", &changed) {
            prop_assert!(error.to_string().contains("error"));
            for diagnostic in &error.diagnostics {
                let (line, column) = diagnostic.position(&changed);
                prop_assert!(line > 0 && column > 0);
            }
        }
    }
}
