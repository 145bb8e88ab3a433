//! How long the requests of a rate plan are.

use crate::random;

/// Why a length model is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The mean is not a usable number of tokens.
    #[error("mean {what} of {mean} tokens: expected a number from 1 to 10000000")]
    Mean {
        /// Which length.
        what: &'static str,
        /// What was given.
        mean: f64,
    },
    /// The spread is not usable.
    #[error("length sigma {0}: expected a number from 0 (every length equal) to 4")]
    Sigma(f64),
}

/// Lognormal prompt and output lengths, or fixed ones with sigma zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    input_mean_tokens: f64,
    output_mean_tokens: f64,
    sigma: f64,
}

impl Default for Lengths {
    /// 512 tokens in, 128 out, every one equal.
    fn default() -> Self {
        Self {
            input_mean_tokens: 512.0,
            output_mean_tokens: 128.0,
            sigma: 0.0,
        }
    }
}

impl Lengths {
    /// Lengths with these means in tokens; `sigma` is the standard deviation of the logarithm, as in production traces
    /// where it is about 1.
    ///
    /// # Errors
    /// A mean below 1 or above ten million, or a sigma outside 0 to 4.
    pub fn new(input_mean_tokens: f64, output_mean_tokens: f64, sigma: f64) -> Result<Self, Error> {
        for (what, mean) in [("input", input_mean_tokens), ("output", output_mean_tokens)] {
            if !(1.0..=1e7).contains(&mean) {
                return Err(Error::Mean { what, mean });
            }
        }
        if !(0.0..=4.0).contains(&sigma) {
            return Err(Error::Sigma(sigma));
        }
        Ok(Self {
            input_mean_tokens,
            output_mean_tokens,
            sigma,
        })
    }

    /// The next pair of input and output tokens.
    pub(crate) fn draw(&self, rng: &mut fastrand::Rng) -> (u32, u32) {
        (
            lognormal(rng, self.input_mean_tokens, self.sigma),
            lognormal(rng, self.output_mean_tokens, self.sigma),
        )
    }
}

fn lognormal(rng: &mut fastrand::Rng, mean: f64, sigma: f64) -> u32 {
    // The mean of exp(N(mu, sigma^2)) is exp(mu + sigma^2 / 2): take that half back so that the mean is the one asked for.
    let tokens = if sigma == 0.0 {
        mean
    } else {
        mean * (sigma * random::normal(rng) - sigma * sigma / 2.0).exp()
    };
    tokens.round().clamp(1.0, 1e7) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lognormal_keeps_the_mean_and_zero_sigma_is_exact() {
        let rng = &mut random::stream(3, random::Purpose::Lengths, 0);
        assert_eq!(Lengths::default().draw(rng), (512, 128));
        let spread = Lengths::new(1000.0, 200.0, 0.8).unwrap();
        let n = 20_000;
        let total: u64 = (0..n).map(|_| u64::from(spread.draw(rng).0)).sum();
        let mean = total as f64 / f64::from(n);
        assert!((mean / 1000.0 - 1.0).abs() < 0.04, "{mean}");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Lengths::new(0.0, 1.0, 0.0).is_err());
        assert!(Lengths::new(1.0, f64::NAN, 0.0).is_err());
        assert!(Lengths::new(1.0, 1.0, -1.0).is_err());
    }
}
