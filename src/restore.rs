//! `dormouse restore`: wakes the VM of a snapshot directory and stays until it ends.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use dormouse_api::request::{DevicePath, MemoryRestoreMode, RestoreRequest};
use dormouse_vmm::Controller;
use dormouse_vmm::controller::Lifetime;

use crate::api::ApiThread;
use crate::cli::RestoreArguments;
use crate::progress_bar;

/// A restored VM that nobody could ever resume.
#[derive(Debug, thiserror::Error)]
#[error(
    "the restored VM would stay paused for ever: add --resume, or --api-socket to resume it over HTTP"
)]
struct NobodyResumes;

/// Runs the command; the guest's own power-off and a signal both end it well.
pub fn restore(arguments: &RestoreArguments) -> Result<ExitCode, Box<dyn Error>> {
    let socket = arguments.process.api_socket.as_deref();
    if !arguments.resume && socket.is_none() {
        return Err(NobodyResumes.into());
    }
    let request = RestoreRequest {
        resume: arguments.resume,
        verify: arguments.verify,
        prefault: arguments.prefault,
        memory_restore_mode: if arguments.eager || arguments.verify || arguments.prefault {
            MemoryRestoreMode::Copy
        } else {
            MemoryRestoreMode::OnDemand
        },
        device_paths: arguments.devices.clone(),
        ..RestoreRequest::from_directory(&std::path::absolute(&arguments.snapshot)?)?
    };
    let mode = arguments.process.seccomp.into();
    // Declared first, to be dropped last: the end of the controller answers the clients that still wait.
    let _api;
    let mut controller = Controller::new(mode, Lifetime::OfTheGuest)?;
    _api = socket
        .map(|path| ApiThread::start(path, controller.remote(), mode))
        .transpose()?;
    let remote = controller.remote();
    progress_bar::during(|| Some(remote.progress()), || controller.restore(&request))?;
    controller.run()?;
    Ok(ExitCode::SUCCESS)
}

/// `ID=PATH`.
pub fn parse_device(text: &str) -> Result<DevicePath, String> {
    match text.split_once('=') {
        Some((id, path)) if !id.is_empty() && path.starts_with('/') => Ok(DevicePath {
            id: id.to_owned(),
            path: PathBuf::from(path),
        }),
        _ => Err("expected ID=PATH with an absolute path, for example vfio0=/sys/bus/pci/devices/0000:41:00.3".to_owned()),
    }
}
