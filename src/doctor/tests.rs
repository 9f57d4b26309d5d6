//! What doctor says of hosts made up for the test. Only what a reader needs is asserted, not the wording around it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dormouse_vmm::vfio::inspect::{Device, Features, Host, Migration};
use dormouse_vmm::vfio::{Bus, Group, HostDevice, Identity, Member};

use super::facts::{Facts, Kvm, Probe};
use super::{advice, text, variant};

const VF: &str = "0000:41:00.3";
const NIC: &str = "0000:00:1f.6";

/// A host on which everything is ready and no device is there.
fn ready() -> Facts {
    Facts {
        kernel: "6.12.0".to_owned(),
        kvm: Kvm::Usable {
            api_version: 12,
            max_vcpus: 64,
            lacks: vec!["nested state: guests see none"],
        },
        host: Host {
            iommu_groups: 9,
            iommu_table: Some("DMAR"),
            groups: true,
            iommufd: false,
            memlock_limit: None,
            memlock_exempt: false,
            functions: Vec::new(),
            mdevs: Vec::new(),
        },
        huge_pages: Vec::new(),
        probes: BTreeMap::new(),
        variant_drivers: BTreeMap::new(),
    }
}

fn function(name: &str, driver: Option<&str>, group: Option<Group>) -> Device {
    let vfio_driver = driver.is_some_and(|driver| driver.contains("vfio"));
    Device {
        host: HostDevice {
            name: name.to_owned(),
            path: PathBuf::from("/sys/devices").join(name),
            bus: Bus::Pci,
            identity: Some(Identity {
                vendor: 0x15b3,
                device: 0x101e,
                class: 0x02_0000,
            }),
            driver: driver.map(str::to_owned),
            vfio_driver,
            group,
            vfio_name: None,
        },
        has_cdev: false,
        physical_function: None,
        obstacle: None,
    }
}

fn group(id: u32, members: &[(&str, Option<&str>, bool)]) -> Option<Group> {
    let member = |&(name, driver, blocks): &(&str, Option<&str>, bool)| Member {
        name: name.to_owned(),
        driver: driver.map(str::to_owned),
        blocks,
    };
    Some(Group {
        id,
        members: members.iter().map(member).collect(),
    })
}

fn features(migration: Option<Migration>) -> Probe {
    Probe::Answered(Features {
        iommufd: false,
        migration,
        dma_logging: true,
        reset: true,
        msix_vectors: 12,
        msi_vectors: 0,
        intx: false,
    })
}

/// A host with one virtual function, bound to `driver`, which answers so.
fn with_vf(driver: &str, probe: Probe) -> Facts {
    let mut facts = ready();
    let mut device = function(VF, Some(driver), group(7, &[(VF, Some(driver), false)]));
    device.physical_function = Some("0000:41:00.0".to_owned());
    facts.host.functions.push(device);
    facts.probes.insert(VF.to_owned(), probe);
    let variant = "mlx5_vfio_pci".to_owned();
    facts.variant_drivers.insert(VF.to_owned(), variant);
    facts
}

fn report(facts: &Facts) -> String {
    text::describe(facts, &advice::problems(facts), &advice::notes(facts))
}

/// The one line that begins so.
fn line<'a>(report: &'a str, start: &str) -> &'a str {
    let mut lines = report.lines().filter(|line| line.starts_with(start));
    let line = lines
        .next()
        .unwrap_or_else(|| panic!("no {start:?}: {report}"));
    assert_eq!(lines.next(), None, "{report}");
    line
}

#[test]
fn a_device_that_can_sleep_needs_nothing() {
    let migration = Migration {
        p2p: true,
        pre_copy: false,
    };
    let facts = with_vf("mlx5_vfio_pci", features(Some(migration)));
    assert_eq!(advice::problems(&facts), []);
    assert_eq!(advice::notes(&facts), []);
    let report = report(&facts);
    let abilities = line(&report, &format!("{VF} (mlx5_vfio_pci)"));
    assert!(
        abilities.contains("migration: STOP_COPY P2P;"),
        "{abilities}"
    );
    assert!(abilities.contains("DMA logging: yes") && abilities.contains("12 MSI-X"));
    assert!(line(&report, &format!("{VF}  ")).ends_with("ready"));
    assert!(report.ends_with("\nNothing needs action.\n"), "{report}");
}

#[test]
fn a_vf_under_the_generic_driver_is_sent_to_the_one_made_for_it() {
    let facts = with_vf("vfio-pci", features(None));
    assert_eq!(advice::problems(&facts), []);
    let notes = advice::notes(&facts);
    let remedy = notes[0].remedy.as_deref().unwrap();
    assert_eq!((notes.len(), notes[0].subject.as_str()), (1, VF));
    for part in [
        "modprobe mlx5_vfio_pci; ",
        "echo 0000:41:00.3 > /sys/bus/pci/devices/0000:41:00.3/driver/unbind; ",
    ] {
        assert!(remedy.contains(part), "{remedy}");
    }
}

#[test]
fn a_vf_that_is_not_marked_migratable_is_explained() {
    let facts = with_vf("mlx5_vfio_pci", features(None));
    let notes = advice::notes(&facts);
    let remedy = notes[0].remedy.as_deref().unwrap();
    assert!(
        remedy.contains("devlink port function set pci/0000:41:00.0/PORT migratable enable"),
        "{remedy}"
    );
}

