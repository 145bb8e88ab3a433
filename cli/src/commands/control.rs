//! `pause`, `resume` and `override`: what people tell the decider.

use infer_proto::v1::{OverrideRequest, PauseRequest, ResumeRequest};

use crate::args::{OverrideArgs, PauseArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Printer;
use crate::render;
use crate::time::now_unix_ms;
use crate::view::TargetView;

pub(crate) async fn pause(client: &mut Client, printer: &Printer, args: PauseArgs) -> Result<(), Failure> {
    let request = PauseRequest {
        target: args.target,
        for_s: args.for_s.unwrap_or(0),
        reason: args.reason,
    };
    let target = client
        .call(
            request,
            |mut client, request| async move { client.pause(request).await },
        )
        .await?;
    answer(printer, target.into())
}

pub(crate) async fn resume(client: &mut Client, printer: &Printer, target: String) -> Result<(), Failure> {
    let target = client
        .call(ResumeRequest { target }, |mut client, request| async move {
            client.resume(request).await
        })
        .await?;
    answer(printer, target.into())
}

pub(crate) async fn override_replicas(
    client: &mut Client,
    printer: &Printer,
    args: OverrideArgs,
) -> Result<(), Failure> {
    let request = OverrideRequest {
        target: args.target,
        replicas: args.replicas,
        for_s: args.for_s,
        reason: args.reason,
    };
    let target = client
        .call(request, |mut client, request| async move {
            client.r#override(request).await
        })
        .await?;
    answer(printer, target.into())
}

fn answer(printer: &Printer, target: TargetView) -> Result<(), Failure> {
    printer.answer(&target, || render::control_sentence(&target, now_unix_ms()))
}
