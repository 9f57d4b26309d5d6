//! Configuration space of a passed-through function: carries out the plan on each access of 1, 2 or 4 bytes.
//!
//! The shadow is a [`ConfigSpace`] that stays true: every write that goes to the device is mirrored in it under the same lock,
//! so that it holds the live PCI_COMMAND and can be saved without asking the device. BARs, the ROM and the interrupt
//! capabilities exist in the shadow only. Lock order: the shadow's lock is held across one access of the device's
//! configuration space and nothing else; see the module above.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_pci::regs::{self, Command};
use dormouse_pci::{BarIndex, BarKind, BarPlacement, ConfigEffect, ConfigSpace};

use super::hardware::Hardware;
use super::host::CONFIG_REGION;
use super::plan::{MsiPlan, Plan, RegisterPlan, WriteTarget};
use super::write_back::WriteBack;

/// Power state in the power management control register; 0 is D0, fully on.
const POWER_STATE: u16 = 0x3;

/// Configuration space of one function.
pub(super) struct Config {
    hardware: Arc<Hardware>,
    plan: Plan,
    shadow: Mutex<ConfigSpace>,
}

impl Config {
    pub fn new(hardware: Arc<Hardware>, plan: Plan, shadow: ConfigSpace) -> Self {
        let shadow = Mutex::new(shadow);
        Self {
            hardware,
            plan,
            shadow,
        }
    }

    /// The model of the function.
    pub fn shadow(&self) -> MutexGuard<'_, ConfigSpace> {
        // No code panics while it holds the lock, so that a poisoned model is still a whole one.
        self.shadow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The MSI capability, if the guest has it.
    pub fn msi(&self) -> Option<MsiPlan> {
        self.plan.msi
    }

    /// Whether a read here shows pending MSI vectors.
    pub fn shows_pending(&self, offset: u16) -> bool {
        let pending = self.plan.msi.and_then(|msi| msi.pending);
        pending.is_some_and(|pending| pending == offset & !0x3)
    }

