//! Draws from the distributions a plan needs, on top of one small seeded generator.

use std::f64::consts::TAU;

/// What a stream of random numbers is for. Each purpose has its own stream, so that asking for other lengths does not
/// move the arrival times.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Arrivals = 1,
    Lengths = 2,
    Prompts = 3,
}

/// A generator for one purpose of one run.
pub(crate) fn stream(seed: u64, purpose: Purpose, index: u64) -> fastrand::Rng {
    // Odd multipliers spread neighbouring seeds and indices over the whole range before the generator mixes them.
    let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (purpose as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        ^ index.wrapping_mul(0x94d0_49bb_1331_11eb);
    fastrand::Rng::with_seed(mixed)
}

/// A number in (0, 1]: never zero, so that its logarithm is finite.
fn open_unit(rng: &mut fastrand::Rng) -> f64 {
    1.0 - rng.f64()
}

/// Exponential with mean 1.
pub(crate) fn exponential(rng: &mut fastrand::Rng) -> f64 {
    -open_unit(rng).ln()
}

/// Normal with mean 0 and standard deviation 1 (Box and Muller).
pub(crate) fn normal(rng: &mut fastrand::Rng) -> f64 {
    (-2.0 * open_unit(rng).ln()).sqrt() * (TAU * rng.f64()).cos()
}

/// Gamma with this shape and scale 1, hence mean `shape` (Marsaglia and Tsang, "A simple method for generating gamma
/// variables", 2000). `shape` must be above zero.
pub(crate) fn gamma(rng: &mut fastrand::Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        return gamma(rng, shape + 1.0) * open_unit(rng).powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && open_unit(rng).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and variance of many draws.
    fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let n = 40_000;
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..n {
            let x = draw();
            sum += x;
            squares += x * x;
        }
        let mean = sum / f64::from(n);
        (mean, squares / f64::from(n) - mean * mean)
    }

    #[test]
    fn distributions_have_their_moments() {
        let rng = &mut stream(7, Purpose::Arrivals, 0);
        let (mean, variance) = moments(|| exponential(rng));
        assert!(
            (mean - 1.0).abs() < 0.03 && (variance - 1.0).abs() < 0.08,
            "exponential {mean} {variance}"
        );
        let (mean, variance) = moments(|| normal(rng));
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
            "normal {mean} {variance}"
        );
        for shape in [0.1, 0.5, 1.0, 4.0] {
            let (mean, variance) = moments(|| gamma(rng, shape));
            assert!((mean / shape - 1.0).abs() < 0.1, "gamma {shape}: mean {mean}");
            assert!(
                (variance / shape - 1.0).abs() < 0.2,
                "gamma {shape}: variance {variance}"
            );
        }
    }

    #[test]
    fn purposes_and_indices_have_their_own_streams() {
        let first = |seed, purpose, index| stream(seed, purpose, index).u64(..);
        assert_eq!(first(1, Purpose::Arrivals, 0), first(1, Purpose::Arrivals, 0));
        assert_ne!(first(1, Purpose::Arrivals, 0), first(1, Purpose::Lengths, 0));
        assert_ne!(first(1, Purpose::Prompts, 0), first(1, Purpose::Prompts, 1));
        assert_ne!(first(1, Purpose::Arrivals, 0), first(2, Purpose::Arrivals, 0));
    }
}
