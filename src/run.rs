//! `dormouse run`: boots the VM of a config file and stays until it ends.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dormouse_api::config::{CONFIG_LIMIT_BYTES, ConfigError, VmConfig};
use dormouse_vmm::Controller;
use dormouse_vmm::controller::Lifetime;

use crate::api::ApiThread;
use crate::cli::RunArguments;

/// A config file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// The file.
    #[error("cannot read the config {}", path.display())]
    Read {
        /// Where it is.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// What it says.
    #[error("cannot use the config {}", path.display())]
    Parse {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
}

/// Runs the command; the guest's own power-off and a signal both end it well.
pub fn run(arguments: &RunArguments) -> Result<ExitCode, Box<dyn Error>> {
    let config = read_config(&arguments.config)?;
    config.validate().map_err(|source| ConfigFileError::Parse {
        path: arguments.config.clone(),
        source,
    })?;
    let mode = arguments.process.seccomp.into();
    // Declared first, to be dropped last: the end of the controller answers the clients that still wait.
    let _api;
    let mut controller = Controller::new(mode, Lifetime::OfTheGuest)?;
    let socket = arguments.process.api_socket.as_deref();
    _api = socket
        .map(|path| ApiThread::start(path, controller.remote(), mode))
        .transpose()?;
    controller.boot(config)?;
    controller.run()?;
    Ok(ExitCode::SUCCESS)
}

/// Reads and parses a config; never more than the limit, whatever the path leads to.
pub fn read_config(path: &Path) -> Result<VmConfig, ConfigFileError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // One byte more than allowed, so that the parser sees that there is more and refuses it.
        let limit = CONFIG_LIMIT_BYTES as u64 + 1;
        if path == Path::new("-") {
            io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
        } else {
            File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    let bytes = read().map_err(|source| ConfigFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    VmConfig::from_file_bytes(&bytes).map_err(|source| ConfigFileError::Parse {
        path: path.to_owned(),
        source,
    })
}
