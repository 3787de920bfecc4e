//! See [`fuzz::vring::split`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::vring::split(data));
