//! See [`fuzz::sriov::assigned`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::sriov::assigned(data));
