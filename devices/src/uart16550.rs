//! The 16550A UART: vm-superio's chip, with a state that a snapshot can carry.
//!
//! The chip has no bus and no host end; [`crate::serial_port`] gives it both. It differs from
//! hardware in that the transmitter is always empty and the FIFO control register is ignored.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};

use crate::host::{IrqLine, SerialBackend};
use crate::lifecycle::SavedState;

/// Bytes that the receive FIFO holds: the size of the chip's model, not the 16 of a real 16550.
pub const FIFO_LEN: usize = 64;

/// Offset of the modem control register, which reads without side effects.
const MODEM_CONTROL: u8 = 4;
/// Modem control: loopback mode.
const MCR_LOOPBACK: u8 = 1 << 4;
/// Line status: data ready.
const LSR_DATA_READY: u8 = 1 << 0;

/// The registers and the receive FIFO of a serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialPortState {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Bytes received and not yet read by the guest, oldest first.
    pub receive_fifo: Vec<u8>,
}

impl SavedState for SerialPortState {
    const KIND: &'static str = "serial-port";
    const VERSION: u32 = 1;
}

/// Why a saved serial port is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SerialStateError {
    /// More bytes than the FIFO has room for.
    #[error("cannot restore a serial port with {len} received bytes: its FIFO holds {FIFO_LEN}")]
    FifoTooLong {
        /// Bytes in the saved FIFO.
        len: usize,
    },
    /// The line status register and the FIFO disagree on whether there is input.
    #[error(
        "cannot restore a serial port with {len} received bytes and line status {line_status:#04x}"
    )]
    DataReadyMismatch {
        /// Bytes in the saved FIFO.
        len: usize,
        /// The saved line status register.
        line_status: u8,
    },
}

impl SerialPortState {
    /// The state of a chip after power-on.
    pub fn reset() -> Self {
        Self::from_chip(SerialState::default())
    }

    fn from_chip(state: SerialState) -> Self {
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = state;
        Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            receive_fifo: in_buffer,
        }
    }

    fn into_chip(self) -> Result<SerialState, SerialStateError> {
        let Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            receive_fifo,
        } = self;
        let len = receive_fifo.len();
        if len > FIFO_LEN {
            return Err(SerialStateError::FifoTooLong { len });
        }
        if (line_status & LSR_DATA_READY != 0) != (len > 0) {
            return Err(SerialStateError::DataReadyMismatch { len, line_status });
        }
        Ok(SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: receive_fifo,
        })
    }
}

struct Line(Arc<dyn IrqLine>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

struct Transmitter(Arc<dyn SerialBackend>);

impl Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.transmit(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The chip, with its interrupt and its transmit line connected.
pub(crate) struct Uart16550 {
    chip: Serial<Line, NoEvents, Transmitter>,
}

impl Uart16550 {
    pub(crate) fn restore(
        state: SerialPortState,
        irq: Arc<dyn IrqLine>,
        backend: Arc<dyn SerialBackend>,
    ) -> Result<Self, SerialStateError> {
        let state = state.into_chip()?;
        let len = state.in_buffer.len();
        Serial::from_state(&state, Line(irq), NoEvents, Transmitter(backend))
            .map(|chip| Self { chip })
            // The one failure left to the chip: neither line nor transmitter can fail.
            .map_err(|_| SerialStateError::FifoTooLong { len })
    }

    pub(crate) fn state(&self) -> SerialPortState {
        SerialPortState::from_chip(self.chip.state())
    }

    pub(crate) fn read(&mut self, register: u8) -> u8 {
        self.chip.read(register)
    }

    pub(crate) fn write(&mut self, register: u8, value: u8) {
        // Neither the line nor the transmitter can fail, and loopback drops what does not fit.
        let _infallible = self.chip.write(register, value);
    }

    /// Puts `bytes` into the receive FIFO and returns how many it took. In loopback mode the
    /// receiver is cut off from the line, and takes none.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        self.chip.enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    /// Whether the guest has read all input and would see more.
    pub(crate) fn wants_input(&mut self) -> bool {
        self.chip.fifo_capacity() == FIFO_LEN && self.chip.read(MODEM_CONTROL) & MCR_LOOPBACK == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert_eq, proptest};

    use super::*;
    use crate::testing::{CountingIrq, RecordingBackend};

    proptest! {
        /// A hostile snapshot gives an error or a chip that holds what was saved and still works.
        #[test]
        fn any_state_is_refused_or_restored(
            registers in any::<[u8; 9]>(),
            receive_fifo in prop::collection::vec(any::<u8>(), 0..FIFO_LEN + 4),
            accesses in prop::collection::vec((any::<bool>(), 0..8u8, any::<u8>()), 0..50),
        ) {
            let [low, high, ier, iir, lcr, lsr, mcr, msr, scratch] = registers;
            let state = SerialPortState {
                baud_divisor_low: low,
                baud_divisor_high: high,
                interrupt_enable: ier,
                interrupt_identification: iir,
                line_control: lcr,
                line_status: lsr,
                modem_control: mcr,
                modem_status: msr,
                scratch,
                receive_fifo,
            };
            let backend = Arc::<RecordingBackend>::default();
            let irq = Arc::<CountingIrq>::default();
            let consistent = (lsr & 1 != 0) != state.receive_fifo.is_empty();
            let fits = state.receive_fifo.len() <= FIFO_LEN;
            let uart = Uart16550::restore(state.clone(), irq, backend);
            prop_assert_eq!(uart.is_ok(), fits && consistent);
            if let Ok(mut uart) = uart {
                prop_assert_eq!(uart.state(), state);
                for (write, register, value) in accesses {
                    if write {
                        uart.write(register, value);
                    } else {
                        uart.read(register);
                    }
                }
                uart.receive(&[0; 100]);
            }
        }
    }
}
