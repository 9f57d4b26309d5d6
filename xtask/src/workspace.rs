//! Where things are: the checkout, cargo's target directory, and the lab's private directory inside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::process;

/// The directories a task works in.
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the checkout this program was built from and the target directory it was built into, so that
    /// `CARGO_TARGET_DIR` and cargo's configuration are respected without reading them.
    pub fn locate() -> Result<Workspace, Error> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().unwrap_or(manifest).to_path_buf();
        let program =
            std::env::current_exe().map_err(Error::file("find", Path::new("this program")))?;
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => root.join(directory),
            None => program
                .ancestors()
                .nth(2)
                .map_or_else(|| root.join("target"), Path::to_path_buf),
        };
        Ok(Workspace { root, target })
    }

    /// The checkout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The target directory, where everything that is made goes.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The `dormouse` of a plain `cargo build`.
    pub fn debug_dormouse(&self) -> PathBuf {
        self.target.join("debug").join("dormouse")
    }

    /// Everything the lab makes, downloads and logs.
    pub fn lab(&self) -> PathBuf {
        self.target.join("lab")
    }

    /// The lab's own sources: scripts, tests, kernel configuration.
    pub fn lab_sources(&self) -> PathBuf {
        self.root.join("resources").join("lab")
    }

    /// A cargo command that works on this workspace and this target directory.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target);
        cargo
    }

    /// Builds the `dormouse` binary as users run it and returns its path.
    pub fn build_dormouse(&self) -> Result<PathBuf, Error> {
        let mut cargo = self.cargo();
        cargo.args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "dormouse",
            "--bin",
            "dormouse",
        ]);
        process::run_visibly(&mut cargo)?;
        Ok(self.target.join("release").join("dormouse"))
    }
}
