//! Iteration-time profiles: how long one engine step takes for a given batch.
//!
//! `T_ms = a * (gemm(prefill + decode tokens) + decode attention + prefill attention) + b_ms + b_seq_ms * decodes`, where the inner sum comes
//! from operator measurements of one accelerator, model and tensor-parallel degree, and `a`, `b_ms`, `b_seq_ms` calibrate that sum
//! against whole-engine measurements. The shipped set is `sim/profiles/profiles.json`; each entry names its source.

use std::path::Path;

use serde::Deserialize;

/// The profiles that are built into the binary.
const BUILT_IN: &str = include_str!("../../profiles/profiles.json");

/// What can be wrong with a profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a shipped profile nor a file has that name.
    #[error("profile {name:?} is neither a built-in profile ({known}) nor a readable file ({cause})")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that would have been right.
        known: String,
        /// Why it could not be read as a file.
        cause: String,
    },
    /// The file is not JSON of the right shape.
    #[error("profile file {path}: {cause}")]
    Parse {
        /// The file.
        path: String,
        /// What the parser said, with line and column.
        cause: String,
    },
    /// A set of profiles was given without saying which one.
    #[error("profile file {path} holds {count} profiles: choose one as {path}#NAME ({known})")]
    Ambiguous {
        /// The file.
        path: String,
        /// How many profiles it holds.
        count: usize,
        /// Their names.
        known: String,
    },
    /// A value makes no sense.
    #[error("profile {name:?}, field {field}: {problem}")]
    Invalid {
        /// The profile.
        name: String,
        /// The field.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// Decode attention cost: `d0_ms + d_batch_ms * sequences + d_kvtoken_ms * cached tokens read`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct DecodeAttention {
    /// Fixed part, ms.
    pub d0_ms: f64,
    /// Per decoding sequence, ms.
    pub d_batch_ms: f64,
    /// Per KV token read, ms.
    pub d_kvtoken_ms: f64,
}

/// Prefill attention cost: `a0_ms + a_tok_ms * tokens + a_tokctx_ms * sum p_i * (ctx_i + p_i / 2)`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct PrefillAttention {
    /// Fixed part, ms.
    pub a0_ms: f64,
    /// Per prefill token, ms.
    pub a_tok_ms: f64,
    /// Per pair of prefill token and context token, ms.
    pub a_tokctx_ms: f64,
}

/// What turns operator time into engine time: `a * T + b_ms + b_seq_ms * decoding sequences`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Calibration {
    /// Factor.
    pub a: f64,
    /// Constant overhead per iteration, ms.
    pub b_ms: f64,
    /// Overhead per decoding sequence (the host's work for each token), ms.
    #[serde(default)]
    pub b_seq_ms: f64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self {
            a: 1.0,
            b_ms: 0.0,
            b_seq_ms: 0.0,
        }
    }
}

/// One accelerator + engine + model + tensor-parallel degree.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Profile {
    /// Short name, the value of `--profile`.
    #[serde(default)]
    pub name: String,
    /// Where the numbers come from.
    #[serde(default)]
    pub source: String,
    /// Accelerator, for example `h100_sxm`.
    pub system: String,
    /// Engine the operators were measured for.
    #[serde(default)]
    pub engine: String,
    /// Model, as on the model hub.
    pub model: String,
    /// Tensor-parallel degree.
    #[serde(default = "one")]
    pub tp: u32,
    /// Size of the KV cache, tokens.
    pub kv_capacity_tokens: u64,
    /// Default limit of running sequences.
    #[serde(default = "default_max_num_seqs")]
    pub max_num_seqs: u32,
    /// Default token budget of one iteration.
    #[serde(default = "default_max_num_batched_tokens")]
    pub max_num_batched_tokens: u32,
    /// Longest prompt plus output, tokens.
    #[serde(default = "default_max_model_len")]
    pub max_model_len: u32,
    /// Calibration against whole-engine measurements.
    #[serde(default)]
    pub calibration: Calibration,
    /// Decode attention.
    pub dec_attn: DecodeAttention,
    /// Prefill attention.
    pub prefill_attn: PrefillAttention,
    /// Everything that scales with the number of tokens in the batch: `(tokens, ms)`, ascending.
    pub gemm_table_ms: Vec<(f64, f64)>,
}

fn one() -> u32 {
    1
}
fn default_max_num_seqs() -> u32 {
    256
}
fn default_max_num_batched_tokens() -> u32 {
    2048
}
fn default_max_model_len() -> u32 {
    131_072
}

/// The shape of one iteration's batch, all the profile needs to know.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Batch {
    /// Prompt tokens computed in this iteration.
    pub prefill_tokens: u32,
    /// Sequences that decode one token.
    pub decode_seqs: u32,
    /// Sum of the decoding sequences' contexts, tokens.
    pub decode_kv_tokens: u64,
    /// `sum p_i * (ctx_i + p_i / 2)` over the prefill chunks, tokens squared.
    pub prefill_context_product: f64,
}

#[derive(Deserialize)]
struct Set {
    profiles: Vec<Profile>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    Set(Set),
    One(Box<Profile>),
}

