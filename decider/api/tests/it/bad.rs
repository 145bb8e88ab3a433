//! Documents that are wrong, and what is said about them. The cases are in `bad.txt`:
//!
//! ```text
//! == what is wrong
//! the file; `policy:`, `binding:` and `fleet:` lines stand for documents that are right, with optional edits
//! -- part of the message | another part   (one line per mistake, in order; there may be no others)
//! ```

use infer_api::parse_documents;

const POLICY: &str = "\
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicy
metadata: {name: chat}
spec:
  metrics:
  - {type: waiting, target: 4}
";
const BINDING: &str = "\
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: AutoscalingPolicyBinding
metadata: {name: chat}
spec:
  policyRef: {name: chat}
  scaling:
    targetRef: {kind: LocalFleet, name: chat}
    maxReplicas: 4
";
const FLEET: &str = "\
apiVersion: autoscaling.matrixinfer.ai/v1alpha1
kind: LocalFleet
metadata: {name: chat}
spec:
  model: tiny
  engine:
    command: [engine, --port, '{port}']
    ports: {from: 18000, to: 18099}
";

/// The file a case describes. `POLICY`, `BINDING` and `FLEET` stand for documents that are right; below one of them
/// `s/old/new/` edits it, where `\n` and `\t` are a line break and a tab.
fn expand(case: &str) -> String {
    let mut documents = vec![String::new()];
    for line in case.lines() {
        let document = match line {
            "POLICY" => POLICY,
            "BINDING" => BINDING,
            "FLEET" => FLEET,
            _ => {
                let last = documents.last_mut().expect("there is always a last");
                match line
                    .strip_prefix("s/")
                    .and_then(|edit| edit.strip_suffix('/'))
                    .and_then(|edit| edit.split_once("/=/"))
                {
                    Some((old, new)) => {
                        assert!(last.contains(&unescape(old)), "nothing to edit: {line}");
                        *last = last.replacen(&unescape(old), &unescape(new), 1);
                    }
                    None => {
                        last.push_str(line);
                        last.push('\n');
                    }
                }
                continue;
            }
        };
        documents.push(document.to_owned());
    }
    documents.retain(|document| !document.is_empty());
    documents.join("---\n")
}

fn unescape(text: &str) -> String {
    text.replace("\\n", "\n").replace("\\t", "\t")
}

#[test]
fn bad_documents_are_told_what_is_wrong_where_and_what_is_right() {
    let cases: Vec<&str> = include_str!("bad.txt").split("== ").skip(1).collect();
    assert!(cases.len() >= 60, "{}", cases.len());
    let mut failures = Vec::new();
    for case in cases {
        let (title, body) = case.split_once('\n').expect("a title");
        let (yaml, expected): (Vec<&str>, Vec<&str>) = body.lines().partition(|line| !line.starts_with("-- "));
        let yaml = expand(&yaml.join("\n"));
        let messages: Vec<String> = match parse_documents(&yaml, "f.yaml") {
            Ok(_) => Vec::new(),
            Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
        };
        let is_told = messages.len() == expected.len()
            && !expected.is_empty()
            && messages.iter().zip(&expected).all(|(message, expected)| {
                message.starts_with("f.yaml:") && expected[3..].split(" | ").all(|part| message.contains(part))
            });
        if !is_told {
            failures.push(format!(
                "== {title}\n{yaml}\nexpected:\n{}\nfound:\n{}\n",
                expected.join("\n"),
                messages.join("\n")
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} cases failed\n\n{}",
        failures.len(),
        failures.join("\n")
    );
}
