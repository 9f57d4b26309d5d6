//! Finds the `dormouse` binary under test: the one that `DORMOUSE_BIN` names, else the one cargo builds from this
//! checkout, once per test process.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::guest::checkout;

/// Path of the binary.
///
/// # Panics
/// When cargo cannot build it: no test of it can go on.
pub fn dormouse() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| std::env::var_os("DORMOUSE_BIN").map_or_else(build, PathBuf::from))
        .clone()
}

fn build() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--package", "dormouse", "--bin", "dormouse"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(checkout())
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo, which runs this test, can be run again");
    assert!(output.status.success(), "cargo cannot build dormouse");
    // Cargo names the executable, so that target directories and profiles need no guessing.
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .next_back()
        .expect("cargo names the executable that it built")
}
