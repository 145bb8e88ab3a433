//! Every command that asks a decider.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::server::Server;
use crate::{Run, inferctl, run};

/// Runs against a decider with the target "chat".
#[track_caller]
fn ask(args: &str) -> Run {
    let server = Server::start(&["chat"]);
    run(&format!("{args} --server {}", server.address))
}

/// A table without the days that are different tomorrow: every RFC 3339 time becomes TIME.
fn timeless(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("T").filter(|_| !rest.is_empty()) {
        let is_time = at >= 10
            && rest.is_char_boundary(at - 10)
            && rest[at - 10..].len() >= 24
            && rest.as_bytes()[at - 6] == b'-'
            && rest.as_bytes()[at + 13] == b'Z';
        if is_time {
            out.push_str(&rest[..at - 10]);
            out.push_str("TIME");
            rest = &rest[at + 14..];
        } else {
            out.push_str(&rest[..at + 1]);
            rest = &rest[at + 1..];
        }
    }
    out + rest
}

/// JSON and YAML of a command say the same; returns it.
#[track_caller]
fn data(args: &str) -> Value {
    let json: Value = serde_json::from_str(&ask(&format!("{args} --output json")).ok()).expect("JSON");
    let yaml: Value = serde_saphyr::from_str(&ask(&format!("{args} -o yaml")).ok()).expect("YAML");
    assert_eq!(without_times(json.clone()), without_times(yaml));
    json
}

