//! How many replicas of which variant make up a total. See `README.md` beside this file for the problem, the properties and
//! the cost.

/// What [`greedy_doubling`] expands by: each block of a variant is twice the one before.
pub const DOUBLING_PERCENT: u32 = 200;

/// One of several interchangeable kinds of replicas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    /// Never fewer than this.
    pub min: u32,
    /// Never more than this; a smaller one than `min` counts as `min`.
    pub max: u32,
    /// Of one replica, in any unit that all variants share; at least 0. Only proportions and order count.
    pub cost: f64,
}

/// Replicas of each variant, in the order given, for `total` in all: small shares first, the cheaper the larger. `total` is held
/// between the sum of the minima and the sum of the maxima.
///
/// A larger total never gets fewer replicas of any variant.
pub fn greedy_doubling(total: u32, variants: &[Variant]) -> Vec<u32> {
    greedy_expansion(total, variants, DOUBLING_PERCENT)
}

/// Like [`greedy_doubling`] with blocks that grow to `expansion_percent` of the one before; 100 and less means a single block per
/// variant.
pub fn greedy_expansion(total: u32, variants: &[Variant], expansion_percent: u32) -> Vec<u32> {
    let mut replicas: Vec<u32> = variants.iter().map(|variant| variant.min).collect();
    let least: u64 = replicas.iter().copied().map(u64::from).sum();
    let mut left = u64::from(total).saturating_sub(least);
    let mut blocks: Vec<Block> = variants
        .iter()
        .enumerate()
        .flat_map(|(index, variant)| blocks(index, variant, expansion_percent))
        .collect();
    // Stable, and made in the order of the variants: of equal prices the earlier variant comes first.
    blocks.sort_by(|one, other| one.price.total_cmp(&other.price));
    for block in blocks {
        let taken = left.min(u64::from(block.replicas)) as u32;
        replicas[block.variant] += taken;
        left -= u64::from(taken);
    }
    replicas
}

/// Replicas of one variant that are taken together, as far as the total goes.
struct Block {
    variant: usize,
    replicas: u32,
    price: f64,
}

fn blocks(variant: usize, of: &Variant, expansion_percent: u32) -> Vec<Block> {
    let mut left = of.max.saturating_sub(of.min);
    if expansion_percent <= 100 {
        return vec![Block {
            variant,
            replicas: left,
            price: of.cost,
        }];
    }
    let expansion = f64::from(expansion_percent) / 100.0;
    let (mut blocks, mut length) = (Vec::new(), 1.0_f64);
    while left > 0 {
        let replicas = (length as u32).clamp(1, left);
        blocks.push(Block {
            variant,
            replicas,
            price: of.cost * f64::from(replicas),
        });
        left -= replicas;
        length *= expansion;
    }
    blocks
}
