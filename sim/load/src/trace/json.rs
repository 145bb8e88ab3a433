//! Traces in JSON: one object a line, or one array of objects.

use super::{Format, Problem, Row, Time};
use serde::Deserialize;

/// The keys of all JSON formats; what is not asked for is skipped without being kept.
#[derive(Deserialize)]
struct Object {
    timestamp: Option<f64>,
    arrival_time: Option<f64>,
    input_length: Option<u32>,
    output_length: Option<u32>,
    input_tokens: Option<u32>,
    output_tokens: Option<u32>,
    chat_id: Option<serde::de::IgnoredAny>,
    data: Option<Data>,
}

/// Where ServeGen's own request objects keep their lengths.
#[derive(Deserialize)]
struct Data {
    input_tokens: Option<u32>,
    output_tokens: Option<u32>,
}

impl Object {
    fn format(&self) -> Format {
        if self.input_length.is_some() || self.output_length.is_some() {
            Format::Mooncake
        } else {
            Format::ServeGen
        }
    }

    fn row(&self, format: Format) -> Result<Row, Problem> {
        let data = self.data.as_ref();
        let (time, input, output, expected) = match format {
            Format::Mooncake => {
                let unit_s = if self.chat_id.is_some() { 1.0 } else { 1e-3 };
                let expected = ["timestamp", "input_length", "output_length"];
                (
                    self.timestamp.map(|time| time * unit_s),
                    self.input_length,
                    self.output_length,
                    expected,
                )
            }
            _ => (
                self.timestamp.or(self.arrival_time),
                self.input_tokens.or(data.and_then(|data| data.input_tokens)),
                self.output_tokens.or(data.and_then(|data| data.output_tokens)),
                ["timestamp", "input_tokens", "output_tokens"],
            ),
        };
        let missing = |name: &str| Problem::new(1, format!("no {name:?}: expected {}", expected.join(", ")));
        let time_s = time.ok_or_else(|| missing(expected[0]))?;
        if !(time_s.is_finite() && time_s >= 0.0) {
            return Err(Problem::new(
                1,
                format!("time {time_s}: expected a number, zero or more"),
            ));
        }
        Ok(Row {
            time: Time::Relative(time_s),
            input_tokens: input.ok_or_else(|| missing(expected[1]))?,
            output_tokens: output.ok_or_else(|| missing(expected[2]))?,
        })
    }
}

/// Reads JSON lines.
pub(super) struct Reader {
    pub(super) format: Format,
}

impl Reader {
    /// A reader for the format of the first line, and that line's row.
    pub(super) fn new(first: &str, wanted: Option<Format>) -> Result<(Self, Row), Problem> {
        let object = object(first)?;
        let format = choose(&object, wanted)?;
        let row = object.row(format)?;
        Ok((Self { format }, row))
    }

    pub(super) fn row(&self, line: &str) -> Result<Row, Problem> {
        object(line)?.row(self.format)
    }
}

/// Reads a whole array. An error comes with its line in the text, from 1.
pub(super) fn array(text: &[u8], wanted: Option<Format>) -> Result<(Format, Vec<Row>), (u64, Problem)> {
    let objects: Vec<Object> = serde_json::from_slice(text).map_err(|error| {
        let text = format!("{}: expected an array of requests", message(&error));
        (error.line() as u64, Problem::new(error.column(), text))
    })?;
    let Some(first) = objects.first() else {
        return Ok((wanted.unwrap_or(Format::ServeGen), Vec::new()));
    };
    let format = choose(first, wanted).map_err(|problem| (1, problem))?;
    let row = |(index, object): (usize, &Object)| {
        object.row(format).map_err(|problem| {
            (
                1,
                Problem::new(problem.column, format!("request {}: {}", index + 1, problem.text)),
            )
        })
    };
    let rows = objects.iter().enumerate().map(row).collect::<Result<_, _>>()?;
    Ok((format, rows))
}

fn choose(object: &Object, wanted: Option<Format>) -> Result<Format, Problem> {
    match wanted {
        None => Ok(object.format()),
        Some(format @ (Format::Mooncake | Format::ServeGen)) => Ok(format),
        Some(other) => Err(Problem::new(
            1,
            format!("JSON: expected the header line of a CSV file in format {other}"),
        )),
    }
}

fn object(line: &str) -> Result<Object, Problem> {
    serde_json::from_str(line).map_err(|error| {
        let text = format!("{}: expected one JSON object a line", message(&error));
        Problem::new(error.column().max(1), text)
    })
}

/// The parser's message without its own line and column, which are those of the piece it was given.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ")
        .map_or(text.clone(), |(text, _)| text.to_owned())
}
