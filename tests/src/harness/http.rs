//! One HTTP exchange.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy, rt::TokioExecutor};

/// GET: status and body, or why there is none. Without a time limit.
///
/// # Errors
/// A URL that is none; no connection; a body that breaks off.
pub async fn http_get(url: &str) -> Result<(u16, Bytes), String> {
    let uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    // A client of its own: a connection that was left open would keep a drained agent from ending.
    let client: legacy::Client<_, Empty<Bytes>> = legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build_http();
    let response = client.get(uri).await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}
