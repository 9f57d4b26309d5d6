//! DSDT: CPUs, PCI root, board resources, serial port, clock, power button and the device that reports events.
//!
//! ACPI 6.5, chapters 6, 7 and 19; PCI Firmware Specification 3.3, section 4.5 for `_OSC`. The AML is fixed but for the
//! number of CPUs, the serial port and the 64-bit BAR window.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local,
    Memory32Fixed, Method, Name, NotEqual, Notify, OpRegion, OpRegionSpace, Or, Package,
    PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{AcpiParams, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::x86_64::layout::{
    ACPI_CONTROL_PORT, ACPI_S5_SLEEP_TYPE, COM1_GSI, COM1_PORT, COM1_PORTS, ECAM, ECAM_SIZE,
    GED_GSI, GED_STATUS_PORT, MMIO32, MMIO32_END, PCI_CONFIG_ADDRESS_PORT, PCI_IO_FIRST_PORT,
    PCI_IO_LAST_PORT, PCI_SLOTS, RTC_PORT, RTC_PORTS, intx_gsi,
};

const HEADER_SIZE: u32 = 36;
/// Revision 2 and later: integers have 64 bits.
const REVISION: u8 = 2;
const PCI_HOST_BRIDGE_UUID: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// `_OSC` status: the UUID is not known.
const OSC_UNKNOWN_UUID: u32 = 1 << 2;
/// `_OSC` status: some of the asked-for control was not granted.
const OSC_MASKED: u32 = 1 << 4;
/// `_OSC` control the guest gets: the PCI Express capability structure. No hotplug, PME or AER: nothing signals them.
const OSC_GRANTED: u32 = 1 << 4;
/// Notification value of a pressed button.
const NOTIFY_BUTTON_PRESSED: u32 = 0x80;
/// Bit of the status port that stands for the power button.
const GED_POWER_BUTTON: u32 = 1 << 0;
const INTX_PINS: u8 = 4;

/// The table.
pub(super) fn dsdt(params: &AcpiParams<'_>) -> Vec<u8> {
    let mut aml = Vec::with_capacity(8 << 10);
    let sleep_type = ACPI_S5_SLEEP_TYPE;
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&sleep_type, &sleep_type, &ZERO, &ZERO]),
    )
    .to_aml_bytes(&mut aml);
    let cpus: Vec<Cpu> = (0..params.apic_ids.len() as u32)
        .map(|uid| Cpu { uid })
        .collect();
    let cpus = cpus.iter().map(|cpu| cpu as &dyn Aml).collect();
    Scope::new("_SB_".into(), cpus).to_aml_bytes(&mut aml);
    pci_root(params, &mut aml);
    board_resources(&mut aml);
    if params.serial_port {
        serial_port(&mut aml);
    }
    real_time_clock(&mut aml);
    power_button(&mut aml);
    event_device(&mut aml);

    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER_SIZE,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    dsdt.append_slice(&aml);
    dsdt.as_slice().to_vec()
}

/// A processor device; the MADT gives its UID an APIC id.
struct Cpu {
    uid: u32,
}

impl Aml for Cpu {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let path = Path::new(&format!("C{:03X}", self.uid));
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &self.uid);
        Device::new(path, vec![&hid, &uid]).to_aml_bytes(sink);
    }
}

fn pci_root(params: &AcpiParams<'_>, aml: &mut Vec<u8>) {
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let config_ports = IO::new(PCI_CONFIG_ADDRESS_PORT, PCI_CONFIG_ADDRESS_PORT, 1, 8);
    let io = AddressSpace::new_io(PCI_IO_FIRST_PORT, PCI_IO_LAST_PORT, None);
    let window = AddressSpaceCacheable::NotCacheable;
    let mmio32 =
        AddressSpace::new_memory(window, true, MMIO32 as u32, (MMIO32_END - 1) as u32, None);
    let mut resources: Vec<&dyn Aml> = vec![&bus, &config_ports, &io, &mmio32];
    let mmio64;
    if !params.mmio64.is_empty() {
        mmio64 = AddressSpace::new_memory(
            window,
            true,
            params.mmio64.start,
            params.mmio64.end - 1,
            None,
        );
        resources.push(&mmio64);
    }
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            &Name::new("_PRT".into(), &interrupt_routes()),
            &OscMethod,
        ],
    )
    .to_aml_bytes(aml);
}

