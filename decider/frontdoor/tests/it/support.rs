//! A front door under test, replicas whose every answer the test gives by hand, and clients.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, request::Parts};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::{
    body::{Body, Frame, Incoming},
    client, server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use infer_frontdoor::{Endpoint, Error, FrontDoor, Handle, Options};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

/// Nothing that works takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`, and fails the test if that takes too long.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long for: {what}"),
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    soon(what, async {
        while !condition() {
            tick.tick().await;
        }
    })
    .await;
}

pub(crate) fn local() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// An address where nobody listens, and nobody else can while this lives.
pub(crate) struct Nobody(TcpSocket);

impl Nobody {
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(local()).unwrap();
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub(crate) fn listen(self) -> TcpListener {
        self.0.listen(64).unwrap()
    }
}

pub(crate) struct Door {
    pub(crate) handle: Handle,
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), Error>>,
}

impl Door {
    pub(crate) async fn start(options: Options) -> Self {
        let (door, handle) = FrontDoor::bind(Options {
            listen: local(),
            ..options
        })
        .await
        .unwrap();
        let address = door.local_addr();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(door.run(async move { drop(stopped.await) }));
        Self {
            handle,
            address,
            stop: Some(stop),
            running,
        }
    }

    pub(crate) fn endpoints(&self, endpoints: &[(&str, SocketAddr)]) {
        let endpoint = |(name, address): &(&str, SocketAddr)| Endpoint {
            replica: (*name).into(),
            address: *address,
        };
        self.handle.set_endpoints(endpoints.iter().map(endpoint).collect());
    }

    pub(crate) fn begin_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub(crate) async fn stopped(self) -> Result<(), Error> {
        soon("the front door's end", self.running).await.unwrap()
    }

    /// Waits until every request has its outcome, and checks that the sums agree.
    pub(crate) async fn settled(&self) -> infer_frontdoor::Stats {
        until("all requests to be settled", || self.handle.stats().open == 0).await;
        let stats = self.handle.stats();
        let sum = stats.completed + stats.client_disconnected + stats.rejected_total() + stats.failed_total();
        assert_eq!(stats.requests_total, sum, "{stats:?}");
        assert_eq!(
            (stats.in_flight_total, stats.waiting, stats.waiting_bytes),
            (0, 0, 0),
            "{stats:?}"
        );
        assert_eq!(stats.buffered_bytes, 0, "{stats:?}");
        stats
    }
}

type Pieces = mpsc::Receiver<io::Result<Frame<Bytes>>>;
type UpstreamBody =
    Either<Full<Bytes>, StreamBody<std::pin::Pin<Box<dyn stream::Stream<Item = io::Result<Frame<Bytes>>> + Send>>>>;

/// A request that has reached a replica and waits for its answer.
pub(crate) struct Exchange {
    pub(crate) head: Parts,
    pub(crate) body: Bytes,
    pub(crate) answer: oneshot::Sender<Response<UpstreamBody>>,
}

impl Exchange {
    pub(crate) fn reply(self, status: StatusCode, body: &'static str) {
        let mut response = Response::new(Either::Left(Full::from(body)));
        *response.status_mut() = status;
        drop(self.answer.send(response));
    }

    /// Begins a response whose pieces the test sends.
    pub(crate) fn stream(self) -> Out {
        self.stream_with(|response| response)
    }

    pub(crate) fn stream_with(self, edit: impl FnOnce(Response<UpstreamBody>) -> Response<UpstreamBody>) -> Out {
        let (out, pieces) = mpsc::channel(1);
        let pieces = stream::unfold(pieces, |mut pieces: Pieces| async {
            pieces.recv().await.map(|piece| (piece, pieces))
        });
        drop(
            self.answer
                .send(edit(Response::new(Either::Right(StreamBody::new(Box::pin(pieces)))))),
        );
        Out(out)
    }
}

/// The replica's end of a streaming response; dropping it ends the response well.
pub(crate) struct Out(mpsc::Sender<io::Result<Frame<Bytes>>>);

impl Out {
    pub(crate) async fn send(&self, piece: &'static str) {
        soon(
            "room for a piece",
            self.0.send(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))),
        )
        .await
        .unwrap();
    }

    pub(crate) async fn push(&self, piece: Bytes) -> bool {
        soon("room for a piece", self.0.send(Ok(Frame::data(piece))))
            .await
            .is_ok()
    }

    /// Breaks the connection off.
    pub(crate) async fn die(self) {
        soon(
            "room for the end",
            self.0.send(Err(io::Error::other("the engine died"))),
        )
        .await
        .unwrap();
    }

    /// Returns when the front door has closed the connection.
    pub(crate) async fn closed(&self) {
        soon("the replica to see the client go", self.0.closed()).await;
    }
}

