//! An HTTP server that looks like vLLM and can be made to fail.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::PATIENCE;

/// What it does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Serve,
    Status(u16),
    /// Never answers.
    Hang,
    /// Promises more than it sends, then closes.
    Truncated,
    /// Announces 100 MB and sends it.
    Huge,
    /// Sends 100 MB without having announced how much.
    Endless,
    Empty,
    /// A good exposition of something else.
    OtherProgram,
    NotHttp,
    /// Closes after every answer without having said so.
    CloseAfterAnswer,
    /// Answers the first request of a connection and drops the connection at the second.
    DropSecondRequest,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) behaviour: Behaviour,
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    pub(crate) prompt_tokens: u64,
    /// Requests that had their first token, all within 60 to 80 ms.
    pub(crate) first_tokens: u64,
    pub(crate) full_requests: u64,
    pub(crate) fast_requests: u64,
    pub(crate) connections: u64,
    pub(crate) body_bytes_sent: usize,
}

pub(crate) struct Engine {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
    tasks: JoinSet<()>,
}

impl Engine {
    pub(crate) async fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into()).await
    }

    /// A new process on that address, everything at 0.
    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let state = Arc::new(Mutex::new(State {
            behaviour: Behaviour::Serve,
            running: 0,
            waiting: 0,
            prompt_tokens: 0,
            first_tokens: 0,
            full_requests: 0,
            fast_requests: 0,
            connections: 0,
            body_bytes_sent: 0,
        }));
        let changed = watch::Sender::new(());
        let mut tasks = JoinSet::new();
        let address = listener.local_addr().expect("bound");
        tasks.spawn({
            let (state, changed) = (state.clone(), changed.clone());
            async move {
                // Connections die with this task, as they do with a process.
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    state.lock().unwrap().connections += 1;
                    connections.spawn(serve(stream, state.clone(), changed.clone()));
                }
            }
        });
        Self {
            address,
            state,
            changed,
            tasks,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    pub(crate) fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }

    /// Waits until the state is as wanted; it is looked at after every answer.
    pub(crate) async fn until(&self, wanted: impl Fn(&State) -> bool) {
        let mut changed = self.changed.subscribe();
        tokio::time::timeout(PATIENCE, async {
            while !wanted(&self.state()) {
                changed.changed().await.unwrap();
            }
        })
        .await
        .expect("the engine was asked in time");
    }

    /// The process ends: connections are closed, new ones refused. Returns its address.
    pub(crate) async fn kill(mut self) -> SocketAddr {
        self.tasks.shutdown().await;
        self.address
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>, changed: watch::Sender<()>) {
    for request in 0.. {
        let Some(head) = read_head(&mut stream).await else {
            return;
        };
        assert!(
            head.to_ascii_lowercase().contains("accept: text/plain;version=0.0.4"),
            "{head}"
        );
        let fast = head.contains("/metrics/?name");
        let (behaviour, body) = {
            let mut state = state.lock().unwrap();
            *(if fast {
                &mut state.fast_requests
            } else {
                &mut state.full_requests
            }) += 1;
            (state.behaviour, if fast { gauges(&state) } else { exposition(&state) })
        };
        changed.send_replace(());
        let sent = match behaviour {
            Behaviour::Serve => answer(&mut stream, &body).await,
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Status(status) => {
                let text = format!("HTTP/1.1 {status} Nope\r\ncontent-length: 4\r\n\r\nnope");
                stream.write_all(text.as_bytes()).await
            }
            Behaviour::Truncated => {
                let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len() + 100);
                let _ = stream.write_all(text.as_bytes()).await;
                return;
            }
            Behaviour::Huge => send_huge(&mut stream, &state, true).await,
            Behaviour::Endless => send_huge(&mut stream, &state, false).await,
            Behaviour::Empty => answer(&mut stream, "").await,
            Behaviour::OtherProgram => answer(&mut stream, "# TYPE go_goroutines gauge\ngo_goroutines 12\n").await,
            Behaviour::NotHttp => stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n").await,
            Behaviour::CloseAfterAnswer => {
                let _ = answer(&mut stream, &body).await;
                return;
            }
            Behaviour::DropSecondRequest if request > 0 => return,
            Behaviour::DropSecondRequest => answer(&mut stream, &body).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

async fn answer(stream: &mut TcpStream, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).await
}

async fn send_huge(stream: &mut TcpStream, state: &Mutex<State>, announced: bool) -> std::io::Result<()> {
    const TOTAL: usize = 100_000_000;
    let line = b"vllm:num_requests_running{engine=\"0\"} 1.0\n".repeat(1_000);
    let length = if announced {
        format!("content-length: {TOTAL}\r\n")
    } else {
        "connection: close\r\n".into()
    };
    stream
        .write_all(format!("HTTP/1.1 200 OK\r\n{length}\r\n").as_bytes())
        .await?;
    for _ in 0..TOTAL / line.len() {
        stream.write_all(&line).await?;
        state.lock().unwrap().body_bytes_sent += line.len();
    }
    Ok(())
}

fn gauges(state: &State) -> String {
    let labels = "{engine=\"0\",model_name=\"tiny\"}";
    format!(
        "# HELP vllm:num_requests_running Requests in batches.\n\
         # TYPE vllm:num_requests_running gauge\n\
         vllm:num_requests_running{labels} {running}.0\n\
         # HELP vllm:num_requests_waiting Requests waiting.\n\
         # TYPE vllm:num_requests_waiting gauge\n\
         vllm:num_requests_waiting{labels} {waiting}.0\n\
         # HELP vllm:kv_cache_usage_perc KV cache usage.\n\
         # TYPE vllm:kv_cache_usage_perc gauge\n\
         vllm:kv_cache_usage_perc{labels} 0.25\n",
        running = state.running,
        waiting = state.waiting,
    )
}

fn exposition(state: &State) -> String {
    let labels = "engine=\"0\",model_name=\"tiny\"";
    let mut text = gauges(state);
    text += &format!(
        "# HELP vllm:prompt_tokens_total Prefill tokens.\n\
         # TYPE vllm:prompt_tokens_total counter\n\
         vllm:prompt_tokens_total{{{labels}}} {prompt_tokens}.0\n\
         # HELP process_start_time_seconds Start time of the process.\n\
         # TYPE process_start_time_seconds gauge\n\
         process_start_time_seconds 1.7e+09\n\
         # HELP vllm:generation_tokens_total Generation tokens.\n\
         # TYPE vllm:generation_tokens_total counter\n\
         vllm:generation_tokens_total{{{labels}}} {first_tokens}.0\n\
         # HELP vllm:time_to_first_token_seconds TTFT.\n\
         # TYPE vllm:time_to_first_token_seconds histogram\n",
        prompt_tokens = state.prompt_tokens,
        first_tokens = state.first_tokens,
    );
    for (bound, count) in [
        ("0.04", 0),
        ("0.06", 0),
        ("0.08", state.first_tokens),
        ("+Inf", state.first_tokens),
    ] {
        text += &format!("vllm:time_to_first_token_seconds_bucket{{{labels},le=\"{bound}\"}} {count}.0\n");
    }
    text += &format!(
        "vllm:time_to_first_token_seconds_count{{{labels}}} {}.0\n",
        state.first_tokens
    );
    text += &format!(
        "vllm:time_to_first_token_seconds_sum{{{labels}}} {}\n",
        state.first_tokens as f64 * 0.07
    );
    text
}
