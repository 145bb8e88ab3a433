//! What a person sees while it goes on: a picture redrawn in place on a terminal, lines elsewhere. All on stderr.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _, Write as _},
};

use infer_proto::v1::Decision;

use super::recording::Point;

/// Decisions shown under the picture.
const DECISIONS_SHOWN: usize = 6;
/// Seconds of load in the little curve.
const HISTORY: usize = 60;
const WIDTH_MIN: usize = 20;
/// Where the terminal does not say how wide it is.
const WIDTH_DEFAULT: usize = 100;

/// The view.
pub(crate) struct Display {
    live: bool,
    colour: bool,
    /// Plain lines come this often.
    line_every_s: f64,
    last_line_s: f64,
    /// Lines of the picture on the screen now.
    drawn: usize,
    phase: String,
    history: VecDeque<f64>,
    decisions: VecDeque<String>,
}

impl Display {
    /// `line_every_s` is the pace where there is no terminal.
    pub(crate) fn new(line_every_s: f64) -> Self {
        let live = io::stderr().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb");
        Display {
            live,
            colour: live && std::env::var_os("NO_COLOR").is_none(),
            line_every_s,
            last_line_s: f64::NEG_INFINITY,
            drawn: 0,
            phase: String::new(),
            history: VecDeque::new(),
            decisions: VecDeque::new(),
        }
    }

    /// A line that stays.
    pub(crate) fn say(&mut self, text: &str) {
        let clear = self.clear();
        self.write(&format!("{clear}{text}\n"));
    }

    /// A new part of the scenario begins.
    pub(crate) fn phase(&mut self, at_s: f64, name: &str, words: &str) {
        name.clone_into(&mut self.phase);
        if !self.live {
            self.write(&format!("{at_s:6.1} s  -- {name}: {words}\n"));
        }
    }

    /// A decision was made.
    pub(crate) fn decision(&mut self, at_s: f64, decision: &Decision) {
        let change = if decision.replicas_before == decision.replicas_after {
            format!("stays at {}", decision.replicas_after)
        } else {
            format!("{} → {}", decision.replicas_before, decision.replicas_after)
        };
        let line = format!(
            "{at_s:6.1} s  #{} {change}, {}, bound by {}: {}",
            decision.id, decision.mode, decision.bound_by, decision.reason
        );
        if self.live {
            self.decisions.push_back(line);
            if self.decisions.len() > DECISIONS_SHOWN {
                self.decisions.pop_front();
            }
        } else {
            self.write(&format!("{line}\n"));
        }
    }

    /// Another look.
    pub(crate) fn point(&mut self, point: &Point) {
        if self.live {
            self.history.push_back(point.load());
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
            let picture = self.picture(point);
            let clear = self.clear();
            self.drawn = picture.len();
            self.write(&format!("{clear}{}\n", picture.join("\n")));
        } else if point.at_s - self.last_line_s >= self.line_every_s - 0.1 {
            self.last_line_s = point.at_s;
            self.write(&format!("{}\n", line(point)));
        }
    }

    /// The picture stays as it is; what follows is written under it.
    pub(crate) fn finish(&mut self) {
        self.drawn = 0;
    }

    fn clear(&mut self) -> String {
        let lines = std::mem::take(&mut self.drawn);
        if lines == 0 {
            String::new()
        } else {
            format!("\x1b[{lines}A\x1b[J")
        }
    }

    fn picture(&self, point: &Point) -> Vec<String> {
        let width = comfy_table::Table::new().width().map(usize::from);
        // A terminal may say that it is 0 wide, which means that it does not know.
        let width = width.filter(|width| *width >= WIDTH_MIN).unwrap_or(WIDTH_DEFAULT) - 1;
        let paint = |text: &str, code: &str| {
            if self.colour {
                format!("\x1b[{code}m{text}\x1b[0m")
            } else {
                text.to_owned()
            }
        };
        let cut = |text: String| text.chars().take(width).collect::<String>();
        let ttft = |bounds: Option<super::recording::Bounds>| bounds.map_or("-".to_owned(), |it| it.to_string());
        let mode_colour = match point.mode.as_str() {
            "panic" => "1;31",
            "stable" => "32",
            _ => "33",
        };
        let places = [
            (point.ready, '■'),
            (point.starting, '◧'),
            (point.draining, '□'),
            (point.failed, '✗'),
        ];
        let blocks: String = places
            .iter()
            .flat_map(|(count, mark)| (0..*count).map(|_| *mark))
            .collect();
        let mut lines = vec![
            paint(&cut(format!("{:6.1} s  {}", point.at_s, self.phase)), "1"),
            cut(format!(
                "  load      {:5.1}  running {:.0}  waiting {:.0}  held {:.0}",
                point.load(),
                point.running,
                point.waiting,
                point.held
            )),
            cut(format!("            {}", curve(&self.history))),
            cut(format!(
                "  replicas  {blocks:<8}  {} ready  {} starting  {} draining  {} desired",
                point.ready, point.starting, point.draining, point.desired
            )),
            format!("  mode      {}", paint(&point.mode, mode_colour)),
            cut(format!(
                "  ttft      p50 {}   p95 {}",
                ttft(point.ttft_p50),
                ttft(point.ttft_p95)
            )),
            cut(format!(
                "  client    {} sent  {} answered  {} failed",
                point.sent, point.ok, point.failed_requests
            )),
        ];
        lines.extend(self.decisions.iter().map(|decision| cut(decision.clone())));
        lines
    }

    fn write(&self, text: &str) {
        let mut stderr = io::stderr().lock();
        // A closed terminal must not end the run: what has been started still has to be stopped.
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }
}

/// One look on one line.
fn line(point: &Point) -> String {
    let ttft = match (point.ttft_p50, point.ttft_p95) {
        (Some(p50), Some(p95)) => format!("  ttft p50 {p50} p95 {p95}"),
        _ => String::new(),
    };
    format!(
        "{:6.1} s  load {:4.0}  ready {} starting {} draining {} desired {}  {:7}  sent {} answered {} failed {}{ttft}",
        point.at_s,
        point.load(),
        point.ready,
        point.starting,
        point.draining,
        point.desired,
        point.mode,
        point.sent,
        point.ok,
        point.failed_requests
    )
}

fn curve(history: &VecDeque<f64>) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let top = history.iter().copied().fold(1.0, f64::max);
    history
        .iter()
        .map(|value| STEPS[((value / top * 7.0).round() as usize).min(7)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_reaches_from_floor_to_top() {
        assert_eq!(curve(&VecDeque::from([0.0, 4.0, 8.0])), "▁▅█");
        assert_eq!(curve(&VecDeque::new()), "");
    }
}