/// A replica.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    exchanges: mpsc::UnboundedReceiver<Exchange>,
    _tasks: JoinSet<()>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        Self::start_on(TcpListener::bind(local()).await.unwrap())
    }

    pub(crate) fn start_on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let (sender, exchanges) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let sender = sender.clone();
                connections.spawn(async move {
                    let service = service_fn(|request: Request<Incoming>| {
                        let sender = sender.clone();
                        async move {
                            let (head, body) = request.into_parts();
                            let body = body.collect().await?.to_bytes();
                            let (answer, answered) = oneshot::channel();
                            drop(sender.send(Exchange { head, body, answer }));
                            // An exchange dropped unanswered hangs for ever.
                            match answered.await {
                                Ok(response) => Ok::<_, hyper::Error>(response),
                                Err(_) => std::future::pending().await,
                            }
                        }
                    });
                    drop(
                        server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        Self {
            address,
            exchanges,
            _tasks: tasks,
        }
    }

    pub(crate) async fn next(&mut self) -> Exchange {
        soon("a request at the replica", self.exchanges.recv()).await.unwrap()
    }

    /// Answers everything with its name.
    pub(crate) fn answering(self, body: &'static str) -> SocketAddr {
        let address = self.address;
        tokio::spawn(async move {
            // Whole: its tasks must live too.
            let mut upstream = self;
            while let Some(exchange) = upstream.exchanges.recv().await {
                exchange.reply(StatusCode::OK, body);
            }
        });
        address
    }
}

/// A replica in raw bytes: `script` gets each connection with its number.
pub(crate) async fn raw_upstream<F, R>(script: F) -> SocketAddr
where
    F: Fn(usize, TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(local()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(script(number, stream));
        }
    });
    address
}

/// Reads one request in raw bytes; false at the end of the connection.
pub(crate) async fn read_request(stream: &mut TcpStream) -> bool {
    let mut seen = Vec::new();
    loop {
        let Ok(byte) = stream.read_u8().await else { return false };
        seen.push(byte);
        if seen.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(seen).unwrap().to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.is_ok()
}

pub(crate) async fn write(stream: &mut TcpStream, bytes: &str) {
    stream.write_all(bytes.as_bytes()).await.unwrap();
}

/// One client connection.
pub(crate) struct Client<B: Body<Data = Bytes, Error = Infallible> + Send + 'static = Full<Bytes>> {
    sender: client::conn::http1::SendRequest<B>,
    _task: JoinSet<()>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move { drop(connection.await) });
        Self { sender, _task: task }
    }

    pub(crate) async fn request(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        soon("the connection", self.sender.ready()).await?;
        soon("the response", self.sender.send_request(request)).await
    }

    pub(crate) async fn post(&mut self, body: impl Into<Bytes>) -> Response<Incoming> {
        self.request(post(body)).await.unwrap()
    }
}

pub(crate) fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/chat/completions")
        .header("host", "door");
    request.body(Full::new(body.into())).unwrap()
}

pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .uri(path)
        .header("host", "door")
        .body(Full::default())
        .unwrap()
}

/// A POST over a connection of its own, read to its end.
pub(crate) async fn ask(address: SocketAddr, body: &'static str) -> (StatusCode, String) {
    let response = Client::connect(address).await.post(body).await;
    read_all(response).await
}

/// The same in a task, which is the client: aborting it closes the connection.
pub(crate) fn ask_later(address: SocketAddr, body: &'static str) -> JoinHandle<(StatusCode, String)> {
    tokio::spawn(async move {
        let mut client = Client::connect(address).await;
        let response = client.request(post(body)).await.unwrap();
        read_all(response).await
    })
}

pub(crate) async fn read_all(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = soon("the response's end", response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// The next piece of a response.
pub(crate) async fn piece(response: &mut Response<Incoming>) -> Option<hyper::Result<Bytes>> {
    let frame = soon("a piece of the response", response.body_mut().frame()).await?;
    Some(frame.map(|frame| frame.into_data().unwrap()))
}

/// The code in an OpenAI-style error.
pub(crate) fn error_code(body: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(body).unwrap();
    assert!(
        value["error"]["message"].is_string() && value["error"]["type"].is_string(),
        "{body}"
    );
    value["error"]["code"].as_str().unwrap().to_owned()
}
