//! `dormouse serve`: a VMM without a VM, driven over HTTP.

use std::error::Error;
use std::process::ExitCode;

use dormouse_vmm::Controller;
use dormouse_vmm::controller::Lifetime;

use crate::api::ApiThread;
use crate::cli::ServeArguments;

/// Runs the command until a client or a signal ends it.
pub fn serve(arguments: &ServeArguments) -> Result<ExitCode, Box<dyn Error>> {
    let mode = arguments.seccomp.into();
    // Declared first, to be dropped last: the end of the controller answers the clients that still wait.
    let _api;
    let mut controller = Controller::new(mode, Lifetime::OfTheServer)?;
    _api = ApiThread::start(&arguments.api_socket, controller.remote(), mode)?;
    controller.run()?;
    Ok(ExitCode::SUCCESS)
}
