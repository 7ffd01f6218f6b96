#![no_main]

#[allow(dead_code, reason = "each target uses one of them")]
#[path = "../../tests/properties/oracles.rs"]
mod oracles;

libfuzzer_sys::fuzz_target!(|data: &[u8]| oracles::connection(data));
