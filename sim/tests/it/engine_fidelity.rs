//! The model against published measurements of real engines: a closed loop of so many clients, prompts and outputs of
//! one length, mean time per output token. Skipped where the measurements are not there.

use std::io::Read as _;

use infersim::engine::model::{Config, Event, Model, Request};
use infersim::engine::profile::Profile;

fn read_gz(name: &str) -> Option<String> {
    let path = format!("{}/../../shared/data/profiles/{name}", env!("CARGO_MANIFEST_DIR"));
    let Ok(file) = std::fs::File::open(&path) else {
        eprintln!("skipped: {path} not found");
        return None;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    Some(text)
}

struct Measurement {
    tp: u32,
    clients: u64,
    prompt_tokens: u32,
    output_tokens: u32,
    tpot_ms: f64,
}

/// One vLLM on H100, one model in one precision (none: as published).
fn measurements(csv: &str, model: &str, precision: &str) -> Vec<Measurement> {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let column = |name: &str| header.iter().position(|h| *h == name).unwrap();
    let rows = lines.map(|line| line.split(',').collect::<Vec<_>>());
    let wanted = [
        ("backend", "vllm"),
        ("system", "h100_sxm"),
        ("mode", "agg"),
        ("model_path", model),
        ("precision", precision),
    ];
    let number = |row: &[&str], name: &str| row[column(name)].parse::<f64>().unwrap();
    rows.filter(|row| wanted.iter().all(|(name, value)| row[column(name)] == *value))
        .map(|row| Measurement {
            tp: number(&row, "tp_size") as u32,
            clients: number(&row, "batch_size") as u64,
            prompt_tokens: number(&row, "isl") as u32,
            output_tokens: number(&row, "osl") as u32,
            tpot_ms: number(&row, "silicon_tpot_ms"),
        })
        .collect()
}

/// Clients do not begin all at once: one joins every so often, ns.
const STAGGER_NS: u64 = 30_000_000;

/// Mean time per output token, ms, of a closed loop: the second request of each client, which meets a full engine from
/// beginning to end because every client asks three times.
fn simulate(profile: Profile, m: &Measurement) -> f64 {
    let mut model = Model::new(Config {
        max_num_batched_tokens: 8192,
        ..Config::new(profile)
    });
    let request = |id| Request {
        id,
        prompt_tokens: m.prompt_tokens,
        output_tokens: m.output_tokens,
    };
    for id in 0..m.clients {
        model.submit(id * STAGGER_NS, request(id)).unwrap();
    }
    let mut submitted = m.clients;
    let mut finished = 0;
    let mut tpot_ms = Vec::new();
    let mut events = Vec::new();
    while let Some(at_ns) = model.next_ns() {
        events.clear();
        model.step(at_ns, &mut events);
        for event in &events {
            let Event::Finished { summary, .. } = event else {
                continue;
            };
            finished += 1;
            if (m.clients + 1..=2 * m.clients).contains(&finished) {
                let decode_ms = (summary.last_token_ns - summary.first_token_ns) as f64 / 1e6;
                tpot_ms.push(decode_ms / f64::from(summary.output_tokens - 1));
            }
            if submitted < 3 * m.clients {
                model.submit(at_ns, request(submitted)).unwrap();
                submitted += 1;
            }
        }
    }
    tpot_ms.iter().sum::<f64>() / tpot_ms.len() as f64
}

/// Mean absolute error over the measurements of one model.
fn mean_error(csv: &str, profiles: &serde_json::Value, measured: (&str, &str), profile_model: &str) -> f64 {
    let calibration = Profile::load("h100-llama-8b").unwrap().calibration;
    let mut errors = Vec::new();
    for m in &measurements(csv, measured.0, measured.1) {
        let of_this_kind = |p: &&serde_json::Value| {
            p["system"] == "h100_sxm" && p["engine"] == "vllm" && p["model"] == profile_model && p["tp"] == m.tp
        };
        let Some(profile) = profiles["profiles"].as_array().unwrap().iter().find(of_this_kind) else {
            continue;
        };
        let profile: Profile = serde_json::from_value(profile.clone()).unwrap();
        let error = simulate(Profile { calibration, ..profile }, m) / m.tpot_ms - 1.0;
        eprintln!(
            "tp {} {:>3} x {}+{}: {:+.1} %",
            m.tp,
            m.clients,
            m.prompt_tokens,
            m.output_tokens,
            100.0 * error
        );
        errors.push(error.abs());
    }
    assert!(errors.len() >= 10, "{}", errors.len());
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    eprintln!(
        "{}: {} measurements, mean absolute error {:.1} %",
        measured.0,
        errors.len(),
        100.0 * mean
    );
    mean
}

#[test]
fn time_per_output_token_is_near_what_was_measured() {
    let (Some(profiles), Some(csv)) = (
        read_gz("aic_iteration_profiles.json.gz"),
        read_gz("silicon_e2e_ttft_tpot.csv.gz"),
    ) else {
        return;
    };
    let profiles = serde_json::from_str(&profiles).unwrap();
    // What the calibration was fitted to, and a model it has not seen.
    let fitted = mean_error(&csv, &profiles, ("Qwen/Qwen3-32B", ""), "Qwen/Qwen3-32B");
    assert!(fitted < 0.04, "{fitted}");
    let unseen = ("meta-llama/Llama-3.1-70B", "fp8");
    let unseen = mean_error(&csv, &profiles, unseen, "nvidia/Llama-3.1-70B-Instruct-FP8");
    assert!(unseen < 0.08, "{unseen}");
}
