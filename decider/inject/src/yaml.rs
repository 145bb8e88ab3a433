//! YAML as `kubectl` writes it: blocks, two spaces, lists not indented. What any reader of YAML 1.1 might take for
//! something else than text is in quotes.

use std::fmt::Write as _;

use serde_json::Value;

use crate::ordered::Ordered;

/// One document, without `---`.
pub(crate) fn write(value: &Ordered) -> String {
    let mut out = String::new();
    match value {
        Ordered::Map(fields) if !fields.is_empty() => map(fields, 0, false, &mut out),
        Ordered::List(items) if !items.is_empty() => list(items, 0, &mut out),
        flat => {
            scalar(flat, 0, &mut out);
            out.push('\n');
        }
    }
    out
}

/// `continues`: the first key stands behind the dash of a list.
fn map(fields: &[(String, Ordered)], indent: usize, continues: bool, out: &mut String) {
    for (index, (key, value)) in fields.iter().enumerate() {
        if index > 0 || !continues {
            spaces(indent, out);
        }
        text(key, out);
        out.push(':');
        match value {
            Ordered::Map(fields) if !fields.is_empty() => {
                out.push('\n');
                map(fields, indent + 2, false, out);
            }
            Ordered::List(items) if !items.is_empty() => {
                out.push('\n');
                list(items, indent, out);
            }
            flat => {
                out.push(' ');
                scalar(flat, indent + 2, out);
                out.push('\n');
            }
        }
    }
}

fn list(items: &[Ordered], indent: usize, out: &mut String) {
    for item in items {
        spaces(indent, out);
        out.push_str("- ");
        match item {
            Ordered::Map(fields) if !fields.is_empty() => map(fields, indent + 2, true, out),
            // Rare in Kubernetes: JSON is YAML as well.
            Ordered::List(items) if !items.is_empty() => {
                out.push_str(&escaped_json(&item.to_value().to_string()));
                out.push('\n');
            }
            flat => {
                scalar(flat, indent + 2, out);
                out.push('\n');
            }
        }
    }
}

/// Without a line break at its end, which is the caller's.
fn scalar(value: &Ordered, indent: usize, out: &mut String) {
    match value {
        Ordered::Map(_) => out.push_str("{}"),
        Ordered::List(_) => out.push_str("[]"),
        Ordered::Scalar(Value::String(value)) if is_block(value) => block(value, indent, out),
        Ordered::Scalar(Value::String(value)) => text(value, out),
        Ordered::Scalar(value) => {
            let _ = write!(out, "{value}");
        }
    }
}