/// Both runs have their own clock.
fn without_times(mut value: Value) -> Value {
    match &mut value {
        Value::Object(object) => {
            object.retain(|key, _| !key.ends_with("unix_ms") && !key.ends_with("time"));
            object
                .values_mut()
                .for_each(|value| *value = without_times(value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| *value = without_times(value.take())),
        _ => {}
    }
    value
}

#[test]
fn status() {
    let server = Server::start(&["chat"]);
    let text = run(&format!("status --server http://{}", server.address)).ok();
    let expected = format!(
        "infer-decider 0.1.0 at http://{} is degraded, started 5 h ago (TIME)\n  \
           problem: no agent for chat-1\n\
         targets     2\n\
         agents      3 connected\n\
         samples     1000 applied, 1 duplicate, 2 late, 3 missing\n\
         decisions   42\n\
         backend     local\n\
         decider id  d-1\n",
        server.address
    );
    assert_eq!(timeless(&text), expected);
    let status = data("status");
    assert_eq!(
        (&status["health"], &status["samples_late"]),
        (&json!("degraded"), &json!(2))
    );
    let (ms, time) = (
        status["started_unix_ms"].as_i64().expect("a time"),
        status["started_time"].as_str().expect("a time"),
    );
    assert!(
        ms > 1_700_000_000_000 && time.ends_with(&format!(".{:03}Z", ms % 1000)),
        "{time}"
    );
}

#[test]
fn targets() {
    let text = ask("targets").ok();
    assert_eq!(
        text,
        "TARGET  MODE   CONTROL  DESIRED  READY  STARTING  DRAINING  FAILED  LIMITS  WAITING  LAST CHANGE\n\
         chat    panic  auto     5        3/5    2         1         0       1 to 8  12       5 h ago\n"
    );
    let targets = data("targets");
    let target = &targets["targets"][0];
    assert_eq!(target["replicas"]["ready"], 3);
    assert_eq!(target["pods"][0]["engine"]["kind"], "vllm");
    assert_eq!(
        target["pods"][0]["gauges"],
        json!({"running": 8.0, "waiting": 3.0, "kv_usage": 0.834})
    );
    let absent = target["pods"][1].as_object().expect("an object");
    assert!(
        !absent.contains_key("gauges") && !absent.contains_key("sample_age_ms"),
        "{absent:?}"
    );
    assert!(
        !target["metrics"][1]
            .as_object()
            .expect("an object")
            .contains_key("load_stable")
    );
    assert!(target.get("override_replicas").is_none());
}

#[test]
fn one_target() {
    let text = ask("targets chat").ok();
    assert_eq!(
        text,
        "chat: 3 of 5 replicas ready, 5 desired (1 to 8 allowed), mode panic, control auto
  why: 12 requests wait, 4 per replica are wanted
  last change: decision 42, 5 h ago (inferctl explain 42)
  binding chat-binding, policy interactive
  front door: 9 requests held

  METRIC    PER REPLICA  STABLE LOAD  STABLE WANTS  PANIC LOAD  PANIC WANTS
  waiting   4            12.2         4             18          5
  ttft p95  400          -            -             -           -

  REPLICA  PHASE     SAMPLE      RUNNING  WAITING  KV CACHE  ENGINE         ENDPOINT         STARTED IN  PROBLEM
  chat-0   ready     250 ms ago  8        3        83.4 %    vllm >=0.10.2  127.0.0.1:18000  41 s        -
  chat-1   starting  -           -        -        -         -              -                -           connection [31m refused
"
    );
    assert_eq!(data("targets chat")["name"], "chat");
}

#[test]
fn decisions() {
    let text = ask("decisions").ok();
    assert_eq!(
        text,
        "ID  WHEN     TARGET  REPLICAS  MODE   BOUND BY  APPLIED     REASON\n\
         42  5 h ago  chat    3 → 5     panic  rate      yes         the panic window wants 6 replicas, 2 per 15 s are allowed\n\
         41  5 h ago  chat    3 → 5     panic  rate      no: paused  the panic window wants 6 replicas, 2 per 15 s are allowed\n"
    );
    let decisions = data("decisions chat");
    assert_eq!(decisions["decisions"][0]["id"], 42);
    assert_eq!(decisions["decisions"][1]["not_applied"], "paused");
    let server = Server::start(&["chat"]);
    run(&format!(
        "decisions chat --limit 7 --before 40 --server {}",
        server.address
    ))
    .ok();
    assert_eq!(
        server.canned.last(),
        r#"ListDecisionsRequest { target: "chat", limit: 7, before_id: 40 }"#
    );
    let empty = Server::start(&[]);
    assert_eq!(
        run(&format!("decisions --server {}", empty.address)).ok(),
        "no decisions\n"
    );
    assert!(
        run(&format!("targets --server {}", empty.address))
            .ok()
            .starts_with("no targets")
    );
}

#[test]
fn following_ends_with_the_stream() {
    let text = ask("decisions --follow").ok();
    let lines: Vec<String> = timeless(&text).lines().map(str::to_owned).collect();
    let words = "chat: 3 → 5 (panic, rate): the panic window wants 6 replicas, 2 per 15 s are allowed";
    assert_eq!(
        lines,
        [
            format!("TIME #40 {words}"),
            format!("TIME #41 {words} [not applied: paused]"),
            format!("TIME #42 {words}")
        ]
    );
    let ids: Vec<Value> = ask("decisions --follow --output json")
        .ok()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON")["id"].clone())
        .collect();
    assert_eq!(ids, [40, 41, 42]);
    let yaml = ask("decisions --follow --output yaml").ok();
    assert_eq!(yaml.matches("---\n").count(), 3, "{yaml}");
    let server = Server::start(&["chat"]);
    run(&format!("decisions chat -f --limit 3 --server {}", server.address)).ok();
    assert_eq!(
        server.canned.last(),
        r#"WatchDecisionsRequest { target: "chat", backlog: 3 }"#
    );
}

#[test]
fn a_broken_stream_is_a_failure() {
    let run = ask("decisions broken --follow");
    assert_eq!((run.code, run.stdout.lines().count()), (1, 1));
    assert!(run.stderr.contains("failed: the journal is gone"), "{}", run.stderr);
}

#[test]
fn readers_that_go_away_are_nobodys_fault() {
    let server = Server::start(&["chat"]);
    let args = format!("decisions flood --follow --server {}", server.address);
    let mut child = inferctl(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("inferctl runs");
    drop(child.stdout.take());
    let run = Run::of(child.wait_with_output().expect("it ends"));
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
}

#[test]
fn explain() {
    let expected = "\
Decision 42: chat scales up 3 → 5 replicas, 5 h ago.
The panic window wants 6 replicas, 2 per 15 s are allowed.

Inputs
  replicas    3 ready of 3 asked for, 1 draining; 1 to 8 allowed
  windows     60 s stable, 6 s panic
  data        95 % of the stable window; 2 of 3 ready replicas reporting
  front door  9 requests held

  METRIC   PER REPLICA  STABLE  WANTS  PANIC  WANTS
  waiting  4            12.2    3.06   24     6

Steps
      RULE         REPLICAS  WHAT IT SAW
  1   demand       3 → 3.06  12.25 waiting / 4 per replica
  2   stablePanic  3.06 → 6  panic: 6 wanted is 200 % of 3 ready
  3*  rate         6 → 5     at most 2 more per 15 s

Outcome
  bound by    rate (step 3)
  mode        panic
  applied     yes
  recomputed  the record gives the same decision again, bit for bit
";
    assert_eq!(ask("explain 42").ok(), expected);
    assert_eq!(ask("explain chat").ok(), expected);
    assert_eq!(ask("explain").ok(), expected, "the only target");
    assert!(ask("explain 41").ok().contains("  applied     no: paused\n"));
    assert!(
        ask("explain 13")
            .ok()
            .contains("recomputed  NO: the record gives a different decision")
    );
    let explanation = data("explain");
    assert_eq!(explanation["record"]["inputs"]["data"]["fresh"], 2);
    assert_eq!(explanation["steps"][1]["rule"], "stablePanic");
    assert_eq!(explanation["recomputed_equal"], true);
}

#[test]
fn explain_asks_which_target() {
    let server = Server::start(&["chat", "code"]);
    let messages = run(&format!("explain --server {}", server.address)).failed(2);
    assert!(
        messages.contains("which target? known: chat, code; write inferctl explain TARGET"),
        "{messages}"
    );
    let empty = Server::start(&[]);
    let messages = run(&format!("explain --server {}", empty.address)).failed(1);
    assert!(messages.contains("no targets"), "{messages}");
}

#[test]
fn windows() {
    let text = ask("windows chat").ok();
    assert_eq!(
        text,
        "chat, the last 60 s, 95 % of the data there

GAUGE, ALL REPLICAS  AVERAGE  LATEST
waiting              12.2     18
kv usage             -        -

COUNTER            COUNT  PER SECOND
generation tokens  6000   100

LATENCY (ms)  COUNT  MEAN  P50               P99.9
ttft          240    182   160 [100 to 250]  10000 [10000 or more]

A percentile lies within the bounds in brackets; the number before them is linear between bucket bounds.
"
    );
    let windows = data("windows chat");
    assert_eq!(
        windows["histograms"][0]["quantiles"][1],
        json!({"q": 0.999, "low_ms": 10000.0, "estimate_ms": 10000.0})
    );
    assert_eq!(windows["gauges"][1], json!({"name": "kv usage"}));
    let server = Server::start(&["chat"]);
    run(&format!(
        "windows chat --window 2m --quantile 0.5,0.95 --quantile 0.99 --server {}",
        server.address
    ))
    .ok();
    assert_eq!(
        server.canned.last(),
        r#"GetWindowsRequest { target: "chat", window_s: 120, quantiles: [0.5, 0.95, 0.99] }"#
    );
}

#[test]
fn watch_prints_lines_where_there_is_no_terminal() {
    let text = timeless(&ask("watch").ok());
    let line = "TIME chat: 5 desired, 3/5 ready, 2 starting, 1 draining, 0 failed, mode panic, control auto, 12 waiting: 12 requests wait, 4 per replica are wanted\n";
    assert_eq!(text, format!("{line}{}", line.replace("mode panic", "mode stable")));
    let json = ask("watch chat --output json").ok();
    assert_eq!(json.lines().count(), 2, "{json}");
    assert!(ask("watch nowhere").failed(1).contains("known: chat"));
}

/// `script` gives it a terminal. `exec`, because a shell between them may report the interrupt as its own exit code.
#[test]
fn watch_draws_on_a_terminal_and_leaves_it_as_it_was() {
    let server = Server::start(&["chat"]);
    let command = format!(
        "exec {} watch live --server {}",
        env!("CARGO_BIN_EXE_inferctl"),
        server.address
    );
    let script = Command::new("script")
        .args(["-qfec", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut script) = script else {
        eprintln!("skipped: script not found");
        return;
    };
    let mut keyboard = script.stdin.take().expect("a pipe");
    let mut screen = script.stdout.take().expect("a pipe");
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    let mut interrupted = false;
    loop {
        let length = screen.read(&mut buffer).expect("it draws");
        if length == 0 {
            break;
        }
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        if seen.len() > 20_000 {
            // A dozen frames and it has not heard the key: the assertions below say so.
            let _ = script.kill();
        }
        // A whole frame ends with clearing the rest of the screen.
        if seen.contains("live-1") && seen.ends_with("\x1b[J") && !interrupted {
            keyboard.write_all(b"\x03").expect("it listens");
            interrupted = true;
        }
    }
    assert!(script.wait().expect("it ends").success(), "{seen}");
    assert!(
        seen.contains("\x1b[?1049h") && seen.contains("\x1b[?25l") && seen.contains("\x1b[H"),
        "{seen}"
    );
    assert!(
        seen.contains("1 target") && seen.contains("live: 3 of 5 replicas ready"),
        "{seen}"
    );
    assert!(
        !seen.contains("connection\x1b[31m"),
        "text from an engine moves nothing: {seen}"
    );
    assert!(seen.trim_end().ends_with("\x1b[?7h\x1b[?25h\x1b[?1049l"), "{seen:?}");
}

#[test]
fn people_have_the_last_word() {
    let server = Server::start(&["chat"]);
    let tell = |args: &str| run(&format!("{args} --server {}", server.address));
    let text = tell("pause chat --for 10m --reason maintenance").ok();
    assert_eq!(
        timeless(&text),
        "chat is paused for 8 h, until TIME; 3 of 5 replicas are ready\n"
    );
    assert_eq!(
        server.canned.last(),
        r#"PauseRequest { target: "chat", for_s: 600, reason: "maintenance" }"#
    );
    assert_eq!(
        tell("pause chat").ok(),
        "chat is paused until inferctl resume chat; 3 of 5 replicas are ready\n"
    );
    assert_eq!(
        tell("resume chat").ok(),
        "chat is scaled by its policy; 3 of 5 replicas are ready\n"
    );
    assert_eq!(server.canned.last(), r#"ResumeRequest { target: "chat" }"#);
    let text = tell("override chat --replicas 6 --for 1h").ok();
    assert_eq!(
        timeless(&text),
        "chat is fixed at 6 replicas for 8 h, until TIME; 3 of 5 replicas are ready\n"
    );
    assert_eq!(
        server.canned.last(),
        r#"OverrideRequest { target: "chat", replicas: 6, for_s: 3600, reason: "" }"#
    );
    let json: Value = serde_json::from_str(&tell("override chat --replicas 0 --for 1h -o json").ok()).expect("JSON");
    assert_eq!(
        (&json["control"], &json["override_replicas"]),
        (&json!("override"), &json!(0))
    );
    assert!(json["control_expires_time"].is_string());
    assert!(
        tell("override chat --replicas 9 --for 1h")
            .failed(1)
            .contains("more than the maximum of chat, 8")
    );
}

#[test]
fn unknown_names_list_the_known_ones() {
    for args in [
        "targets",
        "decisions",
        "explain",
        "windows",
        "pause",
        "resume",
        "override --replicas 1 --for 1m",
    ] {
        let messages = ask(&format!("{args} nowhere")).failed(1);
        assert_eq!(
            messages, "inferctl: there is no target \"nowhere\"; known: chat\n",
            "{args}"
        );
    }
    assert_eq!(
        ask("explain 7").failed(1),
        "inferctl: there is no decision 7; the newest is 42\n"
    );
}

/// An address at which nobody listens any more.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0")
        .expect("a free port")
        .local_addr()
        .expect("an address")
        .to_string()
}

#[test]
fn without_a_decider_it_says_where_it_looked_and_what_to_do() {
    let address = nobody();
    for args in [
        "status",
        "targets",
        "decisions -f",
        "explain",
        "windows chat",
        "watch",
        "pause chat",
    ] {
        let messages = run(&format!("{args} --server {address}")).failed(1);
        let expected = format!("cannot reach the decider at http://{address} (from --server): Connection refused");
        assert!(messages.contains(&expected), "{messages}");
        assert!(
            messages.contains("infer-decider must be running")
                && messages.contains("--server ADDRESS or INFERCTL_SERVER"),
            "{messages}"
        );
    }
    let output = inferctl("status")
        .env("INFERCTL_SERVER", &address)
        .output()
        .expect("inferctl runs");
    assert!(
        Run::of(output)
            .failed(1)
            .contains(&format!("{address} (from INFERCTL_SERVER)"))
    );
}

#[test]
fn a_decider_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let messages = run(&format!("status --timeout 200ms --server {address}")).failed(1);
    assert!(messages.contains("200ms"), "{messages}");
}

#[test]
fn mistakes_in_the_command_line_are_told_with_exit_code_2() {
    for (args, part) in [
        (
            "status --server https://127.0.0.1:1",
            "with --ca-file FILE or INFERCTL_CA_FILE",
        ),
        ("status --server ftp://127.0.0.1:1", "ftp is not spoken here"),
        ("status --kube --server 127.0.0.1:1", "leave out --kube or --server"),
        (
            "status --decider infer-decider-0",
            "--decider is of use with --kube only",
        ),
        ("status --kube --service-account me", "NAMESPACE/NAME"),
        ("status --ca-file /nowhere.pem", "cannot read /nowhere.pem"),
        ("status --token-file /dev/null", "there is no token in /dev/null"),
        ("status --server http://[::", "is not an address of a decider"),
        ("status --timeout 10", "a unit is missing; write 10s for seconds"),
        ("status --output xml", "[possible values: table, json, yaml]"),
        ("statsu", "similar subcommands exist: 'targets', 'status'"),
        ("windows chat --quantile 95", "the 95th percentile is 0.95"),
        ("windows", "<TARGET>"),
        ("override chat --replicas 3", "--for <DURATION>"),
        ("override chat --replicas many --for 1m", "invalid value 'many'"),
        ("pause chat --for 500ms", "must be whole seconds"),
        ("decisions --limit 0", "0 is not in 1.."),
        ("completion tcsh", "[possible values: bash, zsh, fish]"),
        ("", "Usage: inferctl"),
    ] {
        let messages = run(args).failed(2);
        assert!(messages.contains(part), "{args}: {messages}");
    }
}

#[test]
fn completion_and_help_need_nobody() {
    for (shell, part) in [
        ("bash", "complete -F _inferctl"),
        ("zsh", "#compdef inferctl"),
        ("fish", "complete -c inferctl"),
    ] {
        let script = run(&format!("completion {shell}")).ok();
        assert!(script.contains(part) && script.contains("explain"), "{shell}");
    }
    assert!(run("--help").ok().contains("Commands:"));
    assert_eq!(
        run("--version").ok(),
        format!("inferctl {}\n", env!("CARGO_PKG_VERSION"))
    );
}
