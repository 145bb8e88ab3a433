//! `policy check`: documents, without a decider.

use std::io::Write;

use infer_api::{Documents, Errors, Purpose, parse_sources_for};
use serde::Serialize;

use crate::args::{Format, PolicyCommand};
use crate::failure::Failure;
use crate::input;
use crate::output::Printer;
use crate::render;

/// What `policy check` answers.
#[derive(Debug, Serialize)]
pub(crate) struct CheckView {
    pub(crate) valid: bool,
    /// Checked as an API server would, and not to run fleets on this machine.
    pub(crate) cluster: bool,
    pub(crate) policies: Vec<String>,
    pub(crate) bindings: Vec<String>,
    pub(crate) fleets: Vec<String>,
    pub(crate) targets: Vec<CheckedTarget>,
    pub(crate) mistakes: Vec<MistakeView>,
}

/// A target, and who scales it how far.
#[derive(Debug, Serialize)]
pub(crate) struct CheckedTarget {
    pub(crate) name: String,
    pub(crate) binding: String,
    pub(crate) policy: String,
    pub(crate) mode: String,
    pub(crate) min: u32,
    pub(crate) max: u32,
}

/// A mistake in a document.
#[derive(Debug, Serialize)]
pub(crate) struct MistakeView {
    pub(crate) file: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) document: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) field: String,
    pub(crate) problem: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allowed: Option<String>,
}

pub(crate) fn run(command: &PolicyCommand, printer: &Printer) -> Result<(), Failure> {
    let PolicyCommand::Check { files } = command;
    let mut texts = Vec::with_capacity(files.len());
    for file in files {
        texts.push(input::read(file)?);
    }
    let sources = || texts.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let purpose = Purpose::guess(sources());
    match parse_sources_for(purpose, sources()) {
        Ok(documents) if documents.is_empty() => {
            let names: Vec<&str> = texts.iter().map(|(name, _)| name.as_str()).collect();
            let kinds = infer_api::KINDS.join(", ");
            Err(Failure::Usage(format!(
                "there is no document in {}; expected: {kinds}",
                names.join(", ")
            )))
        }
        Ok(documents) => {
            let view = right(&documents, purpose);
            printer.answer(&view, || render::check(&view))
        }
        Err(errors) => {
            if printer.format() == Format::Table {
                let _ = writeln!(anstream::stderr(), "{errors}");
            } else {
                printer.answer(&wrong(&errors, purpose), String::new)?;
            }
            Err(Failure::Told)
        }
    }
}

fn right(documents: &Documents, purpose: Purpose) -> CheckView {
    CheckView {
        valid: true,
        cluster: purpose == Purpose::Cluster,
        policies: documents
            .policies
            .iter()
            .map(|policy| policy.metadata.name.clone())
            .collect(),
        bindings: documents
            .bindings
            .iter()
            .map(|binding| binding.metadata.name.clone())
            .collect(),
        fleets: documents
            .fleets
            .iter()
            .map(|fleet| fleet.metadata.name.clone())
            .collect(),
        targets: documents
            .bound_targets()
            .into_iter()
            .map(|target| CheckedTarget {
                name: target.name.to_owned(),
                binding: target.binding.metadata.name.clone(),
                policy: target.policy_name.to_owned(),
                mode: format!("{:?}", target.mode).to_lowercase(),
                min: target.bounds.min,
                max: target.bounds.max,
            })
            .collect(),
        mistakes: Vec::new(),
    }
}

fn wrong(errors: &Errors, purpose: Purpose) -> CheckView {
    let mistakes = errors.mistakes().iter().cloned().map(|mistake| MistakeView {
        file: mistake.file,
        line: mistake.line,
        column: mistake.column,
        document: mistake.document,
        field: mistake.field,
        problem: mistake.problem,
        allowed: mistake.allowed,
    });
    CheckView {
        valid: false,
        cluster: purpose == Purpose::Cluster,
        policies: Vec::new(),
        bindings: Vec::new(),
        fleets: Vec::new(),
        targets: Vec::new(),
        mistakes: mistakes.collect(),
    }
}
