//! What a schema cannot say: one field against another, one document against another.

use std::net::SocketAddr;

use crate::API_VERSION;
use crate::binding::{AutoscalingPolicyBinding, BindingDrain, ForeignChanges, Scaling};
use crate::check::nearest;
use crate::consistency::{self, FieldMistake, LOCAL_KIND};
use crate::documents::{Found, Loaded, Origin, Purpose};
use crate::fleet::LocalFleet;
use crate::placeholder::{PLACEHOLDERS, placeholders_in};
use crate::policy::PolicySpec;

/// Checks every document of `loaded` and reports there what is wrong.
pub(crate) fn validate(loaded: &mut Loaded, purpose: Purpose) {
    duplicates(loaded);
    for policy in loaded.policies.clone() {
        check_policy(loaded, &policy.origin, "spec", &policy.value.spec);
    }
    let fleets = loaded.fleets.clone();
    for (index, fleet) in fleets.iter().enumerate() {
        check_fleet(loaded, fleet);
        for other in &fleets[..index] {
            check_apart(loaded, fleet, other);
        }
    }
    let bindings = loaded.bindings.clone();
    for (index, binding) in bindings.iter().enumerate() {
        check_binding(loaded, binding, purpose);
        match purpose {
            Purpose::LocalFleets => check_local(loaded, binding),
            Purpose::Cluster => {
                let mistakes = consistency::of_binding_in_cluster(&binding.value.spec);
                report_all(loaded, &binding.origin, mistakes);
            }
            Purpose::Policies => {}
        }
        check_owner(loaded, binding, &bindings[..index]);
    }
}

fn duplicates(loaded: &mut Loaded) {
    for (index, origin) in loaded.origins.clone().iter().enumerate() {
        let Some(name) = &origin.name else { continue };
        let key = |other: &Origin| (other.kind, other.name.clone(), other.namespace.clone());
        let same = |other: &&Origin| key(other) == key(origin);
        if let Some(first) = loaded.origins[..index].iter().find(same) {
            let line = first.root.locate("metadata.name").line;
            let place = if first.file == origin.file {
                ""
            } else {
                " of another file"
            };
            let problem = format!(
                "a second {} named {name:?}; the first is in line {line}{place}",
                origin.kind
            );
            loaded.report(origin, "metadata.name", problem, "give each its own name".to_owned());
        }
    }
}

fn check_policy(loaded: &mut Loaded, origin: &Origin, at: &str, policy: &PolicySpec) {
    report_all(loaded, origin, consistency::of_policy(at, policy));
}

fn report_all(loaded: &mut Loaded, origin: &Origin, mistakes: impl IntoIterator<Item = FieldMistake>) {
    for mistake in mistakes {
        loaded.report(origin, &mistake.field, mistake.problem, mistake.allowed);
    }
}

