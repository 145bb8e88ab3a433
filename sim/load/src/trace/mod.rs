//! Trace files: arrivals as recorded in production, in the formats they are published in.
//!
//! | format | what it is | columns or keys |
//! |---|---|---|
//! | `azure` | Azure LLM inference trace 2023 and 2024, CSV | `TIMESTAMP,ContextTokens,GeneratedTokens`; wall clock, as `2023-11-16 18:15:46.6805900` or `2024-05-10 00:00:00.009930+00:00` |
//! | `mooncake` | Mooncake, JSON lines | `timestamp` in milliseconds, `input_length`, `output_length`. Lines with a `chat_id` (the Qwen Bailian traces) count in seconds |
//! | `burstgpt` | BurstGPT, CSV | `Timestamp` in seconds, `Request tokens`, `Response tokens` |
//! | `servegen` | requests made by ServeGen, CSV or JSON | `timestamp` (or `arrival_time`) in seconds, `input_tokens`, `output_tokens`, in JSON also inside `data`. What ServeGen publishes itself are rate windows per client, not requests: make requests with it first |
//! | `csv` | our own normal form | `arrival_time_s,input_tokens,output_tokens`, further columns ignored; `_ms` and a few usual names work too |
//!
//! Any of them may be gzip-compressed, which is seen from the content. The whole file is read and checked before the
//! first request is sent, at some 50 bytes a request in memory while reading and 16 after. Times are seconds after the trace's own zero; a wall clock's
//! zero is the first arrival. A request of zero tokens (BurstGPT logs failures so) is kept with one token.

mod csv;
mod json;
mod timestamp;

use crate::plan::{Arrival, Plan};
use flate2::read::MultiGzDecoder;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest line accepted: a Mooncake line of a million-token prompt has some 20 kB of hash ids.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Times beyond this many seconds (three years) are taken for a wall clock, whose zero is the first arrival.
const WALL_CLOCK_S: f64 = 1e8;

/// A file format. Without one it is told from the first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Azure LLM inference trace.
    Azure,
    /// Mooncake, and the Qwen Bailian traces.
    Mooncake,
    /// BurstGPT.
    BurstGpt,
    /// Requests made by ServeGen.
    ServeGen,
    /// `arrival_time_s,input_tokens,output_tokens`.
    Csv,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Azure => "azure",
            Self::Mooncake => "mooncake",
            Self::BurstGpt => "burstgpt",
            Self::ServeGen => "servegen",
            Self::Csv => "csv",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Azure, Self::Mooncake, Self::BurstGpt, Self::ServeGen, Self::Csv]
            .into_iter()
            .find(|format| format.to_string() == text)
            .ok_or_else(|| "expected azure, mooncake, burstgpt, servegen or csv".into())
    }
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A place in the file that is not as it should be.
    #[error("{}:{line}:{column}: {problem}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// Column in bytes, from 1.
        column: usize,
        /// What is wrong there, and what was expected.
        problem: String,
    },
    /// No request in it.
    #[error("{}: no request in it", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
}

/// What is wrong in a line, before the file and the line number are put to it.
#[derive(Debug, PartialEq)]
struct Problem {
    column: usize,
    text: String,
}

impl Problem {
    fn new(column: usize, text: impl Into<String>) -> Self {
        Self {
            column,
            text: text.into(),
        }
    }
}

/// A trace in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What the file turned out to be.
    pub format: Format,
    /// Its requests in time order, at least one.
    pub arrivals: Vec<Arrival>,
}

impl Trace {
    /// The trace as a plan.
    pub fn into_plan(self) -> Plan {
        Plan::from_arrivals(self.arrivals)
    }
}

/// Reads a trace file, gzip-compressed or not.
///
/// # Errors
/// A file that cannot be read, has no requests, or has a line that is not of the format; the error names the place.
pub fn load(file: &Path, format: Option<Format>) -> Result<Trace, Error> {
    let io = |source| Error::Io {
        file: file.into(),
        source,
    };
    let mut raw = BufReader::new(File::open(file).map_err(io)?);
    let compressed = raw.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]);
    let input: Box<dyn Read> = if compressed {
        Box::new(MultiGzDecoder::new(raw))
    } else {
        Box::new(raw)
    };
    parse(BufReader::with_capacity(1 << 16, input), file, format)
}

