//! See [`fuzz::grant::xenstore`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::grant::xenstore(data));
