//! See [`fuzz::vring::both_ends`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::vring::both_ends(data));
