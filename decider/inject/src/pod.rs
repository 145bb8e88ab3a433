//! One Pod, or the template of one.

use serde_json::{Map, Value, json};

use crate::engine::{self, Engine, EngineKind, Search};
use crate::{
    AGENT_CONTAINER, AGENT_HTTP_PORT, AGENT_IMAGE, AGENT_PORT, ENGINE_CONTAINER, ENGINE_PORT, Error, INJECT_LABEL,
    INJECTED, INJECTION, INJECTION_VERSION, Options, TOKEN_VOLUME, sidecar,
};

/// What was done to a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected {
    /// False: the Pod is as it was, and the notes say why.
    pub changed: bool,
    /// The engine the agent reports on. None without an agent.
    pub engine: Option<Engine>,
    /// What people should know, a sentence each.
    pub notes: Vec<String>,
}

impl Injected {
    fn unchanged(note: impl Into<String>) -> Self {
        Self {
            changed: false,
            engine: None,
            notes: vec![note.into()],
        }
    }
}

/// Puts the agent into a Pod (or a Pod template: anything with `metadata` and `spec.containers`). A Pod that has it
/// already is left alone, as is one that serves nothing: the worker of a replica of several Pods, a mirror of a static Pod,
/// a Pod that runs to its end without looking like an engine.
///
/// # Errors
/// What keeps the agent out; the Pod is then as it was.
pub fn inject(pod: &mut Value, options: &Options) -> Result<Injected, Error> {
    let view = View::new(pod)?;
    if is_injected(pod) {
        let record = view.record();
        let engine = record["container"].as_str().map(|container| Engine {
            container: container.to_owned(),
            kind: serde_json::from_value(record["engine"].clone()).unwrap_or(EngineKind::Other),
            port: record["port"]
                .as_u64()
                .and_then(|port| u16::try_from(port).ok())
                .unwrap_or_default(),
            metrics_path: view.annotation(crate::METRICS_PATH).ok().flatten().map(str::to_owned),
        });
        return Ok(Injected {
            engine,
            ..Injected::unchanged("has its agent already")
        });
    }
    if let Some(reason) = view.serves_nothing() {
        return Ok(Injected::unchanged(reason));
    }
    view.check_names()?;
    let found = match engine::find(&view)? {
        Search::Found(found) => found,
        Search::Worker(why) => return Ok(Injected::unchanged(format!("left alone: {why}; its leader serves"))),
    };
    if let Some(policy) = view.ends_by_itself() {
        if found.engine.kind == EngineKind::Other && !view.asks_for_itself() {
            return Ok(Injected::unchanged(format!(
                "left alone: restartPolicy is {policy} and nothing looks like an engine; label the Pod {INJECT_LABEL}: enabled if it is one"
            )));
        }
        if !options.native_sidecar {
            return Err(Error::WouldNotEnd {
                restart_policy: policy.to_owned(),
            });
        }
    }
    let port = view.agent_port(&found.engine)?;
    let image = match view.annotation(AGENT_IMAGE)? {
        None => options.agent_image.as_str(),
        Some(image) if !image.is_empty() && !image.contains(char::is_whitespace) => image,
        Some(image) => {
            return Err(Error::Annotation {
                annotation: AGENT_IMAGE,
                value: image.to_owned(),
                expected: "an image, such as matrixinfer/infer-agent:0.1.0",
            });
        }
    };
    let agent = sidecar::container(&view, &found, image, port, options);
    let mut notes = found.notes;
    notes.extend(view.remarks(&found.engine, port));
    let has_pre_stop = !view.containers[found.index]["lifecycle"]["preStop"].is_null();
    let pre_stop = (!has_pre_stop && view.grace_s() > 0).then(|| sidecar::pre_stop(&view, port));
    let engine = found.engine;
    if has_pre_stop {
        notes.push(format!(
            "container {}: its own preStop hook is kept, so that the agent does not hold its end until requests are finished",
            engine.container
        ));
    }

    let mut record = json!({"container": engine.container, "engine": engine.kind, "port": engine.port});
    if pre_stop.is_some() {
        record["preStop"] = true.into();
    }
    let mut next = Edit::new(pod);
    if let Some(hook) = pre_stop {
        next.set_pre_stop(found.index, hook);
    }
    let list = if options.native_sidecar {
        "initContainers"
    } else {
        "containers"
    };
    next.append(list, agent);
    next.append("volumes", sidecar::token_volume());
    next.annotate(record);
    *pod = next.pod;
    Ok(Injected {
        changed: true,
        engine: Some(engine),
        notes,
    })
}

