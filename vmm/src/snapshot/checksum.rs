//! XXH3-64, the checksum of everything in a snapshot: sections, 2 MiB chunks of memory, the manifest itself.
//!
//! It finds damage, not malice: whoever can write the directory can write checksums too. As text it is 16 lower-case
//! hexadecimal digits; no other spelling is read, so that a flipped bit in the text is found as well.

use std::fmt;
use std::hash::Hasher as _;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use twox_hash::XxHash3_64;

/// Digits of a checksum as text.
pub const TEXT_LEN: usize = 16;

/// A checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum(u64);

impl Checksum {
    /// The checksum of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(XxHash3_64::oneshot(bytes))
    }

    /// Reads the text form; none if it is not exactly that.
    #[must_use]
    pub fn from_text(text: &[u8]) -> Option<Self> {
        if text.len() != TEXT_LEN {
            return None;
        }
        text.iter()
            .try_fold(0, |value, &digit| {
                let digit = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return None,
                };
                Some(value << 4 | u64::from(digit))
            })
            .map(Self)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Checksum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_text(text.as_bytes())
            .ok_or_else(|| D::Error::custom("a checksum is 16 lower-case hexadecimal digits"))
    }
}

/// Computes a checksum piece by piece.
#[derive(Clone)]
pub struct Hasher(XxHash3_64);

impl Hasher {
    /// No bytes so far.
    #[must_use]
    pub fn new() -> Self {
        Self(XxHash3_64::new())
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Adds `count` zero bytes.
    pub fn update_zeros(&mut self, mut count: usize) {
        // Small: it is part of the program, and stays in the first-level cache.
        static ZEROS: [u8; 4 << 10] = [0; 4 << 10];
        while count > 0 {
            let step = count.min(ZEROS.len());
            self.update(&ZEROS[..step]);
            count -= step;
        }
    }

    /// The checksum of all bytes added.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        Checksum(self.0.finish())
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({})", self.checksum())
    }
}

#[cfg(test)]
mod tests {
    use super::{Checksum, Hasher};

    #[test]
    fn known_values_of_xxh3_64() {
        // From the reference implementation (xxhsum -H3).
        assert_eq!(Checksum::of(b"").to_string(), "2d06800538d394c2");
        let mut pieces = Hasher::new();
        pieces.update(b"abc");
        pieces.update_zeros(100_000);
        let mut whole = b"abc".to_vec();
        whole.resize(100_003, 0);
        assert_eq!(pieces.checksum(), Checksum::of(&whole));
    }

    #[test]
    fn only_the_canonical_text_is_read() {
        let sum = Checksum::of(b"dormouse");
        assert_eq!(Checksum::from_text(sum.to_string().as_bytes()), Some(sum));
        for text in [
            "",
            "2D06800538D394C2",
            "2d06800538d394c",
            "2d06800538d394c2a",
            "+d06800538d394c2",
        ] {
            assert_eq!(Checksum::from_text(text.as_bytes()), None, "{text}");
        }
    }
}
