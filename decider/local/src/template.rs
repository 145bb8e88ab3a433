//! Placeholders in command lines and environments. Only `{word}` of lower-case letters and `_` is one, so JSON in an
//! engine's argument (`{"kv_connector": …}`) stays as it is and nothing needs escaping.

/// Every placeholder there is.
const KNOWN: [&str; 10] = [
    "port",
    "host",
    "replica",
    "index",
    "uid",
    "model",
    "fleet",
    "engine_url",
    "target",
    "decider",
];

/// What the placeholders stand for, for one start of one replica.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    pub(crate) port: u16,
    pub(crate) host: String,
    pub(crate) replica: &'a str,
    pub(crate) index: u32,
    pub(crate) uid: &'a str,
    pub(crate) model: &'a str,
    pub(crate) fleet: &'a str,
    pub(crate) engine_url: String,
    pub(crate) target: &'a str,
    pub(crate) decider: &'a str,
}

impl Values<'_> {
    fn get(&self, word: &str) -> Option<String> {
        Some(match word {
            "port" => self.port.to_string(),
            "host" => self.host.clone(),
            "replica" => self.replica.to_owned(),
            "index" => self.index.to_string(),
            "uid" => self.uid.to_owned(),
            "model" => self.model.to_owned(),
            "fleet" => self.fleet.to_owned(),
            "engine_url" => self.engine_url.clone(),
            "target" => self.target.to_owned(),
            "decider" => self.decider.to_owned(),
            _ => return None,
        })
    }

    /// The text with its placeholders replaced; what they are replaced with is not looked at again.
    pub(crate) fn render(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for piece in pieces(text) {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Word(word) => match self.get(word) {
                    Some(value) => out.push_str(&value),
                    None => out.extend(["{", word, "}"]),
                },
            }
        }
        out
    }
}

/// Says which placeholder is not known.
pub(crate) fn check(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return Err("must not hold a NUL character".to_owned());
    }
    for piece in pieces(text) {
        if let Piece::Word(word) = piece
            && !KNOWN.contains(&word)
        {
            let known = KNOWN.map(|word| format!("{{{word}}}")).join(" ");
            return Err(format!("unknown placeholder {{{word}}}; known are {known}"));
        }
    }
    Ok(())
}

enum Piece<'a> {
    Text(&'a str),
    Word(&'a str),
}

fn pieces(mut rest: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    while let Some(open) = rest.find('{') {
        let inner = &rest[open + 1..];
        let length = inner
            .bytes()
            .take_while(|byte| byte.is_ascii_lowercase() || *byte == b'_')
            .count();
        if length > 0 && inner.as_bytes().get(length) == Some(&b'}') {
            pieces.push(Piece::Text(&rest[..open]));
            pieces.push(Piece::Word(&inner[..length]));
            rest = &inner[length + 1..];
        } else {
            pieces.push(Piece::Text(&rest[..=open]));
            rest = inner;
        }
    }
    pieces.push(Piece::Text(rest));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_replaced_and_json_is_left_alone() {
        let values = Values {
            port: 9001,
            host: "127.0.0.1".into(),
            replica: "chat-0",
            index: 0,
            uid: "u1",
            model: "{port}",
            fleet: "chat",
            engine_url: "http://127.0.0.1:9001".into(),
            target: "t",
            decider: "http://d",
        };
        for (text, expected) in [
            ("--port={port}", "--port=9001"),
            ("{replica}{index}", "chat-00"),
            ("{\"a\":{\"b\":1}}", "{\"a\":{\"b\":1}}"),
            ("{model}", "{port}"),
            ("{{port}}", "{9001}"),
            ("{", "{"),
            ("{}", "{}"),
            ("{port", "{port"),
            ("ü{uid}ü", "üu1ü"),
        ] {
            assert_eq!(values.render(text), expected, "{text}");
            assert_eq!(check(text), Ok(()), "{text}");
        }
        let known = KNOWN.iter().all(|word| values.get(word).is_some());
        assert!(known, "a known placeholder has no value");
        assert!(check("x {prot}").is_err_and(|said| said.contains("{prot}") && said.contains("{port}")));
    }
}
