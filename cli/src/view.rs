//! What programs get: the messages of `decisions.proto` under the same names.
//!
//! Beside every `…unix_ms` stands the same time as RFC 3339 (`time`, `started_time`, …). What is absent, or empty where
//! the proto says so, is left out; lists are always there.

use infer_proto::v1;
use serde::Serialize;
use serde_json::Value;

use crate::time::rfc3339;

/// Of `Status`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StatusView {
    pub(crate) decider_id: String,
    pub(crate) version: String,
    pub(crate) started_unix_ms: i64,
    pub(crate) started_time: String,
    pub(crate) health: String,
    pub(crate) problems: Vec<String>,
    pub(crate) targets: u32,
    pub(crate) agents_connected: u32,
    pub(crate) samples_applied: u64,
    pub(crate) samples_duplicate: u64,
    pub(crate) samples_late: u64,
    pub(crate) samples_missing: u64,
    pub(crate) decisions: u64,
    pub(crate) backend: String,
}

impl From<v1::Status> for StatusView {
    fn from(status: v1::Status) -> Self {
        StatusView {
            decider_id: status.decider_id,
            version: status.version,
            started_unix_ms: status.started_unix_ms,
            started_time: rfc3339(status.started_unix_ms),
            health: status.health,
            problems: status.problems,
            targets: status.targets,
            agents_connected: status.agents_connected,
            samples_applied: status.samples_applied,
            samples_duplicate: status.samples_duplicate,
            samples_late: status.samples_late,
            samples_missing: status.samples_missing,
            decisions: status.decisions,
            backend: status.backend,
        }
    }
}

/// Of `ListTargetsResponse`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TargetsView {
    pub(crate) targets: Vec<TargetView>,
}

/// Of `Target`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TargetView {
    pub(crate) name: String,
    pub(crate) binding: String,
    pub(crate) policy: String,
    pub(crate) replicas: ReplicasView,
    pub(crate) mode: String,
    pub(crate) control: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) override_replicas: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) control_expires_unix_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) control_expires_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_decision_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_decision_unix_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_decision_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    pub(crate) metrics: Vec<MetricView>,
    pub(crate) pods: Vec<PodView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway_waiting: Option<f64>,
}

impl From<v1::Target> for TargetView {
    fn from(target: v1::Target) -> Self {
        // Decisions count from 1; 0 is a target on which nothing was decided yet.
        let last = (target.last_decision_id > 0).then_some(target.last_decision_unix_ms);
        TargetView {
            name: target.name,
            binding: target.binding,
            policy: target.policy,
            replicas: target.replicas.unwrap_or_default().into(),
            mode: target.mode,
            control: target.control,
            override_replicas: target.override_replicas,
            control_expires_unix_ms: target.control_expires_unix_ms,
            control_expires_time: target.control_expires_unix_ms.map(rfc3339),
            last_decision_id: last.map(|_| target.last_decision_id),
            last_decision_unix_ms: last,
            last_decision_time: last.map(rfc3339),
            reason: target.reason,
            metrics: target.metrics.into_iter().map(MetricView::from).collect(),
            pods: target.pods.into_iter().map(PodView::from).collect(),
            gateway_waiting: target.gateway_waiting,
        }
    }
}

/// Of `Replicas`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ReplicasView {
    pub(crate) desired: u32,
    pub(crate) spec: u32,
    pub(crate) ready: u32,
    pub(crate) starting: u32,
    pub(crate) draining: u32,
    pub(crate) failed: u32,
    pub(crate) min: u32,
    pub(crate) max: u32,
}

impl From<v1::Replicas> for ReplicasView {
    fn from(replicas: v1::Replicas) -> Self {
        ReplicasView {
            desired: replicas.desired,
            spec: replicas.spec,
            ready: replicas.ready,
            starting: replicas.starting,
            draining: replicas.draining,
            failed: replicas.failed,
            min: replicas.min,
            max: replicas.max,
        }
    }
}

/// Of `MetricState`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct MetricView {
    pub(crate) name: String,
    pub(crate) target_per_replica: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) load_stable: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) load_panic: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) desired_stable: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) desired_panic: Option<u32>,
}

impl From<v1::MetricState> for MetricView {
    fn from(metric: v1::MetricState) -> Self {
        MetricView {
            name: metric.name,
            target_per_replica: metric.target_per_replica,
            load_stable: metric.load_stable,
            load_panic: metric.load_panic,
            desired_stable: metric.desired_stable,
            desired_panic: metric.desired_panic,
        }
    }
}

/// Of `Pod`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PodView {
    pub(crate) name: String,
    pub(crate) phase: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sample_age_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) engine: Option<EngineView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gauges: Option<GaugesView>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) problem: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) startup_ms: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) endpoint: String,
}

impl From<v1::Pod> for PodView {
    fn from(pod: v1::Pod) -> Self {
        PodView {
            name: pod.name,
            phase: pod.phase,
            sample_age_ms: pod.sample_age_ms,
            engine: pod.engine.map(EngineView::from),
            gauges: pod.gauges.map(GaugesView::from),
            problem: pod.problem,
            startup_ms: pod.startup_ms,
            endpoint: pod.endpoint,
        }
    }
}

/// Of `Engine`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EngineView {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) model: String,
    pub(crate) engines: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) front_end: String,
}

impl From<v1::Engine> for EngineView {
    fn from(engine: v1::Engine) -> Self {
        let kind = match engine.kind() {
            v1::engine::Kind::Vllm => "vllm",
            v1::engine::Kind::Sglang => "sglang",
            v1::engine::Kind::Mapped => "mapped",
            v1::engine::Kind::Unspecified => "unspecified",
        };
        EngineView {
            kind,
            name: engine.name,
            version: engine.version,
            model: engine.model,
            engines: engine.engines,
            front_end: engine.front_end,
        }
    }
}

