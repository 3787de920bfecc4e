//! The targets of device models on random bytes, without libFuzzer.

use proptest::prelude::*;

type Target = (&'static str, fn(&[u8]));

/// The corpus of a target.
fn corpus(target: &str) -> impl Iterator<Item = Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let files = std::fs::read_dir(folder).into_iter().flatten();
    files.filter_map(|file| std::fs::read(file.ok()?.path()).ok())
}

#[test]
fn the_corpora_run() {
    let targets: [Target; 3] = [
        ("vpio_text", fuzz::vpio::vpio_text),
        ("vpio_engine", fuzz::vpio::vpio_engine),
        ("vpio_arbiter", fuzz::vpio::vpio_arbiter),
    ];
    for (target, run) in targets {
        let inputs: Vec<_> = corpus(target).collect();
        assert!(!inputs.is_empty(), "{target}");
        inputs.iter().for_each(|input| run(input));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn vpio_text(data in "(model \"x\"; |space r: port size 4; |reusable when 1; |on write R \\{|\\}|x = 1;|[ -~]{0,8}){0,20}") {
        fuzz::vpio::vpio_text(data.as_bytes());
    }

    #[test]
    fn vpio_engine(data in prop::collection::vec(any::<u8>(), 0..2048)) {
        fuzz::vpio::vpio_engine(&data);
    }

    #[test]
    fn vpio_arbiter(data in prop::collection::vec(any::<u8>(), 0..2048)) {
        fuzz::vpio::vpio_arbiter(&data);
    }
}
