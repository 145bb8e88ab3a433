//! Roles of one binding that need each other: what one wants raises the fewest replicas that the other may have.
//!
//! What a role wants alone counts, not what it gets for the other's sake: two roles must not hold each other up.

use infer_core::{decision::Control, roles::Ratio};

use crate::state::{Entity, State};

/// The ratio in which a target takes part.
#[derive(Debug, Clone, PartialEq)]
pub struct Coupling {
    /// The target that is divided.
    pub numerator: String,
    /// The target that it is divided by.
    pub denominator: String,
    /// Limits of the quotient.
    pub ratio: Ratio,
}

/// Passes on what roles want of each other. Whether that is news for any of them.
pub(crate) fn couple(state: &mut State) -> bool {
    // Once per pair.
    let numerators = state.targets.iter();
    let couplings: Vec<Coupling> = numerators
        .filter_map(|(name, entity)| entity.spec.coupling.clone().filter(|of| of.numerator == *name))
        .collect();
    let mut news = false;
    for Coupling {
        numerator,
        denominator,
        ratio,
    } in couplings
    {
        let wanted = |name: &str| {
            let entity = state.targets.get(name)?;
            Some((wanted_alone(entity)?, entity.spec.bounds.max))
        };
        // A role that is not known asks for nothing; what it asked for before it was lost stays.
        let (Some(above), Some(below)) = (wanted(&numerator), wanted(&denominator)) else {
            continue;
        };
        let (fewest_above, fewest_below) = ratio.fewest((above.0, below.0), (above.1, below.1));
        for (name, fewest) in [(numerator, fewest_above), (denominator, fewest_below)] {
            let Some(entity) = state.targets.get_mut(&name) else {
                continue;
            };
            if entity.target.set_fewest(fewest) {
                entity.dirty = true;
                news = true;
            }
        }
    }
    news
}

fn wanted_alone(entity: &Entity) -> Option<u32> {
    let record = entity.latest.as_ref()?;
    Some(match record.inputs.control {
        // What is only told, or not decided at all, does not come: what is there needs company.
        Control::Paused | Control::Advisory => record.inputs.replicas.spec,
        Control::Override(_) => record.outcome.desired,
        Control::Auto => record.desired_alone(),
    })
}
