//! `dormouse run`: boots the VM of a config file and stays until it ends.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dormouse_api::config::{CONFIG_LIMIT_BYTES, ConfigError, VmConfig};
use dormouse_vmm::{Controller, Outcome};

use crate::cli::RunArguments;

/// A config file that cannot be used.
#[derive(Debug, thiserror::Error)]
enum ConfigFileError {
    #[error("cannot read the config {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the config {}", path.display())]
    Parse {
        path: PathBuf,
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
    let mut controller = Controller::new(arguments.process.seccomp.into())?;
    controller.boot(config)?;
    Ok(match controller.run()? {
        Outcome::PowerOff | Outcome::Terminated(_) | Outcome::Quit => ExitCode::SUCCESS,
    })
}

/// Reads and parses a config; never more than the limit, whatever the path leads to.
fn read_config(path: &Path) -> Result<VmConfig, ConfigFileError> {
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