/// Takes out of a Pod (or a Pod template) what [`inject`] put there, and nothing else; true if there was something.
///
/// # Errors
/// [`Error::Shape`]; the Pod is then as it was.
pub fn uninject(pod: &mut Value) -> Result<bool, Error> {
    let view = View::new(pod)?;
    if !is_injected(pod) {
        return Ok(false);
    }
    let record = view.record();
    let was = record["was"].as_object().cloned().unwrap_or_default();
    let engine = record["container"].as_str().filter(|_| record["preStop"] == true);
    let index = engine.and_then(|engine| view.names().iter().position(|name| *name == engine));
    if let Some(fields) = index.and_then(|index| pod["spec"]["containers"][index].as_object_mut()) {
        if let Some(Value::Object(lifecycle)) = fields.get_mut("lifecycle") {
            lifecycle.remove("preStop");
            restore(lifecycle, "preStop", &was);
        }
        tidy(fields, "lifecycle", &was);
    }
    if let Some(spec) = pod["spec"].as_object_mut() {
        for (list, name) in [
            ("containers", AGENT_CONTAINER),
            ("initContainers", AGENT_CONTAINER),
            ("volumes", TOKEN_VOLUME),
        ] {
            let Some(Value::Array(items)) = spec.get_mut(list) else {
                continue;
            };
            let length = items.len();
            items.retain(|item| item["name"] != name);
            if items.len() < length {
                tidy(spec, list, &was);
            }
        }
    }
    if let Some(root) = pod.as_object_mut() {
        if let Some(Value::Object(metadata)) = root.get_mut("metadata") {
            if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
                annotations.remove(INJECTED);
                annotations.remove(INJECTION);
            }
            tidy(metadata, "annotations", &was);
        }
        tidy(root, "metadata", &was);
    }
    Ok(true)
}

/// True if the Pod (or Pod template) has an agent that [`inject`] put there.
pub fn is_injected(pod: &Value) -> bool {
    let has_agent = |list: &str| {
        let mut items = pod["spec"][list].as_array().into_iter().flatten();
        items.any(|container| container["name"] == AGENT_CONTAINER)
    };
    pod["metadata"]["annotations"][INJECTED].is_string() && (has_agent("initContainers") || has_agent("containers"))
}

/// Puts back something empty that stood under `key` before.
fn restore(parent: &mut Map<String, Value>, key: &str, was: &Map<String, Value>) {
    if let Some(original) = was.get(key) {
        parent.insert(key.to_owned(), original.clone());
    }
}

/// What is empty under `key` goes, or becomes the empty thing it was.
fn tidy(parent: &mut Map<String, Value>, key: &str, was: &Map<String, Value>) {
    if parent.get(key).is_some_and(is_empty) {
        parent.remove(key);
        restore(parent, key, was);
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// A copy of a Pod that is being changed, and which empty things it had in the places that are filled.
struct Edit {
    pod: Value,
    was: Map<String, Value>,
}

impl Edit {
    fn new(pod: &Value) -> Self {
        Self {
            pod: pod.clone(),
            was: Map::new(),
        }
    }

    /// Notes what stands at `parent` under `key` if Kubernetes takes it for nothing, so that taking the agent out gives
    /// the very same document.
    fn remember(&mut self, parent: &str, key: &str) {
        let original = self.pod.pointer(parent).and_then(|parent| parent.get(key));
        if let Some(original) = original.filter(|original| is_empty(original)) {
            self.was.insert(key.to_owned(), original.clone());
        }
    }

    fn set_pre_stop(&mut self, index: usize, hook: Value) {
        let container = format!("/spec/containers/{index}");
        self.remember(&container, "lifecycle");
        self.remember(&format!("{container}/lifecycle"), "preStop");
        let lifecycle = filled(&mut self.pod["spec"]["containers"][index], "lifecycle", json!({}));
        lifecycle["preStop"] = hook;
    }

    fn append(&mut self, list: &str, item: Value) {
        self.remember("/spec", list);
        if let Value::Array(items) = filled(&mut self.pod["spec"], list, json!([])) {
            items.push(item);
        }
    }

    fn annotate(&mut self, mut record: Value) {
        self.remember("", "metadata");
        self.remember("/metadata", "annotations");
        if !self.was.is_empty() {
            record["was"] = Value::Object(std::mem::take(&mut self.was));
        }
        let metadata = filled(&mut self.pod, "metadata", json!({}));
        let annotations = filled(metadata, "annotations", json!({}));
        annotations[INJECTED] = INJECTION_VERSION.into();
        annotations[INJECTION] = record.to_string().into();
    }
}

/// `parent[key]`, made `empty` where there is nothing.
fn filled<'a>(parent: &'a mut Value, key: &str, empty: Value) -> &'a mut Value {
    let slot = &mut parent[key];
    if slot.is_null() {
        *slot = empty;
    }
    slot
}

