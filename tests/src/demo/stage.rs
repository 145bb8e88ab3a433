//! A running decider with everything that watches it, and the hands to play load against it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use infer_load::{Event, Plan, Report, Shutdown};
use infer_proto::v1::{GetWindowsRequest, Target, WatchDecisionsRequest, WatchTargetsRequest, Windows};
use infer_tests::harness::{Client, Decider, Options, for_target};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_stream::StreamExt as _;
use tokio_util::task::AbortOnDropHandle;

use super::{
    display::Display,
    recording::{Phase, Recording},
};

/// Between two points of the timeline.
const LOOK: Duration = Duration::from_millis(250);
/// TTFT percentiles on the timeline are over this many seconds.
pub(crate) const TTFT_WINDOW_S: u32 = 5;
/// The percentiles shown.
pub(crate) const QUANTILES: [f64; 2] = [0.5, 0.95];
/// A decider that is alive answers within this.
const RPC_TIMEOUT: Duration = Duration::from_secs(5);

/// What a stage is set with.
pub(crate) struct Setting {
    /// The run's directory: documents, state, logs, report.
    pub(crate) directory: PathBuf,
    /// The documents.
    pub(crate) documents: String,
    /// The one target's name.
    pub(crate) target: String,
    /// The model to ask for.
    pub(crate) model: String,
    /// The front door.
    pub(crate) url: String,
    /// Where there is no terminal, a line this often.
    pub(crate) line_every_s: f64,
}

/// What watchers and loads share.
pub(crate) struct Seen {
    epoch: Instant,
    recording: Mutex<Recording>,
    display: Mutex<Display>,
}

impl Seen {
    /// What happened so far.
    pub(crate) fn recording(&self) -> MutexGuard<'_, Recording> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view.
    pub(crate) fn display(&self) -> MutexGuard<'_, Display> {
        self.display.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since the start.
    pub(crate) fn now_s(&self) -> f64 {
        self.epoch.elapsed().as_secs_f64()
    }
}

/// The stage. Dropping it ends everything.
pub(crate) struct Stage {
    // Watchers end before the decider they watch.
    _watchers: Vec<AbortOnDropHandle<()>>,
    pub(crate) decider: Decider,
    pub(crate) client: Client,
    pub(crate) setting: Setting,
    pub(crate) seen: Arc<Seen>,
}

/// A load that is being played. Dropping it gives up what is in flight.
pub(crate) struct Load {
    shutdown: Shutdown,
    task: AbortOnDropHandle<Result<Report, infer_load::Error>>,
}

impl Load {
    /// No new requests; those in flight go on.
    pub(crate) fn stop(&self) {
        self.shutdown.stop();
    }

    /// Its report, once the last request has an answer.
    pub(crate) async fn report(self) -> anyhow::Result<Report> {
        Ok(self.task.await.context("the load generator")??)
    }
}

