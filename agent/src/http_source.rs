//! Reads an engine over HTTP/1.1 on one connection that is kept alive.

use std::{error::Error as _, io, time::Duration};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use infer_proto::v1::scrape::Outcome;
use infer_reader::engine::{sglang, vllm};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::{Error, FetchError, Path, Source};

/// An engine in the same Pod answers within microseconds; what takes longer hangs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What the socket is read with. An exposition of 53 KB arrives in a few reads, and the head fits many times over.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// A body buffer up to this size is kept whatever the body was.
const KEPT_BUFFER_BYTES: usize = 256 << 10;

/// The [`Source`] that asks a real engine.
pub struct HttpSource {
    host: String,
    port: u16,
    authority: String,
    metrics_path: String,
    max_body_bytes: usize,
    connection: Option<Connection>,
    body: Vec<u8>,
}

struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
    /// Drives the socket; ends with the connection, so that an engine that hangs leaves nothing behind.
    _driver: AbortOnDropHandle<()>,
}

/// Why an exchange failed.
enum Exchange {
    /// No response had begun: on a connection from the pool, most likely the engine had closed it (uvicorn does after
    /// 5 s of idleness). Asking again on a fresh one is safe.
    NotAnswered(FetchError),
    Failed(FetchError),
}

impl HttpSource {
    /// A source for `metrics_path` at `engine_url`. Connects with the first fetch.
    ///
    /// # Errors
    /// [`Error::EngineUrl`] when the URL is not `http://host[:port]`, [`Error::MetricsPath`] when the path is none.
    pub fn new(engine_url: &str, metrics_path: &str, max_body_bytes: usize) -> Result<Self, Error> {
        let bad = |reason: &str| Error::EngineUrl {
            url: engine_url.into(),
            reason: reason.into(),
        };
        let uri: Uri = engine_url
            .parse()
            .map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(bad("TLS is not supported; the agent reads the engine inside its Pod")),
            _ => return Err(bad("it does not start with http://")),
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad("it has a path; the path of the metrics goes into --metrics-path"));
        }
        let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
        if !metrics_path.starts_with('/') || metrics_path.parse::<http::uri::PathAndQuery>().is_err() {
            return Err(Error::MetricsPath {
                path: metrics_path.into(),
            });
        }
        Ok(Self {
            // The brackets of [::1] belong to the URL, not to the address.
            host: authority
                .host()
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            metrics_path: metrics_path.to_owned(),
            max_body_bytes,
            connection: None,
            body: Vec::new(),
        })
    }

    fn target(&self, path: Path) -> String {
        // An engine behind a prefix has all of its paths there.
        let prefix = || {
            self.metrics_path
                .trim_end_matches('/')
                .strip_suffix("/metrics")
                .unwrap_or_default()
        };
        match path {
            Path::Full => self.metrics_path.clone(),
            Path::VllmFilter => format!("{}{}", prefix(), vllm::FAST_PATH),
            Path::SglangLoads => format!("{}{}", prefix(), sglang::FAST_PATH),
        }
    }

    async fn connect(&self) -> Result<Connection, FetchError> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| {
                let detail = format!(
                    "no connection to {} within {} ms",
                    self.authority,
                    CONNECT_TIMEOUT.as_millis()
                );
                FetchError::new(Outcome::Timeout, detail)
            })?
            .map_err(|error| FetchError {
                process_gone: error.kind() == io::ErrorKind::ConnectionRefused,
                ..FetchError::new(
                    Outcome::Unreachable,
                    format!("no connection to {}: {error}", self.authority),
                )
            })?;
        // Requests are one small packet each: nothing to wait for.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(READ_BUFFER_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unanswered(&error))?;
        let driver = tokio::spawn(async move {
            // Errors reach the request as well.
            let _ = connection.await;
        });
        Ok(Connection {
            sender,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// One request and its body into the buffer. Returns whether the connection can be used again.
    async fn exchange(&mut self, connection: &mut Connection, target: &str) -> Result<(), Exchange> {
        self.body.clear();
        // An exchange that was given up half-way has left its buffer as it was.
        self.shrink(Path::Full);
        let request = Request::get(target)
            .header(header::HOST, &self.authority)
            // Not OpenMetrics: recent Python clients then rename `vllm:x` to `vllm_x`.
            .header(header::ACCEPT, "text/plain;version=0.0.4")
            .header(header::USER_AGENT, concat!("infer-agent/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| {
                Exchange::Failed(FetchError::new(
                    Outcome::Unreachable,
                    format!("cannot ask for {target}: {error}"),
                ))
            })?;
        let not_answered = |error: hyper::Error| Exchange::NotAnswered(unanswered(&error));
        connection.sender.ready().await.map_err(not_answered)?;
        let response = connection.sender.send_request(request).await.map_err(not_answered)?;
        let status = response.status();
        if status != http::StatusCode::OK {
            let location = response
                .headers()
                .get(header::LOCATION)
                .and_then(|value| value.to_str().ok());
            let hint = location.map_or_else(String::new, |to| format!(", redirected to {to}: see --metrics-path"));
            return Err(Exchange::Failed(FetchError {
                http_status: u32::from(status.as_u16()),
                ..FetchError::new(Outcome::HttpStatus, format!("GET {target} answered {status}{hint}"))
            }));
        }
        self.read(response.into_body()).await.map_err(Exchange::Failed)
    }

    async fn read(&mut self, mut body: Incoming) -> Result<(), FetchError> {
        use hyper::body::Body as _;
        let too_large = || {
            let detail = format!("the body is larger than {} bytes and was cut off", self.max_body_bytes);
            FetchError::new(Outcome::TooLarge, detail)
        };
        let limit = self.max_body_bytes;
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken_body(&error, self.body.len()))?;
            if let Some(data) = frame.data_ref() {
                if self.body.len() + data.len() > limit {
                    return Err(too_large());
                }
                self.body.extend_from_slice(data);
            }
        }
        Ok(())
    }

    /// One large body must not cost its memory for ever.
    fn shrink(&mut self, path: Path) {
        let wanted = self.body.len().saturating_mul(2).max(KEPT_BUFFER_BYTES);
        // Cheap looks are small by nature and say nothing about the next full body.
        if path == Path::Full && self.body.capacity() > wanted.saturating_mul(2) {
            self.body.shrink_to(wanted);
        }
    }
}

