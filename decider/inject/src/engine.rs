//! Which container is the engine, and where it serves its metrics.

use serde_json::Value;

use crate::command::CommandLine;
use crate::pod::View;
use crate::{ENGINE_CONTAINER, ENGINE_PORT, Error, METRICS_PATH};

/// Kinds of engines that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// vLLM, also on Ascend NPUs.
    Vllm,
    /// SGLang.
    Sglang,
    /// Nothing in the container tells.
    Other,
}

impl EngineKind {
    /// The port an engine of this kind listens on when nothing is said.
    fn default_port(self) -> u16 {
        match self {
            EngineKind::Vllm | EngineKind::Other => 8000,
            EngineKind::Sglang => 30_000,
        }
    }

    fn words(self) -> &'static str {
        match self {
            EngineKind::Vllm => "vLLM",
            EngineKind::Sglang => "SGLang",
            EngineKind::Other => "the engine",
        }
    }
}

/// The engine of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Name of its container.
    pub container: String,
    /// What it is.
    pub kind: EngineKind,
    /// Where it serves its metrics.
    pub port: u16,
    /// Path of its metrics. None: as the agent knows it.
    pub metrics_path: Option<String>,
}

/// The engine as injection needs it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) engine: Engine,
    /// Index in `spec.containers`.
    pub(crate) index: usize,
    /// True if it listens on the Pod's address only, not on loopback.
    pub(crate) on_pod_address: bool,
    /// What people should know.
    pub(crate) notes: Vec<String>,
}

/// What looking for the engine came to.
pub(crate) enum Search {
    Found(Box<Found>),
    /// This Pod serves nothing by itself: why.
    Worker(String),
}

pub(crate) fn find(pod: &View<'_>) -> Result<Search, Error> {
    let lines: Vec<CommandLine> = pod.containers.iter().map(CommandLine::of).collect();
    let (index, mut notes) = choose(pod, &lines)?;
    let (container, line) = (&pod.containers[index], &lines[index]);
    let name = pod.names()[index].to_owned();
    if line.has("--headless") {
        return Ok(Search::Worker(format!("container {name} runs with --headless")));
    }
    let rank = line
        .value("--node-rank")
        .and_then(|written| line.resolve(written, container));
    if let Some(rank) = rank.and_then(|rank| rank.parse::<u32>().ok()).filter(|rank| *rank > 0) {
        return Ok(Search::Worker(format!("container {name} runs with --node-rank {rank}")));
    }
    let kind = line
        .engine()
        .or_else(|| kind_of_image(container))
        .unwrap_or(EngineKind::Other);
    let port = port(pod, container, line, kind)?;
    let metrics_path = pod.annotation(METRICS_PATH)?;
    if let Some(path) = metrics_path.filter(|path| !path.starts_with('/') || path.contains(char::is_whitespace)) {
        return Err(Error::Annotation {
            annotation: METRICS_PATH,
            value: path.to_owned(),
            expected: "a path that begins with /, such as /metrics",
        });
    }
    let host = line
        .value("--host")
        .and_then(|written| line.resolve(written, container));
    let on_pod_address = match (&host, line.value("--host")) {
        (Some(host), _) => !matches!(
            host.as_str(),
            "" | "0.0.0.0" | "::" | "[::]" | "*" | "localhost" | "127.0.0.1"
        ),
        // A variable that only the running container knows: the Pod's address, by the downward API.
        (None, written) => written.is_some(),
    };
    notes.extend(remarks(line, kind, &name));
    Ok(Search::Found(Box::new(Found {
        engine: Engine {
            container: name,
            kind,
            port,
            metrics_path: metrics_path.map(str::to_owned),
        },
        index,
        on_pod_address,
        notes,
    })))
}

/// Index of the engine's container: as the annotation says, else the one that starts an engine, else the one with an
/// engine's image, else the only one.
fn choose(pod: &View<'_>, lines: &[CommandLine]) -> Result<(usize, Vec<String>), Error> {
    let names = pod.names();
    let all = || names.iter().map(|name| (*name).to_owned()).collect();
    if let Some(named) = pod.annotation(ENGINE_CONTAINER)? {
        let index = names.iter().position(|name| *name == named);
        return index
            .map(|index| (index, Vec::new()))
            .ok_or_else(|| Error::UnknownContainer {
                named: named.to_owned(),
                containers: all(),
            });
    }
    let by_command = |index: &usize| lines[*index].engine().is_some();
    let by_image = |index: &usize| kind_of_image(&pod.containers[*index]).is_some() && !lines[*index].is_ray_only();
    let tests: [&dyn Fn(&usize) -> bool; 2] = [&by_command, &by_image];
    for test in tests {
        let those: Vec<usize> = (0..names.len()).filter(|index| test(index)).collect();
        match those[..] {
            [] => {}
            [index] => return Ok((index, Vec::new())),
            _ => {
                let containers = those.iter().map(|index| names[*index].to_owned()).collect();
                return Err(Error::SeveralEngines { containers });
            }
        }
    }
    match names[..] {
        [name] => {
            let note = format!("container {name} does not look like vLLM or SGLang; taken because it is the only one");
            Ok((0, vec![note]))
        }
        _ => Err(Error::NoEngine { containers: all() }),
    }
}

