//! A plan: arrivals in time order, with the token counts of each.

use std::fmt;

/// One request to come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When it starts, in seconds after the start of the plan.
    pub at_s: f64,
    /// Length of the prompt in tokens, at least 1.
    pub input_tokens: u32,
    /// Tokens to generate, at least 1.
    pub output_tokens: u32,
}

/// Arrivals in time order, made lazily. An iterator of [`Arrival`].
pub struct Plan {
    arrivals: Box<dyn Iterator<Item = Arrival> + Send>,
    duration_s: Option<f64>,
}

impl Plan {
    /// A plan from arrivals whose times never decrease. `duration_s` is the length of the window they were drawn for,
    /// which can be longer than the time of the last arrival; without it rates are taken up to the last arrival.
    pub fn new(arrivals: impl Iterator<Item = Arrival> + Send + 'static, duration_s: Option<f64>) -> Self {
        Self {
            arrivals: Box::new(arrivals),
            duration_s,
        }
    }

    /// A plan of given arrivals, put in time order.
    pub fn from_arrivals(mut arrivals: Vec<Arrival>) -> Self {
        arrivals.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        let duration_s = arrivals.last().map(|last| last.at_s);
        Self::new(arrivals.into_iter(), duration_s)
    }

    /// Length of the window in seconds, when it is known.
    pub fn duration_s(&self) -> Option<f64> {
        self.duration_s
    }

    /// Only the arrivals in `from_s..to_s`, moved so that `from_s` becomes zero.
    pub fn slice(self, from_s: f64, to_s: f64) -> Self {
        let duration_s = self.duration_s.map(|end_s| (end_s.min(to_s) - from_s).max(0.0));
        let arrivals = self
            .arrivals
            .skip_while(move |arrival| arrival.at_s < from_s)
            .take_while(move |arrival| arrival.at_s < to_s)
            .map(move |arrival| Arrival {
                at_s: arrival.at_s - from_s,
                ..arrival
            });
        Self::new(arrivals, duration_s)
    }

    /// At most the first `count` arrivals. The window then ends with the last of them, so it is no longer known.
    pub fn limit(self, count: usize) -> Self {
        Self::new(self.arrivals.take(count), None)
    }

    /// Token counts cut to at most these, and raised to at least 1.
    pub fn clamp_tokens(self, input_max: u32, output_max: u32) -> Self {
        let arrivals = self.arrivals.map(move |arrival| Arrival {
            input_tokens: arrival.input_tokens.min(input_max).max(1),
            output_tokens: arrival.output_tokens.min(output_max).max(1),
            ..arrival
        });
        Self::new(arrivals, self.duration_s)
    }

    /// Time compressed by `factor`: 10 plays ten seconds of the plan in one. Must be above zero.
    pub fn scale(self, factor: f64) -> Self {
        let duration_s = self.duration_s.map(|end_s| end_s / factor);
        let arrivals = self.arrivals.map(move |arrival| Arrival {
            at_s: arrival.at_s / factor,
            ..arrival
        });
        Self::new(arrivals, duration_s)
    }
}

impl Iterator for Plan {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        self.arrivals.next()
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("duration_s", &self.duration_s)
            .finish_non_exhaustive()
    }
}
