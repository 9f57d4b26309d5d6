//! Tests of the clock's registers, formats and calendar.

use super::*;
use crate::testing::{check_contract, check_total, read_u8, write_u8};

/// Thursday 29 February 2024, 23:59:58.
const LEAP: u64 = 1_709_251_198;

fn leap_clock() -> CmosRtc {
    CmosRtc {
        clock: || LEAP,
        ..CmosRtc::new()
    }
}

fn get(rtc: &CmosRtc, register: u8) -> u8 {
    write_u8(rtc, INDEX_PORT, register);
    read_u8(rtc, DATA_PORT)
}

fn set(rtc: &CmosRtc, register: u8, value: u8) {
    write_u8(rtc, INDEX_PORT, register);
    write_u8(rtc, DATA_PORT, value);
}

fn date(rtc: &CmosRtc) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|register| get(rtc, register))
}

#[test]
fn time_is_shown_in_bcd_and_24_hours_after_reset() {
    assert_eq!(
        date(&leap_clock()),
        [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x59, 0x58]
    );
}

#[test]
fn status_b_selects_binary_and_12_hours() {
    let rtc = leap_clock();
    set(&rtc, STATUS_B, STATUS_B_BINARY | STATUS_B_24H);
    assert_eq!(date(&rtc), [20, 24, 2, 29, 5, 23, 59, 58]);
    set(&rtc, STATUS_B, 0);
    assert_eq!(get(&rtc, HOURS), 0x11 | HOURS_PM);
    for (hour, shown) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81)] {
        assert_eq!(encode_hour(hour, 0), shown, "{hour}");
    }
}

#[test]
fn status_registers_promise_a_valid_time_and_no_update() {
    let rtc = leap_clock();
    set(&rtc, STATUS_A, 0xff);
    assert_eq!(get(&rtc, STATUS_A), 0x7f);
    assert_eq!(get(&rtc, STATUS_C), 0);
    assert_eq!(get(&rtc, STATUS_D), 0x80);
}

#[test]
fn the_guest_cannot_set_the_time_but_has_memory() {
    let rtc = leap_clock();
    set(&rtc, SECONDS, 0x11);
    assert_eq!(get(&rtc, SECONDS), 0x58);
    set(&rtc, 0x7f, 0xab);
    assert_eq!(get(&rtc, 0x7f), 0xab);
    assert_eq!(get(&rtc, 0xff), 0xab, "bit 7 is not part of the index");
    assert_eq!(read_u8(&rtc, INDEX_PORT), 0xff);
}

#[test]
fn calendar_matches_known_days() {
    let check = |seconds, year, month, day, weekday| {
        let date = Date::from_unix(seconds);
        assert_eq!(
            (date.year, date.month, date.day, date.weekday),
            (year, month, day, weekday)
        );
    };
    check(0, 1970, 1, 1, 5);
    check(951_782_400, 2000, 2, 29, 3);
    check(951_868_800, 2000, 3, 1, 4);
    check(1_735_603_200, 2024, 12, 31, 3);
    check(1_735_689_600, 2025, 1, 1, 4);
    check(4_107_456_000, 2100, 2, 28, 1);
    check(4_107_542_400, 2100, 3, 1, 2);
}

#[test]
fn calendar_advances_day_by_day_for_eight_centuries() {
    let mut expected = (1970, 1, 1);
    for day in 0..292_194u64 {
        let date = Date::from_unix(day * 86_400 + 86_399);
        assert_eq!((date.year, date.month, date.day), expected);
        assert_eq!((date.hour, date.minute, date.second), (23, 59, 59));
        let (y, m, d) = expected;
        let leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
        let length = match m {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        expected = match (m, d) {
            (12, 31) => (y + 1, 1, 1),
            (_, d) if d == length => (y, m + 1, 1),
            _ => (y, m, d + 1),
        };
    }
}

#[test]
fn no_host_time_panics() {
    for clock in [|| 0, || u64::MAX, || u64::MAX / 2] {
        let rtc = CmosRtc {
            clock,
            ..CmosRtc::new()
        };
        date(&rtc);
    }
}

#[test]
fn state_survives_save_and_restore() {
    let rtc = leap_clock();
    set(&rtc, 0x40, 0x55);
    check_contract(
        rtc,
        |rtc| set(rtc, 0x40, 0xaa),
        |state| CmosRtc::restore(state).unwrap(),
    );
}

#[test]
fn impossible_states_are_refused() {
    let mut state = CmosRtcState::reset();
    state.index = 0x80;
    assert!(matches!(
        CmosRtc::restore(state.clone()),
        Err(CmosStateError::Index { index: 0x80 })
    ));
    state.cmos.pop();
    assert!(matches!(
        CmosRtc::restore(state),
        Err(CmosStateError::Length { len: 127 })
    ));
}

#[test]
fn any_accesses_leave_a_clock_that_restores() {
    check_total(CmosRtc::new, |rtc| {
        CmosRtc::restore(rtc.save(&Quiesced::declare())).unwrap();
    });
}
