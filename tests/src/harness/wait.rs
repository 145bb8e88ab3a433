//! Waiting on conditions, with an end.

use std::{future::Future, time::Duration};

use infer_proto::v1::{Target, WatchTargetsRequest};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;

use super::{Client, Error};

/// How often [`until`] looks.
const LOOK: Duration = Duration::from_millis(50);

/// Watches a target until the condition holds, and returns it as it was then.
///
/// # Errors
/// [`Error::TooLate`] with the target as it was last; what the decider refuses.
pub async fn for_target(
    client: &Client,
    name: &str,
    within: Duration,
    what: &str,
    mut condition: impl FnMut(&Target) -> bool,
) -> Result<Target, Error> {
    let mut client = client.clone();
    let mut last = None;
    let watched = timeout(within, async {
        let mut targets = client
            .watch_targets(WatchTargetsRequest {
                target: name.to_owned(),
            })
            .await?
            .into_inner();
        while let Some(target) = targets.next().await {
            let target = target?;
            if condition(&target) {
                return Ok(Some(target));
            }
            last = Some(target);
        }
        Ok::<_, Error>(None)
    });
    match watched.await {
        Ok(Ok(Some(target))) => Ok(target),
        Ok(Err(error)) => Err(error),
        Ok(Ok(None)) | Err(_) => {
            let seen = last.map_or_else(|| "nothing".to_owned(), |target| brief(&target));
            Err(Error::TooLate {
                what: what.to_owned(),
                within,
                seen,
            })
        }
    }
}

/// A target on one line.
fn brief(target: &Target) -> String {
    let replicas = target.replicas.unwrap_or_default();
    format!(
        "{} ready, {} starting, {} draining, {} failed, {} desired, mode {}, {} held ({})",
        replicas.ready,
        replicas.starting,
        replicas.draining,
        replicas.failed,
        replicas.desired,
        target.mode,
        target.gateway_waiting.unwrap_or_default(),
        target.reason
    )
}

/// Asks again and again until the answer is `Ok`; the `Err` of the last time says what was there instead.
///
/// # Errors
/// [`Error::TooLate`].
pub async fn until<T, F>(within: Duration, what: &str, mut ask: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, String>>,
{
    let mut seen = "nothing".to_owned();
    let asked = timeout(within, async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(instead) => seen = instead,
            }
            sleep(LOOK).await;
        }
    });
    match asked.await {
        Ok(answer) => Ok(answer),
        Err(_) => Err(Error::TooLate {
            what: what.to_owned(),
            within,
            seen,
        }),
    }
}
