//! `{port}` and its kin in commands and environment variables.

/// Every placeholder there is.
pub const PLACEHOLDERS: [&str; 4] = ["port", "replica", "model", "fleet"];

/// What the placeholders of one replica stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placeholders<'a> {
    /// `{port}`: the replica's port.
    pub port: u16,
    /// `{replica}`: the replica's name.
    pub replica: &'a str,
    /// `{model}`: `spec.model` of the fleet.
    pub model: &'a str,
    /// `{fleet}`: the fleet's name.
    pub fleet: &'a str,
}

impl Placeholders<'_> {
    /// `text` with every placeholder filled in. Other braces stay: JSON in an argument needs no escapes.
    pub fn fill(&self, text: &str) -> String {
        let mut filled = String::with_capacity(text.len());
        let mut end = 0;
        for (start, name) in placeholders_in(text) {
            let value = match name {
                "port" => self.port.to_string(),
                "replica" => self.replica.to_owned(),
                "model" => self.model.to_owned(),
                "fleet" => self.fleet.to_owned(),
                _ => continue,
            };
            filled.push_str(&text[end..start]);
            filled.push_str(&value);
            end = start + name.len() + 2;
        }
        filled.push_str(&text[end..]);
        filled
    }
}

/// Byte position and name of whatever looks like a placeholder in `text`: a word in single braces. `${HOME}` (a shell
/// variable) and `{{word}}` (a template) are left to those who understand them.
pub(crate) fn placeholders_in(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.match_indices('{').filter_map(move |(start, _)| {
        let before = text[..start].chars().next_back();
        let name = text[start + 1..].split(['{', '}']).next().unwrap_or_default();
        let after = &text[start + 1 + name.len()..];
        let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let is_single = after.starts_with('}') && !matches!(before, Some('{' | '$'));
        (is_word && is_single).then_some((start, name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, filled: &str) {
        let placeholders = Placeholders {
            port: 18000,
            replica: "chat-0",
            model: "tiny",
            fleet: "chat",
        };
        assert_eq!(placeholders.fill(text), filled);
    }

    #[test]
    fn fills_placeholders_and_leaves_other_braces() {
        check("", "");
        check("--port={port}", "--port=18000");
        check("{fleet}/{replica}:{model}", "chat/chat-0:tiny");
        check(
            r#"{"temperature": 0.7, "port": {port}}"#,
            r#"{"temperature": 0.7, "port": 18000}"#,
        );
        check("${port} {{port}} {port", "${port} {{port}} {port");
        check("{} {unknown} {a b}", "{} {unknown} {a b}");
        check("é{port}é", "é18000é");
    }
}
