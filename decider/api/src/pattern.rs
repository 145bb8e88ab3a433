//! Every pattern of the schemas, what it means in words, and the same rule in Rust.
//!
//! The regular expressions are for others who read a schema (editors, the API server); documents are checked here
//! without an engine for them. Tests hold the two against each other.

use crate::path::parse_replicas_path;

/// Names, as of Kubernetes labels (RFC 1123).
pub(crate) const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// Names of objects of any kind.
pub(crate) const OBJECT_NAME: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";
/// `apps/v1` or `v1`.
pub(crate) const GROUP_VERSION: &str = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?v[0-9][a-z0-9]*$";
/// Kinds.
pub(crate) const KIND: &str = "^[A-Z][A-Za-z0-9]*$";
/// See [`parse_replicas_path`].
pub(crate) const REPLICAS_PATH: &str = r#"^\.?spec(\.[A-Za-z_][A-Za-z0-9_-]*|\[[A-Za-z_][A-Za-z0-9_-]*=[A-Za-z0-9._-]+\]|\[\?\(@\.[A-Za-z_][A-Za-z0-9_-]*==("[A-Za-z0-9._-]+"|'[A-Za-z0-9._-]+')\)\])*\.[A-Za-z_][A-Za-z0-9_-]*$"#;
/// An address to read from; who may read it is not written into a binding.
pub(crate) const HTTP_URL: &str = "^https?://[A-Za-z0-9_.:\\[\\]-]+([/?][!-~]*)?$";
/// Names of Prometheus metrics.
pub(crate) const METRIC_NAME: &str = "^[A-Za-z_:][A-Za-z0-9_:]*$";
/// Paths of URLs.
pub(crate) const PATH: &str = "^/";

/// A pattern, what it allows in words, and whether a text fits.
pub(crate) struct Pattern {
    pub(crate) regex: &'static str,
    pub(crate) words: &'static str,
    pub(crate) fits: fn(&str) -> bool,
}

/// Every pattern that the schemas may use.
pub(crate) const PATTERNS: [Pattern; 8] = [
    Pattern {
        regex: NAME,
        words: "lower-case letters, digits and '-', beginning and ending with a letter or a digit",
        fits: |text| is_name(text, "-"),
    },
    Pattern {
        regex: OBJECT_NAME,
        words: "lower-case letters, digits, '-' and '.', beginning and ending with a letter or a digit",
        fits: |text| is_name(text, "-."),
    },
    Pattern {
        regex: GROUP_VERSION,
        words: "a group and a version, such as apps/v1",
        fits: is_group_version,
    },
    Pattern {
        regex: KIND,
        words: "a kind in the singular, beginning with a capital letter, such as Deployment",
        fits: |text| {
            text.starts_with(|c: char| c.is_ascii_uppercase()) && text.chars().all(|c| c.is_ascii_alphanumeric())
        },
    },
    Pattern {
        regex: REPLICAS_PATH,
        words: "a path from spec to a number, such as .spec.replicas or .spec.roles[name=prefill].replicas",
        fits: |text| parse_replicas_path(text).is_some(),
    },
    Pattern {
        regex: HTTP_URL,
        words: "an http:// or https:// address without user and password, such as http://gateway.infer:9090/metrics",
        fits: is_http_url,
    },
    Pattern {
        regex: METRIC_NAME,
        words: "letters, digits, '_' and ':', not beginning with a digit",
        fits: |text| {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            !text.is_empty() && text.chars().all(is_word) && !text.starts_with(|c: char| c.is_ascii_digit())
        },
    },
    Pattern {
        regex: PATH,
        words: "a path that begins with '/'",
        fits: |text| text.starts_with('/'),
    },
];

/// The pattern with this regular expression.
pub(crate) fn of(regex: &str) -> Option<&'static Pattern> {
    const ALL: &[Pattern] = &PATTERNS;
    ALL.iter().find(|pattern| pattern.regex == regex)
}

fn is_name(text: &str, inner: &str) -> bool {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.chars().all(|c| is_end(c) || inner.contains(c)) && text.starts_with(is_end) && text.ends_with(is_end)
}

fn is_group_version(text: &str) -> bool {
    let (group, version) = text.split_once('/').map_or((None, text), |(g, v)| (Some(g), v));
    let mut letters = version.chars();
    group.is_none_or(|group| is_name(group, "-."))
        && letters.next() == Some('v')
        && letters.next().is_some_and(|c| c.is_ascii_digit())
        && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
}

fn is_http_url(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return false;
    };
    let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let is_host = |c: char| c.is_ascii_alphanumeric() || "_.:[]-".contains(c);
    !host.is_empty() && host.chars().all(is_host) && path.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::string::string_regex;
    use proptest::test_runner::TestRunner;

    use super::*;

    #[track_caller]
    fn check(regex: &str, right: &[&str], wrong: &[&str]) {
        let pattern = of(regex).expect("a known pattern");
        for text in right {
            assert!((pattern.fits)(text), "{text} should fit {regex}");
        }
        for text in wrong {
            assert!(!(pattern.fits)(text), "{text} should not fit {regex}");
        }
    }

    /// One way round; the other, that nothing more fits, is in the tables here and of the manifests.
    #[test]
    fn whatever_a_regular_expression_takes_fits() {
        let mut runner = TestRunner::deterministic();
        for pattern in &PATTERNS {
            let inner = pattern.regex.trim_start_matches('^').trim_end_matches('$');
            let texts = string_regex(inner).expect("a regular expression");
            for _ in 0..200 {
                let text = texts.new_tree(&mut runner).expect("a text").current();
                assert!((pattern.fits)(&text), "{text:?} should fit {}", pattern.regex);
            }
        }
    }

    #[test]
    fn each_rule_takes_what_its_words_say() {
        check(NAME, &["a", "chat-7b", "0"], &["", "-a", "a-", "A", "a.b", "a_b", "é"]);
        check(OBJECT_NAME, &["a", "chat.v2", "a-b"], &["", ".a", "a.", "a/b"]);
        check(
            GROUP_VERSION,
            &["v1", "apps/v1", "leaderworkerset.x-k8s.io/v1", "a/v1beta1"],
            &["", "apps", "apps/", "/v1", "apps/1", "apps/v", "apps/v1/x", "Apps/v1"],
        );
        check(KIND, &["Deployment", "A1"], &["", "deployment", "De-ployment", "1A"]);
        check(
            HTTP_URL,
            &["http://a", "https://a.b:9090/m?x=1", "http://[::1]:80/", "http://a?x"],
            &[
                "",
                "a",
                "ftp://a",
                "http://",
                "http:///m",
                "http://u:p@a/m",
                "http://a/ b",
            ],
        );
        check(METRIC_NAME, &["a", "_x:y1"], &["", "1a", "a-b", "a b"]);
    }
}
