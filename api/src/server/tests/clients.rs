//! Clients that other people wrote.

use std::process::{Command, Output};

use super::{Limits, Running};

/// Runs `command`; without that program the test says so and ends.
fn run(command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("not run: {}: {error}", command.get_program().display());
            None
        }
    }
}

#[test]
fn curl_understands_the_answers() {
    let server = Running::start(Limits::default());
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--write-out",
            "|%{http_code}",
        ]);
        command
            .arg("--unix-socket")
            .arg(server.path())
            .args(arguments);
        run(&mut command).map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Some(ping) = curl(&["http://localhost/api/v1/vmm.ping"]) else {
        return;
    };
    assert!(
        ping.starts_with(r#"{"build_version":"v1"#) && ping.ends_with("}|200"),
        "{ping}"
    );
    assert_eq!(
        curl(&["-X", "PUT", "http://localhost/api/v1/vm.pause"]).as_deref(),
        Some("|204")
    );
    let create = ["-T", "-", "http://localhost/api/v1/vm.create"];
    assert!(
        curl(&create).is_some_and(|answer| answer.ends_with("|400")),
        "an empty body is refused"
    );
    // Long enough for curl to wait for "100 Continue" first.
    let body = format!("{{}}{}", " ".repeat(2 << 20));
    let file = server.directory.path().join("body");
    std::fs::write(&file, body).expect("a file");
    let file = file.to_str().expect("a name in UTF-8");
    assert_eq!(
        curl(&["-T", file, "http://localhost/api/v1/vm.create"]).as_deref(),
        Some("|204")
    );
}

const PYTHON_CLIENT: &str = r#"
import http.client, json, socket, sys

connection = http.client.HTTPConnection("localhost", timeout=20)
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
for method, command, body in [
    ("GET", "vmm.ping", None), ("PUT", "vm.create", '{"payload": {"kernel": "/k"}}'), ("PUT", "vm.boot", None),
]:
    connection.request(method, "/api/v1/" + command, body)
    answer = connection.getresponse()
    text = answer.read().decode()
    print(answer.status, json.loads(text)[-1] if answer.status >= 400 else len(text) > 0)
"#;

#[test]
fn python_understands_the_answers_on_one_connection() {
    let server = Running::start(Limits::default());
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON_CLIENT]).arg(server.path());
    let Some(output) = run(&mut command) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        text,
        "200 True\n204 False\n404 VM config is missing\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
