//! The fixed devices of the PC: serial port, clock, keyboard controller's reset line, ACPI power.

use std::sync::Arc;

use dormouse_arch::x86_64::layout;
use dormouse_devices::acpi_pm::AcpiPmStateError;
use dormouse_devices::cmos_rtc::CmosStateError;
use dormouse_devices::console::Console;
use dormouse_devices::uart16550::SerialStateError;
use dormouse_devices::{
    AcpiPm, AcpiPmState, BusDevice, BusError, CmosRtc, CmosRtcState, I8042, IrqLine, Pio, Quiesced,
    Save, SerialPort, SerialPortState,
};
use thiserror::Error;

use super::state::PlatformState;
use crate::kvm::{self, IrqFd, Vm};
use crate::vcpu_thread::Buses;

/// Ports of the keyboard controller, from its data port to its command port.
const I8042_PORTS: u64 = (layout::I8042_COMMAND_PORT - layout::I8042_DATA_PORT + 1) as u64;
/// Ports from ACPI control to the status of the event device.
const ACPI_PORTS: u64 = (layout::GED_STATUS_PORT - layout::ACPI_CONTROL_PORT + 1) as u64;

/// Platform devices that could not be placed.
#[derive(Debug, Error)]
pub enum Error {
    /// An interrupt line could not be connected.
    #[error("cannot connect interrupt line {gsi}")]
    Line {
        /// Pin of the IOAPIC.
        gsi: u32,
        /// KVM's answer.
        #[source]
        source: kvm::Error,
    },
    /// The saved state of the serial port makes no sense.
    #[error("cannot restore the serial port")]
    RestoreSerial(#[source] SerialStateError),
    /// The saved state of the clock makes no sense.
    #[error("cannot restore the clock")]
    RestoreClock(#[source] CmosStateError),
    /// The saved state of power control makes no sense.
    #[error("cannot restore ACPI power control")]
    RestoreAcpiPm(#[source] AcpiPmStateError),
    /// Two devices want the same ports.
    #[error("cannot give the {device} its ports")]
    Place {
        /// Which device.
        device: &'static str,
        /// What is in the way.
        #[source]
        source: BusError,
    },
}

/// The devices that the machine talks to.
pub struct Platform {
    /// `ttyS0`, if the config has one.
    pub serial: Option<Arc<SerialPort>>,
    /// The clock.
    pub rtc: Arc<CmosRtc>,
    /// Power button, power-off and reset.
    pub acpi_pm: Arc<AcpiPm>,
}

impl Platform {
    /// Makes the devices after power-on and puts them on the port bus.
    ///
    /// # Errors
    /// When an interrupt line or a port is not to be had.
    pub fn new(vm: &Arc<Vm>, buses: &Buses, console: Option<&Console>) -> Result<Self, Error> {
        let state = PlatformState {
            serial: console.map(|_| SerialPortState::reset()),
            rtc: CmosRtcState::reset(),
            acpi_pm: AcpiPmState::reset(),
        };
        Self::restore(state, vm, buses, console)
    }

    /// Makes the devices as `state` has them and puts them on the port bus. Interrupts that were pending are raised again.
    ///
    /// # Errors
    /// When an interrupt line or a port is not to be had, or the state makes no sense.
    pub fn restore(
        state: PlatformState,
        vm: &Arc<Vm>,
        buses: &Buses,
        console: Option<&Console>,
    ) -> Result<Self, Error> {
        let PlatformState {
            serial,
            rtc,
            acpi_pm,
        } = state;
        let acpi_pm =
            AcpiPm::restore(acpi_pm, line(vm, layout::GED_GSI)?).map_err(Error::RestoreAcpiPm)?;
        let rtc = CmosRtc::restore(rtc).map_err(Error::RestoreClock)?;
        let serial = match (serial, console) {
            (Some(state), Some(console)) => {
                let irq = line(vm, layout::COM1_GSI)?;
                let port = SerialPort::restore(state, irq, console.backend())
                    .map_err(Error::RestoreSerial)?;
                let port = Arc::new(port);
                console.attach(Arc::clone(&port));
                Some(port)
            }
            _ => None,
        };
        let platform = Self {
            serial,
            rtc: Arc::new(rtc),
            acpi_pm: Arc::new(acpi_pm),
        };
        platform.place(buses)?;
        Ok(platform)
    }

    /// The devices' states.
    #[must_use]
    pub fn save(&self, quiesced: &Quiesced) -> PlatformState {
        PlatformState {
            serial: self.serial.as_ref().map(|serial| serial.save(quiesced)),
            rtc: self.rtc.save(quiesced),
            acpi_pm: self.acpi_pm.save(quiesced),
        }
    }

    fn place(&self, buses: &Buses) -> Result<(), Error> {
        let insert = |device, port, ports, chip: Arc<dyn BusDevice>| {
            buses
                .pio
                .insert(Pio(port), ports, chip)
                .map_err(|source| Error::Place { device, source })
        };
        if let Some(serial) = &self.serial {
            insert(
                "serial port",
                layout::COM1_PORT,
                layout::COM1_PORTS.into(),
                Arc::clone(serial) as _,
            )?;
        }
        insert(
            "clock",
            layout::RTC_PORT,
            layout::RTC_PORTS.into(),
            Arc::clone(&self.rtc) as _,
        )?;
        insert(
            "keyboard controller",
            layout::I8042_DATA_PORT,
            I8042_PORTS,
            Arc::new(I8042),
        )?;
        insert(
            "ACPI power control",
            layout::ACPI_CONTROL_PORT,
            ACPI_PORTS,
            Arc::clone(&self.acpi_pm) as _,
        )
    }
}

fn line(vm: &Arc<Vm>, gsi: u32) -> Result<Arc<dyn IrqLine>, Error> {
    match IrqFd::connect(vm, gsi) {
        Ok(line) => Ok(Arc::new(line)),
        Err(source) => Err(Error::Line { gsi, source }),
    }
}
