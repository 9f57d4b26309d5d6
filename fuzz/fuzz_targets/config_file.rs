//! A VM config as a file's content: it is read, checked, written and read again.
#![no_main]

use dormouse_api::config::VmConfig;
use dormouse_fuzz::message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut config = match VmConfig::from_file_bytes(bytes) {
        Ok(config) => config,
        Err(error) => return message::check_chain(&error),
    };
    let written = serde_json::to_vec(&config).expect("a config made from JSON is JSON");
    let again = VmConfig::from_file_bytes(&written).expect("what is written can be read");
    let rewritten = serde_json::to_vec(&again).expect("a config made from JSON is JSON");
    assert_eq!(written, rewritten);

    let verdict = config.validate();
    if let Err(error) = &verdict {
        message::check_chain(error);
    }
    assert_eq!(again.validate().is_ok(), verdict.is_ok());
    config.assign_device_ids();
    assert!(config.devices.iter().all(|device| device.id.is_some()));
    if verdict.is_ok() {
        config.validate().expect("given ids are valid and unique");
    }
});
