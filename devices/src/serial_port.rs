//! A 16550 on the port bus, between the guest's driver and the host's end of the line.
//!
//! The guest's side comes in as [`BusDevice`] accesses from vCPU threads, the host's side through
//! [`SerialPort::receive`] from the main loop. One lock guards the chip; the backend and the
//! interrupt line are called under it and, by their contract, neither block nor call back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::{BusDevice, Effect};
use crate::guest_debug;
use crate::host::{IrqLine, SerialBackend};
use crate::lifecycle::{Quiesced, Save};
use crate::uart16550::{SerialPortState, SerialStateError, Uart16550};

/// Ports that the chip occupies.
pub const WINDOW_LEN: u64 = 8;

struct Inner {
    uart: Uart16550,
    /// The host holds input back since the chip refused some.
    input_refused: bool,
}

/// A serial port.
pub struct SerialPort {
    inner: Mutex<Inner>,
    backend: Arc<dyn SerialBackend>,
}

impl SerialPort {
    /// A port after power-on that raises `irq` and sends to `backend`.
    pub fn new(irq: Arc<dyn IrqLine>, backend: Arc<dyn SerialBackend>) -> Self {
        Self::restore(SerialPortState::reset(), irq, backend)
            .expect("the reset state has an empty FIFO and says so")
    }

    /// A port that goes on from `state`. Raises `irq` again if an interrupt was pending.
    pub fn restore(
        state: SerialPortState,
        irq: Arc<dyn IrqLine>,
        backend: Arc<dyn SerialBackend>,
    ) -> Result<Self, SerialStateError> {
        let uart = Uart16550::restore(state, irq, Arc::clone(&backend))?;
        Ok(Self {
            inner: Mutex::new(Inner {
                uart,
                // A port that is full from the start owes the host a word when it no longer is.
                input_refused: true,
            }),
            backend,
        })
    }

    /// Puts input into the receive FIFO and returns how many bytes it took.
    ///
    /// When it takes fewer than it is given, [`SerialBackend::input_room`] follows once the guest
    /// has emptied the FIFO.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut inner = self.inner();
        let taken = inner.uart.receive(bytes);
        inner.input_refused = taken < bytes.len();
        taken
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce_room(&self, inner: &mut Inner) {
        if inner.input_refused && inner.uart.wants_input() {
            inner.input_refused = false;
            self.backend.input_room();
        }
    }
}

/// The register that an access means. The chip is eight bits wide.
fn register(offset: u64, len: usize) -> Option<u8> {
    match u8::try_from(offset) {
        Ok(register) if len == 1 && offset < WINDOW_LEN => Some(register),
        _ => {
            guest_debug!("serial port: ignored access of {len} bytes at offset {offset:#x}");
            None
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(register) = register(offset, data.len()) else {
            data.fill(0xff);
            return;
        };
        let mut inner = self.inner();
        data.fill(inner.uart.read(register));
        self.announce_room(&mut inner);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        if let (Some(register), &[value]) = (register(offset, data.len()), data) {
            let mut inner = self.inner();
            inner.uart.write(register, value);
            self.announce_room(&mut inner);
        }
        Effect::None
    }
}

impl Save for SerialPort {
    type State = SerialPortState;

    fn save(&self, _quiesced: &Quiesced) -> SerialPortState {
        self.inner().uart.state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        CountingIrq, RecordingBackend, check_contract, check_total, read_u8, write_u8,
    };
    use crate::uart16550::FIFO_LEN;

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const MCR: u64 = 4;
    const LSR: u64 = 5;
    const SCRATCH: u64 = 7;

    fn port() -> (SerialPort, Arc<CountingIrq>, Arc<RecordingBackend>) {
        let (irq, backend) = (Arc::default(), Arc::default());
        (
            SerialPort::new(Arc::clone(&irq) as _, Arc::clone(&backend) as _),
            irq,
            backend,
        )
    }

    #[test]
    fn what_the_guest_writes_reaches_the_backend() {
        let (port, _, backend) = port();
        for &byte in b"hello" {
            write_u8(&port, DATA, byte);
        }
        assert_eq!(backend.transmitted(), b"hello");
    }

    #[test]
    fn input_raises_the_line_and_is_read_in_order() {
        let (port, irq, _) = port();
        write_u8(&port, IER, 1);
        assert_eq!(irq.count(), 0);
        assert_eq!(port.receive(b"ab"), 2);
        assert_eq!(irq.count(), 1);
        assert_eq!(read_u8(&port, LSR) & 1, 1);
        assert_eq!([read_u8(&port, DATA), read_u8(&port, DATA)], *b"ab");
        assert_eq!(read_u8(&port, LSR) & 1, 0);
    }

    #[test]
    fn a_full_fifo_refuses_and_announces_room_once_it_is_empty() {
        let (port, _, backend) = port();
        assert_eq!(port.receive(&[b'x'; FIFO_LEN + 10]), FIFO_LEN);
        for _ in 0..FIFO_LEN - 1 {
            read_u8(&port, DATA);
        }
        let before = backend.rooms();
        read_u8(&port, DATA);
        assert_eq!(backend.rooms(), before + 1);
        read_u8(&port, DATA);
        assert_eq!(backend.rooms(), before + 1);
    }

    #[test]
    fn loopback_refuses_input_and_announces_room_at_its_end() {
        let (port, _, backend) = port();
        write_u8(&port, MCR, 0x10);
        assert_eq!(port.receive(b"x"), 0);
        write_u8(&port, SCRATCH, 1);
        let before = backend.rooms();
        write_u8(&port, MCR, 0);
        assert_eq!(backend.rooms(), before + 1);
    }

    #[test]
    fn state_survives_save_and_restore() {
        let (port, _, _) = port();
        write_u8(&port, SCRATCH, 0x5a);
        port.receive(b"pending");
        check_contract(
            port,
            |port| {
                write_u8(port, SCRATCH, 0xa5);
                read_u8(port, DATA);
            },
            |state| SerialPort::restore(state, Arc::<CountingIrq>::default(), backend()).unwrap(),
        );
    }

    fn backend() -> Arc<dyn SerialBackend> {
        Arc::<RecordingBackend>::default()
    }

    #[test]
    fn a_pending_interrupt_is_raised_again_on_restore() {
        let (port, _, _) = port();
        write_u8(&port, IER, 1);
        port.receive(b"x");
        let irq = Arc::<CountingIrq>::default();
        SerialPort::restore(port.save(&Quiesced::declare()), irq.clone(), backend()).unwrap();
        assert_eq!(irq.count(), 1);
    }

    #[test]
    fn impossible_states_are_refused() {
        let irq = Arc::<CountingIrq>::default();
        let mut state = SerialPortState::reset();
        state.receive_fifo = vec![0; 3];
        assert!(matches!(
            SerialPort::restore(state.clone(), irq.clone(), backend()),
            Err(SerialStateError::DataReadyMismatch { len: 3, .. })
        ));
        state.line_status |= 1;
        state.receive_fifo = vec![0; FIFO_LEN + 1];
        assert!(matches!(
            SerialPort::restore(state, irq, backend()),
            Err(SerialStateError::FifoTooLong { .. })
        ));
    }
    #[test]
    fn any_accesses_leave_a_port_that_restores() {
        check_total(
            || {
                let (port, ..) = port();
                port.receive(b"some");
                port
            },
            |port| {
                let state = port.save(&Quiesced::declare());
                let irq = Arc::<CountingIrq>::default();
                SerialPort::restore(state, irq, backend()).unwrap();
            },
        );
    }
}