fn check_fleet(loaded: &mut Loaded, fleet: &Found<LocalFleet>) {
    let (origin, spec) = (&fleet.origin, &fleet.value.spec);
    let engine = &spec.engine;
    check_texts(loaded, origin, "spec.engine", Some(&engine.command), &engine.env);
    check_texts(
        loaded,
        origin,
        "spec.agent",
        spec.agent.command.as_ref(),
        &spec.agent.env,
    );
    let has_port = |text: &String| placeholders_in(text).any(|(_, name)| name == "port");
    if !engine.command.iter().any(has_port) && !engine.env.values().any(has_port) {
        let problem =
            "{port} occurs neither here nor in env, so every replica would listen on the same port".to_owned();
        let allowed = "pass it to the engine, for example \"--port\", \"{port}\"".to_owned();
        loaded.report(origin, "spec.engine.command", problem, allowed);
    }
    let ports = engine.ports;
    if ports.is_empty() {
        let problem = format!("{} is less than from, {}", ports.to, ports.from);
        loaded.report(
            origin,
            "spec.engine.ports.to",
            problem,
            format!("allowed: {} to 65535", ports.from),
        );
    }
    if let Some(door) = &spec.front_door {
        match door.listen.parse::<SocketAddr>() {
            Err(_) => {
                let problem = format!("{:?} is not an address and a port", door.listen);
                let allowed = "for example 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080".to_owned();
                loaded.report(origin, "spec.frontDoor.listen", problem, allowed);
            }
            Ok(address) => {
                let port = i32::from(address.port());
                if (ports.from..=ports.to).contains(&port) {
                    let problem = format!("port {port} is one of the replicas' ports");
                    let allowed = format!("allowed: a port outside {} to {}", ports.from, ports.to);
                    loaded.report(origin, "spec.frontDoor.listen", problem, allowed);
                }
            }
        }
    }
    let agent = &spec.agent;
    if agent.fast_interval_milliseconds > agent.interval_milliseconds {
        let problem = format!(
            "{} is more than intervalMilliseconds, {}",
            agent.fast_interval_milliseconds, agent.interval_milliseconds
        );
        let allowed = format!("allowed: 0 to {}", agent.interval_milliseconds);
        loaded.report(origin, "spec.agent.fastIntervalMilliseconds", problem, allowed);
    }
    if spec.startup_probe.interval() > spec.startup_probe.timeout() {
        let problem = format!(
            "{} is more than timeoutSeconds, {}",
            spec.startup_probe.interval_milliseconds, spec.startup_probe.timeout_seconds
        );
        loaded.report(
            origin,
            "spec.startupProbe.intervalMilliseconds",
            problem,
            "ask before giving up".to_owned(),
        );
    }
    if spec.restart.initial_backoff() > spec.restart.max_backoff() {
        let problem = format!(
            "{} is more than maxBackoffSeconds, {}",
            spec.restart.initial_backoff_milliseconds, spec.restart.max_backoff_seconds
        );
        let allowed = format!("allowed: 1 to {}", i64::from(spec.restart.max_backoff_seconds) * 1000);
        loaded.report(origin, "spec.restart.initialBackoffMilliseconds", problem, allowed);
    }
}

/// Placeholders and names in a command and an environment.
fn check_texts(
    loaded: &mut Loaded,
    origin: &Origin,
    at: &str,
    command: Option<&Vec<String>>,
    env: &std::collections::BTreeMap<String, String>,
) {
    for (index, text) in command.into_iter().flatten().enumerate() {
        check_placeholders(loaded, origin, &format!("{at}.command[{index}]"), text);
    }
    for (name, value) in env {
        check_placeholders(loaded, origin, &format!("{at}.env.{name}"), value);
        if name.is_empty() || name.contains(['=', '\0']) {
            let problem = format!("{name:?} cannot be the name of an environment variable");
            loaded.report(
                origin,
                &format!("{at}.env"),
                problem,
                "allowed: a name without '='".to_owned(),
            );
        }
    }
}

fn check_placeholders(loaded: &mut Loaded, origin: &Origin, at: &str, text: &str) {
    let all = PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(", ");
    for (_, name) in placeholders_in(text).filter(|(_, name)| !PLACEHOLDERS.contains(name)) {
        let problem = format!("{{{name}}} is not a known placeholder");
        let allowed = match nearest(name, PLACEHOLDERS.into_iter()) {
            Some(meant) => format!("did you mean {{{meant}}}? Allowed: {all}"),
            None => format!("allowed: {all}"),
        };
        loaded.report(origin, at, problem, allowed);
    }
}

