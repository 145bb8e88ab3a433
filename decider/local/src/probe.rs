//! The start-up probe.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header::HOST};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::StartupProbe;

/// Longest wait for one answer. An engine that loads its weights may take connections and not answer.
pub(crate) const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// One GET on a connection of its own; in words what is amiss, unless the answer is 200.
pub(crate) async fn once(address: SocketAddr, path: &str) -> Result<(), String> {
    match timeout(TRY_TIMEOUT, get(address, path)).await {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        Ok(Ok(status)) => Err(format!("GET {path} answered {status}")),
        Ok(Err(problem)) => Err(problem),
        Err(_) => Err(format!("GET {path} not answered within {} s", TRY_TIMEOUT.as_secs())),
    }
}

async fn get(address: SocketAddr, path: &str) -> Result<StatusCode, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| format!("connect to {address}: {error}"))?;
    let broken = |error| format!("GET {path}: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| format!("GET {path}: {error}"))?;
    Ok(sender.send_request(request).await.map_err(broken)?.status())
}

/// GETs until 200 or the deadline; then says what the last try met.
pub(crate) async fn until_ready(address: SocketAddr, probe: &StartupProbe, deadline: Instant) -> Result<(), String> {
    let mut last = "no answer yet".to_owned();
    let tries = async {
        loop {
            match once(address, &probe.path).await {
                Ok(()) => return,
                Err(problem) => last = problem,
            }
            sleep(probe.interval).await;
        }
    };
    let passed = timeout_at(deadline, tries).await.is_ok();
    if passed { Ok(()) } else { Err(last) }
}
