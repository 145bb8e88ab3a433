//! `infersim engine`.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpSocket};

use super::core::{self, Engine, Flavor};
use super::faults::Scheduled;
use super::model::Config;
use super::profile::Profile;
use super::server::{self, Outcome};

/// Stand in for a vLLM or SGLang server: its API, its metrics, its failures, from a calibrated engine model.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one and says which.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Server to imitate.
    #[arg(long, value_enum, default_value_t = Flavor::Vllm)]
    pub flavor: Flavor,
    /// Built-in profile, or a file: FILE, or FILE#NAME if it holds several.
    #[arg(long, default_value = "demo-small")]
    pub profile: String,
    /// List the built-in profiles and exit.
    #[arg(long)]
    pub list_profiles: bool,
    /// Name the model answers to; may be repeated. Default: the profile's model.
    #[arg(long)]
    pub served_model_name: Vec<String>,
    /// Most sequences in the batch. Default: the profile's.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_seqs: Option<u32>,
    /// Token budget of an iteration. Default: the profile's.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_batched_tokens: Option<u32>,
    /// Longest prompt plus output, tokens. Default: the profile's.
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_model_len: Option<u32>,
    /// Size of the KV cache, tokens. Default: the profile's.
    #[arg(long, value_parser = clap::value_parser!(u64).range(64..))]
    pub kv_tokens: Option<u64>,
    /// KV block, tokens.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub block_size: u32,
    /// Divide all engine times by this.
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    pub speed: f64,
    /// Uniform noise on iteration times: 0.05 is plus or minus five per cent.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub jitter: f64,
    /// Share of every prompt found in the prefix cache.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub prefix_hit_share: f64,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Data-parallel ranks behind this one port.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub data_parallel: u32,
    /// Front-end processes; several put vLLM's metrics into multiprocess mode. Default: one per rank.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub api_server_count: Option<u32>,
    /// Refuse requests beyond this many in the queue.
    #[arg(long)]
    pub max_num_queued_reqs: Option<usize>,
    /// LoRA adapters that may be named as model, comma-separated (vllm flavour).
    #[arg(long, value_delimiter = ',')]
    pub lora_modules: Vec<String>,
    /// Most adapters in a batch, as shown in the metrics.
    #[arg(long, default_value_t = 1)]
    pub max_loras: u32,
    /// Load weights for this long before connections are taken, s.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub startup_delay_s: f64,
    /// Let running requests go on for this long after SIGTERM, s.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    pub shutdown_grace_s: f64,
    /// Close connections that are idle for this long, s.
    #[arg(long, default_value_t = 5.0, value_parser = positive)]
    pub keep_alive_s: f64,
    /// Fail some time after start: KIND@SECONDS or KIND@SECONDS+FOR_SECONDS, with KIND one of crash, hang, unavailable,
    /// slow_metrics, hang_metrics. May be repeated.
    #[arg(long, value_name = "KIND@SECONDS")]
    pub fail: Vec<Scheduled>,
}

fn number(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|v| v.is_finite())
        .ok_or_else(|| "not a number".into())
}

fn positive(text: &str) -> Result<f64, String> {
    number(text).and_then(|v| {
        if (1e-6..1e9).contains(&v) {
            Ok(v)
        } else {
            Err("must be above 0".into())
        }
    })
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text).and_then(|v| {
        if (0.0..1e9).contains(&v) {
            Ok(v)
        } else {
            Err("must be 0 or more".into())
        }
    })
}

fn share(text: &str) -> Result<f64, String> {
    number(text).and_then(|v| {
        if (0.0..1.0).contains(&v) {
            Ok(v)
        } else {
            Err("must be from 0 to below 1".into())
        }
    })
}

impl Args {
    /// The engine these arguments describe.
    ///
    /// # Errors
    /// The profile cannot be found or makes no sense.
    pub fn engine_options(&self) -> Result<core::Options, super::profile::Error> {
        let profile = Profile::load(&self.profile)?;
        let served_model_names = if self.served_model_name.is_empty() {
            vec![profile.model.clone()]
        } else {
            self.served_model_name.clone()
        };
        let base = Config::new(profile);
        let model = Config {
            max_num_seqs: self.max_num_seqs.unwrap_or(base.max_num_seqs),
            max_num_batched_tokens: self.max_num_batched_tokens.unwrap_or(base.max_num_batched_tokens),
            kv_capacity_tokens: self.kv_tokens.unwrap_or(base.kv_capacity_tokens),
            max_model_len: self.max_model_len.unwrap_or(base.max_model_len),
            block_tokens: self.block_size,
            prefix_hit_share: self.prefix_hit_share,
            jitter_share: self.jitter,
            speed: self.speed,
            seed: self.seed,
            ..base
        };
        Ok(core::Options {
            flavor: self.flavor,
            model,
            served_model_names,
            data_parallel: self.data_parallel,
            api_servers: self.api_server_count.unwrap_or(self.data_parallel),
            max_num_queued_reqs: self.max_num_queued_reqs,
            lora_adapters: self.lora_modules.clone(),
            max_loras: self.max_loras,
        })
    }
}

/// Runs the engine until SIGTERM, SIGINT or an injected crash.
///
/// # Errors
/// The address cannot be listened on. A mistake in the profile is reported here and ends in exit code 2.
#[allow(clippy::print_stdout, reason = "the list of profiles is data")]
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.list_profiles {
        for profile in Profile::built_in()? {
            println!("{:<22} {:<34} {}", profile.name, profile.model, profile.source);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let options = match args.engine_options() {
        Ok(options) => options,
        Err(error) => {
            tracing::error!("{error}");
            return Ok(ExitCode::from(2));
        }
    };
    let address = SocketAddr::new(args.host, args.port);
    // Bound at once, so that a port in use is found at once; not listening, so that connections are refused meanwhile.
    let socket = bind(address)?;
    let mut shutdown = std::pin::pin!(terminated()?);
    if args.startup_delay_s > 0.0 {
        tracing::info!("loading weights for {} s", args.startup_delay_s);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs_f64(args.startup_delay_s)) => {}
            () = &mut shutdown => return Ok(ExitCode::SUCCESS),
        }
    }
    let listener = listen(socket, address)?;
    let address = listener.local_addr().context("the listening address")?;
    tracing::info!(
        "serving {} ({:?} flavour, profile {}) on http://{address}",
        options.served_model_names.join(", "),
        options.flavor,
        options.model.profile.name
    );
    let server = server::Options {
        shutdown_grace: Duration::from_secs_f64(args.shutdown_grace_s),
        keep_alive: Duration::from_secs_f64(args.keep_alive_s),
        failures: args.fail,
    };
    match server::serve(Engine::new(options), listener, server, shutdown).await {
        Outcome::ShutDown => Ok(ExitCode::SUCCESS),
        // Not a return: a crash runs no destructors and waits for nobody.
        Outcome::Crashed => std::process::exit(1),
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
    .context("making a socket")?;
    socket.set_reuseaddr(true).context("setting SO_REUSEADDR")?;
    socket.bind(address).map_err(|error| cannot_listen(address, &error))?;
    Ok(socket)
}

/// Connections the kernel holds while they wait to be accepted, as uvicorn has it.
const BACKLOG: u32 = 2048;

fn listen(socket: TcpSocket, address: SocketAddr) -> anyhow::Result<TcpListener> {
    socket.listen(BACKLOG).map_err(|error| cannot_listen(address, &error))
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow::anyhow!("{address} is in use by another process: choose another --port, or 0 for any free one")
        }
        _ => anyhow::anyhow!("cannot listen on {address}: {error}"),
    }
}

fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
