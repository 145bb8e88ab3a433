//! Metrics of what surrounds the service in a cluster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::UNIX_EPOCH,
};

use infer_trust::{Certificates, HandshakeCounters};
use infer_webhook::{Counters, LATENCY_BOUNDS_MS, Latency, Skip};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// What is told of.
pub(crate) struct Metrics {
    pub(crate) certificates: Certificates,
    pub(crate) handshakes: Arc<HandshakeCounters>,
    /// `None`: there are no webhooks.
    pub(crate) webhooks: Option<Arc<Counters>>,
}

impl Metrics {
    pub(crate) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let expires = self
            .certificates
            .not_after()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        crate::http::gauge(
            encoder,
            "certificate_not_after_seconds",
            "End of the server certificate's life, Unix time",
            ConstGauge::new(expires.as_secs_f64()),
        )?;
        let handshakes = &self.handshakes;
        by_label(
            encoder,
            "tls_handshakes",
            "TLS handshakes of agents and people, by what became of them",
            "result",
            [
                ("completed", handshakes.completed.load(Relaxed)),
                ("failed", handshakes.failed.load(Relaxed)),
                ("timed_out", handshakes.timed_out.load(Relaxed)),
                ("evicted", handshakes.evicted.load(Relaxed)),
            ],
        )?;
        match &self.webhooks {
            Some(counters) => webhooks(encoder, counters),
            None => Ok(()),
        }
    }
}

fn webhooks(encoder: &mut DescriptorEncoder<'_>, counters: &Counters) -> std::fmt::Result {
    let one = |counter: &AtomicU64| counter.load(Relaxed);
    for (name, help, value) in [
        ("webhook_pods_injected", "Pods that got an agent", &counters.injected),
        (
            "webhook_pods_failed",
            "Pods that should have got an agent and did not",
            &counters.failed,
        ),
        (
            "webhook_validated",
            "Policies and bindings looked at",
            &counters.validated,
        ),
        ("webhook_refused", "Policies and bindings refused", &counters.refused),
        ("webhook_dry_runs", "Reviews with dryRun", &counters.dry_run),
        (
            "webhook_bad_requests",
            "Requests to the webhooks that were no reviews",
            &counters.bad_requests,
        ),
    ] {
        let counter = ConstCounter::new(one(value));
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    by_label(
        encoder,
        "webhook_pods_skipped",
        "Pods left as they were, and rightly so",
        "reason",
        Skip::ALL.map(|reason| (reason.name(), counters.skipped(reason))),
    )?;
    let mut family = encoder.encode_descriptor(
        "webhook_duration_seconds",
        "Time from the last byte of a review to its answer",
        None,
        MetricType::Histogram,
    )?;
    for (webhook, latency) in [
        ("mutate", &counters.mutate_latency),
        ("validate", &counters.validate_latency),
    ] {
        let labels = [("webhook", webhook)];
        histogram(latency, family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn histogram(latency: &Latency, mut encoder: prometheus_client::encoding::MetricEncoder<'_>) -> std::fmt::Result {
    let bounds = LATENCY_BOUNDS_MS.iter().map(|ms| ms / 1e3).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(latency.buckets()).collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder.encode_histogram::<NoLabelSet>(latency.sum_s(), count, &buckets, None)
}

fn by_label<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: [(&str, u64); N],
) -> std::fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in values {
        let labels = [(label, value)];
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
