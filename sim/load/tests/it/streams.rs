//! Runs against the server of [`crate::server`], over real sockets and with small real delays.

use crate::server::{Behaviour, Manner, Server};
use clap::Parser;
use infer_load::{Api, Arrival, Class, Event, Options, Outcome, Plan, Prompt, Report, Shutdown, Slo, run};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::net::TcpListener;

const TOKENS: u32 = 5;

/// Requests of equal length at equal distances.
fn plan(count: u32, gap_s: f64) -> Plan {
    let arrival = move |i| Arrival {
        at_s: f64::from(i) * gap_s,
        input_tokens: 20,
        output_tokens: TOKENS,
    };
    Plan::from_arrivals((0..count).map(arrival).collect())
}

async fn play(options: Options, plan: Plan) -> (Report, Vec<Outcome>) {
    let mut outcomes = Vec::new();
    let observer = |event: &Event| {
        if let Event::Finished(outcome) = event {
            outcomes.push(outcome.clone());
        }
    };
    let report = run(options, plan, observer, Shutdown::default()).await.unwrap();
    outcomes.sort_by_key(|outcome| outcome.index);
    (report, outcomes)
}

fn behaviour(first_token_ms: u64, gap_ms: u64) -> Behaviour {
    Behaviour {
        first_token: Duration::from_millis(first_token_ms),
        gap: Duration::from_millis(gap_ms),
        ..Behaviour::default()
    }
}

#[tokio::test]
async fn good_streams_are_counted_and_timed() {
    let server = Server::start(behaviour(30, 10)).await;
    let slo = Slo {
        ttft_ms: Some(20.0),
        itl_ms: Some(10_000.0),
    };
    let options = Options {
        prompt: Prompt::Ids,
        slo,
        ..Options::new(server.url(), "m")
    };
    let (report, outcomes) = play(options, plan(12, 0.01)).await;

    assert_eq!(
        (report.requests.planned, report.requests.sent, report.requests.ok),
        (12, 12, 12)
    );
    assert!(report.failures.is_empty(), "{:?}", report.errors);
    assert_eq!(report.statuses, BTreeMap::from([(200, 12)]));
    assert_eq!(report.replicas, BTreeMap::from([("open".to_owned(), 12)]));
    assert_eq!((report.tokens.input, report.tokens.output), (240, 60));
    assert_eq!((server.requests(), server.prompt_tokens()), (12, 240));
    assert_eq!((report.ttft.count, report.itl.count, report.e2e.count), (12, 48, 12));
    // The server's pace is a lower bound of what a client can see; there is no upper one on a busy machine. A client
    // that reads late sees some gaps shorter, but not their sum over a stream.
    for outcome in &outcomes {
        assert!(outcome.ttft_ms.unwrap() >= 30.0, "{outcome:?}");
        assert!(outcome.e2e_ms >= 70.0, "{outcome:?}");
        assert_eq!(outcome.token_ms.len(), 5);
        assert_eq!(outcome.completion_tokens, 5);
        assert!(outcome.start_s >= outcome.planned_s - 0.001, "{outcome:?}");
    }
    let slo = report.slo.unwrap();
    assert_eq!(
        (slo.ttft_attained, slo.itl_attained, slo.attained),
        (Some(0.0), Some(1.0), 0.0)
    );
}

