//! The MC146818 real-time clock with its CMOS memory, behind the index and data ports 0x70, 0x71.
//!
//! The date and time registers show the host's clock in UTC, in the format that status register B
//! selects; writes to them are ignored, since the clock is the host's. Nothing ticks in here: each
//! read asks the clock, there is no update in progress to wait for, and no alarm or periodic
//! interrupt ever fires. The other bytes are plain memory.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::access::{BusDevice, Effect};
use crate::lifecycle::{Quiesced, Save, SavedState};

/// First port of the chip.
pub const BASE: u16 = 0x70;
/// The index port and the data port.
pub const WINDOW_LEN: u64 = 2;
/// Register of the century, as the FADT has to announce it.
pub const CENTURY: u8 = 0x32;

const INDEX_PORT: u64 = 0;
const DATA_PORT: u64 = 1;
/// Bit 7 of the index port masks NMIs on real machines and is not part of the index.
const INDEX_MASK: u8 = 0x7f;
/// Registers and memory behind the index.
const CMOS_LEN: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;

/// Status A after power-on: 32768 Hz time base, 1024 Hz periodic rate.
const STATUS_A_RESET: u8 = 0x26;
/// Status A: update in progress. Never set.
const STATUS_A_UPDATING: u8 = 1 << 7;
/// Status B: 24-hour mode.
const STATUS_B_24H: u8 = 1 << 1;
/// Status B: binary instead of BCD.
const STATUS_B_BINARY: u8 = 1 << 2;
/// Status D: the battery is good, the time is valid.
const STATUS_D_VALID: u8 = 1 << 7;
/// Hours in 12-hour mode: afternoon.
const HOURS_PM: u8 = 1 << 7;

/// What the guest has written to the chip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CmosRtcState {
    /// The selected register, 0 to 127.
    pub index: u8,
    /// 128 bytes: status registers A and B and the memory. The bytes of the date and time
    /// registers are zero.
    pub cmos: Vec<u8>,
}

impl SavedState for CmosRtcState {
    const KIND: &'static str = "cmos-rtc";
    const VERSION: u32 = 1;
}

impl CmosRtcState {
    /// The state after power-on.
    pub fn reset() -> Self {
        let mut cmos = vec![0; CMOS_LEN];
        cmos[usize::from(STATUS_A)] = STATUS_A_RESET;
        cmos[usize::from(STATUS_B)] = STATUS_B_24H;
        Self { index: 0, cmos }
    }
}

/// Why a saved clock is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmosStateError {
    /// The memory does not have 128 bytes.
    #[error("cannot restore a CMOS memory of {len} bytes: it has {CMOS_LEN}")]
    Length {
        /// Bytes in the state.
        len: usize,
    },
    /// The index selects no register.
    #[error("cannot restore the CMOS index {index:#04x}: it ends at {INDEX_MASK:#04x}")]
    Index {
        /// The index in the state.
        index: u8,
    },
}

struct Inner {
    index: u8,
    cmos: [u8; CMOS_LEN],
}

/// The clock and its memory.
pub struct CmosRtc {
    inner: Mutex<Inner>,
    /// Seconds since 1970 in UTC.
    clock: fn() -> u64,
}

impl CmosRtc {
    /// A clock after power-on that shows the host's time.
    pub fn new() -> Self {
        Self::restore(CmosRtcState::reset()).expect("the reset state has the right length")
    }

    /// A clock that goes on from `state`; its time is the host's, not that of the snapshot.
    pub fn restore(state: CmosRtcState) -> Result<Self, CmosStateError> {
        let CmosRtcState { index, cmos } = state;
        let len = cmos.len();
        let cmos = cmos
            .try_into()
            .map_err(|_| CmosStateError::Length { len })?;
        if index & !INDEX_MASK != 0 {
            return Err(CmosStateError::Index { index });
        }
        Ok(Self {
            inner: Mutex::new(Inner { index, cmos }),
            clock: host_clock,
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, inner: &Inner) -> u8 {
        let stored = inner.cmos[usize::from(inner.index & INDEX_MASK)];
        let format = inner.cmos[usize::from(STATUS_B)];
        let date = || Date::from_unix((self.clock)());
        match inner.index {
            SECONDS => encode(date().second, format),
            MINUTES => encode(date().minute, format),
            HOURS => encode_hour(date().hour, format),
            WEEKDAY => encode(date().weekday, format),
            DAY => encode(date().day, format),
            MONTH => encode(date().month, format),
            YEAR => encode((date().year % 100) as u8, format),
            CENTURY => encode((date().year / 100 % 100) as u8, format),
            STATUS_A => stored & !STATUS_A_UPDATING,
            STATUS_C => 0,
            STATUS_D => STATUS_D_VALID,
            _ => stored,
        }
    }
}

impl Default for CmosRtc {
    fn default() -> Self {
        Self::new()
    }
}

fn write_register(inner: &mut Inner, value: u8) {
    match inner.index {
        SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY | STATUS_C
        | STATUS_D => (),
        index => inner.cmos[usize::from(index & INDEX_MASK)] = value,
    }
}

impl BusDevice for CmosRtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (DATA_PORT, [byte]) => *byte = self.read_register(&self.inner()),
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        match (offset, data) {
            (INDEX_PORT, &[value]) => self.inner().index = value & INDEX_MASK,
            (DATA_PORT, &[value]) => write_register(&mut self.inner(), value),
            _ => (),
        }
        Effect::None
    }
}

impl Save for CmosRtc {
    type State = CmosRtcState;

    fn save(&self, _quiesced: &Quiesced) -> CmosRtcState {
        let inner = self.inner();
        CmosRtcState {
            index: inner.index,
            cmos: inner.cmos.to_vec(),
        }
    }
}

fn host_clock() -> u64 {
    // A host that is set before 1970 shows 1970.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

fn encode(value: u8, format: u8) -> u8 {
    if format & STATUS_B_BINARY != 0 {
        value
    } else {
        ((value / 10) << 4) | (value % 10)
    }
}

fn encode_hour(hour: u8, format: u8) -> u8 {
    if format & STATUS_B_24H != 0 {
        return encode(hour, format);
    }
    let twelve = if hour.is_multiple_of(12) {
        12
    } else {
        hour % 12
    };
    let afternoon = if hour >= 12 { HOURS_PM } else { 0 };
    encode(twelve, format) | afternoon
}

/// A moment in the Gregorian calendar, UTC.
#[derive(Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u8,
    day: u8,
    /// Sunday is 1.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Date {
    fn from_unix(seconds: u64) -> Self {
        const DAYS_PER_ERA: u64 = 146_097;
        let days = seconds / 86_400;
        let clock = seconds % 86_400;
        // Count years from 1 March of year 0, so that the leap day is the last of its year;
        // 719468 days lie between that and 1970. An era is 400 years.
        let since_march = days + 719_468;
        let era = since_march / DAYS_PER_ERA;
        let day_of_era = since_march % DAYS_PER_ERA;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March on repeat a pattern of 153 days in five months.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let (month, next_year) = if month_from_march < 10 {
            (month_from_march + 3, 0)
        } else {
            (month_from_march - 9, 1)
        };
        Self {
            year: era * 400 + year_of_era + next_year,
            month: month as u8,
            day: day as u8,
            // 1 January 1970 was a Thursday.
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (clock / 3_600) as u8,
            minute: (clock / 60 % 60) as u8,
            second: (clock % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests;
