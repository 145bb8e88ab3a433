//! What a container runs, as far as its command line tells.

use serde_json::Value;

use crate::engine::EngineKind;

/// A container's `command` and `args`, scripts given to a shell taken apart.
#[derive(Debug, Default)]
pub(crate) struct CommandLine {
    tokens: Vec<Token>,
    /// Which engine is started, and at which token its arguments begin.
    engine: Option<(EngineKind, usize)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// Where one command of a script ends.
    End,
}

impl CommandLine {
    pub(crate) fn of(container: &Value) -> Self {
        let list = |key: &str| {
            let items = container[key].as_array().into_iter().flatten();
            items.filter_map(Value::as_str)
        };
        let words: Vec<&str> = list("command").chain(list("args")).collect();
        let tokens = tokens(&words);
        let engine = find_engine(&tokens);
        Self { tokens, engine }
    }

    /// The engine that is started here.
    pub(crate) fn engine(&self) -> Option<EngineKind> {
        self.engine.map(|(kind, _)| kind)
    }

    /// True if a node of a Ray cluster is started and nothing that serves.
    pub(crate) fn is_ray_only(&self) -> bool {
        let is_ray =
            |pair: &[Token]| matches!(pair, [Token::Word(a), Token::Word(b)] if base_name(a) == "ray" && b == "start");
        self.engine.is_none() && self.tokens.windows(2).any(is_ray)
    }

