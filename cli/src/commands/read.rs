//! `status`, `targets`, `decisions` and `windows`.

use infer_proto::v1::{
    GetStatusRequest, GetWindowsRequest, ListDecisionsRequest, ListDecisionsResponse, Status, Target,
    WatchDecisionsRequest, WatchTargetsRequest, Windows,
};
use tokio_stream::StreamExt;
use tonic::Response;

use crate::args::{DecisionsArgs, WindowsArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Printer;
use crate::render;
use crate::time::now_unix_ms;
use crate::view::{DecisionView, DecisionsView, StatusView, TargetView, TargetsView, WindowsView};

/// Decisions shown before the first new one.
const DEFAULT_BACKLOG: u32 = 10;

pub(crate) async fn status(client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    let status: Status = client
        .call(GetStatusRequest {}, |mut client, request| async move {
            client.get_status(request).await
        })
        .await?;
    let view = StatusView::from(status);
    printer.answer(&view, || render::status(&view, client.address().url(), now_unix_ms()))
}

pub(crate) async fn targets(client: &mut Client, printer: &Printer, name: Option<String>) -> Result<(), Failure> {
    if let Some(name) = name {
        let view = TargetView::from(target(client, name).await?);
        return printer.answer(&view, || render::target(&view, now_unix_ms()));
    }
    let view = TargetsView {
        targets: client.targets().await?.into_iter().map(TargetView::from).collect(),
    };
    printer.answer(&view, || render::targets(&view.targets, now_unix_ms()))
}

/// The beginning of a watch: unlike a list, this is allowed to who may see this one, and a decider that does not have it
/// says who does.
async fn target(client: &mut Client, name: String) -> Result<Target, Failure> {
    let request = WatchTargetsRequest { target: name.clone() };
    let first = client.call(request, |mut client, request| async move {
        let (metadata, mut stream, extensions) = client.watch_targets(request).await?.into_parts();
        Ok(Response::from_parts(metadata, stream.message().await?, extensions))
    });
    first
        .await?
        .ok_or_else(|| Failure::Work(format!("the decider has nothing to say of target {name:?}")))
}

/// The known names, in words.
pub(crate) fn names(targets: &[Target]) -> String {
    match targets {
        [] => "the decider has no targets: nothing is bound to a policy, or another decider has it".to_owned(),
        _ => {
            let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
            format!("known: {}", names.join(", "))
        }
    }
}

pub(crate) async fn decisions(client: &mut Client, printer: &Printer, args: DecisionsArgs) -> Result<(), Failure> {
    let request = ListDecisionsRequest {
        target: args.target.unwrap_or_default(),
        limit: args.limit.unwrap_or(0),
        before_id: args.before.unwrap_or(0),
    };
    let list: ListDecisionsResponse = client
        .call(request, |mut client, request| async move {
            client.list_decisions(request).await
        })
        .await?;
    let view = DecisionsView {
        decisions: list.decisions.into_iter().map(DecisionView::from).collect(),
    };
    printer.answer(&view, || render::decisions(&view.decisions, now_unix_ms()))
}

/// Ends when the decider ends the stream.
pub(crate) async fn follow(client: &mut Client, printer: &Printer, args: DecisionsArgs) -> Result<(), Failure> {
    let backlog = args.limit.unwrap_or(DEFAULT_BACKLOG);
    let request = WatchDecisionsRequest {
        target: args.target.unwrap_or_default(),
        backlog,
    };
    let mut stream = client
        .call(request, |mut client, request| async move {
            client.watch_decisions(request).await
        })
        .await?;
    while let Some(decision) = stream.next().await {
        let view = DecisionView::from(decision.map_err(|status| client.refused(&status))?);
        printer.item(&view, || render::decision_line(&view))?;
    }
    Ok(())
}

pub(crate) async fn windows(client: &mut Client, printer: &Printer, args: WindowsArgs) -> Result<(), Failure> {
    let request = GetWindowsRequest {
        target: args.target,
        window_s: args.window.unwrap_or(0),
        quantiles: args.quantile,
    };
    let windows: Windows = client
        .call(request, |mut client, request| async move {
            client.get_windows(request).await
        })
        .await?;
    let view = WindowsView::from(windows);
    printer.answer(&view, || render::windows(&view))
}
