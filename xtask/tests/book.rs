//! The book holds together: mdBook itself says nothing about a page or figure that is missing.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::fs;
use std::path::{Path, PathBuf};

use vpio_model::model::{Model, Sharing};
use vpio_model::models;

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

/// What `cargo xtask bench vpio` takes from the models themselves.
#[test]
fn the_pages_of_models_show_what_they_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |path: String| fs::read_to_string(root.join("docs/src").join(path)).unwrap();
    for (path, text) in models::ALL {
        let model = Model::parse(path, text).unwrap();
        let name = Path::new(path).file_stem().unwrap().display();
        let hooks = model.hooks_text(Sharing::Exclusive);
        assert_eq!(read(format!("models/{name}.hooks")), hooks, "{name}");
        let drawing = model.svg(&model.check(100_000));
        assert_eq!(read(format!("figures/model-{name}.svg")), drawing, "{name}");
    }
}
