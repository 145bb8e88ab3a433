//! What is wrong with a document, and where.

use std::fmt::{self, Write as _};

/// One mistake in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Name of the file as it was given.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Kind and name of the document as far as they are known, such as `LocalFleet chat`.
    pub document: Option<String>,
    /// Path of the field, such as `spec.metrics[0].target`; empty for the document as a whole.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right, where that can be said.
    pub allowed: Option<String>,
}

impl fmt::Display for Mistake {
    /// One line, and nothing in it that a terminal would obey, whatever the document contains.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        self.write_raw(&mut line)?;
        for c in line.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?
            } else {
                f.write_char(c)?
            }
        }
        Ok(())
    }
}

impl Mistake {
    fn write_raw(&self, f: &mut String) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if let Some(document) = &self.document {
            write!(f, "{document}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.problem)?;
        match &self.allowed {
            Some(allowed) => write!(f, "; {allowed}"),
            None => Ok(()),
        }
    }
}

/// Every mistake found, in the order of files and lines; never empty. Displays one mistake per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    mistakes: Vec<Mistake>,
}

impl Errors {
    pub(crate) fn new(mistakes: Vec<Mistake>) -> Self {
        Errors { mistakes }
    }

    /// The mistakes.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
