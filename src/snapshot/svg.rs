//! The timeline of a snapshot or restore as a picture.

use std::fmt::Write;

use dormouse_api::response::Timeline;

use super::chart::{label, span_us, title};
use super::figures::{bytes, duration};

const WIDTH: u32 = 960;
const ROW: u32 = 24;
const TOP: u32 = 48;
/// Where the bars begin and end.
const LEFT: u32 = 260;
const RIGHT: u32 = 760;
const GRID_LINES: u32 = 5;

/// Draws it.
pub fn picture(timeline: &Timeline) -> String {
    let rows = u32::try_from(timeline.phases.len()).unwrap_or(u32::MAX / (2 * ROW));
    let bottom = TOP + rows * ROW;
    let height = bottom + 32;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
<text x="16" y="28" font-size="16" font-weight="bold">{}</text>
"##,
        escaped(&title(timeline))
    );
    let total = span_us(timeline);
    // Writing to a string cannot fail.
    for line in 0..=GRID_LINES {
        let x = LEFT + (RIGHT - LEFT) * line / GRID_LINES;
        let at = u128::from(total) * u128::from(line) / u128::from(GRID_LINES);
        let _ = writeln!(
            svg,
            r##"<path d="M{x} {TOP}V{bottom}" stroke="#ddd"/><text x="{x}" y="{}" fill="#666" text-anchor="middle">{}</text>"##,
            bottom + 18,
            duration(at as u64),
        );
    }
    let x_of = |us: u64| {
        f64::from(LEFT) + f64::from(RIGHT - LEFT) * (us as f64 / total as f64).clamp(0.0, 1.0)
    };
    for (phase, row) in timeline.phases.iter().zip(0u32..) {
        let y = TOP + row * ROW;
        let start = x_of(phase.start_us);
        // The shortest phase is still to be seen.
        let width = (x_of(phase.start_us.saturating_add(phase.duration_us)) - start).max(1.5);
        let colour = if phase.device.is_some() {
            "#d9822b"
        } else {
            "#3b7dc4"
        };
        let figures = match phase.bytes {
            0 => duration(phase.duration_us),
            count => format!("{}, {}", duration(phase.duration_us), bytes(count)),
        };
        let _ = writeln!(
            svg,
            r#"<text x="16" y="{base}">{label}</text><rect x="{start:.1}" y="{bar}" width="{width:.1}" height="{thick}" rx="2" fill="{colour}"/><text x="{after}" y="{base}">{figures}</text>"#,
            base = y + 16,
            label = escaped(&label(phase)),
            bar = y + 4,
            thick = ROW - 8,
            after = RIGHT + 16,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Text for XML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::picture;
    use dormouse_api::response::{Operation, Phase, Timeline};

    #[test]
    fn each_phase_has_a_bar_and_foreign_text_stays_text() {
        let phase = |name: &str, start_us, duration_us| Phase {
            name: name.to_owned(),
            device: None,
            start_us,
            duration_us,
            bytes: 0,
        };
        let timeline = Timeline {
            operation: Operation::Snapshot,
            started_unix_ms: 0,
            duration_us: 100,
            phases: vec![
                phase("memory", 0, 50),
                phase("<script>&", u64::MAX, u64::MAX),
            ],
        };
        let svg = picture(&timeline);
        assert_eq!(svg.matches(r#"rx="2""#).count(), 2);
        assert!(svg.contains("&lt;script&gt;&amp;") && !svg.contains("<script>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
