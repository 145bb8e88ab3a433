//! The demo: a real decider, a fleet, load, and claims that are checked against what happened.

mod claims;
mod closing;
mod display;
mod fleet;
mod plot;
mod recording;
mod report;
mod sim;
mod stage;
mod vllm;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;

pub(crate) use sim::run as run_sim;
pub(crate) use vllm::run as run_vllm;

use closing::Ended;

/// How the outcome is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs: one object on stdout.
    Json,
}

/// What both demos are told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// Directory for the run's documents, state, logs and report [default: .run/demo-… in the repository]
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// How the outcome is told
    #[arg(long, short, value_enum, default_value = "text")]
    pub(crate) output: Format,
}

impl Common {
    /// The run's directory. It must be a new one: two runs in one directory would take each other's engines over.
    pub(crate) fn directory(&self, kind: &str) -> anyhow::Result<PathBuf> {
        let directory = match &self.run_dir {
            Some(directory) => directory.clone(),
            None => {
                let seconds = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |since| since.as_secs());
                repository()?
                    .join(".run")
                    .join(format!("{kind}-{seconds}-{}", std::process::id()))
            }
        };
        std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let taken = std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some());
        anyhow::ensure!(
            !taken,
            "{} is not empty: give --run-dir a new directory",
            directory.display()
        );
        directory
            .canonicalize()
            .with_context(|| format!("finding {}", directory.display()))
    }
}

/// The nearest directory above that looks like the repository's root, or else the present one.
fn repository() -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir().context("finding the present directory")?;
    let root = here
        .ancestors()
        .find(|directory| directory.join("Cargo.lock").is_file());
    Ok(root.map_or_else(|| here.clone(), Path::to_path_buf))
}

/// Writes the report and tells the outcome. True when every claim held.
pub(crate) fn tell(ended: &Ended, format: Format) -> anyhow::Result<bool> {
    let path = ended.directory.join("report.html");
    std::fs::write(&path, report::html(ended)).with_context(|| format!("writing {}", path.display()))?;
    let held = ended.claims.iter().all(|claim| claim.held);
    let text = match format {
        Format::Text => ended.text(&path),
        Format::Json => format!("{:#}\n", ended.json(&path)),
    };
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("writing to stdout")?;
    Ok(held)
}
