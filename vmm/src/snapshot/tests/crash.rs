//! A process that dies at any step of a snapshot leaves a complete snapshot or recognisably none.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{ram, small, write};
use crate::memory::Unobserved;
use crate::snapshot::steps::CRASH_AT;
use crate::snapshot::{ReadError, Snapshot};

/// Where the child writes.
const DIR: &str = "DORMOUSE_TEST_SNAPSHOT_DIR";

/// The child's part; does nothing in an ordinary run.
#[test]
fn child() {
    if let Some(dir) = std::env::var_os(DIR) {
        write(Path::new(&dir), &small(), &ram(&small())).unwrap();
    }
}

/// Runs a child that dies before the given step; whether it got to its end.
fn survives(dir: &Path, step: usize) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "snapshot::tests::crash::child"])
        .env(DIR, dir)
        .env(CRASH_AT, step.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    status.success()
}

#[test]
fn every_step_leaves_a_complete_snapshot_or_none() {
    let (mut complete, mut interrupted) = (0, 0);
    for step in 1.. {
        assert!(step < 100, "the child never gets to its end");
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("snapshot");
        let survived = survives(&dir, step);
        match Snapshot::open(&dir) {
            Ok(snapshot) => {
                snapshot.verify_all(&Unobserved).unwrap();
                complete += 1;
            }
            Err(error) => {
                assert!(!survived, "{error}");
                assert!(
                    matches!(error, ReadError::NoSnapshot { .. }),
                    "step {step}: {error}"
                );
                interrupted += 1;
                // The next attempt cleans up and succeeds.
                write(&dir, &small(), &ram(&small())).unwrap();
                Snapshot::open(&dir)
                    .unwrap()
                    .verify_all(&Unobserved)
                    .unwrap();
            }
        }
        if survived {
            break;
        }
    }
    // Four files and a manifest created, five synced, three directory syncs, one rename; only the last sync of the directory
    // comes after it, and then the end.
    assert_eq!((complete, interrupted), (2, 13));
}
