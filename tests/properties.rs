//! The properties that fuzzers look for (`make fuzz`), on the seeds they start from and on bytes of a generator.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "properties/oracles.rs"]
mod oracles;

use std::fs;
use std::path::Path;

#[test]
fn every_seed_keeps_its_property() {
    for (name, oracle) in oracles::ALL {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/properties/seeds").join(name);
        let seeds = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let mut count = 0;
        for seed in seeds {
            oracle(&fs::read(seed.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 3, "{name} has {count} seeds");
    }
}

#[test]
fn bytes_of_a_generator_keep_every_property() {
    for (name, oracle) in oracles::ALL {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ name.len() as u64);
        for _ in 0..20_000 {
            let length = random.below(80);
            let bytes: Vec<u8> = (0..length).map(|_| random.byte()).collect();
            oracle(&bytes);
        }
    }
}

/// Heads of the shape applications give, with something odd somewhere.
#[test]
fn no_head_can_be_built_that_a_strict_parser_refuses() {
    let mut random = Random(7);
    let statuses: [&[u8]; 8] =
        [b"200 OK", b"200", b"404 Not Found", b"204 ", b"500  x", b"299 caf\xe9", b"100 Continue", b"2000 x"];
    let names: [&[u8]; 8] = [b"X-A", b"x", b"Content-Type", b"Set-Cookie", b"X A", b"", b"X:", b"Connection"];
    let values: [&[u8]; 8] = [b"a", b"", b" a ", b"a\tb", b"a\r\nb: c", b"a\0", b"caf\xe9", b"a\x7f"];
    for _ in 0..20_000 {
        let mut bytes = random.pick(&statuses).to_vec();
        for _ in 0..random.below(6) {
            bytes.push(0x1e);
            bytes.extend_from_slice(random.pick(&names));
            bytes.push(0x1f);
            bytes.extend_from_slice(random.pick(&values));
        }
        if random.below(3) == 0 && !bytes.is_empty() {
            let at = random.below(bytes.len());
            bytes[at] = random.byte();
        }
        oracles::head(&bytes);
    }
}

/// xorshift64*: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    /// Text and separators more often than not.
    fn byte(&mut self) -> u8 {
        const OFTEN: &[u8] = b"/:=?&%-_. ,;\t\r\n\0\x1e\x1e\x1faAzZ0129()\xe9";
        if self.below(3) == 0 { self.next() as u8 } else { OFTEN[self.below(OFTEN.len())] }
    }

    fn pick<'a>(&mut self, from: &[&'a [u8]]) -> &'a [u8] {
        from[self.below(from.len())]
    }
}
