//! The end of a run: what is asked of the decider before it is stopped, and what is left afterwards.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use infer_proto::v1::{
    Decision, ExplainRequest, GetStatusRequest, ListDecisionsRequest, Windows, explain_request::What,
};
use infer_tests::harness::until;
use serde_json::json;

use super::{
    claims::{self, Claim, claim},
    recording::{Recording, bounds, counter, histogram},
    stage::{QUANTILES, Stage},
};

/// The longest window a decider keeps for every policy; runs are shorter.
const WHOLE_RUN_S: u32 = 600;
/// An agent's last sample comes with the end of its engine, or a second later.
const COUNTS_WITHIN: Duration = Duration::from_secs(10);
/// Engines without requests end at once; a real one takes its time.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// More than any run makes; the decider keeps that many.
const DECISIONS_MAX: u32 = 1000;

/// A run that is over.
pub(crate) struct Ended {
    /// Which demo.
    pub(crate) title: &'static str,
    /// What it was, in a sentence or two, for the report.
    pub(crate) about: String,
    /// The run's directory.
    pub(crate) directory: PathBuf,
    /// Load wanted per replica.
    pub(crate) per_replica: f64,
    /// Everything seen.
    pub(crate) recording: Recording,
    /// The decider's view of the whole run.
    pub(crate) windows: Windows,
    /// The decision explained and what `inferctl explain` says of it.
    pub(crate) explained: Option<(u64, String)>,
    /// What was claimed, and how it came out.
    pub(crate) claims: Vec<Claim>,
    /// How long it all took.
    pub(crate) wall_s: f64,
}

/// Asks the last questions, stops the decider and looks for leftovers. `story` are the scenario's own claims, which come
/// first; `explain` picks the decision to explain.
pub(crate) async fn close(
    mut stage: Stage,
    (title, about, per_replica): (&'static str, String, f64),
    story: impl FnOnce(&Recording) -> Vec<Claim>,
    explain: impl Fn(&Decision) -> bool,
) -> anyhow::Result<Ended> {
    stage.phase("end", "the last questions");
    let (ok, _) = stage.seen.recording().counts();
    let agreed = until(COUNTS_WITHIN, "agreement on the requests", || async {
        match stage.windows(WHOLE_RUN_S).await {
            Ok(windows) if counter(&windows, "requests") == ok => Ok(windows),
            Ok(windows) => Err(format!("{} counted", counter(&windows, "requests"))),
            Err(error) => Err(format!("{error:#}")),
        }
    });
    let windows = match agreed.await {
        Ok(windows) => windows,
        // The claim will say by how much.
        Err(_) => stage.windows(WHOLE_RUN_S).await?,
    };
    let end_s = stage.seen.now_s();
    let status = stage.client.get_status(GetStatusRequest {}).await?.into_inner();
    let request = ListDecisionsRequest {
        target: stage.setting.target.clone(),
        limit: DECISIONS_MAX,
        before_id: 0,
    };
    let mut decisions = stage.client.list_decisions(request).await?.into_inner().decisions;
    decisions.reverse();
    let recomputed = recomputed(&mut stage, &decisions).await?;
    let explained = match decisions
        .iter()
        .find(|decision| explain(decision))
        .or(decisions.first())
    {
        Some(decision) => {
            let text = stage.decider.inferctl(&["explain", &decision.id.to_string()]).await?;
            Some((decision.id, text))
        }
        None => None,
    };
    let stopped = stage.decider.stop(STOP_WITHIN).await;
    let left = stage.decider.processes();
    let wall_s = stage.seen.now_s();
    stage.seen.display().finish();

    let mut recording = std::mem::take(&mut *stage.seen.recording());
    recording.end_s = end_s;
    recording.decisions = decisions;
    let mut claims = story(&recording);
    claims.push(claims::no_failures(&recording));
    claims.push(recomputed);
    claims.push(claims::samples_whole(&status));
    claims.push(claims::counts_agree(&recording, &windows));
    claims.push(claims::bounds_hold(&recording, &windows));
    let clean = stopped.as_ref().is_ok_and(std::process::ExitStatus::success);
    let names: Vec<_> = left.iter().map(ToString::to_string).collect();
    let seen = match (&stopped, left.is_empty()) {
        (Err(error), _) => error.to_string(),
        (Ok(status), true) => format!("decider ended with {status}, no process left"),
        (Ok(_), false) => names.join(", "),
    };
    claims.push(claim(
        "nothing is left running after the stop",
        clean && left.is_empty(),
        seen,
    ));
    let directory = stage.setting.directory.clone();
    Ok(Ended {
        title,
        about,
        directory,
        per_replica,
        recording,
        windows,
        explained,
        claims,
        wall_s,
    })
}

/// Asks the decider to recompute every decision.
async fn recomputed(stage: &mut Stage, decisions: &[Decision]) -> anyhow::Result<Claim> {
    let mut differing = Vec::new();
    for decision in decisions {
        let request = ExplainRequest {
            what: Some(What::DecisionId(decision.id)),
        };
        if !stage.client.explain(request).await?.into_inner().recomputed_equal {
            differing.push(format!("#{}", decision.id));
        }
    }
    let seen = match differing.len() {
        0 => format!("{} of {}", decisions.len(), decisions.len()),
        _ => format!("not {}", differing.join(", ")),
    };
    let held = differing.is_empty() && !decisions.is_empty();
    Ok(claim(
        "every decision comes out the same when recomputed from its record",
        held,
        seen,
    ))
}

impl Ended {
    /// The outcome for people.
    pub(crate) fn text(&self, report: &Path) -> String {
        let mut text = String::new();
        if let Some((id, words)) = &self.explained {
            let _ = writeln!(text, "\n$ inferctl explain {id}\n{}\n", words.trim_end());
        }
        for claim in &self.claims {
            let mark = if claim.held { "ok    " } else { "FAILED" };
            let _ = writeln!(text, "{mark}  {}: {}", claim.claim, claim.seen);
        }
        let failed = self.claims.iter().filter(|claim| !claim.held).count();
        let verdict = match failed {
            0 => format!("all {} claims held", self.claims.len()),
            _ => format!("{failed} of {} claims did not hold", self.claims.len()),
        };
        let _ = writeln!(text, "\n{verdict}, {:.0} s; report:\n{}", self.wall_s, report.display());
        text
    }

    /// The outcome for programs.
    pub(crate) fn json(&self, report: &Path) -> serde_json::Value {
        let (ok, failed) = self.recording.counts();
        let ttft = QUANTILES.map(|quantile| {
            let engines = histogram(&self.windows, infer_proto::v1::Signal::Ttft);
            json!({
                "quantile": quantile,
                "engines": engines.and_then(|ttft| bounds(ttft, quantile)),
                "client_ms": self.recording.client_ttft_ms(0.0, f64::INFINITY, quantile),
            })
        });
        json!({
            "demo": self.title,
            "ok": self.claims.iter().all(|claim| claim.held),
            "wall_s": self.wall_s,
            "claims": self.claims,
            "requests": { "sent": self.recording.sent, "ok": ok, "failed": failed },
            "ttft": ttft,
            "decisions": self.recording.decisions.len(),
            "explained": self.explained.as_ref().map(|(id, _)| id),
            "report": report,
        })
    }
}
