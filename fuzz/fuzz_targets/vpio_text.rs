//! See [`fuzz::vpio::vpio_text`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::vpio::vpio_text(data));
