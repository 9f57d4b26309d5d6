//! Stamps make a step idempotent: a file beside the step's result holds the key of what it was made from.
//!
//! A step runs when its stamp is missing or holds another key, and writes the stamp last, so that a step cut
//! short runs again.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// A key over the inputs of a step: texts and file contents.
#[derive(Default)]
pub struct Key(DefaultHasher);

impl Key {
    /// Mixes in a text: a version, a list of options.
    pub fn text(mut self, text: &str) -> Key {
        text.hash(&mut self.0);
        self
    }

    /// Mixes in a file's name and contents.
    pub fn file(mut self, path: &Path) -> Result<Key, Error> {
        path.file_name().hash(&mut self.0);
        fs::read(path)
            .map_err(Error::file("read", path))?
            .hash(&mut self.0);
        Ok(self)
    }

    /// Mixes in a large file by its size and time of change, which is enough for files of our own making.
    pub fn large_file(mut self, path: &Path) -> Result<Key, Error> {
        let meta = fs::metadata(path).map_err(Error::file("read", path))?;
        path.file_name().hash(&mut self.0);
        meta.len().hash(&mut self.0);
        meta.modified()
            .map_err(Error::file("read the time of", path))?
            .hash(&mut self.0);
        Ok(self)
    }

    fn hex(&self) -> String {
        format!("{:016x}", self.0.finish())
    }
}

/// Runs `step` unless the stamp file says that it already ran for `key`. True when it ran.
pub fn once(
    stamp: PathBuf,
    key: &Key,
    step: impl FnOnce() -> Result<(), Error>,
) -> Result<bool, Error> {
    let hex = key.hex();
    if fs::read_to_string(&stamp).is_ok_and(|text| text == hex) {
        return Ok(false);
    }
    if stamp.exists() {
        fs::remove_file(&stamp).map_err(Error::file("remove", &stamp))?;
    }
    step()?;
    fs::write(&stamp, hex).map_err(Error::file("write", &stamp))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_runs_again_only_for_another_key_or_after_failure() {
        let directory = tempfile::tempdir().unwrap();
        let stamp = directory.path().join("step.stamp");
        let run = |text: &str| once(stamp.clone(), &Key::default().text(text), || Ok(())).unwrap();
        assert!(run("a"));
        assert!(!run("a"));
        assert!(run("b"));
        assert!(!run("b"));
        let failed = once(stamp.clone(), &Key::default().text("c"), || {
            Err(Error::NoKernel)
        });
        assert!(failed.is_err());
        assert!(
            run("b"),
            "a failed step must leave no stamp, not even the old one"
        );
    }
}
