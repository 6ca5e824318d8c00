//! Bytes for `tuition_proxy::fuzzing::chat_reply`, which says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tuition_proxy::fuzzing::chat_reply(data));
