//! Reads documents from files and ties them together.

use infer_core::policy::{Bounds, Policy};
use serde::de::DeserializeOwned;

use crate::binding::{AutoscalingPolicyBinding, BindingMode, Bound};
use crate::check::{self, Finding};
use crate::consistency::LOCAL_KIND;
use crate::fleet::LocalFleet;
use crate::metadata::Metadata;
use crate::mistake::{Errors, Mistake};
use crate::policy::{AutoscalingPolicy, PolicySpec};
use crate::tree::{self, Node};
use crate::{API_VERSION, KINDS, schema, validate};

/// Documents without a mistake, in the order of their files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Documents {
    /// Every AutoscalingPolicy.
    pub policies: Vec<AutoscalingPolicy>,
    /// Every AutoscalingPolicyBinding.
    pub bindings: Vec<AutoscalingPolicyBinding>,
    /// Every LocalFleet.
    pub fleets: Vec<LocalFleet>,
}

/// What documents are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run fleets on this machine: every target is a LocalFleet among the documents.
    LocalFleets,
    /// For the policies alone: targets are of any kind and need not be among the documents.
    Policies,
    /// To apply them to a cluster: policies need not be among the documents, and what the custom resource definitions
    /// would refuse is refused.
    Cluster,
}

impl Purpose {
    /// What files that say nothing else are for: a cluster, when there are bindings and nothing in the files is a
    /// LocalFleet or looks as if it were meant to be one.
    pub fn guess<'a>(sources: impl IntoIterator<Item = (&'a str, &'a str)>) -> Purpose {
        let (mut has_binding, mut has_fleet) = (false, false);
        for root in sources.into_iter().flat_map(|(_, text)| tree::parse(text)).flatten() {
            let kind = root.text("kind").unwrap_or_default();
            has_binding |= kind == "AutoscalingPolicyBinding";
            has_fleet |= mentions_fleet(&root);
        }
        if has_binding && !has_fleet {
            Purpose::Cluster
        } else {
            Purpose::LocalFleets
        }
    }
}

/// True when a `kind` anywhere in the tree is a LocalFleet, or nearly.
fn mentions_fleet(node: &Node) -> bool {
    match &node.value {
        tree::Value::Map(entries) => entries.iter().any(|entry| match &entry.node.value {
            tree::Value::Text(kind) if entry.key == "kind" => {
                check::nearest(kind, std::iter::once(LOCAL_KIND)).is_some()
            }
            _ => mentions_fleet(&entry.node),
        }),
        tree::Value::List(items) => items.iter().any(mentions_fleet),
        _ => false,
    }
}

/// A target on this machine, with everything that decides about it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedTarget<'a> {
    /// Who decides, and how.
    pub bound: BoundTarget<'a>,
    /// What is scaled.
    pub fleet: &'a LocalFleet,
}

/// A target as its binding sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct BoundTarget<'a> {
    /// Name of the target: of the object for `scaling`, of the binding for `optimize`, of the role for `roles`.
    pub name: &'a str,
    /// Its one binding.
    pub binding: &'a AutoscalingPolicyBinding,
    /// Name of the policy; the binding's own name where the policy is written in the binding.
    pub policy_name: &'a str,
    /// The policy as it is written.
    pub spec: &'a PolicySpec,
    /// The policy in the core's terms.
    pub policy: Policy,
    /// The limits.
    pub bounds: Bounds,
    /// What is done with decisions.
    pub mode: BindingMode,
}

impl Documents {
    /// Number of documents.
    pub fn len(&self) -> usize {
        self.policies.len() + self.bindings.len() + self.fleets.len()
    }

