//! SGLang's families of features that are off here.

use super::exposition::Value;
use super::sglang::{GRAPH_PHASES, per_rank, rank_labels, request_labels, zero};
use super::view::{Families, View};

/// Lower edges of the routing-key classes; each ends where the next begins.
const ROUTING_KEYS: &[&str] = &["0", "1", "2", "3", "5", "7", "10", "20", "50", "100", "200", "+Inf"];

/// Families of features this engine does not have, at the values SGLang shows for them.
pub(super) fn families(f: &mut Families, view: &View<'_>) {
    const OFF: &[&str] = &[
        "sglang:swa_available_tokens",
        "sglang:swa_evictable_tokens",
        "sglang:swa_used_tokens",
        "sglang:mamba_available_tokens",
        "sglang:mamba_evictable_tokens",
        "sglang:mamba_used_tokens",
        "sglang:spec_accept_length",
        "sglang:spec_accept_rate",
        "sglang:spec_cap_length",
        "sglang:spec_block_accept_length",
        "sglang:spec_num_steps",
        "sglang:spec_num_draft_tokens",
        "sglang:num_prefill_bootstrap_queue_reqs",
        "sglang:num_prefill_inflight_queue_reqs",
        "sglang:num_decode_prealloc_queue_reqs",
        "sglang:num_decode_transfer_queue_reqs",
        "sglang:num_decode_host_receive_queue_reqs",
        "sglang:num_decode_deferred_kv_release_reqs",
        "sglang:pending_prealloc_token_usage",
        "sglang:prealloc_full_token_usage",
        "sglang:prealloc_swa_token_usage",
        "sglang:utilization",
    ];
    for name in OFF {
        f.gauge(name, "A feature that is off here.", per_rank(view, zero));
    }
    f.gauge(
        "sglang:fwd_occupancy",
        "GPU occupancy; not a number here.",
        per_rank(view, |_| f64::NAN),
    );
    f.gauge(
        "sglang:new_token_ratio",
        "Share of output reserved at admission.",
        per_rank(view, |_| 0.7),
    );
    f.gauge(
        "sglang:is_cuda_graph",
        "Whether the batch ran as a graph.",
        per_rank(view, zero),
    );
    f.gauge(
        "sglang:num_unique_running_routing_keys",
        "Routing keys in the batch.",
        per_rank(view, zero),
    );
    for name in [
        "sglang:routing_key_running_req_count",
        "sglang:routing_key_all_req_count",
    ] {
        let mut series = Vec::new();
        for edge in ROUTING_KEYS.windows(2) {
            for i in 0..view.ranks.len() {
                let mut labels = rank_labels(view, i);
                labels.extend([("gt", edge[0].to_owned()), ("le", edge[1].to_owned())]);
                series.push((labels, Value::Int(0)));
            }
        }
        f.gauge(name, "Routing keys by their number of requests.", series);
    }
    let phases = |names: &[&str]| {
        let labelled = |name: &&str| {
            let mut labels = request_labels(view);
            labels.push(("phase", (*name).to_owned()));
            (labels, Value::Float(0.0))
        };
        names.iter().map(labelled).collect::<Vec<_>>()
    };
    let startup = ["load_weight", "kv_cache_allocation", "scheduler_e2e", "tokenizer_e2e"];
    f.gauge(
        "sglang:startup_time_seconds",
        "Start-up time by phase, s; not modelled.",
        phases(&startup),
    );
    f.gauge(
        "sglang:startup_cuda_graph_time_seconds",
        "Graph capture time, s; not modelled.",
        phases(GRAPH_PHASES),
    );
}
