//! Connections, kept and made.

use crate::event::{Class, Failure};
use bytes::Bytes;
use http::{HeaderValue, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// How long a connection is kept without use: below the five seconds after which uvicorn, under vLLM and SGLang, closes
/// one, so that hardly any request meets a closing connection.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// How long the rest of an answer is waited for after its end mark, before the connection is given up.
const REST_MAX: Duration = Duration::from_secs(1);

/// Where requests go, from a URL.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    host: String,
    port: u16,
    pub(crate) authority: HeaderValue,
    /// What stands before `/v1/...`, without a slash at its end.
    pub(crate) base_path: String,
}

/// Why a URL is refused.
#[derive(Debug, thiserror::Error)]
#[error("{url:?} {problem}: expected a URL like http://127.0.0.1:8000")]
pub(crate) struct TargetError {
    url: String,
    problem: String,
}

impl Target {
    pub(crate) fn new(url: &str) -> Result<Self, TargetError> {
        let refuse = |problem: String| TargetError {
            url: url.into(),
            problem,
        };
        let uri: Uri = url.parse().map_err(|error| refuse(format!("is not a URL ({error})")))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(refuse("is https, which is not supported".into())),
            _ => return Err(refuse("has no http://".into())),
        }
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(|| refuse("has no host".into()))?;
        let authority = uri.authority().map_or(host, |authority| authority.as_str());
        let authority = HeaderValue::from_str(authority).map_err(|error| refuse(error.to_string()))?;
        let base_path = uri.path().trim_end_matches('/');
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(80),
            authority,
            base_path: base_path.strip_suffix("/v1").unwrap_or(base_path).to_owned(),
        })
    }
}

/// A connection for one request.
pub(super) struct Lease {
    pub(super) sender: SendRequest<Full<Bytes>>,
    /// Whether it has served a request before.
    pub(super) reused: bool,
}

struct Idle {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// Idle connections, the last used on top. At most `idle_max` are kept.
pub(super) struct Pool {
    target: Target,
    idle: Arc<Mutex<Vec<Idle>>>,
    idle_max: usize,
}

impl Pool {
    pub(super) fn new(target: Target, idle_max: usize) -> Self {
        Self {
            target,
            idle: Arc::default(),
            idle_max,
        }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// A kept connection that is still good, or a new one.
    pub(super) async fn lease(&self) -> Result<Lease, Failure> {
        if let Some(sender) = self.take_idle() {
            return Ok(Lease { sender, reused: true });
        }
        let connect = |error: std::io::Error| {
            Failure::new(
                Class::Connect,
                format!("connect to {}:{}: {error}", self.target.host, self.target.port),
            )
        };
        let stream = TcpStream::connect((self.target.host.as_str(), self.target.port))
            .await
            .map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::new(Class::Connect, super::chain(&error)))?;
        // Ends with the connection, which ends when the sender and the body are gone. Its error reaches the request.
        tokio::spawn(connection);
        Ok(Lease { sender, reused: false })
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if connection.since.elapsed() > IDLE_MAX {
                // The ones below are older still.
                idle.clear();
                return None;
            }
            if connection.sender.is_ready() {
                return Some(connection.sender);
            }
        }
        None
    }

    /// Keeps a connection for the next request once the rest of its answer has been read.
    pub(super) fn give_back(&self, lease: Lease, mut body: Incoming) {
        let (idle, idle_max) = (Arc::clone(&self.idle), self.idle_max);
        let mut sender = lease.sender;
        // Apart from the request, which ended with its end mark. Bounded by REST_MAX.
        tokio::spawn(async move {
            let rest = async {
                while let Some(frame) = body.frame().await {
                    frame?;
                }
                sender.ready().await
            };
            if matches!(timeout(REST_MAX, rest).await, Ok(Ok(()))) {
                let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
                if idle.len() < idle_max {
                    idle.push(Idle {
                        sender,
                        since: Instant::now(),
                    });
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let target = Target::new("http://localhost:8000/v1/").unwrap();
        assert_eq!(
            (target.host.as_str(), target.port, target.base_path.as_str()),
            ("localhost", 8000, "")
        );
        let target = Target::new("http://[::1]/models/a").unwrap();
        assert_eq!(
            (target.host.as_str(), target.port, target.base_path.as_str()),
            ("::1", 80, "/models/a")
        );
        for (url, words) in [
            ("localhost:8000", "http://"),
            ("https://a", "https"),
            ("http://", "URL"),
            ("a b", "URL"),
        ] {
            let error = Target::new(url).unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains("http://127.0.0.1:8000"),
                "{error}"
            );
        }
    }
}
