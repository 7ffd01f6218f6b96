//! Log levels and the shape of a record. Hosts add time, level and request, and write it to the server's log.
#![forbid(unsafe_code)]

/// The levels of nginx and Apache that the core uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A worker cannot serve.
    Crit,
    /// One request failed.
    Error,
    /// Degraded, going on.
    Warn,
    /// Life of processes and applications.
    Notice,
    /// A client went away.
    Info,
    Debug,
}

/// Makes text safe for a log: control characters are escaped, lines after the first are indented, so that nothing a
/// peer or an application writes can look like a record of its own.
pub fn record(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for (index, line) in text.trim_end_matches('\n').split('\n').enumerate() {
        if index > 0 {
            out.push_str("\n    ");
        }
        for character in line.chars() {
            match character {
                '\t' => out.push('\t'),
                c if c.is_control() => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::record;

    #[test]
    fn later_lines_cannot_look_like_records() {
        assert_eq!(record("a\n2026/01/01 [error] b\n"), "a\n    2026/01/01 [error] b");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(record("a\x1b[31m\r\0b\tc"), "a\\u{1b}[31m\\r\\u{0}b\tc");
    }
}
