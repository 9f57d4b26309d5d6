//! The keyboard controller, for the one thing that guests still use it for: resetting the machine.
//!
//! No keyboard and no mouse are attached. The status register always shows empty buffers, so that
//! a driver neither waits to send a command nor finds input to drain. The chip has no state.

use crate::access::{BusDevice, Effect};

/// First port of the controller.
pub const BASE: u16 = 0x60;
/// Ports from the data port 0x60 to the status and command port 0x64.
pub const WINDOW_LEN: u64 = 5;

/// Offset of the status register (read) and the command register (write).
const COMMAND: u64 = 4;
/// Command: pulse the reset line, which is bit 0 of the output port.
const CMD_PULSE_RESET: u8 = 0xfe;
/// Status: the system passed its self-test; both buffers are empty.
const STATUS_SYSTEM_OK: u8 = 1 << 2;

/// An i8042 without devices behind it.
#[derive(Debug, Default)]
pub struct I8042;

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (0, [byte]) => *byte = 0,
            (COMMAND, [byte]) => *byte = STATUS_SYSTEM_OK,
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        match (offset, data) {
            (COMMAND, [CMD_PULSE_RESET]) => Effect::Reset,
            _ => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_total, read_u8};

    #[test]
    fn only_the_reset_command_resets() {
        let chip = I8042;
        for value in 0..=0xff {
            let expected = if value == 0xfe {
                Effect::Reset
            } else {
                Effect::None
            };
            assert_eq!(chip.write(COMMAND, &[value]), expected);
            assert_eq!(chip.write(0, &[value]), Effect::None);
        }
        assert_eq!(chip.write(COMMAND, &[0xfe, 0]), Effect::None);
    }

    #[test]
    fn status_shows_empty_buffers() {
        assert_eq!(read_u8(&I8042, COMMAND) & 0b11, 0);
    }

    #[test]
    fn ports_between_data_and_status_read_all_ones() {
        assert_eq!(read_u8(&I8042, 1), 0xff);
        let mut wide = [0; 2];
        I8042.read(COMMAND, &mut wide);
        assert_eq!(wide, [0xff; 2]);
    }

    #[test]
    fn any_access_is_total() {
        check_total(|| I8042, |_| ());
    }
}
