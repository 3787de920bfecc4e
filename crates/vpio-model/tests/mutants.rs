//! Each of the models without one of its checks, which is caught: by the checker, or by a hostile guest that gets through.

#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Arc;

use common::{Machine, parse};
use vpio_model::engine::At;
use vpio_model::model::Model;
use vpio_model::models;

/// States of a part of a model within which a fault shows.
const STATES: usize = 20_000;

/// Whether everything comes out as the program says: what a guest and its device do. Numbers are hexadecimal. `w [SPACE:]OFFSET.WIDTH VALUE`
/// is a write that is allowed, `d` one that is denied, `r` a read that gives the value, `s OFFSET VALUE` what the device shows from now on,
/// `c VARIABLE VALUE` a context in which a variable is another, which is not replayed.
fn holds(model: &Arc<Model>, program: &str) -> bool {
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let mut machine = Machine::of(model.clone());
    program.split(';').all(|step| {
        let mut words = step.split_whitespace();
        let (what, place, value) = (
            words.next().unwrap(),
            words.next().unwrap(),
            hex(words.next().unwrap()),
        );
        if what == "c" {
            let mut context = machine.device.suspend().unwrap();
            context.variables.insert(place.to_owned(), value);
            return machine.device.resume(&context).is_err();
        }
        let (space, place) = place.split_once(':').unwrap_or(("0", place));
        let (offset, width) = place.split_once('.').unwrap_or((place, "4"));
        let at = At {
            space: u8::try_from(hex(space)).unwrap(),
            offset: hex(offset),
            width: u8::try_from(hex(width)).unwrap(),
        };
        match what {
            "w" => machine.device.write(at, value).is_ok(),
            "d" => machine.device.write(at, value).is_err(),
            "r" => machine.device.read(at) == Ok(value),
            _ => {
                machine.registers.set(at.space, at.offset, value);
                true
            }
        }
    })
}

/// The text without each of the statements that begin with this word.
fn mutants(text: &str, word: &str) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    for (at, _) in text.match_indices(word) {
        let line = &text[text[..at].rfind('\n').map_or(0, |end| end + 1)..at];
        let statement = line.trim().is_empty() || line.trim_end().ends_with(['{', ';']);
        if line.contains('#') || !statement {
            continue;
        }
        // No reason has a semicolon in it.
        let end = at + text[at..].find(';').unwrap() + 1;
        let number = text[..at].matches('\n').count() + 1;
        all.push((number, format!("{}{}", &text[..at], &text[end..])));
    }
    all
}

/// Issue 6: "a seeded fault in each model (a check removed) is caught by the checker or by scenario 3".
fn each_removed_check_is_caught(text: &str, programs: &[&str]) {
    let model = Arc::new(parse(text));
    for program in programs {
        assert!(holds(&model, program), "{program}");
    }
    let mut survivors = Vec::new();
    let mut seen = 0;
    for word in ["require ", "check ", "forward "] {
        for (line, mutant) in mutants(text, word) {
            let model = Arc::new(parse(&mutant));
            let caught = programs.iter().any(|program| !holds(&model, program))
                || model.fault(STATES).is_some();
            if !caught {
                survivors.push(format!("{} line {line}: {word}", model.name()));
            }
            seen += 1;
        }
    }
    assert!(seen > 0, "nothing to remove");
    assert!(survivors.is_empty(), "{survivors:#?}");
}

#[test]
fn of_ne2000() {
    each_removed_check_is_caught(
        models::NE2000,
        &[
            "w 0.1 21; d 0.1 e1",
            "w 0.1 21; d 0.1 1a",
            "w 0.1 61; w 7.1 bf; d 7.1 c0; d 7.1 3f",
        ],
    );
}

#[test]
fn of_rtl8139() {
    each_removed_check_is_caught(
        models::RTL8139,
        &[
            "w 30.4 1000; d 37.1 18",
            "w 30.4 1000; w 37.1 8; c rbstart ffff0000",
            "d 10.4 3c",
            "w 20.4 1000; w 10.4 3c; s 10 3c; d 10.4 3c; d 20.4 2000",
            "w 20.4 1000; r 20.4 1000; w 30.4 2000; r 30.4 2000",
        ],
    );
}

#[test]
fn of_rtl8139cp() {
    each_removed_check_is_caught(
        models::RTL8139CP,
        &[
            "w 28.4 0; d 28.4 1000; w 2c.4 0; d 2c.4 1",
            "w e0.2 3; d 37.1 18",
            "w e0.2 3; w 37.1 c; d d9.1 80",
            "w e0.2 3; d d9.1 40",
        ],
    );
}

#[test]
fn of_e1000() {
    each_removed_check_is_caught(
        models::E1000,
        &[
            "w 1:0.4 0; w 1:4.4 4000000; w 1:0.4 3800; d 1:4.4 4000000",
            "w 1:0.4 0; d 1:4.4 0",
            "w 3800.4 4000; r 3800.4 4000; w 3804.4 1; r 3804.4 1",
            "w 2800.4 4000; r 2800.4 4000; w 2804.4 1; r 2804.4 1",
        ],
    );
}

#[test]
fn of_ahci() {
    each_removed_check_is_caught(
        models::AHCI,
        &[
            "d 138.4 1",
            "w 100.4 4000; r 100.4 4000; w 104.4 1; r 104.4 1",
            "w 108.4 4000; r 108.4 4000; w 10c.4 1; r 10c.4 1",
        ],
    );
}

#[test]
fn of_piix_bmide() {
    each_removed_check_is_caught(models::PIIX_BMIDE, &["w 4.4 4000; r 4.4 4000"]);
}
