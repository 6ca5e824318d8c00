//! Bytes for `tuition_ledger::fuzzing::journal`, which says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tuition_ledger::fuzzing::journal(data));