/// A Pod whose fields have the types they should, as far as injection looks at them.
pub(crate) struct View<'a> {
    pod: &'a Value,
    pub(crate) spec: &'a Value,
    pub(crate) containers: &'a [Value],
    pub(crate) init_containers: &'a [Value],
}

impl<'a> View<'a> {
    pub(crate) fn new(pod: &'a Value) -> Result<Self, Error> {
        let shape = |field: &str, problem| Error::Shape {
            field: field.to_owned(),
            problem,
        };
        let is_map = |value: &Value| value.is_object() || value.is_null();
        if !pod.is_object() {
            return Err(shape("the Pod", "is not an object"));
        }
        let metadata = &pod["metadata"];
        if !is_map(metadata) {
            return Err(shape("metadata", "is not an object"));
        }
        for key in ["labels", "annotations"] {
            if !is_map(&metadata[key]) {
                return Err(shape(&format!("metadata.{key}"), "is not an object"));
            }
        }
        let spec = &pod["spec"];
        if !spec.is_object() {
            return Err(shape("spec", "is missing or not an object"));
        }
        let list = |key: &str| -> Result<&'a [Value], Error> {
            let items = match &spec[key] {
                Value::Null => &[],
                Value::Array(items) => items.as_slice(),
                _ => return Err(shape(&format!("spec.{key}"), "is not a list")),
            };
            for (index, item) in items.iter().enumerate() {
                let field = format!("spec.{key}[{index}]");
                if !item["name"].is_string() {
                    return Err(shape(&format!("{field}.name"), "is missing or not text"));
                }
                if !is_map(&item["lifecycle"]) {
                    return Err(shape(&format!("{field}.lifecycle"), "is not an object"));
                }
            }
            Ok(items)
        };
        list("volumes")?;
        let containers = list("containers")?;
        if containers.is_empty() {
            return Err(shape("spec.containers", "is missing or empty"));
        }
        Ok(Self {
            pod,
            spec,
            containers,
            init_containers: list("initContainers")?,
        })
    }

    /// Names of the ordinary containers.
    pub(crate) fn names(&self) -> Vec<&'a str> {
        let name = |container: &'a Value| container["name"].as_str().unwrap_or_default();
        self.containers.iter().map(name).collect()
    }

    pub(crate) fn annotation(&self, name: &'static str) -> Result<Option<&'a str>, Error> {
        match &self.pod["metadata"]["annotations"][name] {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            other => Err(Error::Annotation {
                annotation: name,
                value: other.to_string(),
                expected: "text; in YAML, put it in quotes",
            }),
        }
    }

    /// How long the Pod has between being told to end and being killed.
    pub(crate) fn grace_s(&self) -> i64 {
        self.spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30)
    }

    fn label(&self, name: &str) -> Option<&'a str> {
        self.pod["metadata"]["labels"][name].as_str()
    }

    /// What an earlier injection wrote down; null without one.
    fn record(&self) -> Value {
        let text = self.pod["metadata"]["annotations"][INJECTION].as_str();
        text.and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }

    /// Why this Pod is none to report on, if its metadata says so.
    fn serves_nothing(&self) -> Option<String> {
        if !self.pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
            return Some("left alone: the mirror of a static Pod cannot be changed".into());
        }
        const WORKER_INDEX: &str = "leaderworkerset.sigs.k8s.io/worker-index";
        if let Some(index) = self.label(WORKER_INDEX).filter(|index| *index != "0") {
            return Some(format!(
                "left alone: label {WORKER_INDEX} is {index}; its leader serves"
            ));
        }
        let is_of_role = self.label("modelserving.volcano.sh/role").is_some();
        if is_of_role && self.label("modelserving.volcano.sh/entry") != Some("true") {
            return Some(
                "left alone: without label modelserving.volcano.sh/entry: \"true\" it is a worker of its role; its entry serves".into(),
            );
        }
        (self.label("ray.io/node-type") == Some("worker"))
            .then(|| "left alone: label ray.io/node-type is worker; its head serves".into())
    }

    fn ends_by_itself(&self) -> Option<&'a str> {
        self.spec["restartPolicy"].as_str().filter(|policy| *policy != "Always")
    }

    /// True if the Pod itself, not just its namespace, asks for an agent.
    fn asks_for_itself(&self) -> bool {
        let annotations = &self.pod["metadata"]["annotations"];
        let asked = |said: Option<&str>| said == Some("enabled");
        asked(self.label(INJECT_LABEL))
            || asked(annotations[INJECT_LABEL].as_str())
            || !annotations[ENGINE_CONTAINER].is_null()
            || !annotations[ENGINE_PORT].is_null()
    }

    fn check_names(&self) -> Result<(), Error> {
        if self.spec["os"]["name"] == "windows" {
            return Err(Error::Windows);
        }
        let is_taken = |list: &str, name: &str| {
            let mut items = self.spec[list].as_array().into_iter().flatten();
            items.any(|item| item["name"] == name)
        };
        if ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .any(|list| is_taken(list, AGENT_CONTAINER))
        {
            return Err(Error::NameTaken {
                what: "container",
                name: AGENT_CONTAINER,
            });
        }
        if is_taken("volumes", TOKEN_VOLUME) {
            return Err(Error::NameTaken {
                what: "volume",
                name: TOKEN_VOLUME,
            });
        }
        Ok(())
    }

    /// Where the agent listens: containers of a Pod share their ports, so nobody else may be there.
    fn agent_port(&self, engine: &Engine) -> Result<u16, Error> {
        let port = match self.annotation(AGENT_PORT)? {
            None => AGENT_HTTP_PORT,
            Some(written) => {
                let port = written.parse().ok().filter(|port| *port >= 1024);
                port.ok_or_else(|| Error::Annotation {
                    annotation: AGENT_PORT,
                    value: written.to_owned(),
                    expected: "a port number from 1024 to 65535",
                })?
            }
        };
        let has_it = |container: &&Value| {
            let mut ports = container["ports"].as_array().into_iter().flatten();
            ports.any(|declared| declared["containerPort"] == port && declared["protocol"] != "UDP")
        };
        let declared = self.containers.iter().chain(self.init_containers).find(has_it);
        let declared = declared.and_then(|container| container["name"].as_str());
        match declared.or((engine.port == port).then_some(engine.container.as_str())) {
            Some(container) => Err(Error::PortTaken {
                port,
                container: container.to_owned(),
            }),
            None => Ok(port),
        }
    }

    fn remarks(&self, engine: &Engine, port: u16) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.spec["hostNetwork"] == true {
            remarks.push(format!(
                "on the host's network the agent takes port {port} of the node; give Pods that share a node different ones by the annotation {AGENT_PORT}"
            ));
            if self.spec["dnsPolicy"]
                .as_str()
                .is_none_or(|policy| policy == "ClusterFirst" || policy == "Default")
            {
                remarks.push(
                    "on the host's network Services have no names unless dnsPolicy is ClusterFirstWithHostNet".into(),
                );
            }
        }
        let grace_s = self.grace_s();
        if grace_s <= 0 {
            let container = &engine.container;
            remarks.push(format!(
                "container {container}: no preStop hook, as terminationGracePeriodSeconds is {grace_s}"
            ));
        } else if grace_s <= 30 {
            remarks.push(format!(
                "terminationGracePeriodSeconds is {grace_s}: requests that run longer are cut off when the Pod goes; raise it to the longest you serve"
            ));
        }
        remarks
    }
}
