//! The JSON config of a test VM: a valid machine to start from, and setters for what tests vary. Anything else is
//! set by JSON pointer, wrong values included.

use std::path::Path;

use serde_json::{Value, json};

/// Where the guest's serial port goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serial {
    /// Standard input and output of the VMM.
    Tty,
    /// A file in the VM's directory.
    File,
    /// A pseudo-terminal that the VMM makes.
    Pty,
    /// A Unix socket in the VM's directory that the VMM listens on.
    Socket,
    /// Output thrown away.
    Null,
    /// No serial port at all.
    Off,
}

/// A VM to be started by [`TestVm::start`](crate::TestVm::start).
#[derive(Clone, Debug)]
pub struct VmConfig {
    pub(crate) json: Value,
    pub(crate) serial: Serial,
    pub(crate) arguments: Vec<String>,
    pub(crate) api_socket: bool,
}

impl VmConfig {
    /// One CPU, 128 MiB, serial port in a file, `kernel` with the words `cmdline`.
    pub fn new(kernel: &Path, cmdline: &str) -> Self {
        Self {
            json: json!({
                "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
                "memory": { "size": 128 << 20 },
                "payload": { "kernel": kernel, "cmdline": cmdline },
                "console": { "mode": "Off" },
            }),
            serial: Serial::File,
            arguments: Vec::new(),
            api_socket: false,
        }
    }

    /// Number of CPUs.
    #[must_use]
    pub fn cpus(self, count: u32) -> Self {
        self.set("/cpus/boot_vcpus", json!(count))
            .set("/cpus/max_vcpus", json!(count))
    }

    /// RAM in bytes.
    #[must_use]
    pub fn memory(self, bytes: u64) -> Self {
        self.set("/memory/size", json!(bytes))
    }

    /// Where the serial port goes.
    #[must_use]
    pub fn serial(mut self, serial: Serial) -> Self {
        self.serial = serial;
        self
    }

    /// Further arguments of `dormouse run`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Lets the VMM listen on an API socket in the VM's directory.
    #[must_use]
    pub fn with_api(mut self) -> Self {
        self.api_socket = true;
        self
    }

    /// Sets the field that a JSON pointer names; objects on the way are made.
    ///
    /// # Panics
    /// When the pointer leads through something that is no object.
    #[must_use]
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.json;
        for name in pointer.split('/').skip(1) {
            if place.is_null() {
                *place = json!({});
            }
            let object = place.as_object_mut().expect("the pointer names fields");
            place = object.entry(name).or_insert(Value::Null);
        }
        *place = value;
        self
    }

    /// The config as it is so far, without the serial port, which belongs to the directory of the running VM.
    pub fn json(&self) -> &Value {
        &self.json
    }

    pub(crate) fn serial_json(serial: Serial, dir: &Path) -> Value {
        match serial {
            Serial::Tty => json!({ "mode": "Tty" }),
            Serial::File => json!({ "mode": "File", "file": dir.join("serial.log") }),
            Serial::Pty => json!({ "mode": "Pty" }),
            Serial::Socket => json!({ "mode": "Socket", "socket": dir.join("serial.sock") }),
            Serial::Null => json!({ "mode": "Null" }),
            Serial::Off => json!({ "mode": "Off" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_replaces_fields_and_makes_objects() {
        let config = VmConfig::new(Path::new("/k"), "echo")
            .cpus(3)
            .set("/platform/iommufd", json!(true));
        assert_eq!(
            config.json()["cpus"],
            json!({ "boot_vcpus": 3, "max_vcpus": 3 })
        );
        assert_eq!(config.json()["platform"], json!({ "iommufd": true }));
    }
}
