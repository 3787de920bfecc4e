//! See [`fuzz::sriov::physical`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::sriov::physical(data));
