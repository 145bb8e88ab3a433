//! Just enough HTTP/1.1 to ask our own engines and to answer our own clients.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A request's head and body, as a helper sees it.
pub(crate) struct Request {
    /// Path and query.
    pub(crate) target: String,
    /// Length of its body.
    pub(crate) body_bytes: usize,
}

/// Answers every request with a status and a body, on connections that are kept alive.
pub(crate) async fn serve(
    listener: TcpListener,
    answer: impl Fn(&Request) -> (u16, Vec<u8>) + Clone + Send + 'static,
) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let answer = answer.clone();
        tokio::spawn(async move {
            // A client that hangs up is no event.
            let _ = converse(stream, answer).await;
        });
    }
}

async fn converse(mut stream: TcpStream, answer: impl Fn(&Request) -> (u16, Vec<u8>)) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::new();
    loop {
        let Some(head_end) = head_end(&received) else {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head = String::from_utf8_lossy(&received[..head_end]).into_owned();
        let body_bytes = header(&head, "content-length").map_or(Ok(0), str::parse)?;
        while received.len() < head_end + body_bytes {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        }
        let target = head.split(' ').nth(1).context("a request without a path")?.to_owned();
        let (status, body) = answer(&Request { target, body_bytes });
        let mut response = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        if status == 204 {
            response = b"HTTP/1.1 204 No Content\r\n\r\n".to_vec();
        }
        response.extend(body);
        stream.write_all(&response).await?;
        received.drain(..head_end + body_bytes);
    }
}

/// Length of the head, its empty line included.
fn head_end(received: &[u8]) -> Option<usize> {
    received
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines
        .into_iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// A connection to one of our engines.
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Opens it.
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            received: Vec::new(),
        })
    }

    /// One request and its answer's status and body.
    pub(crate) async fn exchange(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, Vec<u8>)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        loop {
            if let Some(head_end) = head_end(&self.received) {
                let head = String::from_utf8_lossy(&self.received[..head_end]).into_owned();
                let status = head
                    .split(' ')
                    .nth(1)
                    .and_then(|status| status.parse().ok())
                    .context("no status")?;
                let length: usize = header(&head, "content-length")
                    .context("an answer without a length")?
                    .parse()?;
                while self.received.len() < head_end + length {
                    if self.stream.read_buf(&mut self.received).await? == 0 {
                        bail!("the answer was cut");
                    }
                }
                let body = self.received[head_end..head_end + length].to_vec();
                self.received.drain(..head_end + length);
                return Ok((status, body));
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                bail!("the connection was closed");
            }
        }
    }
}

/// One request on a connection of its own; an error unless the answer is 200.
pub(crate) async fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> anyhow::Result<Vec<u8>> {
    let (status, body) = Connection::open(address).await?.exchange(method, path, body).await?;
    if status != 200 {
        bail!(
            "{method} {path} of {address}: {status} {}",
            String::from_utf8_lossy(&body)
        );
    }
    Ok(body)
}