#[tokio::test]
async fn every_way_to_fail_has_its_class() {
    let cases = [
        (Manner::Refuse, Class::HttpStatus, Some(503), 0),
        (Manner::Break, Class::Truncated, Some(200), 2),
        (Manner::NoDone, Class::Truncated, Some(200), 5),
        (Manner::Short, Class::Truncated, Some(200), 2),
        (Manner::ErrorEvent, Class::StreamError, Some(200), 0),
        (Manner::Hang, Class::Timeout, Some(200), 1),
        (Manner::Json, Class::Protocol, Some(200), 0),
    ];
    for (manner, class, status, tokens) in cases {
        let server = Server::start(Behaviour {
            manners: HashMap::from([(1, manner)]),
            ..behaviour(1, 1)
        })
        .await;
        let timeout = if manner == Manner::Hang {
            Duration::from_millis(1500)
        } else {
            Duration::from_secs(60)
        };
        let options = Options {
            timeout,
            ..Options::new(server.url(), "m")
        };
        let (report, outcomes) = play(options, plan(3, 0.0)).await;
        assert_eq!(
            (report.requests.ok, report.requests.failed),
            (2, 1),
            "{manner:?}: {:?}",
            report.errors
        );
        assert_eq!(
            report.failures,
            BTreeMap::from([(class, 1)]),
            "{manner:?}: {:?}",
            report.errors
        );
        let bad = outcomes.iter().find(|outcome| !outcome.is_ok()).unwrap();
        assert_eq!((bad.status, bad.completion_tokens), (status, tokens), "{manner:?}");
        assert_eq!(report.errors.len(), 1, "{manner:?}");
    }
}

#[tokio::test]
async fn no_server_and_a_server_that_hangs_up() {
    // A port that was free a moment ago refuses connections.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (report, _) = play(Options::new(&url, "m"), plan(2, 0.0)).await;
    assert_eq!(report.failures, BTreeMap::from([(Class::Connect, 2)]));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let hang_up = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        stream.readable().await.unwrap();
    });
    let (report, _) = play(Options::new(&url, "m"), plan(1, 0.0)).await;
    assert_eq!(
        report.failures,
        BTreeMap::from([(Class::Closed, 1)]),
        "{:?}",
        report.errors
    );
    hang_up.await.unwrap();
}

#[tokio::test]
async fn requests_do_not_wait_for_each_other() {
    // The first request never ends, yet the others start on time and end.
    let server = Server::start(Behaviour {
        manners: HashMap::from([(0, Manner::Hang)]),
        ..behaviour(1, 1)
    })
    .await;
    let options = Options {
        timeout: Duration::from_secs(2),
        ..Options::new(server.url(), "m")
    };
    let (report, outcomes) = play(options, plan(10, 0.02)).await;
    assert_eq!(
        (report.requests.ok, report.requests.failed),
        (9, 1),
        "{:?}",
        report.errors
    );
    let hung_until_s = outcomes[0].start_s + outcomes[0].e2e_ms / 1e3;
    assert!(outcomes[9].start_s < hung_until_s, "the last one waited for the first");
}

#[tokio::test]
async fn connections_are_kept() {
    let server = Server::start(behaviour(0, 0)).await;
    // Each request is over long before the next.
    let (report, _) = play(Options::new(server.url(), "m"), plan(5, 0.1)).await;
    assert_eq!(report.requests.ok, 5, "{:?}", report.errors);
    assert!(
        server.connections() < 5,
        "{} connections for 5 requests",
        server.connections()
    );
}

#[tokio::test]
async fn the_cap_drops_and_counts() {
    let server = Server::start(Behaviour {
        manners: HashMap::from([(0, Manner::Hang), (1, Manner::Hang)]),
        ..behaviour(1, 1)
    })
    .await;
    let options = Options {
        in_flight_max: 2,
        timeout: Duration::from_millis(500),
        ..Options::new(server.url(), "m")
    };
    let (report, _) = play(options, plan(5, 0.0)).await;
    assert_eq!(
        (
            report.requests.planned,
            report.requests.sent,
            report.requests.in_flight_max
        ),
        (5, 2, 2)
    );
    assert_eq!(
        report.failures,
        BTreeMap::from([(Class::InFlightCap, 3), (Class::Timeout, 2)])
    );
}

#[tokio::test]
async fn chat_headers_and_early_ends() {
    let server = Server::start(Behaviour {
        manners: HashMap::from([(0, Manner::Short)]),
        ..behaviour(1, 1)
    })
    .await;
    let options = Options {
        api: Api::Chat,
        headers: vec![("Authorization".into(), "Bearer x".into())],
        ..Options::new(server.url() + "/v1", "m")
    };
    let (report, _) = play(options, plan(2, 0.0)).await;
    assert_eq!(
        (report.requests.ok, report.failures.get(&Class::Truncated)),
        (1, Some(&1)),
        "{:?}",
        report.errors
    );
    assert_eq!(report.replicas, BTreeMap::from([("keyed".to_owned(), 2)]));
}

