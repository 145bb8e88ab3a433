//! A decider of one's own: started with given documents in a directory of its own, and never left behind.

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use infer_proto::v1::decisions_client::DecisionsClient;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};

use super::{Binaries, Error, MARK, Process, marked};

/// Asks a decider.
pub type Client = DecisionsClient<Channel>;

/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// A decider binds its ports and its fleets' front doors within this; a debug build on a loaded machine takes its time.
const START: Duration = Duration::from_secs(20);
/// When nobody has stopped it properly: how long it may take to end by itself.
const LAST_CHANCE: Duration = Duration::from_secs(8);
/// Explanations carry whole windows.
const ANSWER_BYTES_MAX: usize = 64 << 20;
const LOG_LINES: usize = 15;

/// What a decider is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where documents, state and logs are put; created when it is not there.
    pub directory: PathBuf,
    /// YAML texts, each of one or more documents.
    pub documents: Vec<String>,
    /// What it logs, as `--log` has it.
    pub log: String,
    /// Let engines run on when it is stopped.
    pub leave_engines: bool,
    /// Further environment variables; engines and agents inherit them.
    pub env: Vec<(String, String)>,
}

impl Options {
    /// One text of documents, logs at "info".
    pub fn new(directory: impl Into<PathBuf>, documents: impl Into<String>) -> Self {
        Options {
            directory: directory.into(),
            documents: vec![documents.into()],
            log: "info".to_owned(),
            leave_engines: false,
            env: Vec::new(),
        }
    }
}

/// A running (or killed) decider. Dropping it ends everything it has started.
#[derive(Debug)]
pub struct Decider {
    options: Options,
    binaries: Binaries,
    mark: String,
    child: Option<Child>,
    grpc: SocketAddr,
    http: Option<SocketAddr>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}

