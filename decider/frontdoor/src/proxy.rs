//! One request: read, leased, sent, answered.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header::EXPECT, header::HOST};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::{
    body::{self, Journey, Reply, Stream},
    headers::{self, X_REPLICA},
    pool::Conn,
    replica::{Lease, Replica},
    reply,
    server::Shared,
    stats::{Account, Failure, Outcome, Refusal, Retry},
};

/// Answers one request of a client.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    if request.uri().path().starts_with("/-/") {
        return Ok(own(&shared, &request));
    }
    let account = shared.counters.open();
    Ok(match forward(&shared, peer, request, &account).await {
        Ok(Answer::Stream(stream)) => {
            let (response, conn, lease) = *stream;
            respond(&shared, response, Journey { conn, lease, account })
        }
        Ok(Answer::Models(model)) => {
            account.settle(Outcome::Completed);
            reply::models(&model)
        }
        Err(Fault::Refused(refusal)) => {
            tracing::debug!(?refusal, "request refused");
            account.settle(Outcome::Rejected(refusal));
            reply::refused(refusal, shared.options.max_body_bytes)
        }
        Err(Fault::Failed(failure, lease)) => {
            account.settle(Outcome::Failed(failure));
            reply::failed(failure, &lease.replica().header)
        }
    })
}

/// The front door's own endpoints. They are no traffic, so they are not counted.
fn own(shared: &Shared, request: &Request<Incoming>) -> Response<Reply> {
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/-/healthz" if get => reply::json(StatusCode::OK, &serde_json::json!({ "status": "ok" })),
        "/-/stats" if get => match serde_json::to_value(shared.stats()) {
            Ok(stats) => reply::json(StatusCode::OK, &stats),
            Err(error) => reply::error(StatusCode::INTERNAL_SERVER_ERROR, "stats", &error.to_string()),
        },
        "/-/healthz" | "/-/stats" => reply::error(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "only GET and HEAD are answered here",
        ),
        _ => reply::error(
            StatusCode::NOT_FOUND,
            "not_found",
            "under /-/ there are /-/healthz and /-/stats",
        ),
    }
}

enum Answer {
    Stream(Box<(Response<Incoming>, Conn, Lease)>),
    Models(String),
}

enum Fault {
    Refused(Refusal),
    Failed(Failure, Lease),
}

/// Sends a request to replicas until one answers or the retries are used up.
async fn forward(
    shared: &Shared,
    peer: SocketAddr,
    request: Request<Incoming>,
    account: &Account,
) -> Result<Answer, Fault> {
    let options = &shared.options;
    let (mut head, incoming) = request.into_parts();
    if head.method == Method::CONNECT {
        return Err(Fault::Refused(Refusal::Method));
    }
    let waits = head.headers.contains_key(EXPECT);
    // The charge is held until the response begins, as the body is kept for a retry until then.
    let (body, _charge) = body::read(
        incoming,
        &shared.budget,
        options.max_body_bytes,
        options.body_read_timeout,
        waits,
    )
    .await
    .map_err(Fault::Refused)?;
    head.uri = head
        .uri
        .path_and_query()
        .map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()));
    head.version = Version::HTTP_11;
    headers::to_replica(&mut head.headers, peer.ip());

    let hold = head.method == Method::POST;
    let mut retries = 0;
    // After the first failure only fresh connections are used, so that several replicas' stale ones cost one attempt.
    let mut fresh = false;
    'lease: loop {
        let lease = match shared.gate.acquire(account.order(), body.len(), hold).await {
            Ok(lease) => lease,
            Err(Refusal::NoReplica) => match &options.model {
                Some(model) if head.method == Method::GET && head.uri.path() == "/v1/models" => {
                    return Ok(Answer::Models(model.clone()));
                }
                _ => return Err(Fault::Refused(Refusal::NoReplica)),
            },
            Err(refusal) => return Err(Fault::Refused(refusal)),
        };
        let replica = lease.replica();
        loop {
            let request = Request::from_parts(head.clone(), Full::new(body.clone()));
            let (failure, retry) = match attempt(shared, replica, request, fresh).await {
                Ok((response, conn)) => {
                    replica.answered();
                    return Ok(Answer::Stream(Box::new((response, conn, lease))));
                }
                Err(Attempt::Stale) => {
                    // Others that have been idle as long are as stale.
                    replica.pool.clear();
                    shared.counters.retried(Retry::Stale);
                    fresh = true;
                    continue;
                }
                Err(Attempt::Final(failure)) => return Err(Fault::Failed(failure, lease)),
                Err(Attempt::Connect) => (Failure::Connect, Retry::Connect),
                Err(Attempt::Reset) => (Failure::Reset, Retry::Reset),
            };
            replica.put_aside();
            if retries == options.max_retries {
                return Err(Fault::Failed(failure, lease));
            }
            retries += 1;
            fresh = true;
            shared.counters.retried(retry);
            continue 'lease;
        }
    }
}

/// How an attempt failed.
enum Attempt {
    /// No connection.
    Connect,
    /// A fresh connection ended before any byte of the response.
    Reset,
    /// A kept connection did. The replica may well be in order.
    Stale,
    /// Something was received, or the time is up: not to be tried again.
    Final(Failure),
}

async fn attempt(
    shared: &Shared,
    replica: &Replica,
    mut request: Request<Full<Bytes>>,
    fresh: bool,
) -> Result<(Response<Incoming>, Conn), Attempt> {
    let options = &shared.options;
    let name = &replica.endpoint.replica;
    let kept = if fresh {
        None
    } else {
        replica.pool.take(options.pool_idle_timeout)
    };
    let reused = kept.is_some();
    let mut conn = match kept {
        Some(conn) => conn,
        None => Conn::open(replica.endpoint.address, options.connect_timeout)
            .await
            .map_err(|error| {
                tracing::debug!(replica = %name, %error, "no connection");
                Attempt::Connect
            })?,
    };
    if !request.headers().contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&replica.endpoint.address.to_string())
    {
        request.headers_mut().insert(HOST, host);
    }
    let before = conn.received();
    match timeout(options.header_timeout, conn.send(request)).await {
        Ok(Ok(response)) => Ok((response, conn)),
        Err(_) => Err(Attempt::Final(Failure::HeaderTimeout)),
        Ok(Err(error)) => {
            tracing::debug!(replica = %name, %error, reused, "no response");
            // A user error is a request hyper will not write: the replica has no part in it, and it stays as it is.
            Err(if error.is_user() || conn.received() > before {
                Attempt::Final(Failure::BadResponse)
            } else if reused {
                Attempt::Stale
            } else {
                Attempt::Reset
            })
        }
    }
}

/// A replica's response as it goes to the client.
fn respond(shared: &Shared, response: Response<Incoming>, journey: Journey) -> Response<Reply> {
    let (mut head, incoming) = response.into_parts();
    head.version = Version::HTTP_11;
    // Of the connection to the replica: its upgrade slot and reason phrase are not ours to pass on.
    head.extensions.clear();
    headers::strip_hop_by_hop(&mut head.headers);
    head.headers.insert(X_REPLICA, journey.lease.replica().header.clone());
    let stream = Stream::new(incoming, journey, shared.options.body_idle_timeout);
    Response::from_parts(head, Reply::Stream(Box::new(stream)))
}
