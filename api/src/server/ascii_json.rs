//! JSON in ASCII only: every other character is written as `\uXXXX`.
//!
//! Cloud Hypervisor's client decodes its input in fixed pieces and panics on a character that is split between two.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// `value` as compact JSON in ASCII.
pub(super) fn to_vec<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut json = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut json, AsciiFormatter))?;
    Ok(json)
}

struct AsciiFormatter;

impl Formatter for AsciiFormatter {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            if character.is_ascii() {
                write!(writer, "{character}")?;
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::to_vec;

    #[test]
    fn characters_beyond_ascii_are_escaped() {
        let json = to_vec(&["aé\"\n", "\u{1f42d}"]).expect("it can be written");
        assert_eq!(
            String::from_utf8_lossy(&json),
            r#"["a\u00e9\"\n","\ud83d\udc2d"]"#
        );
    }

    proptest! {
        #[test]
        fn any_text_is_written_in_ascii_and_reads_back(text in "\\PC{0,40}") {
            let json = to_vec(&text).expect("it can be written");
            prop_assert!(json.is_ascii());
            prop_assert_eq!(serde_json::from_slice::<String>(&json).expect("it reads back"), text);
        }
    }
}
