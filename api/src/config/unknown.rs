//! Fields that no version of the config knows: where they are, and which known name was probably meant.

use std::fmt;

use serde_ignored::Path;

use super::error::excerpt;
use super::fields::field_names;
use super::{
    ConsoleConfig, CpuAffinity, CpuFeatures, CpuTopology, CpusConfig, DebugConsoleConfig,
    DeviceConfig, MemoryConfig, PayloadConfig, PlatformConfig, RngConfig, SerialConfig,
};

/// Longest field name that is searched for a similar one, and longest part of a name that a message repeats.
const NAME_LIMIT_CHARS: usize = 64;

/// A field that was ignored because nothing reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where the field is, for example `devices[0].pathh`.
    pub path: String,
    /// The known field with the most similar name, if one is similar.
    pub nearest: Option<&'static str>,
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "unknown field {}", self.path)?;
        match self.nearest {
            Some(nearest) => write!(formatter, "; did you mean {nearest}?"),
            None => Ok(()),
        }
    }
}

impl Warning {
    /// Describes the field at `path`, which a parser has just ignored; `root` are the known names at the top.
    pub(super) fn of_ignored(path: &Path<'_>, root: &'static [&'static str]) -> Self {
        let (object, name) = split_last(path);
        let known = if object.is_empty() {
            root
        } else {
            known_names(&object)
        };
        Self {
            path: render(path),
            nearest: name.and_then(|name| nearest_name(known, name)),
        }
    }
}

/// The path in the form `devices[0].path`; long names are cut.
fn render(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", render(parent)),
        Path::Map { parent, key } => {
            let (parent, key) = (render(parent), excerpt(key, NAME_LIMIT_CHARS));
            if parent.is_empty() {
                key
            } else {
                format!("{parent}.{key}")
            }
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => render(parent),
    }
}

/// The object that holds the field, with `[]` for each list index, and the field's name.
fn split_last<'a>(path: &'a Path<'_>) -> (String, Option<&'a str>) {
    match path {
        Path::Map { parent, key } => (shape(parent), Some(key)),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => split_last(parent),
        Path::Root | Path::Seq { .. } => (String::new(), None),
    }
}

fn shape(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, .. } => format!("{}[]", shape(parent)),
        Path::Map { parent, key } => {
            let parent = shape(parent);
            if parent.is_empty() {
                key.clone()
            } else {
                format!("{parent}.{key}")
            }
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => shape(parent),
    }
}

fn nearest_name(known: &[&'static str], name: &str) -> Option<&'static str> {
    let length = name.chars().count();
    if length > NAME_LIMIT_CHARS {
        return None;
    }
    // Up to a third of the letters may differ, so that "kernell" finds "kernel" and "foo" finds nothing.
    let allowed = (length / 3).max(1);
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), *known))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, known)| known)
}

/// The fields of an object inside of a VM config; none for any other.
pub(super) fn known_names(object: &str) -> &'static [&'static str] {
    match object {
        "cpus" => field_names::<CpusConfig>(),
        "cpus.topology" => field_names::<CpuTopology>(),
        "cpus.features" => field_names::<CpuFeatures>(),
        "cpus.affinity[]" => field_names::<CpuAffinity>(),
        "memory" => field_names::<MemoryConfig>(),
        "payload" => field_names::<PayloadConfig>(),
        "rng" => field_names::<RngConfig>(),
        "serial" => field_names::<SerialConfig>(),
        "console" => field_names::<ConsoleConfig>(),
        "debug_console" => field_names::<DebugConsoleConfig>(),
        "devices[]" => field_names::<DeviceConfig>(),
        "platform" => field_names::<PlatformConfig>(),
        _ => &[],
    }
}
