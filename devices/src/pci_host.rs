//! The two ways into PCI configuration space, as devices on the buses.
//!
//! The ports 0xCF8 to 0xCFF (PCI Local Bus Specification 3.0, section 3.2.2.3.2) and the ECAM
//! range (PCI Express Base Specification, section 7.2.2) lead to the same
//! [`RootComplex`], which does all the decoding. The port range also holds the reset control
//! register at 0xCF9, which shadows one byte of the address port as it does on real chipsets.

use std::sync::Arc;

use dormouse_pci::{FunctionEffect, RootComplex, RootComplexState};

use crate::access::{BusDevice, Effect};
use crate::lifecycle::{Quiesced, Save, SavedState};

/// Offset of the reset control register, reached by accesses of one byte.
const RESET_CONTROL: u16 = 1;
/// Reset control: reset the processor; the other bits only choose how thoroughly.
const RESET_CPU: u8 = 1 << 2;

impl SavedState for RootComplexState {
    const KIND: &'static str = "pci-root";
    const VERSION: u32 = 1;
}

impl Save for RootComplex {
    type State = RootComplexState;

    fn save(&self, _quiesced: &Quiesced) -> RootComplexState {
        Self::save(self)
    }
}

/// Configuration mechanism #1, on the port bus at
/// [`CONFIG_PORTS`](dormouse_pci::CONFIG_PORTS).
pub struct PciConfigPorts(Arc<RootComplex>);

impl PciConfigPorts {
    /// The ports of `root`.
    pub fn new(root: Arc<RootComplex>) -> Self {
        Self(root)
    }
}

impl BusDevice for PciConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (u16::try_from(offset), data) {
            (Ok(RESET_CONTROL), [byte]) => *byte = 0,
            (Ok(offset), data) => self.0.port_read(offset, data),
            (Err(_), data) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        match (u16::try_from(offset), data) {
            (Ok(RESET_CONTROL), &[value]) if value & RESET_CPU != 0 => Effect::Reset,
            (Ok(offset), data) => effect_of(self.0.port_write(offset, data)),
            (Err(_), _) => Effect::None,
        }
    }
}

/// Enhanced configuration access, on the memory bus over
/// [`ECAM_LEN`](dormouse_pci::ECAM_LEN) bytes.
pub struct PciEcam(Arc<RootComplex>);

impl PciEcam {
    /// The ECAM range of `root`.
    pub fn new(root: Arc<RootComplex>) -> Self {
        Self(root)
    }
}

impl BusDevice for PciEcam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.ecam_read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        effect_of(self.0.ecam_write(offset, data))
    }
}

/// One access reaches one function, so that all its effects are that function's.
fn effect_of(effects: Vec<FunctionEffect>) -> Effect {
    let Some(bdf) = effects.first().map(|first| first.bdf) else {
        return Effect::None;
    };
    Effect::Pci {
        bdf,
        changes: effects.into_iter().map(|effect| effect.effect).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use dormouse_pci::{BarIndex, BarPlacement, Bdf, ConfigEffect, PciFunction};

    use super::*;
    use crate::testing::{check_contract, check_total, read_u8};

    /// Reads as its offset; each write asks for a reset of the function.
    #[derive(Default)]
    struct Probe(Mutex<Vec<(u16, Vec<u8>)>>);

    impl PciFunction for Probe {
        fn config_read(&self, offset: u16, data: &mut [u8]) {
            for (byte, at) in data.iter_mut().zip(offset..) {
                *byte = at as u8;
            }
        }

        fn config_write(&self, offset: u16, data: &[u8]) -> Vec<ConfigEffect> {
            self.0.lock().unwrap().push((offset, data.to_vec()));
            vec![ConfigEffect::LayoutChanged, ConfigEffect::FunctionReset]
        }

        fn desired_bars(&self) -> Vec<BarPlacement> {
            Vec::new()
        }

        fn refuse_bar(&self, _index: BarIndex, _refused: u64, _previous: u64) -> bool {
            false
        }
    }

    fn root() -> (Arc<RootComplex>, Arc<Probe>, Bdf) {
        let root = Arc::new(RootComplex::new());
        let bdf = root.allocate_slot(Some(3)).unwrap();
        let probe = Arc::<Probe>::default();
        root.attach(bdf, probe.clone()).unwrap();
        (root, probe, bdf)
    }

    fn address(device: u32, register: u32) -> [u8; 4] {
        (0x8000_0000 | device << 11 | register).to_le_bytes()
    }

    fn both(bdf: Bdf) -> Effect {
        Effect::Pci {
            bdf,
            changes: vec![ConfigEffect::LayoutChanged, ConfigEffect::FunctionReset],
        }
    }

    #[test]
    fn ports_reach_a_function_and_return_what_it_asks_for() {
        let (root, probe, bdf) = root();
        let ports = PciConfigPorts::new(root);
        assert_eq!(ports.write(0, &address(3, 0x10)), Effect::None);
        assert_eq!(read_u8(&ports, 6), 0x12);
        assert_eq!(ports.write(4, &[1, 2]), both(bdf));
        assert_eq!(*probe.0.lock().unwrap(), [(0x10, vec![1, 2])]);
        assert_eq!(ports.write(0, &address(4, 0x10)), Effect::None);
        assert_eq!(read_u8(&ports, 4), 0xff);
        assert_eq!(ports.write(4, &[1, 2]), Effect::None);
    }

    #[test]
    fn ecam_reaches_a_function_and_returns_what_it_asks_for() {
        let (root, probe, bdf) = root();
        let ecam = PciEcam::new(root);
        let base = 3 << 15;
        assert_eq!(read_u8(&ecam, base + 0x21), 0x21);
        assert_eq!(ecam.write(base + 0x100, &[7; 4]), both(bdf));
        assert_eq!(*probe.0.lock().unwrap(), [(0x100, vec![7; 4])]);
        assert_eq!(read_u8(&ecam, 0), 0xff);
    }

    #[test]
    fn the_reset_control_register_resets_and_leaves_the_address_alone() {
        let (root, ..) = root();
        let ports = PciConfigPorts::new(root);
        assert_eq!(ports.write(0, &address(3, 0x10)), Effect::None);
        assert_eq!(read_u8(&ports, 1), 0);
        // As Linux does it: announce first, then act.
        assert_eq!(ports.write(1, &[0x02]), Effect::None);
        assert_eq!(ports.write(1, &[0x0e]), Effect::Reset);
        let mut latched = [0; 4];
        ports.read(0, &mut latched);
        assert_eq!(latched, address(3, 0x10));
    }

    #[test]
    fn the_address_latch_survives_save_and_restore() {
        let (root, ..) = root();
        let ports = PciConfigPorts::new(root.clone());
        assert_eq!(ports.write(0, &address(3, 0x10)), Effect::None);
        drop(ports);
        check_contract(
            Arc::into_inner(root).unwrap(),
            |root| assert!(root.port_write(0, &address(9, 0)).is_empty()),
            |state| RootComplex::restore(&state).unwrap(),
        );
    }

    #[test]
    fn any_access_is_total() {
        check_total(|| PciConfigPorts::new(root().0), |_| ());
        check_total(|| PciEcam::new(root().0), |_| ());
    }
}
