//! Plots as SVG text: axes, lines, steps, bands and marks over one common time axis.

use std::fmt::Write as _;

/// Width of every plot in SVG units; the page scales it.
pub(crate) const WIDTH: f64 = 1120.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 26.0;
/// About the width of a letter of a border's name.
const LETTER: f64 = 7.0;
/// About as many numbers on the value axis.
const TICKS: f64 = 5.0;
/// About as many numbers on the time axis.
const TIME_TICKS: f64 = 12.0;

/// How values map to heights.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scale {
    /// From 0 to this.
    Linear {
        /// The top.
        top: f64,
    },
    /// Powers of ten between these.
    Log {
        /// The bottom, above 0.
        low: f64,
        /// The top.
        top: f64,
    },
}

/// From one value to another; `None` for no upper one.
pub(crate) type Interval = (f64, Option<f64>);

/// A plot in the making.
pub(crate) struct Plot {
    height: f64,
    end_s: f64,
    scale: Scale,
    body: String,
    /// Where the last name of a border ends, and in which of two rows it is.
    named_to: (f64, bool),
}

/// Text made safe for HTML and SVG.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// 1, 2 or 5 times a power of ten: the smallest that makes at most `count` steps of `range`.
fn round_step(range: f64, count: f64) -> f64 {
    let rough = (range / count).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|factor| factor * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

impl Plot {
    /// Axes and grid from 0 to `end_s` seconds.
    pub(crate) fn new(height: f64, end_s: f64, scale: Scale) -> Self {
        let mut plot = Plot {
            height,
            end_s: end_s.max(1.0),
            scale,
            body: String::new(),
            named_to: (0.0, false),
        };
        plot.axes();
        plot
    }

    fn x(&self, at_s: f64) -> f64 {
        LEFT + (at_s / self.end_s).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear { top } => value / top,
            Scale::Log { low, top } => (value.max(low) / low).ln() / (top / low).ln(),
        };
        let floor = self.height - BOTTOM;
        floor - share.clamp(0.0, 1.0) * (floor - TOP)
    }

    /// The largest value there is room for.
    fn top(&self) -> f64 {
        match self.scale {
            Scale::Linear { top } | Scale::Log { top, .. } => top,
        }
    }

    fn axes(&mut self) {
        let values: Vec<f64> = match self.scale {
            Scale::Linear { top } => {
                let step = round_step(top, TICKS);
                (0..)
                    .map(|index| f64::from(index) * step)
                    .take_while(|value| *value <= top * 1.001)
                    .collect()
            }
            Scale::Log { low, top } => {
                let first = low.log10().floor() as i32;
                let decades = (first..)
                    .map(|power| 10f64.powi(power))
                    .take_while(|decade| *decade <= top);
                let values = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|factor| factor * decade));
                values
                    .filter(|value| (low * 0.999..=top * 1.001).contains(value))
                    .collect()
            }
        };
        let (left, right) = (LEFT, WIDTH - RIGHT);
        for value in values {
            let y = self.y(value);
            let _ = write!(
                self.body,
                "<line class=grid x1={left} x2={right} y1={y:.1} y2={y:.1} /><text class=axis x={:.1} y={:.1} \
                 text-anchor=end>{}</text>",
                left - 6.0,
                y + 4.0,
                super::recording::short(value)
            );
        }
        let step = round_step(self.end_s, TIME_TICKS);
        let floor = self.height - BOTTOM;
        for index in 0.. {
            let at_s = f64::from(index) * step;
            if at_s > self.end_s {
                break;
            }
            let x = self.x(at_s);
            let _ = write!(
                self.body,
                "<line class=grid x1={x:.1} x2={x:.1} y1={TOP} y2={floor} /><text class=axis x={x:.1} y={:.1} \
                 text-anchor=middle>{} s</text>",
                floor + 16.0,
                super::recording::short(at_s)
            );
        }
    }

    /// A shaded stretch of time over the whole height.
    pub(crate) fn span(&mut self, class: &str, from_s: f64, to_s: f64) {
        let (x, end) = (self.x(from_s), self.x(to_s));
        let _ = write!(
            self.body,
            "<rect class={class} x={x:.1} y={TOP} width={:.1} height={:.1} />",
            (end - x).max(0.5),
            self.height - BOTTOM - TOP
        );
    }

    /// A dashed line over the whole height, named at its top.
    pub(crate) fn border(&mut self, at_s: f64, name: &str) {
        let x = self.x(at_s);
        // A name that would run into the one before goes under it.
        let (end, lowered) = self.named_to;
        let lower = x < end && !lowered;
        self.named_to = (x + 10.0 + LETTER * name.len() as f64, lower);
        let y = if lower { TOP + 11.0 } else { TOP - 5.0 };
        let (anchor, beside) = if self.named_to.0 > WIDTH {
            ("end", -4.0)
        } else {
            ("start", 4.0)
        };
        let _ = write!(
            self.body,
            "<line class=border x1={x:.1} x2={x:.1} y1={:.1} y2={:.1} /><text class=phase x={:.1} y={y:.1} \
             text-anchor={anchor}>{}</text>",
            TOP - 14.0,
            self.height - BOTTOM,
            x + beside,
            escape(name)
        );
    }

    /// A line through points; broken where there is no value.
    pub(crate) fn line(&mut self, class: &str, points: impl Iterator<Item = (f64, Option<f64>)>) {
        let mut path = String::new();
        let mut pen_down = false;
        for (at_s, value) in points {
            match value {
                Some(value) => {
                    let verb = if pen_down { 'L' } else { 'M' };
                    // A lone point is drawn as a dot, by a line of no length with a round end.
                    let dot = if pen_down { "" } else { "h0" };
                    let _ = write!(path, "{verb}{:.1} {:.1}{dot}", self.x(at_s), self.y(value));
                    pen_down = true;
                }
                None => pen_down = false,
            }
        }
        let _ = write!(self.body, "<path class=\"line {class}\" d=\"{path}\" />");
    }

    /// Like a line, holding each value until the next.
    pub(crate) fn steps(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let mut path = String::new();
        for (at_s, value) in points {
            let (x, y) = (self.x(at_s), self.y(value));
            let _ = if path.is_empty() {
                write!(path, "M{x:.1} {y:.1}")
            } else {
                write!(path, "H{x:.1}V{y:.1}")
            };
        }
        let _ = write!(self.body, "<path class=\"line {class}\" d=\"{path}\" />");
    }

    /// Filled between lower and upper values, which hold until the next.
    pub(crate) fn filled_steps(&mut self, class: &str, points: impl Iterator<Item = (f64, (f64, f64))>) {
        let mut upper = String::new();
        let mut lower = String::new();
        let mut before: Option<(f64, f64)> = None;
        for (at_s, (low, high)) in points {
            let (x, y_low, y_high) = (self.x(at_s), self.y(low), self.y(high));
            match before {
                None => {
                    let _ = write!(upper, "M{x:.1} {y_high:.1}");
                    lower = format!("L{x:.1} {y_low:.1}Z");
                }
                Some((low_before, _)) => {
                    let _ = write!(upper, "H{x:.1}V{y_high:.1}");
                    // The way back, from right to left.
                    lower = format!("L{x:.1} {y_low:.1}V{low_before:.1}{lower}");
                }
            }
            before = Some((y_low, y_high));
        }
        let _ = write!(self.body, "<path class=\"{class}\" d=\"{upper}{lower}\" />");
    }

    /// Filled between lower and upper values, each held until the next; `None` above is the top of the plot.
    pub(crate) fn band(&mut self, class: &str, points: &[(f64, Option<Interval>)]) {
        for pair in points.windows(2) {
            let (Some((from_s, Some((low, high)))), Some((to_s, _))) = (pair.first(), pair.get(1)) else {
                continue;
            };
            let (x, end) = (self.x(*from_s), self.x(*to_s));
            let (y_high, y_low) = (self.y(high.unwrap_or(self.top())), self.y(*low));
            let _ = write!(
                self.body,
                "<rect class={class} x={x:.1} y={y_high:.1} width={:.2} height={:.1} />",
                end - x + 0.2,
                (y_low - y_high).max(1.0)
            );
        }
    }

    /// A triangle that points up or down, with a text shown when pointed at.
    pub(crate) fn mark(&mut self, class: &str, at_s: f64, value: f64, up: bool, title: &str) {
        let (x, y) = (self.x(at_s), self.y(value));
        let tip = if up { -9.0 } else { 9.0 };
        let _ = write!(
            self.body,
            "<path class=\"mark {class}\" d=\"M{:.1} {y:.1}h12l-6 {tip}z\"><title>{}</title></path>",
            x - 6.0,
            escape(title)
        );
    }

    /// The whole as an `svg` element; `name` says what it shows.
    pub(crate) fn svg(self, name: &str) -> String {
        let (height, body) = (self.height, self.body);
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=img aria-label=\"{}\">{body}</svg>\n",
            escape(name)
        )
    }
}

