//! Why a config cannot be read, or cannot boot. Every message names the place in the config.

use std::fmt;

use thiserror::Error;

use super::unknown::Warning;

/// Longest part of a JSON error or path that is repeated, since both can quote the input.
const QUOTE_LIMIT_CHARS: usize = 256;

/// Why a config or a request body was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// There is nothing but white space.
    #[error("the JSON text is empty")]
    Empty,
    /// The text is longer than any sensible config.
    #[error("the JSON text is {length} bytes long, more than the allowed {limit}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The longest allowed, in bytes.
        limit: usize,
    },
    /// The text is not JSON.
    #[error("the text is not valid JSON")]
    Syntax {
        /// What is wrong, with line and column.
        source: JsonFault,
    },
    /// A value has the wrong type, is missing, or is given twice.
    #[error("cannot read {path}")]
    Value {
        /// Where the value is, for example `cpus.boot_vcpus`.
        path: String,
        /// What is wrong, with line and column.
        source: JsonFault,
    },
    /// A config file has a field that nothing reads.
    #[error("{}", Warning { path: path.clone(), nearest: *nearest })]
    UnknownField {
        /// Where the field is.
        path: String,
        /// The known field with the most similar name.
        nearest: Option<&'static str>,
    },
    /// A setting asks for something that is not built.
    #[error("{path}: {feature} is not implemented by Dormouse; remove it")]
    NotImplemented {
        /// Where the setting is.
        path: String,
        /// What it asks for.
        feature: &'static str,
    },
    /// The config can be read, and cannot boot.
    #[error("cannot use {path}")]
    Invalid {
        /// Where the value is, or should be.
        path: String,
        /// The rule it breaks.
        source: Violation,
    },
}

impl ConfigError {
    /// Whether the text could not be read at all, so that it says nothing about a VM.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(
            self,
            Self::Empty | Self::TooLong { .. } | Self::Syntax { .. } | Self::Value { .. }
        )
    }

    /// Whether two devices claim the same name, path or slot, for which the API has a status of its own.
    pub fn is_duplicate(&self) -> bool {
        matches!(
            self,
            Self::Invalid {
                source: Violation::Duplicate { .. },
                ..
            }
        )
    }
}

/// A rule that a config breaks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A number is outside its range.
    #[error("{value} is not between {min} and {max}")]
    OutOfRange {
        /// The number.
        value: u64,
        /// The least that is allowed.
        min: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// A size is not a multiple of the unit it is handed out in.
    #[error("{value} is not a multiple of {unit} bytes")]
    NotMultiple {
        /// The size in bytes.
        value: u64,
        /// The unit in bytes.
        unit: u64,
    },
    /// The topology describes another number of vCPUs.
    #[error("the product of its numbers is {product}, but cpus.max_vcpus is {max_vcpus}")]
    TopologyMismatch {
        /// vCPUs that the topology describes.
        product: u64,
        /// vCPUs that the config asks for.
        max_vcpus: u32,
    },
    /// The VM has nothing to boot.
    #[error("payload.kernel is required; firmware is not implemented")]
    NoKernel,
    /// A setting needs another one.
    #[error("{needed} is required with it")]
    Requires {
        /// The other setting.
        needed: &'static str,
    },
    /// A setting does not go with another one.
    #[error("it cannot be used with {other}")]
    Excludes {
        /// The other setting.
        other: &'static str,
    },
    /// The host has no huge pages of this size.
    #[error("{value} is not a huge page size; use 2097152 (2 MiB) or 1073741824 (1 GiB)")]
    HugePageSize {
        /// The size in bytes.
        value: u64,
    },
    /// A name cannot be used.
    #[error(
        "a name has 1 to {max_length} letters, digits, '-', '_' or '.', and does not begin with '-' or '.'"
    )]
    BadName {
        /// The longest allowed, in characters.
        max_length: usize,
    },
    /// A path is empty.
    #[error("the path is empty")]
    EmptyPath,
    /// A path depends on the working directory.
    #[error("it is not an absolute path")]
    NotAbsolute,
    /// A text that is handed to the kernel holds a NUL.
    #[error("it contains a NUL character")]
    ContainsNul,
    /// The same thing is named twice.
    #[error("it is the same as {first}")]
    Duplicate {
        /// Where it is named first.
        first: String,
    },
    /// A list has nothing in it.
    #[error("the list is empty")]
    EmptyList,
}

/// An error of the JSON reader. Its text ends with line and column, and quotes at most a part of the input.
#[derive(Debug)]
pub struct JsonFault(serde_json::Error);

impl JsonFault {
    pub(super) fn new(source: serde_json::Error) -> Self {
        Self(source)
    }

    /// The config error for this fault in the value at `path`.
    pub(super) fn at(self, path: String) -> ConfigError {
        if !self.0.is_data() {
            ConfigError::Syntax { source: self }
        } else if path.is_empty() || path == "." {
            ConfigError::Value {
                path: "the JSON text".to_owned(),
                source: self,
            }
        } else {
            ConfigError::Value {
                path: excerpt(&path, QUOTE_LIMIT_CHARS),
                source: self,
            }
        }
    }

    /// Line of the fault, from 1; 0 if it is not known.
    pub fn line(&self) -> usize {
        self.0.line()
    }

    /// Column of the fault, from 1; 0 if it is not known.
    pub fn column(&self) -> usize {
        self.0.column()
    }
}

impl fmt::Display for JsonFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        formatter.write_str(&excerpt(&text, QUOTE_LIMIT_CHARS))?;
        if text.chars().nth(QUOTE_LIMIT_CHARS).is_some() {
            write!(
                formatter,
                " at line {} column {}",
                self.line(),
                self.column()
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for JsonFault {}

/// The beginning of `text`, fit for a terminal: it may come from anyone.
pub(super) fn excerpt(text: &str, limit_chars: usize) -> String {
    let mut kept = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == limit_chars {
            kept.push_str("...");
            break;
        }
        if character.is_control() {
            kept.extend(character.escape_default());
        } else {
            kept.push(character);
        }
    }
    kept
}