    /// True if a flag without a value is there.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.arguments().any(|word| word == flag)
    }

    /// The last value of `--flag VALUE` or `--flag=VALUE`, as it is written.
    pub(crate) fn value(&self, flag: &str) -> Option<&str> {
        let mut found = None;
        let mut words = self.arguments();
        while let Some(word) = words.next() {
            if word == flag {
                found = words.next().or(found);
            } else if let Some(value) = word.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
                found = Some(value);
            }
        }
        found
    }

    /// `written` with a variable resolved by the container's own literal environment, by an assignment in the script, or
    /// by its default: `$(PORT)`, `$PORT`, `${PORT}`, `${PORT:-8000}`. None: known only when it runs.
    pub(crate) fn resolve(&self, written: &str, container: &Value) -> Option<String> {
        let written = written.trim();
        let Some(variable) = written.strip_prefix('$') else {
            return Some(written.to_owned());
        };
        let inner = variable
            .strip_prefix('(')
            .and_then(|v| v.strip_suffix(')'))
            .or_else(|| variable.strip_prefix('{').and_then(|v| v.strip_suffix('}')))
            .unwrap_or(variable);
        let (name, default) = match inner.split_once(":-").or_else(|| inner.split_once('-')) {
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (inner, None),
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return None;
        }
        let assigned = self.tokens.iter().find_map(|token| match token {
            Token::Word(word) => word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned),
            Token::End => None,
        });
        let variables = container["env"].as_array().into_iter().flatten();
        let given = variables.rev().find(|variable| variable["name"] == *name);
        match (assigned, given) {
            // A value made from other variables is not followed further.
            (Some(value), _) => Some(value).filter(|value| !value.contains('$')),
            (None, Some(given)) => given["value"].as_str().filter(|v| !v.contains('$')).map(str::to_owned),
            (None, None) => default,
        }
    }

    /// The words of the command that starts the engine, or all where none is seen: then the image starts it.
    fn arguments(&self) -> impl Iterator<Item = &str> {
        let start = self.engine.map_or(0, |(_, start)| start);
        let only_one_command = self.engine.is_some();
        self.tokens[start..]
            .iter()
            .take_while(move |token| !(only_one_command && **token == Token::End))
            .filter_map(|token| match token {
                Token::Word(word) => Some(word.as_str()),
                Token::End => None,
            })
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn find_engine(tokens: &[Token]) -> Option<(EngineKind, usize)> {
    let word = |index: usize| match tokens.get(index) {
        Some(Token::Word(word)) => Some(word.as_str()),
        _ => None,
    };
    (0..tokens.len()).find_map(|index| {
        let this = word(index)?;
        let serves = word(index + 1) == Some("serve");
        let is_vllm_module =
            this.starts_with("vllm.entrypoints.") || this.ends_with("vllm/entrypoints/openai/api_server.py");
        let is_sglang_module =
            matches!(this, "sglang.launch_server" | "sglang.srt.server") || this.ends_with("sglang/launch_server.py");
        match base_name(this) {
            "vllm" if serves => Some((EngineKind::Vllm, index + 2)),
            "sglang" if serves => Some((EngineKind::Sglang, index + 2)),
            _ if is_vllm_module => Some((EngineKind::Vllm, index + 1)),
            _ if is_sglang_module => Some((EngineKind::Sglang, index + 1)),
            _ => None,
        }
    })
}

/// Words as the kernel would get them, but for a script behind `sh -c`, which is taken apart as the shell would.
fn tokens(words: &[&str]) -> Vec<Token> {
    let script = find_script(words);
    let mut tokens = Vec::new();
    for (index, word) in words.iter().enumerate() {
        if Some(index) == script {
            split_script(word, &mut tokens);
            tokens.push(Token::End);
        } else {
            tokens.push(Token::Word((*word).to_owned()));
        }
    }
    tokens
}

fn find_script(words: &[&str]) -> Option<usize> {
    let shell = words
        .iter()
        .position(|word| matches!(base_name(word), "sh" | "bash" | "dash" | "ash" | "zsh" | "ksh"))?;
    let mut is_script = false;
    let mut index = shell + 1;
    while let Some(option) = words.get(index).filter(|word| word.starts_with('-')) {
        let letters = !option.starts_with("--");
        is_script |= letters && option.contains('c');
        // `-o pipefail` and `-eo pipefail` have a value.
        index += if letters && option.ends_with('o') { 2 } else { 1 };
    }
    (is_script && index < words.len()).then_some(index)
}

/// Words and ends of commands of a shell script. Quotes, escapes, comments and continued lines are understood; nothing is
/// expanded.
fn split_script(script: &str, tokens: &mut Vec<Token>) {
    let mut word: Option<String> = None;
    let mut chars = script.chars().peekable();
    let finish = |word: &mut Option<String>, tokens: &mut Vec<Token>| tokens.extend(word.take().map(Token::Word));
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('\n') | None => finish(&mut word, tokens),
                Some(escaped) => word.get_or_insert_default().push(escaped),
            },
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                while let Some(inner) = chars.next() {
                    match inner {
                        _ if inner == c => break,
                        '\\' if c == '"' => word.extend(chars.next().filter(|next| *next != '\n')),
                        _ => word.push(inner),
                    }
                }
            }
            '$' if chars.peek() == Some(&'(') => {
                let word = word.get_or_insert_default();
                word.push(c);
                let mut depth = 0_u32;
                for inner in chars.by_ref() {
                    word.push(inner);
                    depth = match inner {
                        '(' => depth + 1,
                        ')' => depth.saturating_sub(1),
                        _ => depth,
                    };
                    if depth == 0 {
                        break;
                    }
                }
            }
            '#' if word.is_none() => while chars.next_if(|next| *next != '\n').is_some() {},
            ';' | '|' | '\n' => {
                finish(&mut word, tokens);
                tokens.push(Token::End);
            }
            // `2>&1` and `&>file` are redirections.
            '&' if word.as_ref().is_some_and(|word| word.ends_with('>')) || chars.peek() == Some(&'>') => {
                word.get_or_insert_default().push(c);
            }
            '&' => {
                finish(&mut word, tokens);
                tokens.push(Token::End);
            }
            _ if c.is_whitespace() => finish(&mut word, tokens),
            _ => word.get_or_insert_default().push(c),
        }
    }
    finish(&mut word, tokens);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(container: Value, kind: Option<EngineKind>, port: Option<&str>) {
        let line = CommandLine::of(&container);
        assert_eq!(line.engine(), kind, "{line:?}");
        let found = line
            .value("--port")
            .and_then(|written| line.resolve(written, &container));
        assert_eq!(found.as_deref(), port, "{line:?}");
    }

    #[test]
    fn engines_and_ports_are_found() {
        use EngineKind::{Sglang, Vllm};
        check(json!({"args": ["--model", "m", "--port", "8001"]}), None, Some("8001"));
        check(
            json!({"command": ["vllm", "serve", "m"], "args": ["--port=8002"]}),
            Some(Vllm),
            Some("8002"),
        );
        check(
            json!({"command": ["/opt/venv/bin/vllm", "serve", "m", "--port", "1", "--port", "2"]}),
            Some(Vllm),
            Some("2"),
        );
        check(json!({"command": ["vllm", "bench", "--port", "1"]}), None, Some("1"));
        check(
            json!({"command": ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model=m"]}),
            Some(Vllm),
            None,
        );
        check(
            json!({"command": ["python", "-m", "sglang.launch_server", "--port", "$(PORT)"],
                   "env": [{"name": "PORT", "value": "30001"}]}),
            Some(Sglang),
            Some("30001"),
        );
        check(
            json!({"command": ["python", "-m", "sglang_router.launch_router"]}),
            None,
            None,
        );
    }

    #[test]
    fn scripts_are_taken_apart() {
        use EngineKind::{Sglang, Vllm};
        let sh = |script: &str| json!({"command": ["/bin/sh", "-c"], "args": [script]});
        check(sh("vllm serve m --port 8000"), Some(Vllm), Some("8000"));
        check(
            sh("# --port 1\nset -e; router --port 9 &\nexec vllm serve 'm' \\\n  --port=8003 2>&1 | tee log --port 7"),
            Some(Vllm),
            Some("8003"),
        );
        check(
            sh(
                "bash /vllm-workspace/examples/online_serving/multi-node-serving.sh leader \
                --ray_cluster_size=$(LWS_GROUP_SIZE); python3 -m vllm.entrypoints.openai.api_server --port 8080",
            ),
            Some(Vllm),
            Some("8080"),
        );
        check(sh("PORT=8005\nvllm serve m --port \"$PORT\""), Some(Vllm), Some("8005"));
        check(sh("vllm serve m --port ${PORT:-8006}"), Some(Vllm), Some("8006"));
        check(sh("vllm serve m --port $(cat /port)"), Some(Vllm), None);
        check(
            json!({"command": ["tini", "--", "bash", "-eo", "pipefail", "-c", "python -m sglang.launch_server --port 3"]}),
            Some(Sglang),
            Some("3"),
        );
        // A JSON argument is one word.
        check(
            json!({"command": ["vllm", "serve", "m", "--kv-transfer-config", "{\"x\": 1, --port 9 }"]}),
            Some(Vllm),
            None,
        );
    }

    #[test]
    fn ray_alone_is_no_engine() {
        let line = |script: &str| CommandLine::of(&json!({"command": ["sh", "-c", script]}));
        assert!(line("ray start --address=head:6379 --block").is_ray_only());
        assert!(!line("ray start --head; vllm serve m").is_ray_only());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(script in "\\PC*", word in "[$\\\\'\"(){}#&;| a-c\n]*") {
            let container = json!({"command": ["sh", "-c", script], "args": [word]});
            let line = CommandLine::of(&container);
            let _ = line.resolve(&word, &container);
            CommandLine::of(&json!({"command": ["sh", "-c", word]}));
        }
    }
}
