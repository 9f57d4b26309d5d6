//! JSON bytes to a [`VmConfig`], or to any other request body, with one clear error.
//!
//! Bytes come from a user's file, from an API client or from a snapshot's manifest, and are not trusted: their length is
//! bounded here, their nesting by serde_json.

use serde::de::DeserializeOwned;

use super::error::JsonFault;
use super::fields::field_names;
use super::object::Object;
use super::refuse::refuse_unbuilt;
use super::unknown::Warning;
use super::{ConfigError, VmConfig};

/// Longest config or request body that is read, in bytes.
pub const CONFIG_LIMIT_BYTES: usize = 4 << 20;

/// How many ignored fields are reported; a body may hold hundreds of thousands.
const WARNING_LIMIT: usize = 32;

impl VmConfig {
    /// Reads a config file's content; an unknown field is an error, because it is most likely a mistyped one.
    pub fn from_file_bytes(bytes: &[u8]) -> Result<Self, ConfigError> {
        let (config, warnings): (Self, _) = from_json(bytes)?;
        if let Some(Warning { path, nearest }) = warnings.into_iter().next() {
            return Err(ConfigError::UnknownField { path, nearest });
        }
        refuse_unbuilt(&config)?;
        Ok(config)
    }

    /// Reads the body of `vm.create`; unknown fields are ignored, because a newer client may send them, and the first
    /// of them are returned.
    pub fn from_http_bytes(bytes: &[u8]) -> Result<(Self, Vec<Warning>), ConfigError> {
        let (config, warnings) = from_json(bytes)?;
        refuse_unbuilt(&config)?;
        Ok((config, warnings))
    }
}

/// Reads one JSON object, and reports the first of the fields that `T` does not know.
pub(crate) fn from_json<T: DeserializeOwned>(
    bytes: &[u8],
) -> Result<(T, Vec<Warning>), ConfigError> {
    if bytes.len() > CONFIG_LIMIT_BYTES {
        return Err(ConfigError::TooLong {
            length: bytes.len(),
            limit: CONFIG_LIMIT_BYTES,
        });
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ConfigError::Empty);
    }
    let root = field_names::<T>();
    let mut warnings = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| {
        if warnings.len() < WARNING_LIMIT {
            warnings.push(Warning::of_ignored(&path, root));
        }
    };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let parsed: Result<Object<T>, _> =
        serde::Deserialize::deserialize(serde_ignored::Deserializer::new(tracked, &mut note));
    let Object(value) =
        parsed.map_err(|source| JsonFault::new(source).at(track.path().to_string()))?;
    json.end()
        .map_err(|source| JsonFault::new(source).at(String::new()))?;
    Ok((value, warnings))
}