impl Profile {
    /// The shipped profiles.
    ///
    /// # Errors
    /// Only if the file compiled into the binary is damaged, which a test excludes.
    pub fn built_in() -> Result<Vec<Self>, Error> {
        let set: Set = serde_json::from_str(BUILT_IN).map_err(|cause| Error::Parse {
            path: "profiles.json (built in)".into(),
            cause: cause.to_string(),
        })?;
        for profile in &set.profiles {
            profile.validate()?;
        }
        Ok(set.profiles)
    }

    /// Finds a profile by built-in name, or reads it from `FILE` or `FILE#NAME`.
    ///
    /// # Errors
    /// The name is unknown and no file, the file does not parse, or a value makes no sense.
    pub fn load(name: &str) -> Result<Self, Error> {
        let built_in = Self::built_in()?;
        if let Some(found) = built_in.iter().find(|p| p.name == name) {
            return Ok(found.clone());
        }
        let (path, wanted) = match name.rsplit_once('#') {
            Some((path, wanted)) => (path, Some(wanted)),
            None => (name, None),
        };
        let text = std::fs::read_to_string(Path::new(path)).map_err(|cause| Error::Unknown {
            name: name.into(),
            known: names(&built_in),
            cause: cause.to_string(),
        })?;
        Self::parse(path, &text, wanted)
    }

    fn parse(path: &str, text: &str, wanted: Option<&str>) -> Result<Self, Error> {
        let parse_error = |cause: serde_json::Error| Error::Parse {
            path: path.into(),
            cause: cause.to_string(),
        };
        let value: serde_json::Value = serde_json::from_str(text).map_err(parse_error)?;
        // Told apart by hand so that a mistake in a profile is reported for what it is.
        let file = if value.get("profiles").is_some() {
            File::Set(serde_json::from_value(value).map_err(parse_error)?)
        } else {
            File::One(Box::new(serde_json::from_value(value).map_err(parse_error)?))
        };
        let profile = match file {
            File::One(profile) => *profile,
            File::Set(set) => {
                let known = names(&set.profiles);
                let count = set.profiles.len();
                let mut matching: Vec<_> = set
                    .profiles
                    .into_iter()
                    .filter(|p| wanted.is_none_or(|name| p.name == name))
                    .collect();
                match (matching.len(), matching.pop()) {
                    (1, Some(profile)) => profile,
                    _ => {
                        return Err(Error::Ambiguous {
                            path: path.into(),
                            count,
                            known,
                        });
                    }
                }
            }
        };
        profile.validate()?;
        Ok(profile)
    }

    fn validate(&self) -> Result<(), Error> {
        let invalid = |field, problem: String| {
            Err(Error::Invalid {
                name: self.name.clone(),
                field,
                problem,
            })
        };
        if self.gemm_table_ms.is_empty() {
            return invalid(
                "gemm_table_ms",
                "is empty: at least one [tokens, ms] pair is needed".into(),
            );
        }
        if self
            .gemm_table_ms
            .iter()
            .any(|(tokens, ms)| !(*tokens >= 1.0 && *ms >= 0.0 && ms.is_finite()))
        {
            return invalid(
                "gemm_table_ms",
                "needs tokens of at least 1 and times that are finite and not negative".into(),
            );
        }
        if self.gemm_table_ms.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return invalid("gemm_table_ms", "must ascend in tokens".into());
        }
        if self.kv_capacity_tokens < 64 {
            return invalid(
                "kv_capacity_tokens",
                format!("is {}, at least 64 is needed", self.kv_capacity_tokens),
            );
        }
        if self.max_num_seqs == 0 || self.max_num_batched_tokens == 0 || self.max_model_len < 2 {
            return invalid(
                "max_num_seqs, max_num_batched_tokens, max_model_len",
                "must be positive".into(),
            );
        }
        let d = self.dec_attn;
        let p = self.prefill_attn;
        let c = self.calibration;
        let times = [
            d.d0_ms,
            d.d_batch_ms,
            d.d_kvtoken_ms,
            p.a0_ms,
            p.a_tok_ms,
            p.a_tokctx_ms,
            c.a,
            c.b_ms,
        ];
        if times.iter().any(|t| !(*t >= 0.0 && t.is_finite())) {
            return invalid(
                "dec_attn, prefill_attn, calibration",
                "must be finite and not negative".into(),
            );
        }
        Ok(())
    }

    /// Time of one iteration on the real engine, ms. An empty batch takes no time.
    pub fn iteration_ms(&self, batch: &Batch) -> f64 {
        if batch.prefill_tokens == 0 && batch.decode_seqs == 0 {
            return 0.0;
        }
        let mut operators_ms = self.gemm_ms(f64::from(batch.prefill_tokens) + f64::from(batch.decode_seqs));
        if batch.decode_seqs > 0 {
            let d = self.dec_attn;
            operators_ms +=
                d.d0_ms + d.d_batch_ms * f64::from(batch.decode_seqs) + d.d_kvtoken_ms * batch.decode_kv_tokens as f64;
        }
        if batch.prefill_tokens > 0 {
            let p = self.prefill_attn;
            operators_ms +=
                p.a0_ms + p.a_tok_ms * f64::from(batch.prefill_tokens) + p.a_tokctx_ms * batch.prefill_context_product;
        }
        let c = self.calibration;
        c.a * operators_ms + c.b_ms + c.b_seq_ms * f64::from(batch.decode_seqs)
    }

    /// Linear between the table's points, constant below the first, the last slope above the last.
    fn gemm_ms(&self, tokens: f64) -> f64 {
        let table = &self.gemm_table_ms;
        let upper = table.partition_point(|(t, _)| *t < tokens);
        let (low, high) = match upper {
            0 => return table[0].1,
            _ if table.len() == 1 => return table[0].1,
            i if i == table.len() => (table[i - 2], table[i - 1]),
            i => (table[i - 1], table[i]),
        };
        low.1 + (tokens - low.0) * (high.1 - low.1) / (high.0 - low.0)
    }
}

