//! The vring targets on the committed corpora and on random bytes, without libFuzzer.
#![allow(clippy::unwrap_used, reason = "test code")]

use proptest::prelude::*;

#[test]
fn corpora() {
    for (name, target) in fuzz::vring::TARGETS {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let files: Vec<_> = std::fs::read_dir(corpus).unwrap().collect();
        assert!(!files.is_empty());
        for file in files {
            target(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(data in prop::collection::vec(any::<u8>(), 0..2048)) {
        for (_, target) in fuzz::vring::TARGETS {
            target(&data);
        }
    }
}