#[test]
fn a_device_that_never_sleeps_can_be_discarded() {
    let mut facts = with_vf("vfio-pci", features(None));
    facts.variant_drivers.clear();
    let notes = advice::notes(&facts);
    let remedy = notes[0].remedy.as_deref().unwrap();
    assert!(remedy.contains("discard-state"), "{remedy}");
}

#[test]
fn a_device_in_use_is_no_problem_and_a_failure_is() {
    let facts = with_vf("mlx5_vfio_pci", Probe::InUse);
    assert_eq!(advice::problems(&facts), []);
    assert!(line(&report(&facts), &format!("{VF} (")).contains("in use"));

    let reason = "permission denied".to_owned();
    let facts = with_vf("mlx5_vfio_pci", Probe::Failed { reason });
    let problems = advice::problems(&facts);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].finding, "permission denied");
}

#[test]
fn members_of_the_group_that_block_are_named_with_their_drivers() {
    let members = [
        (NIC, Some("e1000e"), true),
        ("0000:00:1f.3", Some("snd_hda_intel"), true),
        ("0000:00:1f.4", None, false),
    ];
    let mut facts = ready();
    facts.host.functions = vec![
        function(NIC, Some("e1000e"), group(3, &members)),
        function("0000:00:1f.4", Some("vfio-pci"), group(3, &members)),
    ];
    facts.host.functions[1].obstacle = Some("shares a group".to_owned());
    let report = report(&facts);
    let candidate = line(&report, &format!("{NIC}  "));
    assert!(
        candidate.ends_with("can be bound, with its group: 0000:00:1f.3 (snd_hda_intel)"),
        "{candidate}"
    );
    let blocked = line(&report, "0000:00:1f.4  ");
    assert!(
        blocked.contains("0000:00:1f.6 (e1000e), 0000:00:1f.3"),
        "{blocked}"
    );
    let problems = advice::problems(&facts);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].finding, "shares a group");
}

#[test]
fn a_host_without_anything_gets_a_remedy_for_each_problem() {
    let mut facts = ready();
    facts.kvm = Kvm::Unusable {
        reason: "cannot open /dev/kvm".to_owned(),
    };
    facts.host.iommu_groups = 0;
    facts.host.groups = false;
    facts.host.functions = vec![function(NIC, Some("e1000e"), None)];
    let subjects = |facts: &Facts| -> Vec<_> {
        let problems = advice::problems(facts);
        problems.into_iter().map(|it| it.subject).collect()
    };
    assert_eq!(subjects(&facts), ["KVM", "IOMMU", "VFIO"]);
    let report = report(&facts);
    assert!(report.contains("intel_iommu=on") && report.contains("modprobe vfio-pci"));
    assert!(line(&report, NIC).ends_with("no: it has no IOMMU group"));
    assert!(report.ends_with("\n3 problems need action.\n"), "{report}");
    for (table, remedy) in [(None, "VT-d or AMD-Vi"), (Some("IVRS"), "amd_iommu=off")] {
        facts.host.iommu_table = table;
        let problems = advice::problems(&facts);
        assert!(problems[1].remedy.as_deref().unwrap().contains(remedy));
    }
}

#[test]
fn a_limit_on_locked_memory_is_told_unless_it_does_not_apply() {
    let mut facts = with_vf("mlx5_vfio_pci", Probe::InUse);
    facts.host.memlock_limit = Some(8 << 20);
    let notes = advice::notes(&facts);
    assert!(notes[0].finding.contains("8 MiB"), "{notes:?}");
    facts.host.memlock_exempt = true;
    assert_eq!(advice::notes(&facts), []);
}

#[test]
fn an_unbound_function_gets_the_commands_that_bind_it() {
    let mut facts = ready();
    let mut bridge = function("0000:00:01.0", None, group(1, &[]));
    bridge.host.identity = Some(Identity {
        vendor: 0x8086,
        device: 1,
        class: 0x06_0400,
    });
    facts.host.functions = vec![bridge, function(NIC, None, group(2, &[]))];
    let notes = advice::notes(&facts);
    let remedy = notes[0].remedy.as_deref().unwrap();
    assert!(
        remedy.contains("echo vfio-pci > /sys/bus/pci/devices/0000:00:1f.6/driver_override; echo")
    );
    assert!(line(&report(&facts), "0000:00:01.0").ends_with("no: a bridge"));
}

#[test]
fn variant_drivers_are_looked_for_among_modules_and_among_what_is_built_in() {
    let functions = [function(VF, None, None), function(NIC, None, None)];
    let alias = "vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*";
    let module = format!("alias {alias} mlx5_vfio_pci\n");
    let built_in = format!("mlx5_vfio_pci.alias={alias}\0");
    for (modules, built_in) in [(&*module, ""), ("", &*built_in)] {
        let found = variant::drivers(modules, built_in, &functions);
        let names: Vec<_> = found
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(names, [(NIC, "mlx5_vfio_pci"), (VF, "mlx5_vfio_pci")]);
    }
    assert!(variant::drivers("", "", &functions).is_empty());
}