/// Two fleets on one machine must not want the same port.
fn check_apart(loaded: &mut Loaded, fleet: &Found<LocalFleet>, other: &Found<LocalFleet>) {
    let (mine, theirs) = (fleet.value.spec.engine.ports, other.value.spec.engine.ports);
    let name = &other.value.metadata.name;
    if !mine.is_empty() && !theirs.is_empty() && mine.from <= theirs.to && theirs.from <= mine.to {
        let problem = format!(
            "overlaps the ports of LocalFleet {name}, {} to {}",
            theirs.from, theirs.to
        );
        loaded.report(
            &fleet.origin,
            "spec.engine.ports",
            problem,
            "give each fleet its own ports".to_owned(),
        );
    }
    let (Some(door), Some(other_door)) = (&fleet.value.spec.front_door, &other.value.spec.front_door) else {
        return;
    };
    if door.listen == other_door.listen {
        let problem = format!("{} is the front door of LocalFleet {name}, too", door.listen);
        loaded.report(
            &fleet.origin,
            "spec.frontDoor.listen",
            problem,
            "give each fleet its own address".to_owned(),
        );
    }
}

fn check_binding(loaded: &mut Loaded, binding: &Found<AutoscalingPolicyBinding>, purpose: Purpose) {
    let (origin, spec) = (&binding.origin, &binding.value.spec);
    report_all(loaded, origin, consistency::of_binding(spec));
    for bound in spec.bounds() {
        if let (Some(name), None) = (bound.policy_ref, bound.policy) {
            let field = format!("{}.policyRef.name", bound.at);
            let namespace = &binding.value.metadata.namespace;
            let policy = loaded.policies.iter().find(|policy| {
                let metadata = &policy.value.metadata;
                metadata.name == name && metadata.namespace == *namespace
            });
            if let Some(policy) = policy {
                let whose = format!(" of AutoscalingPolicy {name}");
                let mistake = consistency::of_activation(&field, &whose, &policy.value.spec, bound.bounds.max);
                report_all(loaded, origin, mistake);
            } else if purpose != Purpose::Cluster {
                check_exists(loaded, origin, &field, "AutoscalingPolicy", name);
            }
        }
    }
}

/// On this machine a target is a fleet among the documents.
fn check_local(loaded: &mut Loaded, binding: &Found<AutoscalingPolicyBinding>) {
    let (origin, spec) = (&binding.origin, &binding.value.spec);
    for (form, is_given) in [("optimize", spec.optimize.is_some()), ("roles", spec.roles.is_some())] {
        if is_given {
            let problem = "is not supported on one machine yet".to_owned();
            let allowed = "allowed: scaling, with a binding for each LocalFleet".to_owned();
            loaded.report(origin, &format!("spec.{form}"), problem, allowed);
        }
    }
    let foreign = spec.foreign_changes != ForeignChanges::default();
    let drain = spec.drain != BindingDrain::default();
    for (field, is_given, allowed) in [
        (
            "metadata.namespace",
            binding.value.metadata.namespace.is_some(),
            "leave it out",
        ),
        (
            "spec.demand",
            spec.demand.is_some(),
            "give the LocalFleet spec.frontDoor",
        ),
        ("spec.drain", drain, "give the LocalFleet spec.drain"),
        (
            "spec.foreignChanges",
            foreign,
            "leave it out: nobody else changes a LocalFleet",
        ),
    ] {
        if is_given {
            let problem = "has no meaning on one machine".to_owned();
            loaded.report(origin, field, problem, allowed.to_owned());
        }
    }
    let Some(scaling) = &spec.scaling else { return };
    let target = &scaling.target_ref;
    if target.kind != LOCAL_KIND {
        let problem = format!("{:?} is not known", target.kind);
        let allowed = match nearest(&target.kind, std::iter::once(LOCAL_KIND)) {
            Some(meant) => format!("did you mean {meant}? Allowed: {LOCAL_KIND}"),
            None => format!("allowed: {LOCAL_KIND}"),
        };
        loaded.report(origin, "spec.scaling.targetRef.kind", problem, allowed);
        return;
    }
    if let Some(version) = target.api_version.as_ref().filter(|version| *version != API_VERSION) {
        let problem = format!("{version:?} is not known");
        loaded.report(
            origin,
            "spec.scaling.targetRef.apiVersion",
            problem,
            format!("allowed: {API_VERSION}"),
        );
    }
    if target.replicas_path.is_some() {
        let problem = "has no meaning for a LocalFleet".to_owned();
        let at = "spec.scaling.targetRef.replicasPath";
        loaded.report(origin, at, problem, "leave it out".to_owned());
    }
    let fleets = loaded.fleets.iter();
    match fleets
        .clone()
        .find(|fleet| fleet.value.metadata.name == target.name)
        .cloned()
    {
        Some(fleet) => check_target(loaded, binding, scaling, &fleet),
        None => check_exists(loaded, origin, "spec.scaling.targetRef.name", LOCAL_KIND, &target.name),
    }
}

