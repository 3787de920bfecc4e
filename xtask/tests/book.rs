//! The book holds together: mdBook itself says nothing about a page or figure that is missing.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::fs;
use std::path::{Path, PathBuf};

fn pages(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            into.push(path);
        }
    }
}

#[test]
fn every_link_and_include_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    pages(&root.join("docs/src"), &mut found);
    for page in ["README.md", "CONTRIBUTING.md", "SECURITY.md"] {
        found.push(root.join(page));
    }
    let summary = fs::read_to_string(root.join("docs/src/SUMMARY.md")).unwrap();
    for page in &found {
        let text = fs::read_to_string(page).unwrap();
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        let includes = text
            .split("{{#include ")
            .skip(1)
            .filter_map(|rest| rest.split('}').next());
        for target in links.chain(includes) {
            let target = target.split('#').next().unwrap();
            let local = !target.is_empty() && !target.contains("://");
            // An include may be of a part, between two marks.
            let (file, part) = match target.split_once(':') {
                Some((file, part)) => (file, Some(part)),
                None => (target, None),
            };
            let file = page.parent().unwrap().join(file);
            let marked = |part| {
                let text = fs::read_to_string(&file).unwrap_or_default();
                text.contains(&format!(" ANCHOR: {part}\n"))
            };
            let exists = file.exists() && part.is_none_or(marked);
            assert!(!local || exists, "{}: {target}", page.display());
        }
        if let Ok(page) = page.strip_prefix(root.join("docs/src")) {
            let listed = summary.contains(&format!("({})", page.display()));
            assert!(
                listed || page == Path::new("SUMMARY.md"),
                "{} is not in the summary",
                page.display()
            );
        }
    }
}
