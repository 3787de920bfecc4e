//! The book's page "Your first device", followed to the letter in an empty folder.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{Outcome, Session, Step};
use crate::book::blocks;
use crate::process::quoted;
use crate::workspace;

/// The step.
pub const STEPS: &[Step] = &[("first device", first_device)];

/// Where the page says that the crates come from; here they come from the working tree.
const REPOSITORY: &str = "--git https://github.com/vring-rs/vring ";

/// Where a page's Rust goes: all of it but the last block, and that.
const FILES: [&str; 2] = ["edu/src/lib.rs", "edu/tests/driver.rs"];

fn first_device(session: &Session) -> Result<Outcome> {
    let root = workspace::root()?;
    let page = fs::read_to_string(root.join("docs/src/your-first-device.md"))?;
    for file in FILES {
        let (_, named) = file.split_once('/').context("no folder")?;
        ensure!(page.contains(named), "the page does not name {named}");
    }
    // Not below this workspace: `cargo new` would make the crate one of its members.
    let folder = tempfile::tempdir()?;
    let target = workspace::target()?;
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-ec", script]).current_dir(folder.path());
        command.env("CARGO_TARGET_DIR", &target);
        command
    };
    let bus = root.join("crates/pio-mmio-bus");
    let [commands] = &*blocks(&page, "sh") else {
        bail!("the page has not one block of commands");
    };
    ensure!(commands.contains(REPOSITORY), "no {REPOSITORY}");
    let path = format!("--path {} ", quoted(&bus.to_string_lossy()));
    session.check(
        "first-device-new",
        &mut shell(&commands.replace(REPOSITORY, &path)),
    )?;

    let mut parts = Vec::new();
    for block in blocks(&page, "rust,ignore") {
        parts.push(included(&root.join("docs/src"), &block)?);
    }
    let driver = parts.pop().context("the page has no Rust")?;
    for (file, text) in FILES.iter().zip([parts.join("\n"), driver]) {
        let file = folder.path().join(file);
        fs::create_dir_all(file.parent().context("no folder")?)?;
        fs::write(file, text)?;
    }
    session.check("first-device-test", &mut shell("cd edu; cargo test"))
}

/// What `{{#include FILE:PART}}` stands for: the lines of the file between the marks of the part.
fn included(book: &Path, directive: &str) -> Result<String> {
    let (file, part) = directive
        .trim()
        .strip_prefix("{{#include ")
        .and_then(|rest| rest.strip_suffix("}}"))
        .and_then(|target| target.rsplit_once(':'))
        .with_context(|| format!("`{directive}` includes no part of a file"))?;
    let text = fs::read_to_string(book.join(file))?;
    text.split_once(&format!("// ANCHOR: {part}\n"))
        .and_then(|(_, rest)| rest.split_once(&format!("// ANCHOR_END: {part}\n")))
        .map(|(lines, _)| lines.to_owned())
        .with_context(|| format!("{file} has no part {part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_what_is_between_its_marks() {
        let folder = tempfile::tempdir().unwrap();
        let text = "no\n// ANCHOR: a\nyes\n// ANCHOR_END: a\nno\n";
        fs::write(folder.path().join("x.rs"), text).unwrap();
        let part = |directive| included(folder.path(), directive).ok();
        assert_eq!(part("{{#include x.rs:a}}\n").as_deref(), Some("yes\n"));
        assert_eq!(part("{{#include x.rs:b}}"), None);
        assert_eq!(part("x.rs"), None);
    }
}