#[tokio::test]
async fn stopping_ends_sending_and_gives_up_what_hangs() {
    let server = Server::start(Behaviour {
        manners: HashMap::from([(0, Manner::Hang)]),
        ..behaviour(1, 1)
    })
    .await;
    let options = Options {
        drain: Duration::from_millis(200),
        progress_interval: Duration::from_millis(20),
        ..Options::new(server.url(), "m")
    };
    let shutdown = Shutdown::default();
    let (stop, mut progress) = (shutdown.clone(), 0);
    let observer = |event: &Event| match event {
        Event::Finished(outcome) if outcome.is_ok() => stop.stop(),
        Event::Progress(_) => progress += 1,
        _ => {}
    };
    // The second request ends the run; the rest of the plan lies an hour ahead.
    let plan = Plan::from_arrivals(
        [0.0, 0.05, 3600.0]
            .map(|at_s| Arrival {
                at_s,
                input_tokens: 5,
                output_tokens: TOKENS,
            })
            .to_vec(),
    );
    let report = run(options, plan, observer, shutdown).await.unwrap();
    assert!(report.interrupted);
    assert_eq!((report.requests.planned, report.requests.ok), (2, 1));
    assert_eq!(report.failures, BTreeMap::from([(Class::Abandoned, 1)]));
    assert!(progress > 0);
}

#[tokio::test]
async fn options_that_cannot_be() {
    let cases = [
        (Options::new("ftp://a", "m"), "http://"),
        (
            Options {
                time_scale: 0.0,
                ..Options::new("http://a", "m")
            },
            "time scale 0",
        ),
        (
            Options {
                in_flight_max: 0,
                ..Options::new("http://a", "m")
            },
            "in-flight cap",
        ),
        (
            Options {
                api: Api::Chat,
                prompt: Prompt::Ids,
                ..Options::new("http://a", "m")
            },
            "prompt ids",
        ),
        (
            Options {
                headers: vec![("a b".into(), "c".into())],
                ..Options::new("http://a", "m")
            },
            "header \"a b\"",
        ),
    ];
    for (options, words) in cases {
        let error = run(options, plan(1, 0.0), |_| (), Shutdown::default())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn the_command_records_and_exits() {
    let server = Server::start(Behaviour {
        manners: HashMap::from([(3, Manner::Refuse)]),
        ..behaviour(1, 1)
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record.jsonl");
    let url = server.url();
    let command = |more: &[&str]| {
        let fixed = [
            "load",
            "--model",
            "m",
            "--quiet",
            "--url",
            &url,
            "--output-tokens",
            "3",
            "--arrivals",
            "constant",
        ];
        infer_load::cli::Args::try_parse_from(fixed.into_iter().chain(more.iter().copied())).unwrap()
    };
    let path = record.to_str().unwrap();
    let args = command(&["--rate", "50", "--limit", "4", "--output", "json", "--record", path]);
    let code = infer_load::cli::run(args).await.unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::from(1)));
    let lines: Vec<serde_json::Value> = std::fs::read_to_string(&record)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 4);
    let failed: Vec<_> = lines.iter().filter(|line| !line["failure"].is_null()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(
        (&failed[0]["status"], &failed[0]["failure"]["class"]),
        (&503.into(), &"http_status".into())
    );
    let ok = lines.iter().find(|line| line["failure"].is_null()).unwrap();
    assert_eq!(ok["token_ms"].as_array().unwrap().len(), 3);
    assert_eq!(ok["replica"], "open");

    let code = infer_load::cli::run(command(&["--rate", "50", "--limit", "2"]))
        .await
        .unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::SUCCESS));
    let code = infer_load::cli::run(command(&["--trace", "absent.csv"])).await.unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::from(2)));
}
