//! The targets of SR-IOV and VFIO on random bytes, without libFuzzer.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn physical(data in prop::collection::vec(any::<u8>(), 0..2048)) {
        fuzz::sriov::physical(&data);
    }

    #[test]
    fn assigned(data in prop::collection::vec(any::<u8>(), 0..2048)) {
        fuzz::sriov::assigned(&data);
    }
}