/// Reads a trace from text. `file` is only for error messages.
///
/// # Errors
/// As [`load`].
pub fn parse(input: impl BufRead, file: &Path, format: Option<Format>) -> Result<Trace, Error> {
    let mut lines = Lines {
        input,
        buffer: Vec::new(),
        number: 0,
    };
    let first = loop {
        match lines.next().map_err(|error| error.at(file))? {
            None => return Err(Error::Empty { file: file.into() }),
            Some((_, line)) if line.trim().is_empty() => {}
            Some((_, line)) => break line.to_owned(),
        }
    };
    let first_number = lines.number;
    let at = |line: u64, problem: Problem| Error::Line {
        file: file.into(),
        line,
        column: problem.column,
        problem: problem.text,
    };
    let mut rows = Vec::new();
    let format = if first.starts_with('[') {
        let mut text = first.into_bytes();
        text.push(b'\n');
        lines.input.read_to_end(&mut text).map_err(|source| Error::Io {
            file: file.into(),
            source,
        })?;
        let (format, parsed) =
            json::array(&text, format).map_err(|(line, problem)| at(first_number + line.saturating_sub(1), problem))?;
        rows = parsed;
        format
    } else {
        let mut reader = if first.starts_with('{') {
            let (reader, row) = json::Reader::new(&first, format).map_err(|problem| at(first_number, problem))?;
            rows.push(row);
            RowReader::Json(reader)
        } else {
            RowReader::Csv(csv::Reader::new(&first, format).map_err(|problem| at(first_number, problem))?)
        };
        while let Some((number, line)) = lines.next().map_err(|error| error.at(file))? {
            if !line.trim().is_empty() {
                rows.push(reader.row(line).map_err(|problem| at(number, problem))?);
            }
        }
        reader.format()
    };
    if rows.is_empty() {
        return Err(Error::Empty { file: file.into() });
    }
    Ok(Trace {
        format,
        arrivals: arrange(rows),
    })
}

/// A line's time as written, before it is known where the trace's zero is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Time {
    /// Seconds after the trace's own zero.
    Relative(f64),
    /// A date: whole seconds after 1970 and the rest, apart so that no precision is lost.
    Wall { epoch_s: i64, fraction_s: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    time: Time,
    input_tokens: u32,
    output_tokens: u32,
}

enum RowReader {
    Csv(csv::Reader),
    Json(json::Reader),
}

impl RowReader {
    fn row(&mut self, line: &str) -> Result<Row, Problem> {
        match self {
            Self::Csv(reader) => reader.row(line),
            Self::Json(reader) => reader.row(line),
        }
    }

    fn format(&self) -> Format {
        match self {
            Self::Csv(reader) => reader.format,
            Self::Json(reader) => reader.format,
        }
    }
}

/// Rows in time order with the trace's zero in place.
fn arrange(rows: Vec<Row>) -> Vec<Arrival> {
    let base_s = rows.iter().find_map(|row| match row.time {
        Time::Wall { epoch_s, .. } => Some(epoch_s),
        Time::Relative(_) => None,
    });
    let base_s = base_s.unwrap_or(0);
    let mut arrivals: Vec<Arrival> = rows
        .into_iter()
        .map(|row| Arrival {
            at_s: match row.time {
                Time::Relative(s) => s,
                Time::Wall { epoch_s, fraction_s } => (epoch_s - base_s) as f64 + fraction_s,
            },
            input_tokens: row.input_tokens.max(1),
            output_tokens: row.output_tokens.max(1),
        })
        .collect();
    arrivals.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    let first_s = arrivals.first().map_or(0.0, |first| first.at_s);
    if base_s != 0 || !(0.0..=WALL_CLOCK_S).contains(&first_s) {
        for arrival in &mut arrivals {
            arrival.at_s -= first_s;
        }
    }
    arrivals
}

/// Lines of bounded length, numbered from 1, without their end.
struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    number: u64,
}

enum LineError {
    Io(io::Error),
    Bad(u64, Problem),
}

impl LineError {
    fn at(self, file: &Path) -> Error {
        match self {
            Self::Io(source) => Error::Io {
                file: file.into(),
                source,
            },
            Self::Bad(line, problem) => Error::Line {
                file: file.into(),
                line,
                column: problem.column,
                problem: problem.text,
            },
        }
    }
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<(u64, &str)>, LineError> {
        self.buffer.clear();
        let mut bounded = (&mut self.input).take(LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut self.buffer).map_err(LineError::Io)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.buffer.last() != Some(&b'\n') && self.buffer.len() as u64 >= LINE_BYTES_MAX {
            let text = format!("line of more than {LINE_BYTES_MAX} bytes: expected one request a line");
            return Err(LineError::Bad(self.number, Problem::new(1, text)));
        }
        let line = std::str::from_utf8(&self.buffer).map_err(|error| {
            let text = "not text: expected UTF-8 CSV or JSON lines, or either compressed with gzip";
            LineError::Bad(self.number, Problem::new(error.valid_up_to() + 1, text))
        })?;
        let line = line.trim_end_matches(['\n', '\r']);
        let line = if self.number == 1 {
            line.trim_start_matches('\u{feff}')
        } else {
            line
        };
        Ok(Some((self.number, line)))
    }
}

/// Numbers between separators, as in `1:2:3`; none when there are more or fewer than asked, or one is not a number.
pub(crate) fn split_numbers<const N: usize>(text: &str, separator: char) -> Option<[f64; N]> {
    let mut numbers = [0.0; N];
    let mut parts = text.split(separator);
    for number in &mut numbers {
        *number = parts.next()?.trim().parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests;
