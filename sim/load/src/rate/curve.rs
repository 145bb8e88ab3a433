//! The curve: pieces of rate over time, their areas, and the way back from an area to a time.

use super::{Burst, ENDLESS_S, Error, Stage};
use std::f64::consts::TAU;

const RATE_MAX_RPS: f64 = 1e6;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Line {
        from_rps: f64,
        to_rps: f64,
    },
    /// From `low_rps` at time zero to `high_rps` half a period later and back.
    Wave {
        low_rps: f64,
        high_rps: f64,
        period_s: f64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    start_s: f64,
    end_s: f64,
    shape: Shape,
    /// Expected arrivals before this piece.
    before: f64,
}

impl Piece {
    fn rate_at(&self, t: f64) -> f64 {
        match self.shape {
            Shape::Line { from_rps, to_rps } => {
                from_rps + (to_rps - from_rps) * (t - self.start_s) / (self.end_s - self.start_s)
            }
            Shape::Wave {
                low_rps,
                high_rps,
                period_s,
            } => (low_rps + high_rps) / 2.0 - (high_rps - low_rps) / 2.0 * (TAU * t / period_s).cos(),
        }
    }

    /// Expected arrivals from the start of the piece until `t`.
    fn mass(&self, t: f64) -> f64 {
        match self.shape {
            Shape::Line { from_rps, .. } => (from_rps + self.rate_at(t)) / 2.0 * (t - self.start_s),
            Shape::Wave {
                low_rps,
                high_rps,
                period_s,
            } => {
                let wave = |t: f64| (TAU * t / period_s).sin() * period_s / TAU;
                (low_rps + high_rps) / 2.0 * (t - self.start_s)
                    - (high_rps - low_rps) / 2.0 * (wave(t) - wave(self.start_s))
            }
        }
    }

    /// The time at which `mass` arrivals of this piece are expected to have come.
    fn time_of(&self, mass: f64) -> f64 {
        if mass <= 0.0 {
            return self.start_s;
        }
        match self.shape {
            Shape::Line { from_rps, to_rps } => {
                // The root of from x + slope x^2 / 2 = mass, in the form that does not cancel when slope is near zero.
                let slope = (to_rps - from_rps) / (self.end_s - self.start_s);
                let root = (from_rps * from_rps + 2.0 * slope * mass).max(0.0).sqrt();
                (self.start_s + 2.0 * mass / (from_rps + root)).min(self.end_s)
            }
            Shape::Wave { .. } => {
                let (mut low, mut high) = (self.start_s, self.end_s);
                // Sixty halvings of at most 1e9 s end below a nanosecond.
                for _ in 0..60 {
                    let middle = (low + high) / 2.0;
                    if self.mass(middle) < mass {
                        low = middle
                    } else {
                        high = middle
                    }
                }
                high
            }
        }
    }

    fn cut(&self, start_s: f64, end_s: f64) -> Option<Self> {
        let (start_s, end_s) = (start_s.max(self.start_s), end_s.min(self.end_s));
        let shape = match self.shape {
            Shape::Line { .. } => Shape::Line {
                from_rps: self.rate_at(start_s),
                to_rps: self.rate_at(end_s),
            },
            wave @ Shape::Wave { .. } => wave,
        };
        (start_s < end_s).then_some(Self {
            start_s,
            end_s,
            shape,
            before: 0.0,
        })
    }
}

/// Requests per second over time, from zero to an end.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    pieces: Vec<Piece>,
}

impl Curve {
    /// The same rate all the time.
    ///
    /// # Errors
    /// A rate or a duration out of range.
    pub fn constant(rate_rps: f64, duration_s: f64) -> Result<Self, Error> {
        Self::stages(&[Stage {
            start_s: 0.0,
            end_s: duration_s,
            from_rps: rate_rps,
            to_rps: rate_rps,
        }])
    }

    /// From one rate to another within `ramp_s`, then that rate until `duration_s`.
    ///
    /// # Errors
    /// A rate or a duration out of range.
    pub fn ramp(from_rps: f64, to_rps: f64, ramp_s: f64, duration_s: f64) -> Result<Self, Error> {
        let slope = Stage {
            start_s: 0.0,
            end_s: ramp_s,
            from_rps,
            to_rps,
        };
        if duration_s <= ramp_s {
            return Self::stages(&[slope])?.until(duration_s);
        }
        Self::stages(&[
            slope,
            Stage {
                start_s: ramp_s,
                end_s: duration_s,
                from_rps: to_rps,
                to_rps,
            },
        ])
    }

    /// A day-like wave: lowest at zero, highest half a period later.
    ///
    /// # Errors
    /// A rate or a duration out of range.
    pub fn diurnal(low_rps: f64, high_rps: f64, period_s: f64, duration_s: f64) -> Result<Self, Error> {
        check_rate(low_rps)?;
        check_rate(high_rps)?;
        check_duration(period_s)?;
        check_duration(duration_s)?;
        // One piece a period: a wave's inverse is found by halving, which wants a short interval to be fast and exact.
        let periods = (duration_s / period_s).ceil().min(1e6) as usize;
        let mut pieces: Vec<Piece> = (0..periods)
            .map(|i| Piece {
                start_s: i as f64 * period_s,
                end_s: ((i + 1) as f64 * period_s).min(duration_s),
                shape: Shape::Wave {
                    low_rps,
                    high_rps,
                    period_s,
                },
                before: 0.0,
            })
            .filter(|piece| piece.start_s < piece.end_s)
            .collect();
        if let Some(last) = pieces.last_mut() {
            last.end_s = duration_s;
        }
        Ok(Self::new(pieces))
    }

