//! What the sidecar costs, beside what Prometheus in agent mode costs for the same body at the same pace.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    Setting,
    body::Captures,
    machine,
    process::{CpuTime, HelperProcess, Memory, Process, free_port},
    report::{Figure, Report, Target, number},
    say,
};

/// Samples that fill the replay buffer before anything is measured: ten minutes' worth, what the decider asks it to
/// hold by default.
const FILL: u64 = 600;

/// One measured process.
struct Subject {
    name: String,
    process: Process,
    began: CpuTime,
    slice_began: CpuTime,
    slices_percent: Vec<f64>,
    rss_mib: Vec<f64>,
    pss_mib: Vec<f64>,
}

/// What it cost.
struct Cost {
    cpu_percent: f64,
    peak_rss_mib: f64,
    rss_mib: f64,
}

impl Subject {
    fn new(name: &str, process: Process) -> anyhow::Result<Self> {
        let began = CpuTime::of(process.pid())?;
        Ok(Subject {
            name: name.to_owned(),
            process,
            began,
            slice_began: began,
            slices_percent: Vec::new(),
            rss_mib: Vec::new(),
            pss_mib: Vec::new(),
        })
    }

    /// From now on it counts.
    fn begin(&mut self) -> anyhow::Result<()> {
        self.process.check()?;
        self.began = CpuTime::of(self.process.pid())?;
        self.slice_began = self.began;
        Ok(())
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let memory = Memory::of(self.process.pid())?;
        self.rss_mib.push(memory.rss_mib);
        self.pss_mib.push(memory.pss_mib);
        Ok(())
    }

    fn end_slice(&mut self) -> anyhow::Result<()> {
        let now = CpuTime::of(self.process.pid())?;
        self.slices_percent.push(now.percent_since(&self.slice_began));
        self.slice_began = now;
        Ok(())
    }

    /// The figures, judged when `promised`.
    fn end(mut self, promised: bool, report: &mut Report) -> anyhow::Result<Cost> {
        self.process.check()?;
        let (now, memory) = (CpuTime::of(self.process.pid())?, Memory::of(self.process.pid())?);
        let cpu_percent = now.percent_since(&self.began);
        let name = &self.name;
        let promise = |figure: Figure, bound: f64| {
            if promised {
                figure.promised(Target::AtMost(bound))
            } else {
                figure
            }
        };
        let cpu = Figure::total(format!("{name}: CPU"), "% of a core", cpu_percent, &self.slices_percent).note(format!(
            "scheduler's ns over all threads; min, median and max are of 10 s slices; by utime + stime (10 ms steps): {} %",
            number(now.accounted_percent_since(&self.began))
        ));
        report.figure(promise(cpu, 0.3));
        let rss = Figure::total(format!("{name}: RSS, peak"), "MiB", memory.peak_rss_mib, &self.rss_mib)
            .note("VmHWM since the start; min, median and max are smaps_rollup's Rss while it was measured");
        report.figure(promise(rss, 6.0));
        report.figure(Figure::median(format!("{name}: PSS"), "MiB", &self.pss_mib));
        let rss = Figure::median("", "", &self.rss_mib);
        // SIGTERM, so that its goodbye is part of what the sink has seen.
        let _ = self.process.stop(Duration::from_secs(10))?;
        Ok(Cost {
            cpu_percent,
            peak_rss_mib: memory.peak_rss_mib,
            rss_mib: rss.value(),
        })
    }
}