/// The engine an image is named after, tag and digest apart. What only belongs to an engine does not count.
fn kind_of_image(container: &Value) -> Option<EngineKind> {
    const COMPANIONS: [&str; 10] = [
        "router",
        "exporter",
        "gateway",
        "proxy",
        "bench",
        "operator",
        "controller",
        "download",
        "sidecar",
        "dashboard",
    ];
    let image = container["image"].as_str()?.to_ascii_lowercase();
    let image = image.split('@').next().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    let name = name.split(':').next().unwrap_or_default();
    if COMPANIONS.iter().any(|companion| name.contains(companion)) {
        return None;
    }
    let has = |part: &str| name.contains(part);
    match () {
        () if has("sglang") => Some(EngineKind::Sglang),
        () if has("vllm") => Some(EngineKind::Vllm),
        () => None,
    }
}

fn port(pod: &View<'_>, container: &Value, line: &CommandLine, kind: EngineKind) -> Result<u16, Error> {
    if let Some(written) = pod.annotation(ENGINE_PORT)? {
        let port = written.parse().ok().filter(|port| *port > 0);
        return port.ok_or_else(|| Error::Annotation {
            annotation: ENGINE_PORT,
            value: written.to_owned(),
            expected: "a port number from 1 to 65535",
        });
    }
    let written = line.value("--port");
    let resolved = written.and_then(|written| line.resolve(written, container));
    let resolved = resolved.and_then(|port| port.parse().ok()).filter(|port| *port > 0);
    match (resolved.or_else(|| declared_port(container)), written) {
        (Some(port), _) => Ok(port),
        (None, None) => Ok(kind.default_port()),
        (None, Some(written)) => Err(Error::UnknownPort {
            container: container["name"].as_str().unwrap_or_default().to_owned(),
            written: written.to_owned(),
        }),
    }
}

/// The declared TCP port whose name speaks of metrics or HTTP, or else the only one.
fn declared_port(container: &Value) -> Option<u16> {
    const NAMES: [&str; 9] = [
        "metrics",
        "http-metrics",
        "http",
        "api",
        "http-api",
        "openai",
        "serving",
        "vllm",
        "sglang",
    ];
    let ports = container["ports"].as_array()?;
    let tcp: Vec<(&str, u16)> = ports
        .iter()
        .filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP"))
        .filter_map(|port| {
            let number = port["containerPort"]
                .as_u64()
                .and_then(|number| u16::try_from(number).ok())?;
            Some((port["name"].as_str().unwrap_or_default(), number))
        })
        .collect();
    let named = |wanted: &str| tcp.iter().find(|(name, _)| *name == wanted).copied();
    let by_name = NAMES.into_iter().find_map(named);
    let by_prefix = || tcp.iter().find(|(name, _)| name.starts_with("http")).copied();
    let only = || match tcp[..] {
        [port] => Some(port),
        _ => None,
    };
    by_name.or_else(by_prefix).or_else(only).map(|(_, number)| number)
}

/// Settings of the engine that leave the agent without metrics.
fn remarks(line: &CommandLine, kind: EngineKind, container: &str) -> Vec<String> {
    let engine = kind.words();
    let mut remarks = Vec::new();
    if line.engine() == Some(EngineKind::Sglang) && !line.has("--enable-metrics") {
        remarks.push(format!(
            "container {container}: SGLang serves no metrics without --enable-metrics"
        ));
    }
    if line.has("--disable-log-stats") {
        remarks.push(format!(
            "container {container}: with --disable-log-stats {engine} measures nothing"
        ));
    }
    if line.value("--ssl-certfile").is_some() || line.value("--ssl-keyfile").is_some() {
        remarks.push(format!(
            "container {container}: {engine} serves HTTPS, and the agent reads metrics by plain HTTP"
        ));
    }
    remarks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn images_tell_their_engine() {
        let kind = |image: &str| kind_of_image(&json!({"image": image}));
        for image in [
            "vllm/vllm-openai",
            "vllm/vllm-openai:v0.32.0",
            "localhost:5000/mirror/vllm-openai@sha256:0123",
            "quay.io/ascend/vllm-ascend:v0.13.0rc1",
            "rocm/vllm:latest",
            "lmcache/vllm-openai",
        ] {
            assert_eq!(kind(image), Some(EngineKind::Vllm), "{image}");
        }
        for image in ["lmsysorg/sglang:v0.5.23", "swr.example.com/ascend/sglang-npu:1"] {
            assert_eq!(kind(image), Some(EngineKind::Sglang), "{image}");
        }
        for image in [
            "vllm/vllm-router:1",
            "busybox:vllm",
            "vllm/semantic",
            "vllm-metrics-exporter",
            "",
        ] {
            assert_eq!(kind(image), None, "{image}");
        }
    }

    #[test]
    fn declared_ports_go_by_name_then_by_being_alone() {
        let port = |ports: Value| declared_port(&json!({ "ports": ports }));
        let named = |name: &str, number: u16| json!({"name": name, "containerPort": number});
        assert_eq!(port(json!([named("http", 1), named("metrics", 2)])), Some(2));
        assert_eq!(port(json!([named("grpc", 1), named("http-chat", 2)])), Some(2));
        assert_eq!(port(json!([{"containerPort": 3}])), Some(3));
        assert_eq!(port(json!([named("a", 1), named("b", 2)])), None);
        assert_eq!(port(json!([{"containerPort": 3, "protocol": "UDP"}])), None);
        assert_eq!(port(json!([])), None);
    }
}