/// `_PRT`: each pin of each slot goes to a GSI of its own, without link devices.
fn interrupt_routes() -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for slot in 0..PCI_SLOTS {
        for pin in 0..INTX_PINS {
            let all_functions = u32::from(slot) << 16 | 0xffff;
            routes.add_element(&Package::new(vec![
                &all_functions,
                &pin,
                &ZERO,
                &intx_gsi(slot, pin),
            ]));
        }
    }
    routes
}

/// `_OSC` of the PCI root: masks the control the guest asks for with what it can have.
struct OscMethod;

impl Aml for OscMethod {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
        let requested = Local(0);
        let granted = And::new(&control, &control, &OSC_GRANTED);
        let mark_masked = Or::new(&status, &status, &OSC_MASKED);
        let if_masked_condition = NotEqual::new(&requested, &control);
        let if_masked = If::new(&if_masked_condition, vec![&mark_masked]);
        let uuid = Uuid::new(PCI_HOST_BRIDGE_UUID);
        let is_host_bridge = Equal::new(&Arg(0), &uuid);
        let mark_unknown = Or::new(&status, &status, &OSC_UNKNOWN_UUID);
        Method::new(
            "_OSC".into(),
            4,
            true,
            vec![
                &CreateDWordField::new(&status, &Arg(3), &ZERO),
                &If::new(
                    &is_host_bridge,
                    vec![
                        // Control is the third word. Only the host bridge's buffer is known to be that long.
                        &CreateDWordField::new(&control, &Arg(3), &8u8),
                        &Store::new(&requested, &control),
                        &granted,
                        &if_masked,
                    ],
                ),
                &Else::new(vec![&mark_unknown]),
                &Return::new(&Arg(3)),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// What is there but has no device of its own. Linux believes the MCFG only if the ECAM is reserved here.
fn board_resources(aml: &mut Vec<u8>) {
    let ecam = Memory32Fixed::new(true, ECAM as u32, ECAM_SIZE as u32);
    let control = IO::new(ACPI_CONTROL_PORT, ACPI_CONTROL_PORT, 1, 1);
    let ged_status = IO::new(GED_STATUS_PORT, GED_STATUS_PORT, 1, 1);
    Device::new(
        "_SB_.MRES".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ecam, &control, &ged_status]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn serial_port(aml: &mut Vec<u8>) {
    let ports = IO::new(COM1_PORT, COM1_PORT, 1, COM1_PORTS as u8);
    let interrupt = Interrupt::new(true, true, false, false, COM1_GSI);
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports, &interrupt]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn real_time_clock(aml: &mut Vec<u8>) {
    let ports = IO::new(RTC_PORT, RTC_PORT, 1, RTC_PORTS as u8);
    Device::new(
        "_SB_.RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    )
    .to_aml_bytes(aml);
}

fn power_button(aml: &mut Vec<u8>) {
    Device::new(
        "_SB_.PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))],
    )
    .to_aml_bytes(aml);
}

/// Generic event device: its interrupt says "read the status port"; each bit there is an event.
fn event_device(aml: &mut Vec<u8>) {
    let interrupt = Interrupt::new(true, true, false, false, GED_GSI);
    let region = OpRegion::new(
        "GSTR".into(),
        OpRegionSpace::SystemIO,
        &GED_STATUS_PORT,
        &1u8,
    );
    let field = Field::new(
        "GSTR".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        vec![FieldEntry::Named(*b"GSTA", 8)],
    );
    let (status, button) = (Path::new("GSTA"), Path::new("\\_SB_.PWRB"));
    // The read clears the register, so it happens once.
    let pending = Local(0);
    let read_status = Store::new(&pending, &status);
    let pressed = And::new(&ZERO, &pending, &GED_POWER_BUTTON);
    let notify = Notify::new(&button, &NOTIFY_BUTTON_PRESSED);
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
            &region,
            &field,
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&read_status, &If::new(&pressed, vec![&notify])],
            ),
        ],
    )
    .to_aml_bytes(aml);
}
