//! The escape sequences of a console on a terminal, which in raw mode has no other way out.
//!
//! Ctrl-A x ends the VM; Ctrl-A a and Ctrl-A Ctrl-A send one Ctrl-A; anything else after Ctrl-A
//! goes to the guest together with it.

const PREFIX: u8 = 0x01;

/// Finds escape sequences in typed input, also across reads.
#[derive(Debug, Default)]
pub(super) struct Escape {
    after_prefix: bool,
}

impl Escape {
    /// Appends what is meant for the guest to `out`. `true` if the user wants to end the VM; what
    /// follows in `typed` is then dropped.
    pub(super) fn filter(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            if !std::mem::take(&mut self.after_prefix) {
                if byte == PREFIX {
                    self.after_prefix = true;
                } else {
                    out.push(byte);
                }
                continue;
            }
            match byte {
                b'x' | b'X' => return true,
                b'a' | PREFIX => out.push(PREFIX),
                other => out.extend([PREFIX, other]),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reads: &[&[u8]], expected: &[u8], quit: bool) {
        let mut escape = Escape::default();
        let mut out = Vec::new();
        let quits = reads.iter().any(|read| escape.filter(read, &mut out));
        assert_eq!((out.as_slice(), quits), (expected, quit), "{reads:?}");
    }

    #[test]
    fn sequences_are_found_within_and_across_reads() {
        check(&[b"ls\r"], b"ls\r", false);
        check(&[b"ab\x01xcd"], b"ab", true);
        check(&[b"ab\x01", b"x"], b"ab", true);
        check(&[b"\x01a\x01\x01"], b"\x01\x01", false);
        check(&[b"\x01", b"bc"], b"\x01bc", false);
        check(&[b"\x01\x01x"], b"\x01x", false);
    }
}