/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let captures = match Captures::of_real_engine() {
        Some(captures) => captures,
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(Captures::of_stand_in(setting))?
        }
    };
    captures.save(scratch.path())?;
    let fill = setting.either(FILL, 5);
    let seconds = setting.either(120, 3);
    let engine = HelperProcess::start(&["engine", &scratch.path().to_string_lossy()])?;
    let sink = HelperProcess::start(&["sink", "--fill", &fill.to_string()])?;
    let writes = HelperProcess::start(&["remote-write"])?;

    let agent = |name: &str, client: &str, fast_ms: &str| -> anyhow::Result<Subject> {
        let mut command = Command::new(setting.binary("infer-agent")?);
        command.args([
            "run",
            "--pod-name",
            client,
            "--target",
            "bench",
            "--fast-interval-ms",
            fast_ms,
        ]);
        command.args(["--engine-url", &format!("http://{}", engine.address)]);
        command.args(["--decider", &format!("http://{}", sink.address)]);
        command.args(["--metrics-path", &format!("/{client}/metrics")]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Subject::new(name, Process::start("infer-agent", &mut command)?)
    };
    let mut subjects = vec![
        agent("infer-agent, 1 Hz", "slow", "0")?,
        agent("infer-agent, 1 Hz and a look every 250 ms", "fast", "250")?,
    ];
    let peer = prometheus(scratch.path(), &engine, &writes, report)?;
    let has_peer = peer.is_some();
    subjects.extend(peer);

    // The buffer fills at 5 Hz; a few seconds more settle everything else.
    let settle = Duration::from_millis(fill * 200) + Duration::from_secs(setting.either(10, 1));
    say(&format!(
        "bench agent: filling replay buffers for {} s, then measuring for {seconds} s",
        settle.as_secs()
    ));
    std::thread::sleep(settle);
    subjects.iter_mut().try_for_each(Subject::begin)?;
    let began = Instant::now();
    for second in 1..=seconds {
        std::thread::sleep((began + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
        subjects.iter_mut().try_for_each(Subject::look)?;
        if second % 10 == 0 || second == seconds {
            subjects.iter_mut().try_for_each(Subject::end_slice)?;
        }
    }
    let costs = subjects
        .into_iter()
        .enumerate()
        .map(|(at, subject)| subject.end(at < 2, report))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if let (true, [slow, .., peer]) = (has_peer, &costs[..]) {
        report.peer(format!(
            "prometheus in agent mode, same body, same pace, same run: {} times the agent's CPU, {} times its resident \
             memory (peak against peak: {} times)",
            number(peer.cpu_percent / slow.cpu_percent),
            number(peer.rss_mib / slow.rss_mib),
            number(peer.peak_rss_mib / slow.peak_rss_mib),
        ));
    }
    let (served, seen, written) = (engine.finish()?, sink.finish()?, writes.finish()?);
    report.note(format!(
        "body: {}, {} bytes, every counter moving",
        captures.of,
        captures.after.len()
    ));
    report.note(format!(
        "measured for {seconds} s at 1 Hz, with {fill} samples in the replay buffer; served: {served}; the sink saw: {seen}; \
         remote write: {written}"
    ));
    Ok(())
}

/// Prometheus in agent mode, where it is installed.
fn prometheus(
    scratch: &Path,
    engine: &HelperProcess,
    writes: &HelperProcess,
    report: &mut Report,
) -> anyhow::Result<Option<Subject>> {
    let Some(version) = machine::first_line("prometheus", &["--version"]) else {
        report.peer("not installed: prometheus (apt-get install prometheus); nothing was compared");
        return Ok(None);
    };
    report.version("prometheus", version);
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 800ms}}\n\
         scrape_configs:\n- job_name: engine\n  metrics_path: /prometheus/metrics\n  \
         static_configs: [{{targets: [\"{}\"]}}]\n\
         remote_write: [{{url: \"http://{}/write\"}}]\n",
        engine.address, writes.address
    );
    let path = scratch.join("prometheus.yaml");
    fs::write(&path, config).context("writing prometheus.yaml")?;
    let mut command = Command::new("prometheus");
    command.args(["--enable-feature=agent", "--log.level=error"]);
    command
        .arg("--config.file")
        .arg(&path)
        .arg("--storage.agent.path")
        .arg(scratch.join("agent"));
    command
        .arg("--web.listen-address")
        .arg(format!("127.0.0.1:{}", free_port()?));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Some(Subject::new(
        "prometheus agent mode, 1 Hz",
        Process::start("prometheus", &mut command)?,
    )?))
}
