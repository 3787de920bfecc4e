//! The bus target on random bytes, without libFuzzer.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bus(data in prop::collection::vec(any::<u8>(), 0..1024)) {
        fuzz::bus::bus(&data);
    }
}
