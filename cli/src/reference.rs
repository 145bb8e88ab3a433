//! The command line reference, `docs/cli.md`, made from the command line itself.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};

use crate::args::Cli;

const INTRODUCTION: &str = "\
# inferctl

<!-- Made from the command line by `UPDATE=1 cargo test -p inferctl reference`; edits here are lost. -->

`inferctl` asks the decider what it does and why, and tells it what people want.

## Output

Data goes to stdout, everything else to stderr. `--output table` is for people and may change; `json` and `yaml` are for
programs and only gain fields.

* Fields have the names they have in `proto/matrixinfer/autoscaler/v1/decisions.proto`. `status` answers with `Status`,
  `targets` with `ListTargetsResponse`, `targets NAME`, `pause`, `resume` and `override` with `Target`, `decisions` with
  `ListDecisionsResponse`, `windows` with `Windows`, `explain` with `Explanation`, whose `record` is `record_json` as an
  object.
* Beside every time in `unix_ms` stands the same time as RFC 3339: `time`, `started_time`, `last_decision_time`,
  `control_expires_time`.
* What is absent is left out (in tables: `-`); lists are always there. Enumerations are lower-case words: `vllm`, `ttft`.
* `decisions --follow` and `watch` write one JSON object per line, or one YAML document per object, of `Decision` and
  `Target`.
* `policy check` answers `valid`, `cluster` (checked as an API server would: there are bindings and no LocalFleet), the names of `policies`, `bindings` and `fleets`, the `targets` with `name`, `binding`,
  `policy`, `mode`, `min` and `max`, and `mistakes` with `file`, `line`, `column`, `document`, `field`, `problem` and
  `allowed`.
* `inject` and `uninject` answer with the manifest, in the form it was given in: documents without Pods byte for byte, the
  others with their fields in order, without their comments. What people should know about a document goes to stderr.

Exit codes: 0; 1 when the work failed (no decider, unknown target, refused); 2 for a mistake in the command line or in a
document.

## A decider in a cluster

It speaks TLS and wants to know who asks. Three ways:

* `inferctl --kube …` lets `kubectl` find everything: the authority's certificates (from the MutatingWebhookConfiguration
  `infer-decider`), the decider that has the Lease, a port-forward to it, which ends with `inferctl`, and a token. The token is
  that of the kubeconfig if it has one (token, token file or credential plugin), or with `--service-account NAMESPACE/NAME`
  a new one of that service account, for ten minutes. The former is good for the API server too, and the decider gets to see it;
  the latter is good for the decider alone. Each failure names the command that failed.
* `kubectl infer …` is the same: put a link `kubectl-infer` to `inferctl` on the PATH. Flags stand after `infer`.
* `inferctl --server https://infer-decider.infer-system.svc:9400 --ca-file ca.pem --token-file token …` where there is a way to
  the Service. Through a port-forward of one's own, `--tls-server-name infer-decider` says which name the certificate has.

Asking takes `get`, pausing, resuming and overriding `update` of `autoscalingpolicybindings.autoscaling.matrixinfer.ai` in the
target's namespace, and in all namespaces for what names no target (`status`, `targets`, `decisions`, `watch`, and `explain` of a
number that is no longer kept). Targets are named `namespace/binding`, and `namespace/binding/role`. A decider that does not
decide on a target says which one does; `inferctl` goes on to that one, once.
";

/// The whole reference, in Markdown.
pub fn markdown() -> String {
    let mut command = Cli::command();
    command.build();
    let mut text = INTRODUCTION.to_owned();
    text.push_str("\n## Global options\n\n");
    for arg in command.get_arguments().filter(|arg| arg.is_global_set()) {
        text.push_str(&describe(arg));
    }
    for subcommand in command.get_subcommands() {
        section(subcommand, "inferctl", &mut text);
    }
    text
}

fn section(command: &Command, parent: &str, text: &mut String) {
    let name = format!("{parent} {}", command.get_name());
    if command.get_name() == "help" {
        return;
    }
    if command.has_subcommands() {
        for subcommand in command.get_subcommands() {
            section(subcommand, &name, text);
        }
        return;
    }
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let _ = write!(text, "\n## {name}\n\n{about}.\n\n```text\n{usage}\n```\n");
    let is_own = |arg: &&Arg| !arg.is_global_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    let descriptions: String = command.get_arguments().filter(is_own).map(describe).collect();
    if !descriptions.is_empty() {
        let _ = write!(text, "\n{descriptions}");
    }
}

/// One item of a list.
fn describe(arg: &Arg) -> String {
    let value = arg
        .get_value_names()
        .and_then(|names| names.first())
        .map(ToString::to_string);
    let takes_value = arg.get_action().takes_values();
    let name = match (arg.get_long(), arg.get_short(), value) {
        (Some(long), short, value) => {
            let short = short.map(|short| format!("-{short}, ")).unwrap_or_default();
            let value = value
                .filter(|_| takes_value)
                .map(|value| format!(" <{value}>"))
                .unwrap_or_default();
            format!("{short}--{long}{value}")
        }
        (None, _, value) => value.unwrap_or_else(|| arg.get_id().to_string()),
    };
    let mut text = format!(
        "* `{name}`: {}",
        arg.get_help().map(ToString::to_string).unwrap_or_default()
    );
    let possible: Vec<String> = if takes_value {
        arg.get_possible_values()
            .iter()
            .map(|value| value.get_name().to_owned())
            .collect()
    } else {
        Vec::new()
    };
    if !possible.is_empty() {
        let _ = write!(text, "; one of {}", possible.join(", "));
    }
    let defaults: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    if takes_value && !arg.is_hide_default_value_set() && !defaults.is_empty() {
        let _ = write!(text, "; default `{}`", defaults.join(" "));
    }
    if let Some(env) = arg.get_env() {
        let _ = write!(text, "; environment variable `{}`", env.to_string_lossy());
    }
    text + "\n"
}