/// The limits of a binding against its fleet.
fn check_target(
    loaded: &mut Loaded,
    binding: &Found<AutoscalingPolicyBinding>,
    scaling: &Scaling,
    fleet: &Found<LocalFleet>,
) {
    let origin = &binding.origin;
    let spec = &fleet.value.spec;
    let name = &fleet.value.metadata.name;
    let ports = spec.engine.ports;
    if !ports.is_empty() && ports.len() < scaling.bounds().max {
        let problem = format!(
            "{} replicas need as many ports; LocalFleet {name} has {}",
            scaling.max_replicas,
            ports.len()
        );
        let allowed = format!(
            "widen spec.engine.ports ({} to {}) there, or lower this",
            ports.from, ports.to
        );
        loaded.report(origin, "spec.scaling.maxReplicas", problem, allowed);
    }
    if scaling.min_replicas == 0 && spec.front_door.is_none() {
        let problem = format!(
            "scaling to zero needs a front door, and LocalFleet {name} has none: nothing would notice the request that has to wake it"
        );
        let allowed = "allowed: at least 1, or give the fleet spec.frontDoor".to_owned();
        loaded.report(origin, "spec.scaling.minReplicas", problem, allowed);
    }
    if spec.initial_replicas > scaling.max_replicas {
        let problem = format!(
            "{} is more than maxReplicas, {}, of AutoscalingPolicyBinding {}",
            spec.initial_replicas, scaling.max_replicas, binding.value.metadata.name
        );
        let allowed = format!("allowed: 0 to {}", scaling.max_replicas);
        loaded.report(&fleet.origin, "spec.initialReplicas", problem, allowed);
    }
}

/// A reference to a document that could not be read is no mistake of its own.
fn check_exists(loaded: &mut Loaded, origin: &Origin, at: &str, kind: &str, name: &str) {
    let names: Vec<String> = loaded
        .origins
        .iter()
        .filter(|other| other.kind == kind)
        .filter_map(|other| other.name.clone())
        .collect();
    if names.iter().any(|known| known == name) {
        return;
    }
    let allowed = match nearest(name, names.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean {meant}? Known: {}", names.join(", ")),
        None if names.is_empty() => format!("no {kind} is among these documents"),
        None => format!("known: {}", names.join(", ")),
    };
    loaded.report(origin, at, format!("there is no {kind} named {name:?}"), allowed);
}

/// A target has one owner.
fn check_owner(
    loaded: &mut Loaded,
    binding: &Found<AutoscalingPolicyBinding>,
    earlier: &[Found<AutoscalingPolicyBinding>],
) {
    for (at, target) in binding.value.spec.target_refs() {
        for other in earlier
            .iter()
            .filter(|other| other.value.metadata.namespace == binding.value.metadata.namespace)
        {
            let theirs = other.value.spec.target_refs();
            let Some((place, _)) = theirs.into_iter().find(|(_, theirs)| theirs.is_same(target)) else {
                continue;
            };
            let (mine, owner) = (&binding.value.metadata.name, &other.value.metadata.name);
            let problem = format!(
                "{} {} is scaled by two bindings, {owner} and {mine}; the other stands in line {}",
                target.kind,
                target.name,
                other.origin.root.locate(&place).line
            );
            loaded.report(&binding.origin, &at, problem, "a target has one binding".to_owned());
            break;
        }
    }
}
