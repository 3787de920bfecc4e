//! See [`fuzz::vpio::vpio_engine`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::vpio::vpio_engine(data));
