//! The run's own documents: a template of `deploy/local` with ports nobody has.

use anyhow::Context as _;
use infer_api::{Documents, parse_documents};
use infer_tests::harness::{free_port, free_range};

/// More than the fleet has replicas: one that is replaced takes another port.
const ENGINE_PORTS: u16 = 40;

/// Documents ready to run.
pub(crate) struct Prepared {
    /// As YAML.
    pub(crate) yaml: String,
    /// The one fleet's name.
    pub(crate) target: String,
    /// What it serves.
    pub(crate) model: String,
    /// Its front door.
    pub(crate) url: String,
    /// Replicas at the start.
    pub(crate) initial: u32,
    /// The policy's load per replica.
    pub(crate) per_replica: f64,
}

/// Reads a template, lets `edit` change it, and moves it to free ports.
pub(crate) fn prepare(file: &str, template: &str, edit: impl FnOnce(&mut Documents)) -> anyhow::Result<Prepared> {
    let mut documents = parse_documents(template, file).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
    edit(&mut documents);
    let fleet = documents
        .fleets
        .first_mut()
        .with_context(|| format!("{file} has no LocalFleet"))?;
    let door = fleet
        .spec
        .front_door
        .as_mut()
        .with_context(|| format!("the fleet of {file} has no frontDoor"))?;
    let door_port = free_port()?;
    door.listen = format!("127.0.0.1:{door_port}");
    let first = free_range(ENGINE_PORTS)?;
    fleet.spec.engine.ports.from = i32::from(first);
    fleet.spec.engine.ports.to = i32::from(first + ENGINE_PORTS - 1);
    let (target, model) = (fleet.metadata.name.clone(), fleet.spec.model.clone());
    let initial = fleet.spec.initial_replicas();
    let policy = documents
        .policies
        .first()
        .with_context(|| format!("{file} has no AutoscalingPolicy"))?;
    let per_replica = policy.spec.metrics.first().map_or(1.0, |metric| metric.target);
    let mut yaml = Vec::new();
    for policy in &documents.policies {
        yaml.push(serde_saphyr::to_string(policy)?);
    }
    for binding in &documents.bindings {
        yaml.push(serde_saphyr::to_string(binding)?);
    }
    for fleet in &documents.fleets {
        yaml.push(serde_saphyr::to_string(fleet)?);
    }
    let yaml = yaml.join("\n---\n");
    Ok(Prepared {
        yaml,
        target,
        model,
        url: format!("http://127.0.0.1:{door_port}"),
        initial,
        per_replica,
    })
}
