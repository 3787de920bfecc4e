//! See [`fuzz::grant::grant_rings`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::grant::grant_rings(data));
