//! The model against published measurements of real engines: a closed loop of so many clients, prompts and outputs of
//! one length, mean time per output token. Skipped where the measurements are not there.

use std::io::Read as _;

use infersim::engine::model::{Config, Event, Model, Request};
use infersim::engine::profile::{Calibration, Profile};

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

/// One vLLM on H100, one model, no quantisation.
fn measurements(csv: &str, model: &str) -> Vec<Measurement> {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let column = |name: &str| header.iter().position(|h| *h == name).unwrap();
    let rows = lines.map(|line| line.split(',').collect::<Vec<_>>());
    let wanted = [
        ("backend", "vllm"),
        ("system", "h100_sxm"),
        ("mode", "agg"),
        ("model_path", model),
    ];
    let number = |row: &[&str], name: &str| row[column(name)].parse::<f64>().unwrap();
    rows.filter(|row| wanted.iter().all(|(name, value)| row[column(name)] == *value))
        .filter(|row| row[column("precision")].is_empty())
        .map(|row| Measurement {
            tp: number(&row, "tp_size") as u32,
            clients: number(&row, "batch_size") as u64,
            prompt_tokens: number(&row, "isl") as u32,
            output_tokens: number(&row, "osl") as u32,
            tpot_ms: number(&row, "silicon_tpot_ms"),
        })
        .collect()
}

/// Mean time per output token, ms, of a closed loop in which every client asks three times.
fn simulate(profile: Profile, m: &Measurement) -> f64 {
    let mut model = Model::new(Config {
        max_num_batched_tokens: std::env::var("B").unwrap().parse().unwrap(), jitter_share: 0.02,
        ..Config::new(profile)
    });
    let request = |id| Request {
        id,
        prompt_tokens: m.prompt_tokens,
        output_tokens: m.output_tokens,
    };
    let stagger: u64 = std::env::var("ST").unwrap().parse().unwrap();
    let mut evs = Vec::new();
    for id in 0..m.clients {
        model.step(id * stagger * 1_000_000, &mut evs);
        model.submit(id * stagger * 1_000_000, request(id)).unwrap();
    }
    let mut submitted = m.clients;
    let mut tpot_ms = Vec::new();
    let mut events = Vec::new();
    let mut done = 0;
    while let Some(at_ns) = model.next_ns() {
        events.clear();
        model.step(at_ns, &mut events);
        for event in &events {
            if let Event::Finished { summary, .. } = event {
                let decode_ms = (summary.last_token_ns - summary.first_token_ns) as f64 / 1e6;
                done += 1; if done > m.clients && done <= 2 * m.clients { tpot_ms.push(decode_ms / f64::from(summary.output_tokens - 1)); }
                if submitted < 3 * m.clients {
                    model.submit(at_ns, request(submitted)).unwrap();
                    submitted += 1;
                }
            }
        }
    }
    tpot_ms.iter().sum::<f64>() / tpot_ms.len() as f64
}

#[test]
fn time_per_output_token_is_near_what_was_measured() {
    let (Some(profiles), Some(csv)) = (
        read_gz("aic_iteration_profiles.json.gz"),
        read_gz("silicon_e2e_ttft_tpot.csv.gz"),
    ) else {
        return;
    };
    let profiles: serde_json::Value = serde_json::from_str(&profiles).unwrap();
    let model = "Qwen/Qwen3-32B";
    let measured = measurements(&csv, model);
    assert!(measured.len() >= 20, "{}", measured.len());
    let v = |n: &str| std::env::var(n).unwrap().split(',').map(|x| x.parse::<f64>().unwrap()).collect::<Vec<_>>();
    for a in v("A") { for b in v("BB") { for c in v("C") {
    let mut errors = Vec::new();
    let mut bias = 0.0;
    for m in &measured {
        let of_this_kind = |p: &&serde_json::Value| {
            p["system"] == "h100_sxm" && p["engine"] == "vllm" && p["model"] == model && p["tp"] == m.tp
        };
        let Some(profile) = profiles["profiles"].as_array().unwrap().iter().find(of_this_kind) else {
            continue;
        };
        let mut profile: Profile = serde_json::from_value(profile.clone()).unwrap();
        profile.calibration = Calibration { a, b_ms: b, b_seq_ms: c };
        let tpot_ms = simulate(profile, m);
        let error = tpot_ms / m.tpot_ms - 1.0;
        bias += error;
        errors.push(error.abs());
    }
    eprintln!("a {a} b {b} c {c}: {:.2} bias {:.2}", 100.0 * errors.iter().sum::<f64>() / errors.len() as f64, 100.0 * bias / errors.len() as f64);
    }}}
}