/// A scale from 0 with some air above the largest value.
pub(crate) fn linear(largest: f64) -> Scale {
    let top = (largest * 1.08).max(1.0);
    let step = round_step(top, TICKS);
    Scale::Linear {
        top: (top / step).ceil() * step,
    }
}

/// A scale of powers of ten around the values given.
pub(crate) fn log(values: impl Iterator<Item = f64>) -> Scale {
    let (low, top) = values
        .filter(|value| *value > 0.0)
        .fold((f64::INFINITY, 0.0f64), |(low, top), value| {
            (low.min(value), top.max(value))
        });
    if top <= 0.0 {
        Scale::Log { low: 1.0, top: 1000.0 }
    } else {
        Scale::Log {
            low: low * 0.8,
            top: top * 1.3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        for (range, step) in [(1.0, 0.2), (7.0, 2.0), (38.0, 10.0), (90.0, 20.0), (420.0, 100.0)] {
            assert!(
                (round_step(range, 5.0) - step).abs() < 1e-9,
                "{range}: {}",
                round_step(range, 5.0)
            );
        }
    }

    #[test]
    fn values_map_into_the_frame_and_lines_break_at_gaps() {
        let mut plot = Plot::new(200.0, 10.0, Scale::Linear { top: 10.0 });
        assert!((plot.y(0.0) - 174.0).abs() < 1e-9 && (plot.y(10.0) - 22.0).abs() < 1e-9);
        assert!((plot.y(99.0) - 22.0).abs() < 1e-9, "cut at the top");
        plot.line("a", [(0.0, Some(1.0)), (1.0, None), (2.0, Some(2.0))].into_iter());
        assert_eq!(plot.svg("x").matches("h0").count(), 2);
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<a href=\"&\">"), "&lt;a href=&quot;&amp;&quot;&gt;");
    }
}
