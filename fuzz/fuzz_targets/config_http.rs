//! A VM config as the body of `vm.create`: the same as in a file, but that unknown fields are only reported.
#![no_main]

use dormouse_api::config::{ConfigError, VmConfig};
use dormouse_fuzz::message;
use libfuzzer_sys::fuzz_target;

/// More than are ever reported.
const MANY_WARNINGS: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let file = VmConfig::from_file_bytes(bytes);
    match VmConfig::from_http_bytes(bytes) {
        Ok((config, warnings)) => {
            assert!(warnings.len() <= MANY_WARNINGS);
            for warning in &warnings {
                message::check(&warning.to_string());
            }
            match file {
                Ok(same) => {
                    assert_eq!(config, same);
                    assert!(warnings.is_empty());
                }
                Err(ConfigError::UnknownField { .. }) => assert!(!warnings.is_empty()),
                Err(error) => panic!("only the file is refused: {error}"),
            }
        }
        Err(error) => {
            message::check_chain(&error);
            assert!(file.is_err());
        }
    }
});
