//! Dates and times as traces write them.

use super::Time;

/// Reads `2023-11-16 18:15:46.6805900`, with `T` for the space and with `Z` or `+hh:mm` after it if need be; without an
/// offset it is taken as UTC.
pub(super) fn parse(text: &str) -> Option<Time> {
    let (date, clock) = text.split_once([' ', 'T'])?;
    let mut date = date.split('-');
    let (year, month, day) = (number(date.next()?)?, number(date.next()?)?, number(date.next()?)?);
    if date.next().is_some() || !(1970..=9999).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    if !(1..=days_in(year, month)).contains(&day) {
        return None;
    }
    let (clock, offset_s) = split_offset(clock)?;
    let mut parts = clock.split(':');
    let (hour, minute, second) = (number(parts.next()?)?, number(parts.next()?)?, parts.next()?);
    let (second, fraction) = second.split_once('.').unwrap_or((second, "0"));
    let second = number(second)?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 || number(fraction).is_none() {
        return None;
    }
    let fraction_s: f64 = format!("0.{fraction}").parse().ok()?;
    let epoch_s = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_s;
    Some(Time::Wall { epoch_s, fraction_s })
}

/// Only digits, at least one: `parse` alone would take a sign.
fn number(text: &str) -> Option<i64> {
    let digits = (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn split_offset(clock: &str) -> Option<(&str, i64)> {
    if let Some(clock) = clock.strip_suffix('Z') {
        return Some((clock, 0));
    }
    let Some(at) = clock.find(['+', '-']) else {
        return Some((clock, 0));
    };
    let (clock, offset) = clock.split_at(at);
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = offset[1..].split_once(':').unwrap_or((&offset[1..], "0"));
    Some((clock, sign * (number(hours)? * 3600 + number(minutes)? * 60)))
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms"); the year starts in March so
/// that the leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read() {
        let cases = [
            ("1970-01-01 00:00:00", 0, 0.0),
            ("2000-03-01T00:00:00Z", 951_868_800, 0.0),
            ("2023-11-16 18:15:46.6805900", 1_700_158_546, 0.680_59),
            ("2024-05-10 00:00:00.009930+00:00", 1_715_299_200, 0.009_93),
            ("2024-05-10 02:00:00+02:00", 1_715_299_200, 0.0),
        ];
        for (text, epoch_s, fraction_s) in cases {
            assert_eq!(parse(text), Some(Time::Wall { epoch_s, fraction_s }), "{text}");
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "12",
            "2023-11-16",
            "2023-13-01 00:00:00",
            "2023-02-29 00:00:00",
            "2023-02-28 24:00:00",
            "2023-02-28 1:2",
            "2023-02-28 00:00:00.x",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