/// Of `Gauges`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GaugesView {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) running: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waiting: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kv_usage: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kv_capacity_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) in_flight: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) asleep: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_running: Option<u64>,
}

impl From<v1::Gauges> for GaugesView {
    fn from(gauges: v1::Gauges) -> Self {
        GaugesView {
            running: gauges.running,
            waiting: gauges.waiting,
            kv_usage: gauges.kv_usage,
            kv_capacity_tokens: gauges.kv_capacity_tokens,
            in_flight: gauges.in_flight,
            asleep: gauges.asleep,
            max_running: gauges.max_running,
        }
    }
}

/// Of `ListDecisionsResponse`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DecisionsView {
    pub(crate) decisions: Vec<DecisionView>,
}

/// Of `Decision`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DecisionView {
    pub(crate) id: u64,
    pub(crate) target: String,
    pub(crate) unix_ms: i64,
    pub(crate) time: String,
    pub(crate) replicas_before: u32,
    pub(crate) replicas_after: u32,
    pub(crate) mode: String,
    pub(crate) bound_by: String,
    pub(crate) reason: String,
    pub(crate) applied: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) not_applied: String,
}

impl From<v1::Decision> for DecisionView {
    fn from(decision: v1::Decision) -> Self {
        DecisionView {
            id: decision.id,
            target: decision.target,
            unix_ms: decision.unix_ms,
            time: rfc3339(decision.unix_ms),
            replicas_before: decision.replicas_before,
            replicas_after: decision.replicas_after,
            mode: decision.mode,
            bound_by: decision.bound_by,
            reason: decision.reason,
            applied: decision.applied,
            not_applied: decision.not_applied,
        }
    }
}

/// Of `Explanation`; `record` is `record_json`, read.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ExplanationView {
    pub(crate) decision: DecisionView,
    pub(crate) steps: Vec<StepView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) record: Option<Value>,
    pub(crate) recomputed_equal: bool,
}

impl From<v1::Explanation> for ExplanationView {
    fn from(explanation: v1::Explanation) -> Self {
        ExplanationView {
            decision: explanation.decision.unwrap_or_default().into(),
            steps: explanation.steps.into_iter().map(StepView::from).collect(),
            record: serde_json::from_str(&explanation.record_json).ok(),
            recomputed_equal: explanation.recomputed_equal,
        }
    }
}

/// Of `Step`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StepView {
    pub(crate) rule: String,
    pub(crate) before: f64,
    pub(crate) after: f64,
    pub(crate) words: String,
}

impl From<v1::Step> for StepView {
    fn from(step: v1::Step) -> Self {
        StepView {
            rule: step.rule,
            before: step.before,
            after: step.after,
            words: step.words,
        }
    }
}

/// Of `Windows`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WindowsView {
    pub(crate) target: String,
    pub(crate) window_s: u32,
    pub(crate) completeness: f64,
    pub(crate) gauges: Vec<GaugeWindowView>,
    pub(crate) counters: Vec<CounterWindowView>,
    pub(crate) histograms: Vec<HistogramWindowView>,
}

impl From<v1::Windows> for WindowsView {
    fn from(windows: v1::Windows) -> Self {
        WindowsView {
            target: windows.target,
            window_s: windows.window_s,
            completeness: windows.completeness,
            gauges: windows.gauges.into_iter().map(GaugeWindowView::from).collect(),
            counters: windows.counters.into_iter().map(CounterWindowView::from).collect(),
            histograms: windows.histograms.into_iter().map(HistogramWindowView::from).collect(),
        }
    }
}

/// Of `GaugeWindow`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GaugeWindowView {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) average: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latest: Option<f64>,
}

impl From<v1::GaugeWindow> for GaugeWindowView {
    fn from(gauge: v1::GaugeWindow) -> Self {
        GaugeWindowView {
            name: gauge.name,
            average: gauge.average,
            latest: gauge.latest,
        }
    }
}

/// Of `CounterWindow`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CounterWindowView {
    pub(crate) name: String,
    pub(crate) count: u64,
    pub(crate) per_second: f64,
}

impl From<v1::CounterWindow> for CounterWindowView {
    fn from(counter: v1::CounterWindow) -> Self {
        CounterWindowView {
            name: counter.name,
            count: counter.count,
            per_second: counter.per_second,
        }
    }
}

/// Of `HistogramWindow`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HistogramWindowView {
    pub(crate) signal: &'static str,
    pub(crate) count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mean_ms: Option<f64>,
    pub(crate) quantiles: Vec<QuantileView>,
}

impl From<v1::HistogramWindow> for HistogramWindowView {
    fn from(histogram: v1::HistogramWindow) -> Self {
        let signal = match histogram.signal() {
            v1::Signal::Ttft => "ttft",
            v1::Signal::Itl => "itl",
            v1::Signal::Tpot => "tpot",
            v1::Signal::E2e => "e2e",
            v1::Signal::Queue => "queue",
            v1::Signal::Unspecified => "unspecified",
        };
        HistogramWindowView {
            signal,
            count: histogram.count,
            mean_ms: histogram.mean_ms,
            quantiles: histogram.quantiles.into_iter().map(QuantileView::from).collect(),
        }
    }
}

/// Of `Quantile`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct QuantileView {
    pub(crate) q: f64,
    pub(crate) low_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) high_ms: Option<f64>,
    pub(crate) estimate_ms: f64,
}

impl From<v1::Quantile> for QuantileView {
    fn from(quantile: v1::Quantile) -> Self {
        QuantileView {
            q: quantile.q,
            low_ms: quantile.low_ms,
            high_ms: quantile.high_ms,
            estimate_ms: quantile.estimate_ms,
        }
    }
}
