//! See [`fuzz::bus::bus`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::bus::bus(data));
