//! The timeline of a snapshot or restore as a chart of text: one line for each phase, with a bar where it took place.

use std::fmt::Write;

use dormouse_api::response::{Operation, Phase, Timeline};

use super::figures::{bytes, duration};

/// Columns for durations and bytes after the bar.
const FIGURES_WIDTH: usize = 23;
const MIN_BAR_WIDTH: usize = 10;

/// Draws the timeline on lines of about `width` columns.
pub fn chart(timeline: &Timeline, width: usize) -> String {
    let mut text = title(timeline);
    text.push('\n');
    let labels: Vec<String> = timeline.phases.iter().map(label).collect();
    let label_width = labels.iter().map(String::len).max().unwrap_or(0);
    let bar_width = width
        .saturating_sub(label_width + FIGURES_WIDTH + 6)
        .max(MIN_BAR_WIDTH);
    let total = span_us(timeline);
    for (phase, label) in timeline.phases.iter().zip(labels) {
        let cell = |us: u64| (u128::from(us) * bar_width as u128 / u128::from(total)) as usize;
        let start = cell(phase.start_us).min(bar_width - 1);
        // The shortest phase is still to be seen.
        let end =
            cell(phase.start_us.saturating_add(phase.duration_us)).clamp(start + 1, bar_width);
        let bar = format!("{}{}", " ".repeat(start), "#".repeat(end - start));
        let moved = match phase.bytes {
            0 => String::new(),
            count => bytes(count),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {label:label_width$} |{bar:bar_width$}| {:>10} {moved:>11}",
            duration(phase.duration_us),
        );
    }
    text
}

/// What the chart is of.
pub fn title(timeline: &Timeline) -> String {
    let what = match timeline.operation {
        Operation::Snapshot => "snapshot",
        Operation::Restore => "restore",
    };
    format!("{what} in {}", duration(timeline.duration_us))
}

/// Name of a phase, with the device if there is one.
pub fn label(phase: &Phase) -> String {
    match &phase.device {
        Some(device) => format!("{} {device}", phase.name),
        None => phase.name.clone(),
    }
}

/// What the bars are drawn to: all of it, even if a phase says it ended later; never 0.
pub fn span_us(timeline: &Timeline) -> u64 {
    let ends = timeline
        .phases
        .iter()
        .map(|phase| phase.start_us.saturating_add(phase.duration_us));
    ends.chain([timeline.duration_us, 1]).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::chart;
    use dormouse_api::response::{Operation, Phase, Timeline};

    fn phase(
        name: &str,
        device: Option<&str>,
        start_us: u64,
        duration_us: u64,
        bytes: u64,
    ) -> Phase {
        Phase {
            name: name.to_owned(),
            device: device.map(str::to_owned),
            start_us,
            duration_us,
            bytes,
        }
    }

    #[test]
    fn bars_stand_where_the_phases_were() {
        let timeline = Timeline {
            operation: Operation::Snapshot,
            started_unix_ms: 0,
            duration_us: 20_000,
            phases: vec![
                phase("pause", None, 0, 10, 0),
                phase("stream", Some("vfio0"), 5_000, 10_000, 2 << 20),
                phase("sync", None, 15_000, 5_000, 0),
            ],
        };
        let wanted = "snapshot in 20.0 ms
  pause        |#                   |      10 us            
  stream vfio0 |     ##########     |    10.0 ms       2 MiB
  sync         |               #####|     5.0 ms            
";
        assert_eq!(chart(&timeline, 61), wanted);
    }

    #[test]
    fn absurd_times_and_widths_still_give_a_chart() {
        let timeline = Timeline {
            operation: Operation::Restore,
            started_unix_ms: 0,
            duration_us: 0,
            phases: vec![
                phase("a", None, u64::MAX, u64::MAX, u64::MAX),
                phase("b", None, 0, 0, 0),
            ],
        };
        for width in [0, 1, 80, 1000] {
            assert_eq!(chart(&timeline, width).lines().count(), 3);
        }
    }
}