    /// A guest read.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let plan = self.plan.register(offset);
        let mut shadow = self.shadow();
        shadow.read(offset, data);
        if !is_well_formed(offset, data.len()) {
            return;
        }
        let from_model = lanes(offset, plan.from_model);
        let from_device = lanes(offset, plan.from_device);
        for (byte, mask) in data.iter_mut().zip(from_model) {
            *byte &= mask;
        }
        if from_device.iter().take(data.len()).all(|mask| *mask == 0) {
            return;
        }
        let mut answer = [0; 4];
        let answer = &mut answer[..data.len()];
        if !self.hardware.read_config(offset, answer) {
            data.fill(0xff);
            return;
        }
        shadow.mirror_read(offset, answer);
        for ((byte, mask), answer) in data.iter_mut().zip(from_device).zip(answer) {
            *byte |= *answer & mask;
        }
    }

    /// A guest write. What it asks of the function comes back.
    #[must_use = "effects that are dropped leave the function out of step with the guest"]
    pub fn write(&self, offset: u16, data: &[u8]) -> Vec<ConfigEffect> {
        if !is_well_formed(offset, data.len()) {
            return Vec::new();
        }
        let RegisterPlan { write, .. } = self.plan.register(offset);
        let mut shadow = self.shadow();
        let was_answering = self.answers(&shadow);
        let mut effects = match write {
            WriteTarget::Device => {
                let mut passed = [0; 4];
                let passed = &mut passed[..data.len()];
                passed.copy_from_slice(data);
                // The kernel would not tell whether a reset that the guest starts there succeeds.
                shadow.strip_reset(offset, passed);
                if self.hardware.write_config(offset, passed) {
                    let effects = shadow.mirror_write(offset, data);
                    self.confirm_power(offset, &mut shadow);
                    effects
                } else {
                    // What the device did not take has no effect either.
                    Vec::new()
                }
            }
            WriteTarget::Model => shadow.write(offset, data),
            WriteTarget::Nobody => Vec::new(),
        };
        let moved = effects.contains(&ConfigEffect::LayoutChanged);
        if self.answers(&shadow) != was_answering && !moved {
            effects.push(ConfigEffect::LayoutChanged);
        }
        effects
    }

    /// Whether a write here can make the device stop answering at its memory BARs.
    pub fn gates_memory(&self, offset: u16) -> bool {
        let register = offset & !0x3;
        register == regs::COMMAND || Some(register) == self.plan.power_control
    }

    /// Whether a guest write will make the device stop answering at its memory BARs, as far as can be told beforehand.
    pub fn will_stop_answering(&self, offset: u16, data: &[u8]) -> bool {
        if !self.gates_memory(offset) || !is_well_formed(offset, data.len()) {
            return false;
        }
        let shadow = self.shadow();
        let mut after = shadow.clone();
        let _effects_of_a_copy = after.mirror_write(offset, data);
        self.answers(&shadow) && !self.answers(&after)
    }

    /// Every BAR as the guest programmed it; none answers while the device is switched off.
    pub fn desired_bars(&self) -> Vec<BarPlacement> {
        let shadow = self.shadow();
        let powered = self.is_powered(&shadow);
        let mut bars = shadow.desired_bars();
        for bar in &mut bars {
            bar.decoded &= powered;
        }
        bars
    }

    /// Puts an address into a BAR's registers, as firmware does while the device does not decode.
    pub fn program_bar(&self, index: BarIndex, kind: BarKind, address: u64) -> Vec<ConfigEffect> {
        let offset = match u16::try_from(index.position()) {
            Ok(number) if !index.is_rom() => regs::BAR0 + 4 * number,
            _ => regs::ROM_ADDRESS,
        };
        let [a, b, c, d, high @ ..] = address.to_le_bytes();
        let mut shadow = self.shadow();
        let mut effects = shadow.write(offset, &[a, b, c, d]);
        if let BarKind::Mem64 { .. } = kind {
            effects.extend(shadow.write(offset + 4, &high));
        }
        effects
    }

    /// Whether the device is switched on: in a lower power state it answers configuration accesses only.
    fn is_powered(&self, shadow: &ConfigSpace) -> bool {
        self.plan.power_control.is_none_or(|control| {
            let mut bytes = [0; 2];
            shadow.read(control, &mut bytes);
            u16::from_le_bytes(bytes) & POWER_STATE == 0
        })
    }

    /// Writes the shadow's PCI_COMMAND to the device, through the kernel.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn push_command(&self) -> io::Result<()> {
        let command = self.shadow().command();
        self.write_command(command)
    }

    /// Writes what a guest programs in the device itself from the shadow, where the device has something else.
    ///
    /// # Errors
    /// The register and the kernel's answer.
    pub fn write_back(&self) -> Result<(), (u16, io::Error)> {
        let host = self.hardware.host();
        for &WriteBack {
            offset,
            len,
            cleared,
        } in &self.plan.write_back
        {
            let mut wanted = [0; 4];
            self.shadow().read(offset, &mut wanted[..len]);
            let wanted = (u32::from_le_bytes(wanted) & !cleared).to_le_bytes();
            let mut actual = [0; 4];
            host.read(CONFIG_REGION, offset.into(), &mut actual[..len])
                .and_then(|()| {
                    if actual == wanted {
                        return Ok(());
                    }
                    host.write(CONFIG_REGION, offset.into(), &wanted[..len])
                })
                .map_err(|source| (offset, source))?;
        }
        Ok(())
    }

    /// Writes PCI_COMMAND with bus mastering off to the device; the shadow keeps what the guest wants.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn withhold_bus_master(&self) -> io::Result<()> {
        let command = self.shadow().command() - Command::BUS_MASTER;
        self.write_command(command)
    }

    /// Writes the shadow's MSI control register to the device. The kernel lets the enable bit through only after its interrupts
    /// were set up, and the device needs it to know how many messages it may use.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn push_msi_control(&self, enabled: bool) -> io::Result<()> {
        const ENABLE: u16 = 0x0001;
        let Some(msi) = self.plan.msi else {
            return Ok(());
        };
        let mut bytes = [0; 2];
        self.shadow().read(msi.offset + 2, &mut bytes);
        let control = u16::from_le_bytes(bytes) & !ENABLE | u16::from(enabled);
        let host = self.hardware.host();
        host.write(
            CONFIG_REGION,
            u64::from(msi.offset) + 2,
            &control.to_le_bytes(),
        )
    }

    fn write_command(&self, command: Command) -> io::Result<()> {
        let bytes = command.bits().to_le_bytes();
        let host = self.hardware.host();
        host.write(CONFIG_REGION, regs::COMMAND.into(), &bytes)
    }

    /// A device may refuse a power state, and only it knows.
    fn confirm_power(&self, written: u16, shadow: &mut ConfigSpace) {
        let mut control = [0; 2];
        if let Some(offset) = self.plan.power_control
            && offset == written & !0x3
            && self.hardware.read_config(offset, &mut control)
        {
            shadow.mirror_read(offset, &control);
        }
    }

    fn answers(&self, shadow: &ConfigSpace) -> bool {
        shadow.command().contains(Command::MEMORY_DECODE) && self.is_powered(shadow)
    }
}

/// Whether an access is one that a bus can carry.
fn is_well_formed(offset: u16, len: usize) -> bool {
    matches!(len, 1 | 2 | 4)
        && usize::from(offset & 0x3) + len <= 4
        && usize::from(offset) < regs::CONFIG_SPACE_LEN
}

/// The bytes of a dword's mask, from the first that an access at `offset` touches.
fn lanes(offset: u16, mask: u32) -> [u8; 4] {
    (mask >> (u32::from(offset & 0x3) * 8)).to_le_bytes()
}

#[cfg(test)]
mod tests;
