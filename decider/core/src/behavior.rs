//! Stabilisation and rate limits as the Horizontal Pod Autoscaler v2 defines them (kubernetes/kubernetes
//! `pkg/controller/podautoscaler/horizontal.go`; its unit tests are among the conformance vectors).

use serde::{Deserialize, Serialize};

use crate::{
    TimeMs,
    policy::{Bounds, RateKind, ScalingRules, SelectPolicy},
};

/// What a tick would have liked, kept for the stabilisation windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recommendation {
    /// When.
    pub at: TimeMs,
    /// Replicas.
    pub replicas: u32,
}

/// A change that was made, kept for the rate limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleEvent {
    /// When.
    pub at: TimeMs,
    /// Replicas added, or removed; positive in both cases.
    pub change: u32,
    /// Older than every period when last looked at; its place may be taken.
    pub outdated: bool,
}

/// The most cautious recommendation within the windows of both directions: not above the smallest of the last
/// `up_window_s`, not below the largest of the last `down_window_s`, else the current count.
///
/// Stores `desired` in `recommendations`; one that is too old for both windows gives its place.
pub fn stabilize(
    recommendations: &mut Vec<Recommendation>,
    now: TimeMs,
    current: u32,
    desired: u32,
    up_window_s: f64,
    down_window_s: f64,
) -> u32 {
    let (up_cutoff, down_cutoff) = (now.plus_s(-up_window_s), now.plus_s(-down_window_s));
    let mut up = desired;
    let mut down = desired;
    let mut outdated = None;
    for (index, recommendation) in recommendations.iter().enumerate() {
        if recommendation.at > up_cutoff {
            up = up.min(recommendation.replicas);
        }
        if recommendation.at > down_cutoff {
            down = down.max(recommendation.replicas);
        }
        if recommendation.at < up_cutoff && recommendation.at < down_cutoff {
            outdated = Some(index);
        }
    }
    store(
        recommendations,
        outdated,
        Recommendation {
            at: now,
            replicas: desired,
        },
    );
    // Not `clamp`: with both windows set, `up` may be below `down`, and then down wins as in HPA.
    current.max(up).min(down)
}

/// The largest recommendation of the last `window_s`: what HPA does where no behaviour is given.
pub fn stabilize_down_only(recommendations: &mut Vec<Recommendation>, now: TimeMs, desired: u32, window_s: f64) -> u32 {
    let cutoff = now.plus_s(-window_s);
    let mut largest = desired;
    let mut outdated = None;
    for (index, recommendation) in recommendations.iter().enumerate() {
        if recommendation.at < cutoff {
            outdated = Some(index);
        } else {
            largest = largest.max(recommendation.replicas);
        }
    }
    store(
        recommendations,
        outdated,
        Recommendation {
            at: now,
            replicas: desired,
        },
    );
    largest
}

fn store(recommendations: &mut Vec<Recommendation>, outdated: Option<usize>, new: Recommendation) {
    match outdated {
        Some(index) => recommendations[index] = new,
        None => recommendations.push(new),
    }
}

/// Drops what no window reaches any more, and of a run of equal recommendations all but the newest: the newest is the
/// last to leave either window, so no answer of [`stabilize`] changes. Keeps the memory of a quiet target at one entry.
pub fn compact(recommendations: &mut Vec<Recommendation>, now: TimeMs, longest_window_s: f64) {
    let cutoff = now.plus_s(-longest_window_s);
    recommendations.retain(|recommendation| recommendation.at >= cutoff);
    recommendations.sort_by_key(|recommendation| recommendation.at);
    let mut kept = 0;
    for index in 0..recommendations.len() {
        if kept > 0 && recommendations[kept - 1].replicas == recommendations[index].replicas {
            kept -= 1;
        }
        recommendations[kept] = recommendations[index];
        kept += 1;
    }
    recommendations.truncate(kept);
}

/// Why a wish was cut, or that it was not. HPA's condition reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    /// Not cut.
    DesiredWithinRange,
    /// By `max`.
    TooManyReplicas,
    /// By `min`.
    TooFewReplicas,
    /// By the rate up.
    ScaleUpLimit,
    /// By the rate down.
    ScaleDownLimit,
}

/// Changes of the past, by direction.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ScaleEvents {
    /// Replicas added.
    pub up: Vec<ScaleEvent>,
    /// Replicas removed.
    pub down: Vec<ScaleEvent>,
}

