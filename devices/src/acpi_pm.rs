//! ACPI power control of a hardware-reduced platform: power-off, reset and the power button.
//!
//! Registers: at offset 0 the FADT's sleep control, sleep status and reset register in one byte
//! (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7); at offset 4 the status byte that the AML method of
//! the generic event device reads, and clears by reading, when its interrupt arrives. The FADT and
//! DSDT that name these ports are made in crate `arch`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::access::{BusDevice, Effect};
use crate::guest_debug;
use crate::host::IrqLine;
use crate::lifecycle::{Quiesced, Save, SavedState};

/// Ports that the block occupies.
pub const WINDOW_LEN: u64 = 8;

/// Offset of the sleep control, sleep status and reset register.
pub const SLEEP: u64 = 0;
/// Offset of the event status register.
pub const EVENT_STATUS: u64 = 4;

/// What the guest writes to [`SLEEP`] to reset the machine: the FADT's reset value.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5, soft off, as the DSDT's `\_S5` object gives it.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Sleep control: SLP_EN, enter the sleep state of the type field.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Sleep control: position and width of SLP_TYP.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// Event status: the power button was pressed.
pub const EVENT_POWER_BUTTON: u8 = 1 << 0;

/// Events that the guest has not yet fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcpiPmState {
    /// The event status register.
    pub event_status: u8,
}

impl SavedState for AcpiPmState {
    const KIND: &'static str = "acpi-pm";
    const VERSION: u32 = 1;
}

impl AcpiPmState {
    /// The state after power-on: no event.
    pub const fn reset() -> Self {
        Self { event_status: 0 }
    }
}

/// Why a saved ACPI block is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcpiPmStateError {
    /// An event bit is set that no event has.
    #[error("cannot restore ACPI events {event_status:#04x}: only the power button (0x01) exists")]
    UnknownEvent {
        /// The saved event status register.
        event_status: u8,
    },
}

/// The ACPI power block.
pub struct AcpiPm {
    event_status: Mutex<u8>,
    irq: Arc<dyn IrqLine>,
}

impl AcpiPm {
    /// A block without events that announces them on `irq`.
    pub fn new(irq: Arc<dyn IrqLine>) -> Self {
        Self::restore(AcpiPmState::reset(), irq).expect("the reset state has no event")
    }

    /// A block that goes on from `state`. Announces an event again that the guest has not fetched.
    pub fn restore(state: AcpiPmState, irq: Arc<dyn IrqLine>) -> Result<Self, AcpiPmStateError> {
        let AcpiPmState { event_status } = state;
        if event_status & !EVENT_POWER_BUTTON != 0 {
            return Err(AcpiPmStateError::UnknownEvent { event_status });
        }
        // The guest's handler reads the status and does nothing if it is clear, so that one
        // interrupt too many is harmless where one too few would lose the event.
        if event_status != 0 {
            irq.pulse();
        }
        Ok(Self {
            event_status: Mutex::new(event_status),
            irq,
        })
    }

    /// Presses the power button: the guest's operating system is asked to shut down.
    pub fn press_power_button(&self) {
        *self.event_status() |= EVENT_POWER_BUTTON;
        self.irq.pulse();
    }

    fn event_status(&self) -> MutexGuard<'_, u8> {
        self.event_status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn sleep_control(value: u8) -> Effect {
    let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
    if value == RESET_VALUE {
        Effect::Reset
    } else if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
        Effect::Shutdown
    } else {
        guest_debug!("acpi-pm: ignored sleep control {value:#04x}");
        Effect::None
    }
}

impl BusDevice for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            // No sleep state is ever left again, so that the wake status is never set.
            (SLEEP, [byte]) => *byte = 0,
            (EVENT_STATUS, [byte]) => *byte = std::mem::take(&mut *self.event_status()),
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        match (offset, data) {
            (SLEEP, &[value]) => sleep_control(value),
            _ => Effect::None,
        }
    }
}

impl Save for AcpiPm {
    type State = AcpiPmState;

    fn save(&self, _quiesced: &Quiesced) -> AcpiPmState {
        AcpiPmState {
            event_status: *self.event_status(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CountingIrq, check_contract, check_total, read_u8};

    fn block() -> (AcpiPm, Arc<CountingIrq>) {
        let irq = Arc::<CountingIrq>::default();
        (AcpiPm::new(irq.clone()), irq)
    }

    #[test]
    fn sleep_control_powers_off_or_resets_and_else_does_nothing() {
        let (block, _) = block();
        for value in 0..=0xffu8 {
            let expected = match value {
                0x01 => Effect::Reset,
                _ if value & 0x3c == 0x34 => Effect::Shutdown,
                _ => Effect::None,
            };
            assert_eq!(block.write(SLEEP, &[value]), expected, "{value:#x}");
        }
        assert_eq!(block.write(SLEEP, &[0x34, 0]), Effect::None);
        assert_eq!(read_u8(&block, SLEEP), 0);
    }

    #[test]
    fn the_power_button_is_announced_and_cleared_by_reading() {
        let (block, irq) = block();
        assert_eq!(read_u8(&block, EVENT_STATUS), 0);
        block.press_power_button();
        assert_eq!(irq.count(), 1);
        assert_eq!(read_u8(&block, EVENT_STATUS), EVENT_POWER_BUTTON);
        assert_eq!(read_u8(&block, EVENT_STATUS), 0);
    }

    #[test]
    fn state_survives_save_and_restore() {
        let (block, _) = block();
        block.press_power_button();
        let irq = Arc::<CountingIrq>::default();
        check_contract(
            block,
            |block| assert_eq!(read_u8(block, EVENT_STATUS), 1),
            |state| AcpiPm::restore(state, irq.clone()).unwrap(),
        );
        assert_eq!(irq.count(), 1, "the pending event is announced again");
    }

    #[test]
    fn unknown_events_are_refused() {
        assert!(matches!(
            AcpiPm::restore(
                AcpiPmState { event_status: 3 },
                Arc::<CountingIrq>::default()
            ),
            Err(AcpiPmStateError::UnknownEvent { event_status: 3 })
        ));
    }

    #[test]
    fn any_access_is_total() {
        check_total(|| block().0, |_| ());
    }
}