    /// True without any document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every fleet on this machine that has a binding, in the order of the bindings. A fleet without a binding keeps its
    /// initial replicas and is not among them.
    pub fn targets(&self) -> Vec<ResolvedTarget<'_>> {
        let fleet = |name: &str| self.fleets.iter().find(|fleet| fleet.metadata.name == name);
        let bound = self.bound_targets().into_iter();
        bound
            .filter_map(|bound| {
                Some(ResolvedTarget {
                    fleet: fleet(bound.name)?,
                    bound,
                })
            })
            .collect()
    }

    /// Every target that has a binding, of whatever kind, in the order of the bindings.
    pub fn bound_targets(&self) -> Vec<BoundTarget<'_>> {
        self.bindings.iter().flat_map(|binding| self.resolve(binding)).collect()
    }

    /// Policies are missing only from documents that [`parse_sources_for`] has not seen, or has read for a cluster; what
    /// lacks one is left out.
    fn resolve<'a>(&'a self, binding: &'a AutoscalingPolicyBinding) -> Vec<BoundTarget<'a>> {
        let resolve = |bound: Bound<'a>| {
            let (policy_name, spec) = match (bound.policy, bound.policy_ref) {
                (Some(spec), _) => (binding.metadata.name.as_str(), spec),
                (None, Some(name)) => {
                    let is_meant =
                        |metadata: &Metadata| metadata.name == name && metadata.namespace == binding.metadata.namespace;
                    let policy = self.policies.iter().find(|policy| is_meant(&policy.metadata))?;
                    (policy.metadata.name.as_str(), &policy.spec)
                }
                (None, None) => return None,
            };
            Some(BoundTarget {
                name: bound.name.unwrap_or(&binding.metadata.name),
                binding,
                policy_name,
                spec,
                policy: spec.to_core(),
                bounds: bound.bounds,
                mode: binding.spec.mode,
            })
        };
        binding.spec.bounds().into_iter().filter_map(resolve).collect()
    }
}

/// Reads every document of one file, whose name serves only for messages.
///
/// # Errors
/// Every mistake found, with its place; see [`Mistake`].
pub fn parse_documents(text: &str, file: &str) -> Result<Documents, Errors> {
    parse_sources([(file, text)])
}

/// Reads every document of several files, given as (name, text), as if they were one.
///
/// # Errors
/// Every mistake found, with its place; see [`Mistake`].
pub fn parse_sources<'a>(sources: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Documents, Errors> {
    parse_sources_for(Purpose::LocalFleets, sources)
}

/// Like [`parse_sources`], for a given purpose.
///
/// # Errors
/// Every mistake found, with its place; see [`Mistake`].
pub fn parse_sources_for<'a>(
    purpose: Purpose,
    sources: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Documents, Errors> {
    let mut loaded = Loaded::default();
    let mut files = Vec::new();
    for (index, (file, text)) in sources.into_iter().enumerate() {
        files.push(file);
        for parsed in tree::parse(text) {
            loaded.add(parsed, index);
        }
    }
    validate::validate(&mut loaded, purpose);
    if loaded.reports.is_empty() {
        return Ok(Documents {
            policies: loaded.policies.into_iter().map(|document| document.value).collect(),
            bindings: loaded.bindings.into_iter().map(|document| document.value).collect(),
            fleets: loaded.fleets.into_iter().map(|document| document.value).collect(),
        });
    }
    Err(Errors::new(in_order(loaded.reports, &files)))
}

/// Mistakes in reading order, and only the first of those about the same spot: what is found later is often a
/// consequence.
fn in_order(mut reports: Vec<Report>, files: &[&str]) -> Vec<Mistake> {
    reports.sort_by_key(|report| (report.file, report.finding.place));
    let mut mistakes: Vec<Mistake> = Vec::with_capacity(reports.len());
    for Report {
        file,
        document,
        finding,
    } in reports
    {
        let mistake = Mistake {
            file: files.get(file).copied().unwrap_or_default().to_owned(),
            line: finding.place.line,
            column: finding.place.column,
            document,
            field: finding.field,
            problem: finding.problem,
            allowed: finding.allowed,
        };
        let same = |m: &Mistake| {
            (&m.file, m.line, m.column, &m.field) == (&mistake.file, mistake.line, mistake.column, &mistake.field)
        };
        if !mistakes.iter().any(same) {
            mistakes.push(mistake);
        }
    }
    mistakes
}

/// A mistake and where it belongs.
pub(crate) struct Report {
    file: usize,
    document: Option<String>,
    finding: Finding,
}

/// A document, broken or not, that others may refer to.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) file: usize,
    pub(crate) kind: &'static str,
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) root: Node,
}

impl Origin {
    fn title(&self) -> String {
        match &self.name {
            Some(name) => format!("{} {name}", self.kind),
            None => self.kind.to_owned(),
        }
    }
}

/// A readable document and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Found<T> {
    pub(crate) origin: Origin,
    pub(crate) value: T,
}

