//! Bytes for `tuition::fuzzing::config`, which says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tuition::fuzzing::config(data));
