//! The report: one HTML file with everything in it, light or dark as the reader's system is.

use std::fmt::Write as _;

use infer_proto::v1::{Decision, Signal};

use super::{
    closing::Ended,
    plot::{self, Plot, escape},
    recording::{Bounds, Point, Recording, bounds, histogram},
    stage::{QUANTILES, TTFT_WINDOW_S},
};

const STYLE: &str = include_str!("report.css");

/// The report as a page.
pub(crate) fn html(ended: &Ended) -> String {
    let recording = &ended.recording;
    let end_s = recording
        .end_s
        .max(recording.points.last().map_or(1.0, |point| point.at_s));
    let mut page = format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Autoscaler demo: {title}</title><style>{STYLE}</style></head><body><main>\n\
         <h1>Autoscaler demo: {title}</h1>\n<p>{}</p>\n",
        escape(&ended.about),
        title = escape(ended.title),
    );
    tiles(&mut page, ended);
    let plots = [
        ("Load, requests", load_legend(), load(ended, end_s)),
        ("Replicas", replicas_legend(), replicas(recording, end_s)),
        (
            "Time to first token, ms, logarithmic",
            ttft_legend(),
            ttft(recording, end_s),
        ),
    ];
    for (name, legend, svg) in plots {
        let _ = writeln!(page, "<section><h2>{name}</h2>{legend}{svg}</section>");
    }
    claims(&mut page, ended);
    explained(&mut page, ended);
    decisions(&mut page, recording);
    engines(&mut page, recording);
    page.push_str("</main></body></html>\n");
    page
}

fn tiles(page: &mut String, ended: &Ended) {
    let recording = &ended.recording;
    let held = ended.claims.iter().filter(|claim| claim.held).count();
    let all = ended.claims.len();
    let (ok, failed) = recording.counts();
    let most = recording.points.iter().map(|point| point.ready).max().unwrap_or(0);
    let verdict = if held == all { "good" } else { "bad" };
    let tile = |class: &str, value: String, words: &str| {
        format!("<div class=\"tile {class}\"><b>{value}</b><span>{words}</span></div>")
    };
    let mut tiles = tile(verdict, format!("{held} of {all}"), "claims held");
    tiles += &tile("", ok.to_string(), "requests answered");
    tiles += &tile(
        if failed == 0 { "" } else { "bad" },
        failed.to_string(),
        "requests failed",
    );
    tiles += &tile("", most.to_string(), "replicas at most");
    tiles += &tile("", recording.decisions.len().to_string(), "decisions");
    tiles += &tile("", format!("{:.0} s", ended.wall_s), "in all");
    let _ = writeln!(page, "<div class=tiles>{tiles}</div>");
}

/// `entries` are a class and its words; classes are "swatch" kinds of the style sheet.
fn legend(entries: &[(&str, &str)]) -> String {
    let entries: String = entries
        .iter()
        .map(|(class, words)| format!("<span><i class=\"{class}\"></i>{}</span>", escape(words)))
        .collect();
    format!("<p class=legend>{entries}</p>")
}

/// Shades panic and missing data, and draws where parts of the scenario begin.
fn scenery(plot: &mut Plot, recording: &Recording, end_s: f64) {
    for stretch in recording.points.chunk_by(|a, b| a.mode == b.mode) {
        let (Some(first), Some(last)) = (stretch.first(), stretch.last()) else {
            continue;
        };
        let next = recording.points.iter().find(|point| point.at_s > last.at_s);
        let class = match first.mode.as_str() {
            "stable" => continue,
            "panic" => "panic",
            _ => "unknown",
        };
        plot.span(class, first.at_s, next.map_or(end_s, |next| next.at_s));
    }
    for phase in &recording.phases {
        plot.border(phase.start_s, &phase.name);
    }
}

/// A class and the value that is drawn with it.
type Part<'a> = (&'a str, fn(&Point) -> f64);

