//! `watch`: redraws on a terminal, and prints a line per change elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use infer_proto::v1::{Target, WatchTargetsRequest};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tonic::Streaming;

use crate::args::Format;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Printer;
use crate::render;
use crate::time::{now_unix_ms, rfc3339};
use crate::view::TargetView;

/// Ages go on while nothing else changes.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);
/// Changes that come together are drawn together.
const SETTLE: Duration = Duration::from_millis(50);

pub(crate) async fn run(client: &mut Client, printer: &Printer, target: Option<String>) -> Result<(), Failure> {
    let request = WatchTargetsRequest {
        target: target.unwrap_or_default(),
    };
    let stream = client
        .call(request, |mut client, request| async move {
            client.watch_targets(request).await
        })
        .await?;
    if printer.format() == Format::Table && std::io::stdout().is_terminal() {
        return draw(client, stream).await;
    }
    lines(client, printer, stream).await
}

async fn lines(client: &Client, printer: &Printer, mut stream: Streaming<Target>) -> Result<(), Failure> {
    while let Some(target) = stream.next().await {
        let view = TargetView::from(target.map_err(|status| client.refused(&status))?);
        printer.item(&view, || render::target_line(&view, now_unix_ms()))?;
    }
    Ok(())
}

/// Draws until interrupted or until the stream ends, and leaves the terminal as it was.
async fn draw(client: &Client, stream: Streaming<Target>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::Work(format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let _screen = Screen::enter()?;
    tokio::select! {
        result = redraw(client, stream) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

async fn redraw(client: &Client, mut stream: Streaming<Target>) -> Result<(), Failure> {
    let mut targets: BTreeMap<String, TargetView> = BTreeMap::new();
    let mut due = Instant::now() + SETTLE;
    loop {
        tokio::select! {
            target = stream.next() => match target {
                Some(Ok(target)) => {
                    targets.insert(target.name.clone(), target.into());
                    due = due.min(Instant::now() + SETTLE);
                }
                Some(Err(status)) => return Err(client.refused(&status)),
                None => return Err(Failure::Work(format!("the decider at {} ended the stream", client.address().url()))),
            },
            () = tokio::time::sleep_until(due) => {
                draw_frame(&frame(client.address().url(), &targets))?;
                due = Instant::now() + REDRAW_INTERVAL;
            }
        }
    }
}

fn frame(url: &str, targets: &BTreeMap<String, TargetView>) -> String {
    let now = now_unix_ms();
    let count = match targets.len() {
        1 => "1 target".to_owned(),
        count => format!("{count} targets"),
    };
    let time = rfc3339(now - now % 1000).replace(".000", "");
    let mut text = format!("infer-decider at {url}, {count}, {time} (Ctrl-C ends)\n\n");
    let views: Vec<TargetView> = targets.values().cloned().collect();
    text.push_str(&render::targets(&views, now));
    for view in &views {
        text.push('\n');
        text.push_str(&render::target(view, now));
    }
    text
}

fn draw_frame(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let text = match anstream::AutoStream::choice(&out) {
        anstream::ColorChoice::Never => anstream::adapter::strip_str(text).to_string(),
        _ => text.to_owned(),
    };
    // Home, every line cleared to its end, then the rest of the screen: nothing flickers.
    write!(out, "\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))?;
    out.flush()?;
    Ok(())
}

/// The terminal's alternate screen, without cursor and line wrapping; gone when dropped.
struct Screen;

impl Screen {
    fn enter() -> Result<Self, Failure> {
        // To stdout itself: anstream would take these for decoration where colours are unwanted.
        let mut out = std::io::stdout().lock();
        out.write_all(b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J\x1b[H")?;
        out.flush()?;
        Ok(Screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(b"\x1b[?7h\x1b[?25h\x1b[?1049l");
        let _ = out.flush();
    }
}
