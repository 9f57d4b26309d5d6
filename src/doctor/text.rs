//! The report for people: what there is, one line per fact; then the problems and the notes.

use std::fmt::Write as _;

use dormouse_vmm::vfio::inspect::{Device, Features, Migration};

use super::advice::{self, Advice};
use super::classes;
use super::facts::{Facts, Kvm, Probe};

/// The whole report.
pub fn describe(facts: &Facts, problems: &[Advice], notes: &[Advice]) -> String {
    let mut text = String::new();
    host(&mut text, facts);
    functions(&mut text, &facts.host.functions);
    bound_devices(&mut text, facts);
    list(&mut text, "PROBLEMS", problems);
    list(&mut text, "NOTES", notes);
    let verdict = match problems.len() {
        0 => "Nothing needs action.".to_owned(),
        1 => "1 problem needs action.".to_owned(),
        count => format!("{count} problems need action."),
    };
    line(&mut text, &format!("\n{verdict}"));
    text
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn host(text: &mut String, facts: &Facts) {
    let mut fact = |name: &str, value: &str| line(text, &format!("{name:8}{value}"));
    fact("kernel", &facts.kernel);
    match &facts.kvm {
        Kvm::Usable {
            api_version,
            max_vcpus,
            lacks,
        } => {
            fact(
                "KVM",
                &format!("usable, API version {api_version}, at most {max_vcpus} vCPUs in a VM"),
            );
            for lack in lacks {
                fact("", &format!("lacks {lack}"));
            }
        }
        Kvm::Unusable { .. } => fact("KVM", "not usable"),
    }
    let host = &facts.host;
    fact(
        "IOMMU",
        &match host.iommu_groups {
            0 => "off".to_owned(),
            count => format!("on, PCI functions in {count} groups"),
        },
    );
    let present = |there| if there { "yes" } else { "no" };
    fact(
        "VFIO",
        &format!(
            "groups: {} (/dev/vfio/vfio), iommufd: {} (/dev/iommu)",
            present(host.groups),
            present(host.iommufd)
        ),
    );
    let locked = match host.memlock_limit {
        _ if host.memlock_exempt => "without limit (CAP_IPC_LOCK)".to_owned(),
        None => "without limit".to_owned(),
        Some(limit) => format!("up to {} MiB", limit >> 20),
    };
    fact("memory", &format!("RAM can be locked {locked}"));
    for pool in &facts.huge_pages {
        fact(
            "",
            &format!(
                "huge pages of {} MiB: {} of {} free",
                pool.size >> 20,
                pool.free,
                pool.total
            ),
        );
    }
}

fn functions(text: &mut String, functions: &[Device]) {
    if functions.is_empty() {
        return line(text, "\nThere are no PCI functions.");
    }
    let header = [
        "PCI FUNCTION",
        "IDS",
        "CLASS",
        "DRIVER",
        "GROUP",
        "PASSTHROUGH",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(functions.iter().map(|device| {
        let identity = device.host.identity;
        [
            device.host.name.clone(),
            identity.map_or_else(String::new, |it| {
                format!("{:04x}:{:04x}", it.vendor, it.device)
            }),
            identity.map_or("", |it| classes::name(it.class)).to_owned(),
            device.host.driver.clone().unwrap_or_else(|| "-".to_owned()),
            device
                .host
                .group
                .as_ref()
                .map_or_else(|| "-".to_owned(), |group| group.id.to_string()),
            passthrough(device),
        ]
    }));
    text.push('\n');
    table(text, &rows);
}

/// The last column of the table: can it be passed through, and if not, why.
fn passthrough(device: &Device) -> String {
    let companions = advice::companions(device).join(", ");
    if device.host.vfio_driver {
        match (&device.obstacle, companions.is_empty()) {
            (None, _) => "ready".to_owned(),
            (Some(_), true) => "no: see PROBLEMS".to_owned(),
            (Some(_), false) => format!("blocked by its group: {companions}"),
        }
    } else if advice::can_be_bound(device) {
        if companions.is_empty() {
            "can be bound".to_owned()
        } else {
            format!("can be bound, with its group: {companions}")
        }
    } else if device
        .host
        .identity
        .is_some_and(|it| classes::is_bridge(it.class))
    {
        "no: a bridge".to_owned()
    } else {
        "no: it has no IOMMU group".to_owned()
    }
}

fn table<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let mut cells = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a string cannot fail.
            let _ = write!(cells, "{cell:width$}  ");
        }
        line(text, cells.trim_end());
    }
}

fn bound_devices(text: &mut String, facts: &Facts) {
    let mut devices = advice::bound(facts).peekable();
    if devices.peek().is_some() {
        line(text, "\nDEVICES BOUND TO VFIO DRIVERS");
    }
    for device in devices {
        let name = &device.host.name;
        let driver = device.host.driver.as_deref().unwrap_or_default();
        let answer = match facts.probes.get(name) {
            _ if device.obstacle.is_some() => "cannot be opened".to_owned(),
            None => "not asked".to_owned(),
            Some(Probe::InUse) => "in use by another process, so not asked".to_owned(),
            Some(Probe::Failed { .. }) => "cannot be asked".to_owned(),
            Some(Probe::Answered(features)) => abilities(features),
        };
        line(text, &format!("{name} ({driver}): {answer}"));
    }
}

fn abilities(features: &Features) -> String {
    let migration = match features.migration {
        None => "migration: no".to_owned(),
        Some(Migration { p2p, pre_copy }) => {
            let mut flags = "migration: STOP_COPY".to_owned();
            for (present, flag) in [(p2p, " P2P"), (pre_copy, " PRE_COPY")] {
                if present {
                    flags.push_str(flag);
                }
            }
            flags
        }
    };
    let yes = |there| if there { "yes" } else { "no" };
    format!(
        "{migration}; DMA logging: {}; reset: {}; interrupts: {} MSI-X, {} MSI, INTx {}; through {}",
        yes(features.dma_logging),
        // mtty can be reset and does not say so.
        if features.reset {
            "yes"
        } else {
            "not advertised"
        },
        features.msix_vectors,
        features.msi_vectors,
        yes(features.intx),
        if features.iommufd {
            "iommufd"
        } else {
            "its group"
        },
    )
}

fn list(text: &mut String, title: &str, entries: &[Advice]) {
    if entries.is_empty() {
        return;
    }
    line(text, &format!("\n{title}"));
    for entry in entries {
        line(text, &format!("{}: {}", entry.subject, entry.finding));
        if let Some(remedy) = &entry.remedy {
            line(text, &format!("    {remedy}"));
        }
    }
}
