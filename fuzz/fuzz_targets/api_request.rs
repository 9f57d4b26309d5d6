//! The body of any API request: the first byte chooses the command, the rest is what a client sent.
#![no_main]

use dormouse_api::Request;
use dormouse_fuzz::message;
use libfuzzer_sys::fuzz_target;

const COMMANDS: [&str; 6] = [
    "vm.snapshot",
    "vm.restore",
    "vm.create",
    "vm.pause",
    "openapi.json",
    "vm.unheard-of",
];

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, body)) = bytes.split_first() else {
        return;
    };
    let command = COMMANDS[usize::from(choice) % COMMANDS.len()];
    let request = match Request::from_body(command, body) {
        Some(Ok(request)) => request,
        Some(Err(error)) => {
            assert_eq!(error.status().code() / 100, 4, "{error}");
            return error.chain().iter().for_each(|text| message::check(text));
        }
        None => return,
    };
    assert_eq!(request.command(), command);
    let written = match &request {
        Request::Create(config) => serde_json::to_vec(config),
        Request::Snapshot(snapshot) => {
            if let Ok(directory) = snapshot.directory() {
                assert!(directory.is_absolute());
            }
            serde_json::to_vec(snapshot)
        }
        Request::Restore(restore) => {
            if let Ok(directory) = restore.directory() {
                assert!(directory.is_absolute());
            }
            restore.validate().expect("it was validated when read");
            assert!(restore.expected_fds() <= body.len() + 1);
            serde_json::to_vec(restore)
        }
        _ => return,
    };
    let written = written.expect("what came from JSON is JSON");
    Request::from_body(command, &written)
        .expect("the command exists")
        .expect("what is written can be read");
});
