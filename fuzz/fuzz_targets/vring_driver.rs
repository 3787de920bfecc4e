//! See [`fuzz::vring::driver`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::vring::driver(data));
