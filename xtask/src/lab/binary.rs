//! The `dormouse` that lab tests run: the one that cargo's own tests use, without its symbols, which are most of it and would
//! have to be loaded into L1 each time. `demo` and `bench` take the release build instead.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::error::Error;
use crate::process;
use crate::workspace::Workspace;

/// Builds it and returns its path.
pub fn build(workspace: &Workspace) -> Result<PathBuf, Error> {
    let mut cargo = workspace.cargo();
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "dormouse",
        "--bin",
        "dormouse",
    ]);
    process::run_visibly(&mut cargo)?;
    let built = workspace.debug_dormouse();
    let directory = workspace.lab();
    fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
    let stripped = directory.join("dormouse");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&stripped).arg(&built);
    process::run_visibly(&mut strip)?;
    Ok(stripped)
}