    /// A curve of stages in time order; between them nothing arrives.
    ///
    /// # Errors
    /// No stages, a rate out of range, or stages that overlap.
    pub fn stages(stages: &[Stage]) -> Result<Self, Error> {
        let mut pieces = Vec::with_capacity(stages.len());
        let mut previous_end_s = 0.0;
        for &Stage {
            start_s,
            end_s,
            from_rps,
            to_rps,
        } in stages
        {
            check_rate(from_rps)?;
            check_rate(to_rps)?;
            check_duration(end_s)?;
            if !(start_s >= previous_end_s && end_s > start_s) {
                return Err(Error::StageOrder {
                    start_s,
                    end_s,
                    previous_end_s,
                });
            }
            pieces.push(Piece {
                start_s,
                end_s,
                shape: Shape::Line { from_rps, to_rps },
                before: 0.0,
            });
            previous_end_s = end_s;
        }
        if pieces.is_empty() {
            Err(Error::NoStages)
        } else {
            Ok(Self::new(pieces))
        }
    }

    /// The curve with the burst's rate in place of its own during the burst. Where bursts overlap the last one counts.
    ///
    /// # Errors
    /// A rate or a length out of range, or a burst that starts outside the curve.
    pub fn with_burst(self, burst: Burst) -> Result<Self, Error> {
        let Burst {
            start_s,
            length_s,
            rate_rps,
        } = burst;
        check_rate(rate_rps)?;
        check_duration(length_s)?;
        let end_s = self.end_s();
        if !(0.0..end_s).contains(&start_s) {
            return Err(Error::BurstOutside { start_s, end_s });
        }
        let burst_end_s = (start_s + length_s).min(end_s);
        let shape = Shape::Line {
            from_rps: rate_rps,
            to_rps: rate_rps,
        };
        let mut pieces = vec![Piece {
            start_s,
            end_s: burst_end_s,
            shape,
            before: 0.0,
        }];
        for piece in &self.pieces {
            pieces.extend(piece.cut(0.0, start_s));
            pieces.extend(piece.cut(burst_end_s, end_s));
        }
        pieces.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
        Ok(Self::new(pieces))
    }

    /// The curve up to `duration_s`.
    ///
    /// # Errors
    /// A duration out of range, or before the curve's first stage.
    pub fn until(self, duration_s: f64) -> Result<Self, Error> {
        check_duration(duration_s)?;
        let pieces: Vec<Piece> = self
            .pieces
            .iter()
            .filter_map(|piece| piece.cut(0.0, duration_s))
            .collect();
        if pieces.is_empty() {
            Err(Error::NoStages)
        } else {
            Ok(Self::new(pieces))
        }
    }

    fn new(mut pieces: Vec<Piece>) -> Self {
        let mut before = 0.0;
        for piece in &mut pieces {
            piece.before = before;
            before += piece.mass(piece.end_s);
        }
        Self { pieces }
    }

    /// Where the curve ends, in seconds.
    pub fn end_s(&self) -> f64 {
        self.pieces.last().map_or(0.0, |piece| piece.end_s)
    }

    /// Requests per second at a time; zero outside the curve.
    pub fn rate_at(&self, t: f64) -> f64 {
        let inside = self
            .pieces
            .iter()
            .find(|piece| (piece.start_s..piece.end_s).contains(&t));
        inside.map_or(0.0, |piece| piece.rate_at(t))
    }

    /// Expected arrivals from zero until `t`.
    pub fn expected(&self, t: f64) -> f64 {
        let index = self.pieces.partition_point(|piece| piece.start_s < t);
        let Some(piece) = index.checked_sub(1).and_then(|index| self.pieces.get(index)) else {
            return 0.0;
        };
        piece.before + piece.mass(t.min(piece.end_s))
    }

    /// The time by which this many arrivals are expected, or none when the curve ends before.
    pub fn time_of(&self, arrivals: f64) -> Option<f64> {
        let index = self
            .pieces
            .partition_point(|piece| piece.before + piece.mass(piece.end_s) < arrivals);
        let piece = self.pieces.get(index)?;
        Some(piece.time_of(arrivals - piece.before))
    }
}

fn check_rate(rate_rps: f64) -> Result<(), Error> {
    if (0.0..=RATE_MAX_RPS).contains(&rate_rps) {
        Ok(())
    } else {
        Err(Error::Rate(rate_rps))
    }
}

fn check_duration(duration_s: f64) -> Result<(), Error> {
    if duration_s > 0.0 && duration_s <= ENDLESS_S {
        Ok(())
    } else {
        Err(Error::Duration(duration_s))
    }
}