/// Draws values on top of each other, the first at the bottom.
fn stack(plot: &mut Plot, recording: &Recording, parts: [Part<'_>; 3]) {
    for (index, (class, value)) in parts.iter().enumerate() {
        let band = |point: &Point| {
            let low: f64 = parts.iter().take(index).map(|(_, below)| below(point)).sum();
            (point.at_s, (low, low + value(point)))
        };
        plot.filled_steps(class, recording.points.iter().map(band));
    }
}

fn load_legend() -> String {
    legend(&[
        ("area running", "running in engines"),
        ("area waiting", "waiting in engines"),
        ("area held", "held at the front door"),
        ("stroke capacity", "wanted load of the ready replicas"),
        ("area panic", "panic"),
    ])
}

fn load(ended: &Ended, end_s: f64) -> String {
    let recording = &ended.recording;
    let capacity = |point: &Point| f64::from(point.ready) * ended.per_replica;
    let largest = recording
        .points
        .iter()
        .map(|point| point.load().max(capacity(point)))
        .fold(0.0, f64::max);
    let mut plot = Plot::new(250.0, end_s, plot::linear(largest));
    scenery(&mut plot, recording, end_s);
    stack(
        &mut plot,
        recording,
        [
            ("area running", |point| point.running),
            ("area waiting", |point| point.waiting),
            ("area held", |point| point.held),
        ],
    );
    plot.steps(
        "capacity",
        recording.points.iter().map(|point| (point.at_s, capacity(point))),
    );
    plot.svg("Requests over time")
}

fn replicas_legend() -> String {
    legend(&[
        ("area ready", "ready"),
        ("area starting", "starting"),
        ("area draining", "draining"),
        ("stroke desired", "desired"),
        ("mark up", "decision up"),
        ("mark down", "decision down"),
    ])
}

fn replicas(recording: &Recording, end_s: f64) -> String {
    let all = |point: &Point| f64::from((point.ready + point.starting + point.draining).max(point.desired));
    let largest = recording.points.iter().map(all).fold(0.0, f64::max);
    let mut plot = Plot::new(220.0, end_s, plot::linear(largest + 0.5));
    scenery(&mut plot, recording, end_s);
    stack(
        &mut plot,
        recording,
        [
            ("area ready", |point| f64::from(point.ready)),
            ("area starting", |point| f64::from(point.starting)),
            ("area draining", |point| f64::from(point.draining)),
        ],
    );
    plot.steps(
        "desired",
        recording
            .points
            .iter()
            .map(|point| (point.at_s, f64::from(point.desired))),
    );
    for decision in recording.decisions.iter().filter(|decision| changes(decision)) {
        let up = decision.replicas_after > decision.replicas_before;
        let class = if up { "up" } else { "down" };
        let title = format!("#{}: {}. {}", decision.id, change(decision), decision.reason);
        plot.mark(
            class,
            recording.at_s(decision),
            f64::from(decision.replicas_after),
            up,
            &title,
        );
    }
    plot.svg("Replicas over time")
}

fn ttft_legend() -> String {
    let legend = legend(&[
        ("area p50", "p50, between its bounds"),
        ("area p95", "p95, between its bounds"),
        ("stroke client50", "client's p50"),
        ("stroke client95", "client's p95"),
    ]);
    format!(
        "{legend}<p class=note>Each over the last {TTFT_WINDOW_S} s. Engines count latencies into buckets, so a percentile \
         is known to lie between two bounds; that band is what the decider knows. The client's clock starts earlier: at \
         its own request, before the front door.</p>"
    )
}

fn ttft(recording: &Recording, end_s: f64) -> String {
    let window_s = f64::from(TTFT_WINDOW_S);
    let clients = QUANTILES.map(|quantile| {
        let at = |point: &Point| {
            (
                point.at_s,
                recording.client_ttft_ms(point.at_s - window_s, point.at_s, quantile),
            )
        };
        recording.points.iter().map(at).collect::<Vec<_>>()
    });
    let decider = |of: fn(&Point) -> Option<Bounds>| {
        let at = move |point: &Point| (point.at_s, of(point).map(|bounds| (bounds.low_ms, bounds.high_ms)));
        recording.points.iter().map(at).collect::<Vec<_>>()
    };
    let bands = [decider(|point| point.ttft_p50), decider(|point| point.ttft_p95)];
    let known = bands.iter().flatten().filter_map(|(_, band)| *band);
    // A band that begins at 0 is drawn from the bottom.
    let values = known.flat_map(|(low, high)| [Some(low), high]).flatten();
    let values = values.chain(clients.iter().flatten().filter_map(|(_, value)| *value));
    let mut plot = Plot::new(270.0, end_s, plot::log(values));
    scenery(&mut plot, recording, end_s);
    for (band, class) in bands.iter().zip(["area p50", "area p95"]) {
        plot.band(&format!("\"{class}\""), band);
    }
    for (client, class) in clients.into_iter().zip(["client50", "client95"]) {
        plot.line(class, client.into_iter());
    }
    plot.svg("Time to first token over time")
}

fn claims(page: &mut String, ended: &Ended) {
    page.push_str("<section><h2>Claims</h2><table><tbody>");
    for claim in &ended.claims {
        let (class, mark) = if claim.held {
            ("good", "held")
        } else {
            ("bad", "FAILED")
        };
        let _ = write!(
            page,
            "<tr><td class={class}>{mark}</td><td>{}</td><td>{}</td></tr>",
            escape(&claim.claim),
            escape(&claim.seen)
        );
    }
    page.push_str("</tbody></table>");
    if let Some(ttft) = histogram(&ended.windows, Signal::Ttft) {
        let _ = write!(
            page,
            "<h3>Time to first token over the whole run</h3><table><thead><tr><th></th><th>decider, {} requests</th>\
             <th>linear in between</th><th>client</th></tr></thead><tbody>",
            ttft.count
        );
        for quantile in QUANTILES {
            let engines = bounds(ttft, quantile);
            let client_ms = ended.recording.client_ttft_ms(0.0, f64::INFINITY, quantile);
            let _ = write!(
                page,
                "<tr><td>p{:.0}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                quantile * 100.0,
                engines.map_or_else(String::new, |it| it.to_string()),
                engines.map_or_else(String::new, |it| format!("{:.1} ms", it.estimate_ms)),
                client_ms.map_or_else(String::new, |ms| format!("{ms:.1} ms")),
            );
        }
        page.push_str("</tbody></table>");
    }
    page.push_str("</section>\n");
}

fn explained(page: &mut String, ended: &Ended) {
    if let Some((id, text)) = &ended.explained {
        let _ = writeln!(
            page,
            "<section><h2>One decision, explained</h2><p class=note>What <code>inferctl explain {id}</code> printed:</p>\
             <pre>{}</pre></section>",
            escape(text.trim_end())
        );
    }
}

fn changes(decision: &Decision) -> bool {
    decision.replicas_before != decision.replicas_after
}

fn change(decision: &Decision) -> String {
    if changes(decision) {
        format!("{} → {}", decision.replicas_before, decision.replicas_after)
    } else {
        format!("stays {}", decision.replicas_after)
    }
}

fn decisions(page: &mut String, recording: &Recording) {
    page.push_str(
        "<section><h2>Decisions</h2><p class=note>Every one that changed the count or the mode.</p><table><thead><tr>\
         <th>id</th><th>time</th><th>replicas</th><th>mode</th><th>bound by</th><th>why</th></tr></thead><tbody>",
    );
    for decision in &recording.decisions {
        let fate = if decision.applied {
            String::new()
        } else {
            format!(" (not applied: {})", decision.not_applied)
        };
        let _ = write!(
            page,
            "<tr><td>{}</td><td class=number>{:.1} s</td><td class=number>{}</td><td class=\"mode {mode}\">{mode}</td>\
             <td>{}</td><td>{}{}</td></tr>",
            decision.id,
            recording.at_s(decision),
            change(decision),
            escape(&decision.bound_by),
            escape(&decision.reason),
            escape(&fate),
            mode = escape(&decision.mode),
        );
    }
    page.push_str("</tbody></table></section>\n");
}

fn engines(page: &mut String, recording: &Recording) {
    page.push_str(
        "<section><h2>Replicas there were</h2><table><thead><tr><th>replica</th><th>address</th><th>engine, as its agent \
         found it</th><th>started in</th><th>seen</th><th>requests</th></tr></thead><tbody>",
    );
    for ((name, endpoint), replica) in &recording.replicas {
        let started = replica
            .startup_ms
            .map_or_else(String::new, |ms| format!("{:.1} s", ms as f64 / 1e3));
        let span = replica.first_seen_s - 1.0..=replica.last_seen_s + 1.0;
        let answered = recording.answers.iter();
        let answered = answered
            .filter(|it| it.replica.as_ref() == Some(name) && span.contains(&it.sent_s))
            .count();
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=number>{started}</td><td class=number>{:.0} to {:.0} s</td>\
             <td class=number>{answered}</td></tr>",
            escape(name),
            escape(endpoint),
            escape(&replica.engine),
            replica.first_seen_s,
            replica.last_seen_s,
        );
    }
    page.push_str("</tbody></table></section>\n");
}
