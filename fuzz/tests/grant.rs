//! The targets of grants, rings and the store on random bytes, without libFuzzer.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn grant(data in prop::collection::vec(any::<u8>(), 0..1000)) {
        fuzz::grant::grant(&data);
    }

    #[test]
    fn grant_rings(data in prop::collection::vec(0u8..16, 0..4096)) {
        fuzz::grant::grant_rings(&data);
    }

    #[test]
    fn xenstore(data in prop::collection::vec(any::<u8>(), 0..2048)) {
        fuzz::grant::xenstore(&data);
    }
}
