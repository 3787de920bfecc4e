//! See [`fuzz::vring::mutator`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::vring::mutator(data));
