//! Names of places on a PCI bus: the function address ([`Bdf`]) and the BAR of a function
//! ([`BarIndex`]).
//!
//! Both are validated when they are made, print in the form `lspci` uses, and are serialised as
//! that string, so a snapshot or a config file holds what a person would write.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Devices (slots) on one bus.
pub const DEVICES_PER_BUS: u8 = 32;
/// Functions of one device.
pub const FUNCTIONS_PER_DEVICE: u8 = 8;

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressError {
    /// The device number does not exist on a bus.
    #[error("device number {0} is out of range: a PCI bus has devices 0 to 31")]
    Device(u8),
    /// The function number does not exist in a device.
    #[error("function number {0} is out of range: a PCI device has functions 0 to 7")]
    Function(u8),
    /// The BAR number does not exist in a type-0 header.
    #[error("BAR number {0} is out of range: a function has BARs 0 to 5")]
    Bar(u8),
    /// The text is not a function address.
    #[error("\"{0}\" is no PCI function address: expected BUS:DEVICE.FUNCTION such as 00:1f.2")]
    ParseBdf(Box<str>),
    /// The text is not a BAR name.
    #[error("\"{0}\" is no BAR name: expected bar0 to bar5, or rom")]
    ParseBar(Box<str>),
}

/// Bus, device and function number of a PCI function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bdf {
    bus: u8,
    device: u8,
    function: u8,
}

impl Bdf {
    /// Address of `function` in `device` on `bus`.
    pub const fn new(bus: u8, device: u8, function: u8) -> Result<Self, AddressError> {
        if device >= DEVICES_PER_BUS {
            return Err(AddressError::Device(device));
        }
        if function >= FUNCTIONS_PER_DEVICE {
            return Err(AddressError::Function(function));
        }
        Ok(Self {
            bus,
            device,
            function,
        })
    }

    /// Address from the low byte of a routing id: device in bits 7:3, function in bits 2:0.
    pub const fn from_devfn(bus: u8, devfn: u8) -> Self {
        Self {
            bus,
            device: devfn >> 3,
            function: devfn & 0x7,
        }
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.function
    }

    /// Device and function as the low byte of a routing id.
    pub const fn devfn(self) -> u8 {
        self.device << 3 | self.function
    }

    /// The 16-bit routing id (requester id) of the function.
    pub const fn routing_id(self) -> u16 {
        (self.bus as u16) << 8 | self.devfn() as u16
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Bdf {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let malformed = || AddressError::ParseBdf(text.into());
        let (bus, rest) = text.split_once(':').ok_or_else(malformed)?;
        let (device, function) = rest.split_once('.').ok_or_else(malformed)?;
        let hex = |digits: &str, width: usize| {
            // from_str_radix alone would accept a sign.
            let plain = digits.len() == width && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain
                .then(|| u8::from_str_radix(digits, 16).ok())
                .flatten()
                .ok_or_else(malformed)
        };
        Self::new(hex(bus, 2)?, hex(device, 2)?, hex(function, 1)?)
    }
}

impl TryFrom<String> for Bdf {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Bdf> for String {
    fn from(bdf: Bdf) -> Self {
        bdf.to_string()
    }
}

/// One address decoder of a function: BAR 0 to 5 or the expansion ROM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BarIndex(u8);

impl BarIndex {
    /// BAR 0.
    pub const BAR0: Self = Self(0);
    /// BAR 1.
    pub const BAR1: Self = Self(1);
    /// BAR 2.
    pub const BAR2: Self = Self(2);
    /// BAR 3.
    pub const BAR3: Self = Self(3);
    /// BAR 4.
    pub const BAR4: Self = Self(4);
    /// BAR 5.
    pub const BAR5: Self = Self(5);
    /// The expansion ROM's decoder.
    pub const ROM: Self = Self(6);
    /// Number of decoders, the ROM included.
    pub const COUNT: usize = 7;

    /// BAR `number`, 0 to 5.
    pub const fn new(number: u8) -> Result<Self, AddressError> {
        if number > 5 {
            return Err(AddressError::Bar(number));
        }
        Ok(Self(number))
    }

    /// Every decoder in register order, the ROM last.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=Self::ROM.0).map(Self)
    }

    /// Position in an array of [`BarIndex::COUNT`] decoders; BAR n is n, the ROM is 6.
    pub const fn position(self) -> usize {
        self.0 as usize
    }

    /// True for the expansion ROM.
    pub const fn is_rom(self) -> bool {
        self.0 == Self::ROM.0
    }

    /// The BAR after this one, which holds the high half of a 64-bit pair; none after BAR 5.
    pub const fn upper_half(self) -> Option<Self> {
        if self.0 < 5 {
            Some(Self(self.0 + 1))
        } else {
            None
        }
    }
}

impl fmt::Display for BarIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_rom() {
            f.write_str("rom")
        } else {
            write!(f, "bar{}", self.0)
        }
    }
}

impl fmt::Debug for BarIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BarIndex {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::all()
            .find(|index| index.to_string() == text)
            .ok_or_else(|| AddressError::ParseBar(text.into()))
    }
}

impl TryFrom<String> for BarIndex {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<BarIndex> for String {
    fn from(index: BarIndex) -> Self {
        index.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bdf_prints_and_parses_every_address_of_a_bus() {
        for devfn in 0..=255 {
            let bdf = Bdf::from_devfn(0x3a, devfn);
            assert_eq!(bdf.to_string().parse(), Ok(bdf));
            assert_eq!(bdf.devfn(), devfn);
            assert_eq!(Bdf::new(0x3a, bdf.device(), bdf.function()), Ok(bdf));
        }
        assert_eq!(Bdf::from_devfn(0, 0xfa).to_string(), "00:1f.2");
    }

    #[test]
    fn bdf_refuses_what_no_bus_has() {
        assert_eq!(Bdf::new(0, 32, 0), Err(AddressError::Device(32)));
        assert_eq!(Bdf::new(0, 0, 8), Err(AddressError::Function(8)));
        assert_eq!("00:20.0".parse::<Bdf>(), Err(AddressError::Device(32)));
        for text in ["", "00", "00:1f", "0:1f.0", "00:1f.00", "+0:01.0", "é:01.0"] {
            assert_eq!(
                text.parse::<Bdf>(),
                Err(AddressError::ParseBdf(text.into()))
            );
        }
    }

    #[test]
    fn addresses_are_strings_in_json() {
        let bdf = Bdf::from_devfn(0, 0x18);
        assert_eq!(serde_json::to_string(&bdf).unwrap(), "\"00:03.0\"");
        assert!(serde_json::from_str::<Bdf>("\"00:99.0\"").is_err());
        assert_eq!(serde_json::to_string(&BarIndex::ROM).unwrap(), "\"rom\"");
        assert!(serde_json::from_str::<BarIndex>("\"bar6\"").is_err());
    }

    #[test]
    fn bar_index_prints_and_parses() {
        for index in BarIndex::all() {
            assert_eq!(index.to_string().parse(), Ok(index));
        }
        assert_eq!(BarIndex::new(6), Err(AddressError::Bar(6)));
        assert_eq!(BarIndex::new(5).unwrap().upper_half(), None);
    }
}
