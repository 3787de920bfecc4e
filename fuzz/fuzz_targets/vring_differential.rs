//! See [`fuzz::vring::differential`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::vring::differential(data));