fn spaces(count: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// Several lines that a literal block (`|`) gives back as they are.
fn is_block(value: &str) -> bool {
    let is_printable = |c: char| c == '\n' || !needs_escape(c);
    value.contains('\n')
        && !value.starts_with([' ', '\n', '\t'])
        && value.chars().all(is_printable)
        && !value
            .lines()
            .any(|line| line.starts_with('\t') || (!line.is_empty() && line.trim().is_empty()))
}

fn block(value: &str, indent: usize, out: &mut String) {
    let body = value.trim_end_matches('\n');
    out.push_str(match value.len() - body.len() {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    // The last line break is the caller's.
    let lines = value.strip_suffix('\n').unwrap_or(value);
    for line in lines.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            spaces(indent, out);
            out.push_str(line);
        }
    }
}

fn text(value: &str, out: &mut String) {
    if is_plain(value) {
        out.push_str(value);
    } else {
        out.push_str(&escaped_json(&Value::from(value).to_string()));
    }
}

/// JSON made valid YAML, which wants more characters escaped.
fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if needs_escape(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

fn needs_escape(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// True for text that no YAML reader can take for anything but this text. Errs on the side of quotes.
fn is_plain(value: &str) -> bool {
    const WORDS: [&str; 10] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan"];
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "_-./=@+,()$%~ :".contains(c);
    let is_flag = value
        .strip_prefix("--")
        .unwrap_or(value)
        .starts_with(|c: char| c.is_ascii_alphabetic());
    // 10m, 16Mi, 4k: digits with letters that occur in no number of any base.
    let is_quantity = value.starts_with(|c: char| c.is_ascii_digit())
        && value
            .chars()
            .any(|c| c.is_ascii_alphabetic() && !"abcdefox".contains(c.to_ascii_lowercase()))
        && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
    (is_flag || is_quantity || value.starts_with(['/', '_', '$']))
        && value.chars().all(is_inner)
        && !value.contains(": ")
        && !value.ends_with([':', ' '])
        && !WORDS.contains(&value.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(value: Value, expected: &str) {
        let written = write(&Ordered::arranged(&value, None));
        assert_eq!(written, expected);
        let read: Value = serde_saphyr::from_str(&written).expect("YAML");
        assert_eq!(read, value);
    }

    #[test]
    fn documents_look_as_people_know_them() {
        check(
            json!({"kind": "Pod", "spec": {"containers": [{"name": "a", "args": ["--port", "8000", "--x=y z"], "env": []}],
                   "empty": {}, "nothing": null, "size": 2, "share": 0.5, "nested": [[1, "\u{85}"]]}}),
            "kind: Pod\nspec:\n  containers:\n  - name: a\n    args:\n    - --port\n    - \"8000\"\n    - --x=y z\n    env: []\n  \
             empty: {}\n  nested:\n  - [1,\"\\u0085\"]\n  nothing: null\n  share: 0.5\n  size: 2\n",
        );
        check(
            json!({"a": "one\n  two\n\nthree\n", "b": "no end\nhere", "c": "x\n\n\n", "d": " y\nz", "e": "\n"}),
            "a: |\n  one\n    two\n\n  three\nb: |-\n  no end\n  here\nc: |+\n  x\n\n\nd: \" y\\nz\"\ne: \"\\n\"\n",
        );
    }

    #[test]
    fn what_might_be_misread_is_quoted() {
        for value in [
            "",
            "yes",
            "No",
            "ON",
            "off",
            "y",
            "N",
            "true",
            "NULL",
            "~",
            "null",
            "8000",
            "0644",
            "0o17",
            "0x1F",
            "1e3",
            "1_000",
            "1:30",
            "2001-01-01",
            "2001-12-14T21:59:43Z",
            ".5",
            ".inf",
            "-1",
            "- a",
            "#",
            "a #b",
            "a: b",
            "a:",
            "*a",
            "&a",
            "!a",
            "{a}",
            "[a]",
            "|",
            ">",
            "%a",
            "@a",
            "`a",
            "'",
            "\"",
            "?",
            "=",
            "<<",
            "---",
            "...",
            " a",
            "a ",
            "a\tb",
            "12e03",
            "0b11",
            "NaN",
            "--",
            "-",
        ] {
            check(json!({ "k": value }), &format!("k: {}\n", Value::from(value)));
        }
        for value in [
            "a",
            "10m",
            "16Mi",
            "4k",
            "vllm/vllm-openai:v0.32.0",
            "https://x.y:9400",
            "--flag",
            "/livez",
            "$(POD_IP)",
            "hello world",
            "1.5Gi",
        ] {
            check(json!({ "k": value }), &format!("k: {value}\n"));
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            "\\PC{0,12}",
            "[a-c:# \n\t\\-]{0,12}",
            "[0-9eExo._+-]{1,6}",
            "(yes|no|~|null|\u{feff}|\u{2028}|\u{85}|\r|\n){0,3}",
        ];
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e9..1e9).prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        scalar.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(text.clone(), inner, 0..5).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn everything_is_read_back_as_it_was(value in any_value()) {
            let written = write(&Ordered::arranged(&value, None));
            let read = serde_saphyr::from_str::<Value>(&written);
            prop_assert!(read.as_ref().is_ok_and(|read| *read == value), "{}\n{:?}", written, read);
        }
    }
}
