//! The block target on random bytes, without libFuzzer.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn block(data in prop::collection::vec(any::<u8>(), 0..8192)) {
        fuzz::block::block(&data);
    }
}