fn names(profiles: &[Profile]) -> String {
    profiles.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_profiles_are_sound_and_name_their_source() {
        let profiles = Profile::built_in().unwrap();
        assert!(profiles.len() >= 6);
        assert!(BUILT_IN.len() < 30 * 1024);
        for profile in &profiles {
            assert!(
                !profile.name.is_empty() && !profile.source.is_empty(),
                "{}",
                profile.name
            );
            let one = profile.iteration_ms(&Batch {
                decode_seqs: 1,
                decode_kv_tokens: 1000,
                ..Batch::default()
            });
            let many = profile.iteration_ms(&Batch {
                decode_seqs: 64,
                decode_kv_tokens: 64_000,
                ..Batch::default()
            });
            assert!(
                one > 0.0 && many > one && many < 64.0 * one,
                "{}: {one} {many}",
                profile.name
            );
        }
    }

    #[test]
    fn iteration_time_follows_the_formula() {
        let profile = Profile::load("h100-llama-8b").unwrap();
        // One decode over 1000 cached tokens: gemm(1) + d0 + d_batch + 1000 d_kvtoken, calibrated.
        let ms = profile.iteration_ms(&Batch {
            decode_seqs: 1,
            decode_kv_tokens: 1000,
            ..Batch::default()
        });
        assert!(
            (ms - (1.05 * (5.7457 + 0.43085 + 0.003019 + 0.04308) + 1.5 + 0.03)).abs() < 1e-9,
            "{ms}"
        );
        // A 768-token prefill: the table's own point.
        let batch = Batch {
            prefill_tokens: 768,
            prefill_context_product: 768.0 * 384.0,
            ..Batch::default()
        };
        let ms = profile.iteration_ms(&batch);
        assert!(
            (ms - (1.05 * (15.3283 + 768.0 * 0.001618 + 3.026e-8 * 768.0 * 384.0) + 1.5)).abs() < 1e-9,
            "{ms}"
        );
        assert_eq!(profile.iteration_ms(&Batch::default()), 0.0);
    }

    #[test]
    fn table_is_interpolated_and_extrapolated() {
        let mut profile = Profile::load("demo-small").unwrap();
        profile.gemm_table_ms = vec![(2.0, 4.0), (4.0, 8.0), (8.0, 10.0)];
        for (tokens, ms) in [
            (1.0, 4.0),
            (2.0, 4.0),
            (3.0, 6.0),
            (4.0, 8.0),
            (6.0, 9.0),
            (8.0, 10.0),
            (16.0, 14.0),
        ] {
            assert!((profile.gemm_ms(tokens) - ms).abs() < 1e-12, "{tokens}");
        }
        profile.gemm_table_ms.truncate(1);
        assert_eq!(profile.gemm_ms(99.0), 4.0);
    }

    #[test]
    fn mistakes_are_explained() {
        let text = Profile::load("no-such").unwrap_err().to_string();
        assert!(text.contains("demo-small") && text.contains("no-such"), "{text}");
        let two = format!("{{\"profiles\": [{0}, {0}]}}", ONE);
        let text = Profile::parse("p.json", &two, None).unwrap_err().to_string();
        assert!(text.contains("p.json#NAME"), "{text}");
        let text = Profile::parse("p.json", &ONE.replace("[[1, 1.0]]", "[]"), None)
            .unwrap_err()
            .to_string();
        assert!(text.contains("gemm_table_ms"), "{text}");
        let text = Profile::parse("p.json", "{\"system\": 1}", None)
            .unwrap_err()
            .to_string();
        assert!(text.contains("p.json"), "{text}");
        assert_eq!(Profile::parse("p.json", ONE, None).unwrap().max_num_seqs, 256);
    }

    const ONE: &str = r#"{"name": "x", "system": "s", "model": "m", "kv_capacity_tokens": 100,
        "dec_attn": {"d0_ms": 0, "d_batch_ms": 0, "d_kvtoken_ms": 0},
        "prefill_attn": {"a0_ms": 0, "a_tok_ms": 0, "a_tokctx_ms": 0}, "gemm_table_ms": [[1, 1.0]]}"#;
}