/// What has been read so far.
#[derive(Default)]
pub(crate) struct Loaded {
    /// Every document of a known kind, readable or not.
    pub(crate) origins: Vec<Origin>,
    pub(crate) policies: Vec<Found<AutoscalingPolicy>>,
    pub(crate) bindings: Vec<Found<AutoscalingPolicyBinding>>,
    pub(crate) fleets: Vec<Found<LocalFleet>>,
    reports: Vec<Report>,
}

impl Loaded {
    /// Reports a mistake in the field at `path` of `origin`.
    pub(crate) fn report(&mut self, origin: &Origin, path: &str, problem: String, allowed: impl Into<Option<String>>) {
        let place = origin.root.locate(path);
        let finding = Finding {
            place,
            field: path.to_owned(),
            problem,
            allowed: allowed.into(),
        };
        self.reports.push(Report {
            file: origin.file,
            document: Some(origin.title()),
            finding,
        });
    }

    fn add(&mut self, parsed: tree::Parsed, file: usize) {
        let root = match parsed {
            Ok(root) => root,
            Err(error) => {
                let tree::SyntaxError { place, problem } = error;
                let finding = Finding {
                    place,
                    field: String::new(),
                    problem,
                    allowed: None,
                };
                self.reports.push(Report {
                    file,
                    document: None,
                    finding,
                });
                return;
            }
        };
        let Some(kind) = self.kind(&root, file) else { return };
        let Some(schema) = schema::of(kind) else { return };
        let metadata = |key: &str| {
            let text = root.get("metadata").and_then(|metadata| metadata.node.text(key));
            text.map(str::to_owned)
        };
        let origin = Origin {
            file,
            kind,
            name: metadata("name"),
            namespace: metadata("namespace"),
            root,
        };
        let mut findings = Vec::new();
        let json = check::check(schema, &origin.root, &mut findings);
        let document = origin.title();
        let reports = findings.into_iter().map(|finding| Report {
            file,
            document: Some(document.clone()),
            finding,
        });
        self.reports.extend(reports);
        self.origins.push(origin.clone());
        let Some(json) = json else { return };
        match kind {
            "AutoscalingPolicy" => read(json, origin, &mut self.policies, &mut self.reports),
            "AutoscalingPolicyBinding" => read(json, origin, &mut self.bindings, &mut self.reports),
            _ => read(json, origin, &mut self.fleets, &mut self.reports),
        }
    }

    /// The document's kind, when it is one of ours.
    fn kind(&mut self, root: &Node, file: usize) -> Option<&'static str> {
        let found = root.text("kind");
        if let Some(kind) = KINDS.into_iter().find(|kind| Some(*kind) == found) {
            return Some(kind);
        }
        let nearest = found.and_then(|found| check::nearest(found, KINDS.into_iter()));
        let allowed = match nearest {
            Some(kind) => format!("did you mean {kind}? Allowed: {}", KINDS.join(", ")),
            None => format!("allowed: {}, with apiVersion {API_VERSION}", KINDS.join(", ")),
        };
        let (field, problem) = match (found, root.get("kind")) {
            (Some(found), _) => ("kind", format!("{found:?} is not a known kind")),
            (None, Some(_)) => ("kind", "is not the name of a kind".to_owned()),
            (None, None) if matches!(root.value, tree::Value::Map(_)) => ("kind", "is required and missing".to_owned()),
            (None, None) => (
                "",
                "this document is not a mapping with apiVersion, kind, metadata and spec".to_owned(),
            ),
        };
        let finding = Finding {
            place: root.locate(field),
            field: field.to_owned(),
            problem,
            allowed: Some(allowed),
        };
        self.reports.push(Report {
            file,
            document: None,
            finding,
        });
        None
    }
}

/// The schema has passed this document, so the type takes it; if the two ever disagree, that is a mistake of ours,
/// told like any other.
fn read<T: DeserializeOwned>(
    json: serde_json::Value,
    origin: Origin,
    found: &mut Vec<Found<T>>,
    reports: &mut Vec<Report>,
) {
    match serde_json::from_value(json) {
        Ok(value) => found.push(Found { origin, value }),
        Err(error) => {
            let place = origin.root.place;
            let finding = Finding {
                place,
                field: String::new(),
                problem: error.to_string(),
                allowed: None,
            };
            reports.push(Report {
                file: origin.file,
                document: Some(origin.title()),
                finding,
            });
        }
    }
}