impl Source for HttpSource {
    async fn fetch(&mut self, path: Path) -> Result<&[u8], FetchError> {
        let target = self.target(path);
        // Taken out for the time of the exchange: when the agent gives up half-way, the connection goes with the future.
        let pooled = self
            .connection
            .take()
            .filter(|connection| !connection.sender.is_closed());
        let mut answer = None;
        if let Some(mut connection) = pooled {
            match self.exchange(&mut connection, &target).await {
                Ok(()) => {
                    self.connection = Some(connection);
                    answer = Some(Ok(()));
                }
                Err(Exchange::NotAnswered(_)) => {}
                Err(Exchange::Failed(error)) => answer = Some(Err(error)),
            }
        }
        let answer = match answer {
            Some(answer) => answer,
            None => {
                let mut connection = self.connect().await?;
                match self.exchange(&mut connection, &target).await {
                    Ok(()) => {
                        self.connection = Some(connection);
                        Ok(())
                    }
                    Err(Exchange::NotAnswered(error) | Exchange::Failed(error)) => Err(error),
                }
            }
        };
        if answer.is_err() {
            self.body.clear();
        }
        self.shrink(path);
        answer.map(|()| &self.body[..])
    }
}

/// The connection broke, or what came is not HTTP, before a response had begun.
fn unanswered(error: &hyper::Error) -> FetchError {
    let outcome = if error.is_parse() {
        Outcome::Malformed
    } else {
        Outcome::Unreachable
    };
    FetchError::new(outcome, format!("no response: {}", with_source(error)))
}

/// The response had begun.
fn broken_body(error: &hyper::Error, after_bytes: usize) -> FetchError {
    let io_kind = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .map(io::Error::kind);
    let outcome = match io_kind {
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Outcome::Unreachable,
        _ => Outcome::Malformed,
    };
    FetchError::new(
        outcome,
        format!("the body ended after {after_bytes} bytes: {}", with_source(error)),
    )
}

/// hyper's message and what lies directly under it, which is where the system's word is.
fn with_source(error: &hyper::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked() {
        for (url, path, part) in [
            ("https://127.0.0.1:8000", "/metrics", "TLS is not supported"),
            ("127.0.0.1:8000", "/metrics", "does not start with http://"),
            ("http://127.0.0.1:8000/metrics", "/metrics", "--metrics-path"),
            ("http://", "/metrics", "engine URL"),
            ("http://127.0.0.1:8000", "metrics", "start with /"),
        ] {
            let error = HttpSource::new(url, path, 1)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert!(error.contains(part), "{url} {path}: {error:?} does not say {part:?}");
        }
        let source = HttpSource::new("http://[::1]:8000/", "/engine/metrics/", 1).expect("IPv6");
        assert_eq!((source.host.as_str(), source.port), ("::1", 8000));
        assert_eq!(source.target(Path::Full), "/engine/metrics/");
        assert!(source.target(Path::VllmFilter).starts_with("/engine/metrics/?name"));
        assert_eq!(source.target(Path::SglangLoads), "/engine/v1/loads");
        let source = HttpSource::new("http://engine", "/prometheus", 1).expect("a name");
        assert_eq!(
            (source.target(Path::SglangLoads).as_str(), source.port),
            ("/v1/loads", 80)
        );
        for path in [Path::Full, Path::VllmFilter, Path::SglangLoads] {
            assert!(
                source.target(path).parse::<http::uri::PathAndQuery>().is_ok(),
                "{path:?}"
            );
        }
    }
    #[tokio::test]
    async fn a_large_body_is_cut_off_and_its_memory_given_back() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let engine = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut sent = 0;
            stream.read_u8().await.expect("a request");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("room");
            // Until the agent hangs up.
            while sent < 1 << 30 && stream.write_all(&[b'#'; 1 << 16]).await.is_ok() {
                sent += 1 << 16;
            }
            sent
        });
        let mut source = HttpSource::new(&url, "/metrics", 16 << 20).expect("a URL");
        let error = source.fetch(Path::Full).await.expect_err("too large");
        assert_eq!(error.outcome, Outcome::TooLarge);
        assert!(
            source.body.capacity() <= KEPT_BUFFER_BYTES,
            "{} bytes are kept",
            source.body.capacity()
        );
        let sent = engine.await.expect("no panic");
        assert!(sent < 100_000_000, "{sent} bytes were taken");
    }
}
