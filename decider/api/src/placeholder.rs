//! `{port}` and its kin in commands and environment variables.

/// Every placeholder there is.
pub const PLACEHOLDERS: [&str; 10] = [
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
    fn check(text: &str, found: &[(usize, &str)]) {
        assert_eq!(placeholders_in(text).collect::<Vec<_>>(), found);
    }

    #[test]
    fn finds_words_in_single_braces() {
        check("", &[]);
        check("--port={port}", &[(7, "port")]);
        check(
            "{fleet}/{replica}:{model}",
            &[(0, "fleet"), (8, "replica"), (18, "model")],
        );
        check(r#"{"temperature": 0.7, "port": {port}}"#, &[(29, "port")]);
        check("${port} {{port}} {port", &[]);
        check("{} {a b}", &[]);
        check("é{port}é", &[(2, "port")]);
    }
}
