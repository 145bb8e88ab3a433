//! Traces in CSV: columns are found by the names in the header.

use super::{Format, Problem, Row, Time, timestamp};

/// Column names of one format, in lower case; a time column comes with its unit in seconds.
struct Names {
    format: Format,
    time: &'static [(&'static str, f64)],
    input: &'static [&'static str],
    output: &'static [&'static str],
}

/// Formats in the order in which they are tried.
const FORMATS: [Names; 4] = [
    Names {
        format: Format::Azure,
        time: &[("timestamp", 1.0)],
        input: &["contexttokens"],
        output: &["generatedtokens"],
    },
    Names {
        format: Format::BurstGpt,
        time: &[("timestamp", 1.0)],
        input: &["request tokens"],
        output: &["response tokens"],
    },
    Names {
        format: Format::ServeGen,
        time: &[("timestamp", 1.0), ("arrival_time", 1.0)],
        input: &["input_tokens"],
        output: &["output_tokens"],
    },
    Names {
        format: Format::Csv,
        time: &[
            ("arrival_time_s", 1.0),
            ("arrival_s", 1.0),
            ("timestamp_s", 1.0),
            ("arrival_time_ms", 1e-3),
            ("timestamp_ms", 1e-3),
            ("time", 1.0),
            ("timestamp", 1.0),
            ("arrival_time", 1.0),
        ],
        input: &["input_tokens", "prompt_tokens", "input_length"],
        output: &["output_tokens", "completion_tokens", "output_length"],
    },
];

struct Column {
    index: usize,
    name: String,
}

/// Reads the lines after a header.
pub(super) struct Reader {
    pub(super) format: Format,
    time: Column,
    unit_s: f64,
    input: Column,
    output: Column,
    clock: Clock,
}

/// How a file writes its times: every line as the first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    Unknown,
    Relative,
    Wall,
}

impl Reader {
    pub(super) fn new(header: &str, wanted: Option<Format>) -> Result<Self, Problem> {
        let names: Vec<String> = fields(header).map(|(_, name)| name.trim().to_owned()).collect();
        let candidates = FORMATS
            .iter()
            .filter(|format| wanted.is_none_or(|wanted| wanted == format.format));
        let find = |name: &str| {
            let index = names.iter().position(|have| have.eq_ignore_ascii_case(name))?;
            Some(Column {
                index,
                name: names[index].clone(),
            })
        };
        for format in candidates {
            let time = format
                .time
                .iter()
                .find_map(|(name, unit_s)| Some((find(name)?, *unit_s)));
            let input = format.input.iter().find_map(|name| find(name));
            let output = format.output.iter().find_map(|name| find(name));
            if let (Some((time, unit_s)), Some(input), Some(output)) = (time, input, output) {
                let clock = if format.format == Format::Azure {
                    Clock::Wall
                } else {
                    Clock::Unknown
                };
                return Ok(Self {
                    format: format.format,
                    time,
                    unit_s,
                    input,
                    output,
                    clock,
                });
            }
        }
        Err(Problem::new(1, refusal(&names, wanted)))
    }

    pub(super) fn row(&mut self, line: &str) -> Result<Row, Problem> {
        // One pass over the line, whose further fields (hash ids) can be long.
        let mut found = [None; 3];
        for (index, field) in fields(line).enumerate() {
            for (slot, column) in found.iter_mut().zip([&self.time, &self.input, &self.output]) {
                if column.index == index {
                    *slot = Some(field);
                }
            }
        }
        let [time, input, output] = found;
        let missing = |column: &Column| {
            let have = fields(line).count();
            let text = format!(
                "{have} fields, so no {:?}: expected it in field {}",
                column.name,
                column.index + 1
            );
            Problem::new(line.len() + 1, text)
        };
        let tokens = |column: &Column, field: Option<(usize, &str)>| {
            let (at, text) = field.ok_or_else(|| missing(column))?;
            parse_tokens(text.trim()).ok_or_else(|| {
                Problem::new(
                    at,
                    format!("{:?} is {text:?}: expected a whole number of tokens", column.name),
                )
            })
        };
        let (at, text) = time.ok_or_else(|| missing(&self.time))?;
        let number = text
            .trim()
            .parse::<f64>()
            .ok()
            .filter(|number| number.is_finite() && *number >= 0.0);
        let time = match number {
            Some(number) if self.clock != Clock::Wall => Some(Time::Relative(number * self.unit_s)),
            None if self.clock != Clock::Relative => timestamp::parse(text.trim()),
            _ => None,
        };
        let time = time.ok_or_else(|| {
            let expected = match self.clock {
                Clock::Wall => "a date and time like 2023-11-16 18:15:46.6805900",
                Clock::Relative => "a number, zero or more, as in the lines before",
                Clock::Unknown => "a number, zero or more, or a date and time like 2023-11-16 18:15:46.68",
            };
            Problem::new(at, format!("{:?} is {text:?}: expected {expected}", self.time.name))
        })?;
        let row = Row {
            time,
            input_tokens: tokens(&self.input, input)?,
            output_tokens: tokens(&self.output, output)?,
        };
        self.clock = if matches!(time, Time::Wall { .. }) {
            Clock::Wall
        } else {
            Clock::Relative
        };
        Ok(row)
    }
}

/// What to say about a header that no format fits.
fn refusal(names: &[String], wanted: Option<Format>) -> String {
    let found = names.join(",");
    let number = |text: &String| text.parse::<f64>().is_ok();
    if names.len() == 6 && names[..3].iter().all(number) && !names[3].chars().any(|c| c.is_ascii_digit()) {
        return "rate windows of one ServeGen client, not requests: expected a header and one request a line, as \
                ServeGen's save_requests_to_csv writes"
            .into();
    }
    if names.iter().all(number) {
        return format!("no header, the first line is {found:?}: expected arrival_time_s,input_tokens,output_tokens");
    }
    let expected = match wanted {
        Some(Format::Azure) => "TIMESTAMP,ContextTokens,GeneratedTokens",
        Some(Format::BurstGpt) => "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        Some(Format::ServeGen) => "timestamp,input_tokens,output_tokens",
        Some(Format::Mooncake) => "no header but JSON lines with timestamp, input_length and output_length",
        Some(Format::Csv) => "arrival_time_s,input_tokens,output_tokens",
        None => {
            "the header of a trace of requests: arrival_time_s,input_tokens,output_tokens, or that of azure, burstgpt or servegen"
        }
    };
    let shown: String = found.chars().take(120).collect();
    format!("columns {shown:?}: expected {expected}")
}

/// A whole number, also when written as `12.0`.
pub(super) fn parse_tokens(text: &str) -> Option<u32> {
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        (number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number)).then_some(number as u32)
    })
}

/// The fields of a line with the column (from 1) each starts at. A comma inside double quotes does not separate.
fn fields(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut start = Some(0);
    std::iter::from_fn(move || {
        let from = start?;
        let mut quoted = false;
        let end = line[from..].bytes().position(|byte| {
            quoted ^= byte == b'"';
            byte == b',' && !quoted
        });
        let field = &line[from..end.map_or(line.len(), |end| from + end)];
        start = end.map(|end| from + end + 1);
        let bare = field
            .trim()
            .strip_prefix('"')
            .and_then(|field| field.strip_suffix('"'))
            .unwrap_or(field);
        Some((from + 1, bare))
    })
}
