//! Device streams on their way from a snapshot into the devices.

use std::collections::BTreeMap;
use std::time::Instant;

use dormouse_devices::vfio::VfioFunctionState;
use dormouse_vfio_migration::StreamControl;

use super::super::on_each::on_each;
use super::super::passthrough::{Attached, Passthrough};
use super::super::state::FunctionPlaceState;
use super::super::timeline::Stopwatch;
use super::Error;
use crate::progress::ActionProgress;
use crate::snapshot::Snapshot;

/// Loads all devices at once, one thread each. When one fails, those that were loaded are given up, for the next attempt.
pub(super) fn load_streams(
    passthrough: &Passthrough,
    saved: &BTreeMap<String, (FunctionPlaceState, VfioFunctionState)>,
    snapshot: &Snapshot,
    progress: &ActionProgress,
    stopwatch: &Stopwatch,
) -> Result<(), Error> {
    let is_discarded = |id: &str| saved.get(id).is_some_and(|(place, _)| place.discarded);
    let outcome = on_each(passthrough.functions().iter(), |attached| {
        if !is_discarded(&attached.id) {
            return load_stream(attached, snapshot, progress, stopwatch);
        }
        tracing::warn!(
            "{}: its state was not saved; the guest finds it after a reset",
            attached.id
        );
        let fixed = stopwatch.phase(
            "fix up",
            Some(&attached.id),
            |_| 0,
            || attached.function.fix_up(),
        );
        fixed.map_err(|source| Error::Load {
            id: attached.id.clone(),
            source,
        })
    });
    if outcome.is_err() {
        for attached in passthrough.functions() {
            attached.function.abandon();
        }
    }
    outcome
}

fn load_stream(
    attached: &Attached,
    snapshot: &Snapshot,
    progress: &ActionProgress,
    stopwatch: &Stopwatch,
) -> Result<(), Error> {
    let start = Instant::now();
    let mut stream = snapshot
        .device_stream(&attached.id)
        .map_err(Error::Snapshot)?;
    let length = stream.length();
    let mut report = |bytes| progress.device(&attached.id, "load", bytes, Some(length));
    let mut control = StreamControl {
        cancel: Some(progress.cancelled()),
        progress: Some(&mut report),
        ..StreamControl::default()
    };
    let fix_up = attached
        .function
        .load(&mut stream, length, &mut control)
        .map_err(|source| Error::Load {
            id: attached.id.clone(),
            source,
        })?;
    stopwatch.record("load device", Some(&attached.id), start, length);
    stopwatch.record("fix up", Some(&attached.id), fix_up, 0);
    Ok(())
}