impl ScaleEvents {
    /// Forgets what was stored at `at`: the change was not made.
    pub fn forget(&mut self, at: TimeMs) {
        self.up.retain(|event| event.at != at);
        self.down.retain(|event| event.at != at);
    }
}

/// `desired` within the rates and the bounds.
pub fn limit_rate(
    up: &ScalingRules,
    down: &ScalingRules,
    events: &ScaleEvents,
    now: TimeMs,
    bounds: Bounds,
    current: u32,
    desired: u32,
) -> (u32, Limit) {
    if desired > current {
        let rate = scale_up_limit(up, events, now, current).max(current);
        let (most, why) = if bounds.max > rate {
            (rate, Limit::ScaleUpLimit)
        } else {
            (bounds.max, Limit::TooManyReplicas)
        };
        if desired > most {
            return (most, why);
        }
    } else if desired < current {
        let rate = scale_down_limit(down, events, now, current).min(current);
        let (fewest, why) = if bounds.min < rate {
            (rate, Limit::ScaleDownLimit)
        } else {
            (bounds.min, Limit::TooFewReplicas)
        };
        if desired < fewest {
            return (fewest, why);
        }
    }
    (desired, Limit::DesiredWithinRange)
}

/// The most replicas that the rate policies allow now. No policies: no limit.
pub fn scale_up_limit(rules: &ScalingRules, events: &ScaleEvents, now: TimeMs, current: u32) -> u32 {
    let proposals = rules.policies.iter().map(|policy| {
        let start = period_start(events, now, policy.period_s, current);
        match policy.kind {
            RateKind::Pods => start + i64::from(policy.value),
            RateKind::Percent => (start as f64 * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i64,
        }
    });
    let limit = match rules.select {
        SelectPolicy::Disabled => return current,
        SelectPolicy::Max => proposals.max(),
        SelectPolicy::Min => proposals.min(),
    };
    limit.map_or(u32::MAX, to_replicas)
}

/// The fewest replicas that the rate policies allow now. No policies: no limit.
pub fn scale_down_limit(rules: &ScalingRules, events: &ScaleEvents, now: TimeMs, current: u32) -> u32 {
    let proposals = rules.policies.iter().map(|policy| {
        let start = period_start(events, now, policy.period_s, current);
        match policy.kind {
            RateKind::Pods => start - i64::from(policy.value),
            RateKind::Percent => (start as f64 * (1.0 - f64::from(policy.value) / 100.0)) as i64,
        }
    });
    let limit = match rules.select {
        SelectPolicy::Disabled => return current,
        // The largest change leaves the fewest replicas.
        SelectPolicy::Max => proposals.min(),
        SelectPolicy::Min => proposals.max(),
    };
    limit.map_or(0, to_replicas)
}

fn to_replicas(count: i64) -> u32 {
    u32::try_from(count.max(0)).unwrap_or(u32::MAX)
}

/// Replicas at the start of the period: the current ones without what the period has changed.
fn period_start(events: &ScaleEvents, now: TimeMs, period_s: f64, current: u32) -> i64 {
    i64::from(current) - i64::from(changed_within(&events.up, now, period_s))
        + i64::from(changed_within(&events.down, now, period_s))
}

/// Sum of the changes younger than `period_s`.
pub fn changed_within(events: &[ScaleEvent], now: TimeMs, period_s: f64) -> u32 {
    let cutoff = now.plus_s(-period_s);
    let recent = events.iter().filter(|event| event.at > cutoff);
    recent.fold(0, |sum, event| sum.saturating_add(event.change))
}

/// Remembers a change for as long as the longest period of `rules` needs it; an outdated event gives its place.
pub fn store_event(events: &mut Vec<ScaleEvent>, rules: &ScalingRules, now: TimeMs, change: u32) {
    let longest_s = rules.policies.iter().map(|policy| policy.period_s).fold(0.0, f64::max);
    let cutoff = now.plus_s(-longest_s);
    let mut outdated = None;
    for (index, event) in events.iter_mut().enumerate() {
        if event.at < cutoff {
            event.outdated = true;
            outdated = Some(index);
        }
    }
    let new = ScaleEvent {
        at: now,
        change,
        outdated: false,
    };
    match outdated {
        Some(index) => events[index] = new,
        None => events.push(new),
    }
}
