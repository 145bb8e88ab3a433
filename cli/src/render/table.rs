//! Plain columns, and numbers and texts that fit into them.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

/// Narrower than this, a wrapped last column would be a tower of words.
const NARROWEST_TEXT: u16 = 24;
/// Callers indent tables by at most this much.
const INDENT: u16 = 2;

/// Rows in columns two blanks apart, without lines. On a terminal the last column, where the sentences are, is wrapped
/// to its width; the others are never broken.
pub(super) fn table<R>(header: &[&str], rows: impl IntoIterator<Item = R>) -> String
where
    R: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header.iter().copied());
    }
    for row in rows {
        table.add_row(row.into_iter());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
        column.set_cell_alignment(CellAlignment::Left);
    }
    let widths = table.column_max_content_widths();
    if let (Some(width), Some((_, fixed))) = (table.width(), widths.split_last()) {
        let taken: u16 = fixed.iter().map(|width| width + 2).sum();
        let room = width.saturating_sub(INDENT).saturating_sub(taken);
        if room >= NARROWEST_TEXT
            && let Some(last) = table.column_mut(fixed.len())
        {
            last.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(room)));
            table
                .set_width(width.saturating_sub(INDENT))
                .set_content_arrangement(ContentArrangement::Dynamic);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Text from elsewhere without anything that a terminal would obey.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `-` for what is absent.
pub(super) fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// As many decimals as say something: 1234.6 → "1235", 12.34 → "12.3", 0.123 → "0.123".
pub(super) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0..100.0 => 1,
        1.0..10.0 => 2,
        _ => 3,
    };
    // The sum of no numbers is -0, and what is a little below 0 rounds to it.
    let text = match format!("{value:.decimals$}") {
        text if text
            .trim_start_matches('-')
            .bytes()
            .all(|byte| matches!(byte, b'0' | b'.')) =>
        {
            "0".to_owned()
        }
        text => text,
    };
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// 0.834 → "83 %".
pub(super) fn percent(share: f64) -> String {
    format!("{} %", number((share * 1000.0).round() / 10.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_long_as_they_say_something() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (-0.0001, "0"),
            (4.0, "4"),
            (0.1234, "0.123"),
            (12.34, "12.3"),
            (99.0, "99"),
            (1234.6, "1235"),
            (-2.5, "-2.5"),
            (100.0, "100"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(
            (percent(1.0), percent(0.8345)),
            ("100 %".to_owned(), "83.5 %".to_owned())
        );
    }

    #[test]
    fn tables_are_plain_and_obey_nobody() {
        let row = |a: &str, b: &str| [clean(a), clean(b)];
        let text = table(&["A", "B"], [row("long text", "x"), row("\x1b[31m", "y\n")]);
        assert_eq!(text, "A          B\nlong text  x\n [31m      y\n");
    }
}