impl Decider {
    /// Starts one on free ports of its own and returns when it answers.
    ///
    /// # Errors
    /// Programs that are not built, documents it refuses, ports its fleets cannot have.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let binaries = Binaries::find()?;
        fs::create_dir_all(&options.directory).map_err(failed("create", &options.directory))?;
        for (index, text) in options.documents.iter().enumerate() {
            let path = options.directory.join(document_name(index));
            fs::write(&path, text).map_err(failed("write", &path))?;
        }
        let unset = SocketAddr::from(([127, 0, 0, 1], 0));
        let mark = format!("{}-{:016x}", std::process::id(), fastrand::u64(..));
        let mut decider = Decider {
            options,
            binaries,
            mark,
            child: None,
            grpc: unset,
            http: None,
        };
        decider.launch().await?;
        Ok(decider)
    }

    /// Starts it again after [`Decider::kill`] or [`Decider::stop`], in the same directory.
    ///
    /// # Errors
    /// As [`Decider::start`].
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.launch().await
    }

    async fn launch(&mut self) -> Result<(), Error> {
        let addresses = self.state_dir().join("addresses.json");
        let _ = fs::remove_file(&addresses);
        let log = self.log_path();
        let log_file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(failed("write", &log))?;
        let program = self.binaries.path("infer-decider");
        let mut command = Command::new(&program);
        command.arg("run").arg("--state-dir").arg(self.state_dir());
        for index in 0..self.options.documents.len() {
            command
                .arg("--config")
                .arg(self.options.directory.join(document_name(index)));
        }
        // The same addresses after a restart: agents look for their decider where it was.
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let http = self.http.unwrap_or(any_port).to_string();
        command.args(["--listen", &self.grpc.to_string(), "--http-listen", &http]);
        command.args(["--log", &self.options.log]);
        if self.options.leave_engines {
            command.arg("--leave-engines");
        }
        command
            .env("PATH", self.binaries.search_path())
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .env(MARK, &self.mark)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            // A Ctrl-C at the terminal is for us, and we stop it in order.
            .process_group(0);
        self.child = Some(command.spawn().map_err(failed("start", &program))?);
        let began = Instant::now();
        loop {
            if let Some((grpc, http)) = fs::read(&addresses).ok().and_then(|bytes| read_addresses(&bytes)) {
                (self.grpc, self.http) = (grpc, http);
                return Ok(());
            }
            if let Some(status) = self.exited()? {
                return Err(Error::Ended {
                    status: status.to_string(),
                    log: self.log_tail(LOG_LINES),
                    path: log,
                });
            }
            if began.elapsed() > START {
                let what = "the decider's start".to_owned();
                return Err(Error::TooLate {
                    what,
                    within: START,
                    seen: self.log_tail(LOG_LINES),
                });
            }
            sleep(LOOK).await;
        }
    }

    /// Its gRPC address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Where its own metrics are.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Its directory of documents and logs.
    pub fn directory(&self) -> &Path {
        &self.options.directory
    }

    /// Its state directory: the same, so that `infer-decider cleanup --state-dir` on the directory ends what a killed
    /// run has left.
    pub fn state_dir(&self) -> PathBuf {
        self.options.directory.clone()
    }

    /// Its log file.
    pub fn log_path(&self) -> PathBuf {
        self.options.directory.join("decider.log")
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Its pid while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A connection to it.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub async fn client(&self) -> Result<Client, Error> {
        let channel = Endpoint::from_shared(self.url())?
            .connect_timeout(START)
            .connect()
            .await?;
        Ok(DecisionsClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// What `inferctl` with these arguments prints about it.
    ///
    /// # Errors
    /// [`Error::Failed`] with what it printed to stderr when its exit code is not 0.
    pub async fn inferctl(&self, arguments: &[&str]) -> Result<String, Error> {
        let program = self.binaries.path("inferctl");
        let output = tokio::process::Command::new(&program)
            .args(["--server", &self.url()])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(failed("start", &program))?;
        if !output.status.success() {
            return Err(Error::Failed {
                program: format!("inferctl {}", arguments.join(" ")),
                status: output.status.to_string(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Asks it to stop (SIGTERM) and waits for its end.
    ///
    /// # Errors
    /// [`Error::TooLate`] when it is still there; it goes on stopping then.
    pub async fn stop(&mut self, within: Duration) -> Result<ExitStatus, Error> {
        self.signal(Signal::SIGTERM);
        let began = Instant::now();
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            if began.elapsed() > within {
                let what = "the decider's end".to_owned();
                return Err(Error::TooLate {
                    what,
                    within,
                    seen: self.log_tail(LOG_LINES),
                });
            }
            sleep(LOOK).await;
        }
    }

    /// `kill -9`: engines and agents run on.
    ///
    /// # Errors
    /// [`Error::Io`] when the system does not let it.
    pub fn kill(&mut self) -> Result<(), Error> {
        if let Some(mut child) = self.child.take() {
            let path = self.binaries.path("infer-decider");
            child
                .kill()
                .and_then(|()| child.wait())
                .map_err(failed("kill", &path))?;
        }
        Ok(())
    }

    /// Every live process of this run: the decider, engines, agents, and what they have started.
    pub fn processes(&self) -> Vec<Process> {
        marked(&self.mark)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// How it ended, when it has.
    fn exited(&mut self) -> Result<Option<ExitStatus>, Error> {
        let path = self.binaries.path("infer-decider");
        let Some(child) = &mut self.child else {
            return Ok(Some(ExitStatus::default()));
        };
        let status = child.try_wait().map_err(failed("wait for", &path))?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }
}

impl Drop for Decider {
    /// In order where possible, by force where not. Blocks for some seconds at most.
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        let began = Instant::now();
        while self.child.is_some() && began.elapsed() < LAST_CHANCE && matches!(self.exited(), Ok(None)) {
            std::thread::sleep(LOOK);
        }
        let _ = self.kill();
        if !self.processes().is_empty() {
            let mut cleanup = Command::new(self.binaries.path("infer-decider"));
            cleanup.arg("cleanup").arg("--state-dir").arg(self.state_dir());
            let _ = cleanup
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn document_name(index: usize) -> String {
    if index == 0 {
        "fleet.yaml".to_owned()
    } else {
        format!("fleet-{index}.yaml")
    }
}

/// `None` while the file is only half written.
fn read_addresses(bytes: &[u8]) -> Option<(SocketAddr, Option<SocketAddr>)> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let address = |name: &str| value.get(name)?.as_str()?.parse().ok();
    Some((address("grpc")?, address("http")))
}
