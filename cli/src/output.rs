//! Writes data to stdout in the form that was asked for.

use std::io::{self, Write};

use serde::Serialize;

use crate::args::Format;
use crate::failure::Failure;

/// Writes to stdout; colours go away by themselves where nobody sees them.
pub(crate) struct Printer {
    format: Format,
}

impl Printer {
    pub(crate) fn new(format: Format) -> Self {
        Printer { format }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// One answer: `table` for people, `value` for programs.
    pub(crate) fn answer<T: Serialize>(&self, value: &T, table: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.text(&table()),
            Format::Json => self.text(&json(serde_json::to_string_pretty(value))?),
            Format::Yaml => self.text(&yaml(value)?),
        }
    }

    /// One of a series that goes on: a line for people, a line of JSON, or a YAML document.
    pub(crate) fn item<T: Serialize>(&self, value: &T, line: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.text(&line()),
            Format::Json => self.text(&json(serde_json::to_string(value))?),
            Format::Yaml => self.text(&format!("---\n{}", yaml(value)?)),
        }
    }

    /// `text` as it is, to the byte.
    pub(crate) fn verbatim(&self, text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// `text` as it is, with a line break at its end.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        let mut out = anstream::stdout().lock();
        out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(())
    }
}

fn json(text: serde_json::Result<String>) -> Result<String, Failure> {
    text.map_err(|error| Failure::Output(io::Error::other(error)))
}

fn yaml<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_saphyr::to_string(value).map_err(|error| Failure::Output(io::Error::other(error.to_string())))
}
