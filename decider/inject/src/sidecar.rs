//! The agent's container and its volume.

use serde_json::{Map, Value, json};

use crate::engine::Found;
use crate::pod::View;
use crate::{AGENT_CONTAINER, AGENT_HTTP_PORT, Options, TOKEN_AUDIENCE, TOKEN_DIRECTORY, TOKEN_VOLUME};

/// How long a token lasts; the kubelet renews it after four fifths of that.
const TOKEN_EXPIRATION_S: u32 = 3600;

/// The agent's container for a Pod.
pub(crate) fn container(pod: &View<'_>, found: &Found, image: &str, port: u16, options: &Options) -> Value {
    let mut container = json!({
        "name": AGENT_CONTAINER,
        "image": image,
        "args": ["run"],
        "env": environment(found, port, options),
        "ports": [{"name": AGENT_CONTAINER, "containerPort": port, "protocol": "TCP"}],
        // Not ready while it drains: this is how a Pod that is to go leaves its Services.
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": port},
            "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2,
        },
        // Slow to give up: a restart loses what the agent keeps for a decider that is away.
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": port},
            "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6,
        },
        "securityContext": security(pod, options),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": true}],
    });
    let more = [
        ("imagePullPolicy", options.image_pull_policy.clone().map(Value::from)),
        ("resources", resources(pod)),
        ("restartPolicy", options.native_sidecar.then(|| "Always".into())),
        // An ordinary container is stopped together with the engine: it stays until the engine has finished.
        (
            "lifecycle",
            (!options.native_sidecar).then(|| json!({"preStop": pre_stop(pod, port)})),
        ),
    ];
    if let Value::Object(fields) = &mut container {
        fields.extend(
            more.into_iter()
                .filter_map(|(key, value)| Some((key.to_owned(), value?))),
        );
    }
    container
}

/// A preStop hook that the agent answers when the engine has no request left, or shortly before the grace period ends.
pub(crate) fn pre_stop(pod: &View<'_>, port: u16) -> Value {
    let grace_s = pod.grace_s();
    json!({"httpGet": {"path": format!("/drain?grace_seconds={grace_s}"), "port": port}})
}

/// The volume with the agent's token.
pub(crate) fn token_volume() -> Value {
    json!({
        "name": TOKEN_VOLUME,
        "projected": {"sources": [{"serviceAccountToken": {
            "audience": TOKEN_AUDIENCE,
            "expirationSeconds": TOKEN_EXPIRATION_S,
            "path": "token",
        }}]},
    })
}

fn environment(found: &Found, port: u16, options: &Options) -> Vec<Value> {
    let literal = |name: &str, value: String| json!({"name": name, "value": value});
    let downward = |name: &str, field: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}});
    let mut variables = vec![
        downward("POD_NAME", "metadata.name"),
        downward("POD_NAMESPACE", "metadata.namespace"),
        downward("POD_UID", "metadata.uid"),
    ];
    let host = if found.on_pod_address {
        variables.push(downward("POD_IP", "status.podIP"));
        "$(POD_IP)"
    } else {
        "127.0.0.1"
    };
    let engine_port = found.engine.port;
    variables.extend([
        literal("INFER_AGENT_DECIDER", options.decider_url.clone()),
        literal("INFER_AGENT_ENGINE_URL", format!("http://{host}:{engine_port}")),
        literal("INFER_AGENT_TOKEN_FILE", format!("{TOKEN_DIRECTORY}/token")),
    ]);
    // On its usual port the agent finds out by itself which families of addresses there are.
    let listen = (port != AGENT_HTTP_PORT).then(|| literal("INFER_AGENT_HTTP_LISTEN", format!("[::]:{port}")));
    variables.extend(listen);
    let path = found.engine.metrics_path.clone();
    variables.extend(path.map(|path| literal("INFER_AGENT_METRICS_PATH", path)));
    variables.extend(options.ca_pem.clone().map(|pem| literal("INFER_AGENT_CA_PEM", pem)));
    variables
}

/// What Pod security's `restricted` asks of a container, and a read-only root.
fn security(pod: &View<'_>, options: &Options) -> Value {
    let mut context = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let of_pod = &pod.spec["securityContext"];
    // Root for the whole Pod is the engine's need, not the agent's.
    let is_given = |key: &str| of_pod[key].as_u64().is_some_and(|id| id > 0);
    for key in ["runAsUser", "runAsGroup"] {
        if let Some(id) = options.run_as_user.filter(|_| !is_given(key)) {
            context[key] = id.into();
        }
    }
    context
}

/// Little, and such that the Pod keeps its quality of service: where all of it is guaranteed (engines that have cores of
/// their own need that), so is the agent; where each container has a limit of CPU, as quotas ask, so has the agent.
fn resources(pod: &View<'_>) -> Option<Value> {
    if pod.spec["resources"].as_object().is_some_and(|whole| !whole.is_empty()) {
        // Resources of the whole Pod: whatever a container asked for would be part of that sum and might exceed it.
        return None;
    }
    let mut others = pod.containers.iter().chain(pod.init_containers);
    if others.clone().all(is_guaranteed) {
        let all = json!({"cpu": "50m", "memory": "64Mi"});
        return Some(json!({"limits": all, "requests": all}));
    }
    let mut limits = Map::from_iter([("memory".to_owned(), json!("64Mi"))]);
    if others.all(|container| !container["resources"]["limits"]["cpu"].is_null()) {
        limits.insert("cpu".to_owned(), json!("200m"));
    }
    Some(json!({"limits": limits, "requests": {"cpu": "10m", "memory": "16Mi"}}))
}

/// Limits for CPU and memory, and requests that are the same or not said.
fn is_guaranteed(container: &Value) -> bool {
    let resources = &container["resources"];
    ["cpu", "memory"].into_iter().all(|resource| {
        let (limit, request) = (&resources["limits"][resource], &resources["requests"][resource]);
        !limit.is_null() && (request.is_null() || request == limit)
    })
}
