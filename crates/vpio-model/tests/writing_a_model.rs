//! The book's page "Writing a model for a new device", followed to the letter.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The fenced blocks of this language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    let starts = page.split(fence.as_str()).skip(1);
    starts
        .filter_map(|rest| Some(rest.split_once("```")?.0))
        .collect()
}

/// The lines of the example between the marks of the part that `{{#include FILE:PART}}` names.
fn part<'a>(example: &'a str, directive: &str) -> Option<&'a str> {
    let part = directive.trim().strip_suffix("}}")?.rsplit_once(':')?.1;
    let (_, rest) = example.split_once(&format!("# ANCHOR: {part}\n"))?;
    Some(rest.split_once(&format!("# ANCHOR_END: {part}\n"))?.0)
}

#[test]
fn the_page_is_followed() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(page) = fs::read_to_string(package.join("../../docs/src/writing-a-model.md")) else {
        // The package alone has no book.
        return;
    };
    let example = fs::read_to_string(package.join("examples/edu.vpio")).unwrap();
    let model: String = blocks(&page, "text")
        .into_iter()
        .filter(|block| block.starts_with("{{"))
        .map(|block| part(&example, block).unwrap())
        .collect();
    let without_marks: Vec<&str> = example.lines().filter(|l| !l.contains("ANCHOR")).collect();
    assert_eq!(
        model.trim_end(),
        without_marks.join("\n"),
        "the page has all of it"
    );

    let folder = std::env::temp_dir().join(format!("writing-a-model-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("edu.vpio"), &model).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_vpio")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    for block in blocks(&page, "console") {
        // What the commands print stands between them and the end.
        let mut script = String::new();
        let mut expected = String::new();
        let mut inside = false;
        for line in block.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => {
                    inside = command.ends_with("<<END");
                    script += &format!("{command}\n");
                }
                None if inside => {
                    inside = line != "END";
                    script += &format!("{line}\n");
                }
                None => expected += &format!("{line}\n"),
            }
        }
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", &script]).current_dir(&folder);
        let output = shell.env("PATH", &path).output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(shown.replace(" \n", "\n"), expected, "{script}{complaint}");
    }
    fs::remove_dir_all(&folder).unwrap();
}
