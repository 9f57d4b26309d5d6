//! Guest accesses to configuration space, reduced to one shape: a dword with byte enables.
//!
//! A bus carries 1, 2 or 4 bytes inside one aligned dword. Anything else (odd sizes, accesses that
//! span dwords or leave the space) has no meaning: it reads as all-ones and writes nothing.

use crate::regs::CONFIG_SPACE_LEN;

/// A write to one dword of configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DwordWrite {
    /// Dword-aligned offset of the register, below 4096.
    pub register: u16,
    /// The written bytes in their lanes; zero in lanes that are not enabled.
    pub value: u32,
    /// All-ones in each byte lane that the guest wrote.
    pub enable: u32,
}

impl DwordWrite {
    /// The write that `data` at `offset` makes, or `None` when it makes none.
    pub fn decode(offset: u16, data: &[u8]) -> Option<Self> {
        let lane = lane(offset, data.len())?;
        let mut value = [0; 4];
        let mut enable = [0; 4];
        value[lane..lane + data.len()].copy_from_slice(data);
        enable[lane..lane + data.len()].fill(0xff);
        Some(Self {
            register: offset & !0x3,
            value: u32::from_le_bytes(value),
            enable: u32::from_le_bytes(enable),
        })
    }
}

/// Fills `data` with its part of the dword that `read` returns for the register at `offset`.
pub(crate) fn read_part(offset: u16, data: &mut [u8], read: impl FnOnce(u16) -> u32) {
    match lane(offset, data.len()) {
        Some(lane) => {
            let bytes = read(offset & !0x3).to_le_bytes();
            data.copy_from_slice(&bytes[lane..lane + data.len()]);
        }
        None => data.fill(0xff),
    }
}

/// First byte lane of a well-formed access.
fn lane(offset: u16, len: usize) -> Option<usize> {
    let lane = usize::from(offset & 0x3);
    let well_formed =
        matches!(len, 1 | 2 | 4) && lane + len <= 4 && usize::from(offset) < CONFIG_SPACE_LEN;
    well_formed.then_some(lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_places_bytes_in_their_lanes() {
        let write = DwordWrite::decode(0x05, &[0xab, 0xcd]).unwrap();
        assert_eq!(write.register, 0x04);
        assert_eq!(write.value, 0x00cd_ab00);
        assert_eq!(write.enable, 0x00ff_ff00);
    }

    #[test]
    fn malformed_accesses_have_no_meaning() {
        for (offset, len) in [(0, 0), (0, 3), (0, 5), (0, 8), (3, 2), (1, 4), (4096, 1)] {
            assert_eq!(DwordWrite::decode(offset, &vec![0; len]), None);
            let mut data = vec![0; len];
            read_part(offset, &mut data, |_| 0);
            assert!(data.iter().all(|byte| *byte == 0xff), "{offset} {len}");
        }
    }
}
