//! `inject` and `uninject`: manifests, without a decider.

use std::io::Write;

use infer_inject::{DocumentError, Options, Rewritten, inject_documents, uninject_documents};

use crate::args::{InjectArgs, ManifestArgs};
use crate::credentials::{Authority, WHERE_THE_CA_IS};
use crate::failure::Failure;
use crate::input;
use crate::output::Printer;

pub(crate) fn inject(args: &InjectArgs, authority: Option<&Authority>, printer: &Printer) -> Result<(), Failure> {
    let options = options(args, authority)?;
    let (name, text) = input::read(&args.manifest.file)?;
    answer(&name, inject_documents(&text, &options), printer)?;
    if options.ca_pem.is_none() && options.decider_url.starts_with("https://") {
        let url = &options.decider_url;
        let _ = writeln!(
            anstream::stderr(),
            "inferctl: without --ca-file no agent will trust {url}. {WHERE_THE_CA_IS}"
        );
    }
    Ok(())
}

pub(crate) fn uninject(args: &ManifestArgs, printer: &Printer) -> Result<(), Failure> {
    let (name, text) = input::read(&args.file)?;
    answer(&name, uninject_documents(&text), printer)
}

fn options(args: &InjectArgs, authority: Option<&Authority>) -> Result<Options, Failure> {
    let mut options = Options {
        native_sidecar: !args.fallback,
        ..Options::default()
    };
    if let Some(url) = &args.decider_url {
        // An agent has a token to show, and shows it over TLS only.
        let is_url = url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty());
        if !is_url || url.contains(char::is_whitespace) {
            let usual = options.decider_url;
            return Err(Failure::Usage(format!(
                "--decider-url: {url:?} is no address; expected one like {usual}"
            )));
        }
        options.decider_url.clone_from(url);
    }
    if let Some(authority) = authority {
        // It becomes part of every Pod, for everybody to read.
        if authority.pem().contains("PRIVATE KEY-----") {
            return Err(Failure::Usage(format!(
                "--ca-file: {} holds a private key; give the certificates only",
                authority.source()
            )));
        }
        options.ca_pem = Some(authority.pem().to_owned());
    }
    if let Some(image) = &args.agent_image {
        if image.is_empty() || image.contains(char::is_whitespace) {
            return Err(Failure::Usage(format!("--agent-image: {image:?} is no image")));
        }
        options.agent_image.clone_from(image);
    }
    Ok(options)
}

fn answer(name: &str, result: Result<Rewritten, Vec<DocumentError>>, printer: &Printer) -> Result<(), Failure> {
    let mut messages = anstream::stderr().lock();
    match result {
        Ok(rewritten) => {
            for workload in &rewritten.workloads {
                let at = if workload.path.is_empty() {
                    String::new()
                } else {
                    format!(", {}", workload.path)
                };
                for note in &workload.notes {
                    let (document, object) = (workload.document, &workload.object);
                    let _ = writeln!(messages, "{name}: document {document}, {object}{at}: {note}");
                }
            }
            printer.verbatim(&rewritten.text)
        }
        Err(errors) => {
            for error in errors {
                let _ = writeln!(messages, "{name}: {error}");
            }
            Err(Failure::Told)
        }
    }
}
