//! `dormouse ctl`: one request to a running VMM.

use std::error::Error;
use std::io::{self, Write};
use std::path::absolute;
use std::process::ExitCode;

use dormouse_api::request::{MemoryRestoreMode, RestoreRequest, SnapshotRequest};
use dormouse_api::{Client, Request};

use crate::cli::{CtlArguments, CtlCommand};
use crate::progress_bar;
use crate::run::read_config;

/// Sends the request and prints the answer, if it has one.
pub fn ctl(arguments: &CtlArguments) -> Result<ExitCode, Box<dyn Error>> {
    let request = match &arguments.command {
        CtlCommand::Ping => Request::Ping,
        CtlCommand::Create { config } => Request::Create(Box::new(read_config(config)?)),
        CtlCommand::Boot => Request::Boot,
        CtlCommand::Info => Request::Info,
        CtlCommand::Counters => Request::Counters,
        CtlCommand::Pause => Request::Pause,
        CtlCommand::Resume => Request::Resume,
        CtlCommand::Snapshot { directory } => {
            Request::Snapshot(SnapshotRequest::to_directory(&absolute(directory)?)?)
        }
        CtlCommand::Restore {
            directory,
            resume,
            devices,
            on_demand,
            prefault,
            verify,
        } => Request::Restore(RestoreRequest {
            resume: *resume,
            verify: *verify,
            prefault: *prefault,
            memory_restore_mode: if *on_demand {
                MemoryRestoreMode::OnDemand
            } else {
                MemoryRestoreMode::Copy
            },
            device_paths: devices.clone(),
            ..RestoreRequest::from_directory(&absolute(directory)?)?
        }),
        CtlCommand::Progress => Request::Progress,
        CtlCommand::Cancel => Request::Cancel,
        CtlCommand::Reboot => Request::Reboot,
        CtlCommand::PowerButton => Request::PowerButton,
        CtlCommand::Shutdown => Request::Shutdown,
        CtlCommand::Delete => Request::Delete,
        CtlCommand::ShutdownVmm => Request::VmmShutdown,
    };
    let client = Client::new(&arguments.api_socket);
    let answer = match &request {
        Request::Snapshot(_) | Request::Restore(_) => {
            progress_bar::during(|| client.progress().ok(), || client.call(&request))?
        }
        request => client.call(request)?,
    };
    if !answer.is_empty() {
        let mut out = io::stdout().lock();
        out.write_all(&answer)?;
        out.write_all(b"\n")?;
    }
    Ok(ExitCode::SUCCESS)
}
