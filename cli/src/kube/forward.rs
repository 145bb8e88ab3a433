//! `kubectl port-forward`, for as long as it is needed and no longer.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::{Kube, not_started, words};
use crate::failure::Failure;

/// The decider's gRPC port, in the cluster.
const PORT: &str = ":9400";
/// Runs its arguments until its input ends, which it does however this process ends: even killed it leaves nothing behind.
const GUARD: &str = r#""$@" & child=$!; exec >/dev/null 2>&1; cat; kill "$child"; wait "$child""#;
/// For kubectl to say why, and to end.
const LINGER: Duration = Duration::from_secs(1);
/// Of what kubectl has said, the first so many bytes are kept.
const SAID_MAX: usize = 4096;

/// A running `kubectl port-forward`.
#[derive(Debug)]
pub(crate) struct Forward {
    guard: Child,
    alive: ChildStdin,
    port: u16,
    said: Arc<Mutex<String>>,
}

impl Forward {
    /// To the decider's gRPC port of `to`, such as `pod/infer-decider-0`.
    pub(super) async fn start(kube: &Kube, to: &str) -> Result<Self, Failure> {
        let namespace = kube.args.namespace.as_str();
        let args = kube.full(&["-n", namespace, "port-forward", "--address", "127.0.0.1", to, PORT]);
        let failed = |why: &str| Failure::Work(format!("{}: {why}", words(&args)));
        let mut command = Command::new("sh");
        command
            .args(["-c", GUARD, "sh", "kubectl"])
            .args(&args)
            // An interrupt from the keyboard is for us; kubectl ends with us.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut guard = command.spawn().map_err(|error| failed(&not_started(&error)))?;
        let (Some(alive), Some(stdout), Some(stderr)) = (guard.stdin.take(), guard.stdout.take(), guard.stderr.take())
        else {
            return Err(failed("it has no pipes"));
        };
        let said = Arc::new(Mutex::new(String::new()));
        let listening = tokio::spawn(listen(BufReader::new(stderr), Arc::clone(&said)));
        let mut lines = BufReader::new(stdout).lines();
        let port = tokio::time::timeout(kube.timeout, async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(port) = port_of(&line) {
                    return Some(port);
                }
            }
            None
        });
        match port.await {
            Ok(Some(port)) => {
                // What it says of each connection is of no interest, but it must get rid of it.
                let mut rest = lines.into_inner();
                tokio::spawn(async move { tokio::io::copy(&mut rest, &mut tokio::io::sink()).await });
                Ok(Forward {
                    guard,
                    alive,
                    port,
                    said,
                })
            }
            Ok(None) => {
                let _ = tokio::time::timeout(LINGER, listening).await;
                let said = said.lock().unwrap_or_else(PoisonError::into_inner);
                Err(failed(match said.trim() {
                    "" => "it ended and said nothing",
                    said => said,
                }))
            }
            Err(_) => Err(failed(&format!(
                "nothing within {:?}; wait longer with --timeout",
                kube.timeout
            ))),
        }
    }

    /// Where it listens, on the loopback address.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What it has complained about.
    pub(crate) fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.trim().to_owned()
    }

    /// Ends it, and sees that it has.
    pub(crate) async fn end(self) {
        let Forward { mut guard, alive, .. } = self;
        drop(alive);
        let _ = tokio::time::timeout(LINGER, guard.wait()).await;
    }
}

async fn listen(mut stderr: impl AsyncBufRead + Unpin, said: Arc<Mutex<String>>) {
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < SAID_MAX {
            said.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }
}

/// Of `Forwarding from 127.0.0.1:41234 -> 9400`.
fn port_of(line: &str) -> Option<u16> {
    let (address, _) = line.strip_prefix("Forwarding from ")?.split_once(" -> ")?;
    address.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_says_where_it_listens() {
        assert_eq!(port_of("Forwarding from 127.0.0.1:41234 -> 9400"), Some(41234));
        assert_eq!(port_of("Forwarding from [::1]:41234 -> 9400"), Some(41234));
        assert_eq!(port_of("Handling connection for 41234"), None);
        assert_eq!(port_of("Forwarding from nowhere -> 9400"), None);
    }
}
