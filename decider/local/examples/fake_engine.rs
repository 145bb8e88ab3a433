//! An engine for the tests: answers GET `/health` with 503, then 200.
//!
//! `fake_engine <port> [--ready-after-ms N] [--never-ready] [--exit-after-ms N --exit-code N] [--exit-if-file PATH]
//! [--ignore-sigterm] [--child]`; `--child` starts a process in the same group that ignores SIGTERM too.
#![allow(clippy::print_stdout, clippy::expect_used)]

use std::{convert::Infallible, path::PathBuf, process::ExitCode, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    process::Command,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

struct Arguments(Vec<String>);

impl Arguments {
    fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|argument| argument == flag)
    }

    fn value(&self, flag: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == flag)?;
        self.0.get(at + 1).map(String::as_str)
    }

    fn ms(&self, flag: &str) -> Option<Duration> {
        self.value(flag)
            .map(|text| Duration::from_millis(text.parse().expect("milliseconds")))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments(std::env::args().skip(1).collect());
    let port: u16 = arguments.0.first().and_then(|port| port.parse().ok()).expect("a port");
    let mut terminate = signal(SignalKind::terminate()).expect("a signal handler");
    if arguments.has("--child") {
        let spawned = Command::new("sh")
            .args(["-c", "trap '' TERM; while :; do sleep 1; done"])
            .spawn();
        println!("child {:?}", spawned.expect("sh").id());
    }
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port");
    println!("listening on {port}");
    let never = arguments.has("--never-ready");
    let ready_at = Instant::now() + arguments.ms("--ready-after-ms").unwrap_or_default();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(move |_: Request<Incoming>| async move {
                let mut response = Response::new(Full::<Bytes>::default());
                if never || Instant::now() < ready_at {
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                Ok::<_, Infallible>(response)
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    let exit_after = arguments.ms("--exit-after-ms");
    let exit_file = arguments.value("--exit-if-file").map(PathBuf::from);
    let code = arguments
        .value("--exit-code")
        .map_or(1, |code| code.parse().expect("an exit code"));
    let crash = async {
        match (exit_after, exit_file) {
            (Some(after), _) => sleep(after).await,
            (None, Some(file)) => {
                while !file.exists() {
                    sleep(Duration::from_millis(10)).await;
                }
            }
            (None, None) => std::future::pending().await,
        }
    };
    tokio::pin!(crash);
    loop {
        tokio::select! {
            () = &mut crash => return ExitCode::from(code),
            _ = terminate.recv() => if !arguments.has("--ignore-sigterm") {
                return ExitCode::SUCCESS;
            },
        }
    }
}
