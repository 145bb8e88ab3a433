//! `explain`.

use infer_proto::v1::ExplainRequest;
use infer_proto::v1::explain_request::What;

use crate::client::Client;
use crate::commands::read::names;
use crate::failure::Failure;
use crate::output::Printer;
use crate::render;
use crate::time::now_unix_ms;
use crate::view::ExplanationView;

pub(crate) async fn run(client: &mut Client, printer: &Printer, what: Option<String>) -> Result<(), Failure> {
    let what = match what {
        Some(text) => match text.trim_start_matches('#').parse::<u64>() {
            Ok(id) => What::DecisionId(id),
            Err(_) => What::Target(text),
        },
        None => What::Target(only_target(client).await?),
    };
    let request = ExplainRequest { what: Some(what) };
    let explanation = client
        .call(
            request,
            |mut client, request| async move { client.explain(request).await },
        )
        .await?;
    let view = ExplanationView::from(explanation);
    printer.answer(&view, || render::explanation(&view, now_unix_ms()))
}

async fn only_target(client: &mut Client) -> Result<String, Failure> {
    let targets = client.targets().await?;
    match targets.as_slice() {
        [target] => Ok(target.name.clone()),
        [] => Err(Failure::Work(names(&targets))),
        _ => Err(Failure::Usage(format!(
            "which target? {}; write inferctl explain TARGET",
            names(&targets)
        ))),
    }
}
