//! Looks at every plan before it is applied, and shares no code with what makes plans: what one gets wrong, the other
//! should not get wrong in the same way.

use thiserror::Error;

use crate::{
    TimeMs,
    decision::{Control, Inputs, Measured, Mode, Plan},
};

/// Why a plan must not be applied.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Violation {
    /// More than the binding's maximum.
    #[error("{to} replicas are more than maxReplicas {max}")]
    AboveMax {
        /// Planned.
        to: u32,
        /// Allowed.
        max: u32,
    },
    /// Fewer than the binding's minimum.
    #[error("{to} replicas are fewer than minReplicas {min}")]
    BelowMin {
        /// Planned.
        to: u32,
        /// Allowed.
        min: u32,
    },
    /// Shrinking below what another role needs.
    #[error("shrinking from {from} to {to}, below the {fewest} that the ratio to another role asks for")]
    BreaksRatio {
        /// Present.
        from: u32,
        /// Planned.
        to: u32,
        /// Asked for.
        fewest: u32,
    },
    /// Shrinking in panic.
    #[error("shrinking from {from} to {to} in panic")]
    ShrinksInPanic {
        /// Present.
        from: u32,
        /// Planned.
        to: u32,
    },
    /// Shrinking without knowing what every replica does.
    #[error("shrinking from {from} to {to} with fresh data of {fresh} of {expected} ready replicas")]
    ShrinksBlind {
        /// Present.
        from: u32,
        /// Planned.
        to: u32,
        /// Replicas with fresh data.
        fresh: u32,
        /// Ready replicas.
        expected: u32,
    },
    /// Shrinking while one of the policy's metrics says nothing: it might be the one that wants more.
    #[error("shrinking from {from} to {to} with metric {metric} (of {metrics}) unknown")]
    ShrinksUnmeasured {
        /// Present.
        from: u32,
        /// Planned.
        to: u32,
        /// Which metric of the policy, from 1.
        metric: usize,
        /// How many there are.
        metrics: usize,
    },
    /// Shrinking to nothing while requests run.
    #[error("shrinking to zero with requests running")]
    StopsRequests,
    /// Shrinking to nothing while somebody waits.
    #[error("shrinking to zero with {waiting} requests held at the front door")]
    StrandsRequests {
        /// Requests held.
        waiting: f64,
    },
    /// The backend has changed since.
    #[error("made for {from} replicas, but the backend has {spec}")]
    Stale {
        /// Present when it was made.
        from: u32,
        /// Present now.
        spec: u32,
    },
    /// Too late.
    #[error("expired {late_ms} ms ago")]
    Expired {
        /// Milliseconds since its end.
        late_ms: i64,
    },
    /// Nobody may change the target now.
    #[error("the target is {0}")]
    NotInControl(&'static str),
}

/// Checks a plan against what is known at `now`; `inputs` are those of the newest tick.
///
/// # Errors
/// The first rule it breaks.
pub fn check(plan: &Plan, inputs: &Inputs, now: TimeMs) -> Result<(), Violation> {
    let (from, to) = (plan.from, plan.to);
    let forced = matches!(inputs.control, Control::Override(_));
    match inputs.control {
        Control::Paused => return Err(Violation::NotInControl("paused")),
        Control::Advisory => return Err(Violation::NotInControl("in advisory mode")),
        Control::Auto | Control::Override(_) => {}
    }
    if now.0 > plan.expires.0 {
        return Err(Violation::Expired {
            late_ms: now.0 - plan.expires.0,
        });
    }
    if from != inputs.replicas.spec {
        return Err(Violation::Stale {
            from,
            spec: inputs.replicas.spec,
        });
    }
    if to > inputs.bounds.max {
        return Err(Violation::AboveMax {
            to,
            max: inputs.bounds.max,
        });
    }
    if to < inputs.bounds.min && !forced {
        return Err(Violation::BelowMin {
            to,
            min: inputs.bounds.min,
        });
    }
    // Down to a maximum that was lowered is the operator's word, as an override is.
    let ordered = forced || to == inputs.bounds.max;
    if to < from && !ordered {
        if to < inputs.fewest {
            return Err(Violation::BreaksRatio {
                from,
                to,
                fewest: inputs.fewest,
            });
        }
        if plan.mode == Mode::Panic {
            return Err(Violation::ShrinksInPanic { from, to });
        }
        let data = inputs.data;
        if plan.mode == Mode::Unknown
            || data.fresh != data.expected
            || data.completeness.is_nan()
            || data.completeness < 0.9
        {
            return Err(Violation::ShrinksBlind {
                from,
                to,
                fresh: data.fresh,
                expected: data.expected,
            });
        }
        let unknown = |measured: &Measured| match measured {
            Measured::Absent => true,
            Measured::Latency { stable, .. } => match stable {
                None => inputs.busy,
                Some(_) => inputs.replicas.ready == 0,
            },
            Measured::Load { stable, .. } => stable.is_nan(),
        };
        if let Some(index) = inputs.metrics.iter().position(unknown) {
            return Err(Violation::ShrinksUnmeasured {
                from,
                to,
                metric: index + 1,
                metrics: inputs.metrics.len(),
            });
        }
        if to == 0 && inputs.gateway_waiting.is_some_and(|waiting| waiting > 0.0) {
            return Err(Violation::StrandsRequests {
                waiting: inputs.gateway_waiting.unwrap_or(0.0),
            });
        }
        if to == 0 && inputs.busy {
            return Err(Violation::StopsRequests);
        }
    }
    Ok(())
}