impl Stage {
    /// Starts the decider and everything that watches it.
    pub(crate) async fn set(setting: Setting) -> anyhow::Result<Stage> {
        let epoch_unix_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as i64);
        let seen = Arc::new(Seen {
            epoch: Instant::now(),
            recording: Mutex::new(Recording {
                epoch_unix_ms,
                ..Recording::default()
            }),
            display: Mutex::new(Display::new(setting.line_every_s)),
        });
        let mut options = Options::new(&setting.directory, &setting.documents);
        options.env.push(("NO_COLOR".to_owned(), "1".to_owned()));
        let decider = Decider::start(options).await?;
        let client = decider.client().await?;
        let (latest, watched) = watch::channel(None);
        let watchers = vec![
            spawn(watch_targets(client.clone(), setting.target.clone(), latest)),
            spawn(watch_decisions(
                client.clone(),
                setting.target.clone(),
                Arc::clone(&seen),
            )),
            spawn(look(client.clone(), watched, Arc::clone(&seen))),
        ];
        Ok(Stage {
            _watchers: watchers,
            decider,
            client,
            setting,
            seen,
        })
    }

    /// A new part of the scenario begins now.
    pub(crate) fn phase(&self, name: &str, words: &str) {
        let start_s = self.seen.now_s();
        self.seen.display().phase(start_s, name, words);
        self.seen.recording().phases.push(Phase {
            name: name.to_owned(),
            start_s,
        });
    }

    /// Begins a load.
    pub(crate) fn load(&self, plan: Plan, options: impl FnOnce(&mut infer_load::Options)) -> Load {
        let mut chosen = infer_load::Options::new(&self.setting.url, &self.setting.model);
        options(&mut chosen);
        let shutdown = Shutdown::default();
        let (seen, base_s) = (Arc::clone(&self.seen), self.seen.now_s());
        let observer = move |event: &Event| match event {
            Event::Started { .. } => seen.recording().sent += 1,
            Event::Finished(outcome) => seen.recording().take_answer(outcome, base_s),
            Event::Progress(_) | Event::SendingEnded { .. } => {}
        };
        let task = infer_load::run(chosen, plan, observer, shutdown.clone());
        Load {
            shutdown,
            task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }

    /// Waits until the target is as wanted; `None` when it was not in time, which a claim will then say.
    pub(crate) async fn wait(
        &self,
        within: Duration,
        what: &str,
        condition: impl FnMut(&Target) -> bool,
    ) -> Option<Target> {
        match for_target(&self.client, &self.setting.target, within, what, condition).await {
            Ok(target) => Some(target),
            Err(error) => {
                self.seen.display().say(&format!("{error}"));
                None
            }
        }
    }

    /// The decider's windows over the last `window_s` seconds.
    pub(crate) async fn windows(&self, window_s: u32) -> anyhow::Result<Windows> {
        let request = windows_request(&self.setting.target, window_s);
        Ok(self.client.clone().get_windows(request).await?.into_inner())
    }
}

fn windows_request(target: &str, window_s: u32) -> GetWindowsRequest {
    GetWindowsRequest {
        target: target.to_owned(),
        window_s,
        quantiles: QUANTILES.to_vec(),
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

/// Keeps the target's latest state. Ends with the decider.
async fn watch_targets(mut client: Client, target: String, latest: watch::Sender<Option<Target>>) {
    let Ok(answer) = client.watch_targets(WatchTargetsRequest { target }).await else {
        return;
    };
    let mut targets = answer.into_inner();
    while let Some(Ok(target)) = targets.next().await {
        let _ = latest.send(Some(target));
    }
}

/// Records and shows decisions. Ends with the decider.
async fn watch_decisions(mut client: Client, target: String, seen: Arc<Seen>) {
    // The backlog covers what was decided before this call.
    let Ok(answer) = client
        .watch_decisions(WatchDecisionsRequest { target, backlog: 100 })
        .await
    else {
        return;
    };
    let mut decisions = answer.into_inner();
    while let Some(Ok(decision)) = decisions.next().await {
        let at_s = seen.recording().at_s(&decision);
        seen.display().decision(at_s, &decision);
        seen.recording().decisions.push(decision);
    }
}

/// Draws the timeline.
async fn look(mut client: Client, latest: watch::Receiver<Option<Target>>, seen: Arc<Seen>) {
    let mut pace = tokio::time::interval(LOOK);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        pace.tick().await;
        let Some(target) = latest.borrow().clone() else {
            continue;
        };
        let windows = client.get_windows(windows_request(&target.name, TTFT_WINDOW_S));
        let windows = tokio::time::timeout(RPC_TIMEOUT, windows).await;
        let windows = windows.ok().and_then(Result::ok).map(tonic::Response::into_inner);
        let at_s = seen.now_s();
        let point = {
            let mut recording = seen.recording();
            recording.take_replicas(&target, at_s);
            let point = recording.point(&target, windows.as_ref(), at_s);
            recording.points.push(point.clone());
            point
        };
        seen.display().point(&point);
    }
}
