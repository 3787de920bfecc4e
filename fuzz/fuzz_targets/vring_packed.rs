//! See [`fuzz::vring::packed`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::vring::packed(data));
