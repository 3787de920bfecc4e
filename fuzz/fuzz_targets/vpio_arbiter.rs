//! See [`fuzz::vpio::vpio_arbiter`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::vpio::vpio_arbiter(data));
