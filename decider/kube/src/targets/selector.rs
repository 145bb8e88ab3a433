//! Label selectors as the scale subresource writes them: `app=chat,tier in (a, b),!canary`.

use std::collections::{BTreeMap, BTreeSet};

/// What has to hold of a Pod's labels: all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    Absent(String),
    Greater(String, i64),
    Less(String, i64),
    /// A label whose key ends in `role`.
    Role(String),
}

/// Groups name only their leaders in the scale subresource; the other Pods of a group carry all labels but these.
const LEADERS_ONLY: [(&str, &str); 2] = [
    ("leaderworkerset.sigs.k8s.io/worker-index", "0"),
    ("modelserving.volcano.sh/entry", "true"),
];

impl Selector {
    /// Reads a selector. An empty one selects nothing here: a target that owns every Pod of a namespace is a mistake.
    ///
    /// # Errors
    /// What cannot be read.
    pub(super) fn parse(text: &str) -> Result<Selector, String> {
        let requirements = split(text)
            .into_iter()
            .map(|part| requirement(part.trim()).ok_or_else(|| format!("{:?} is no label selector", part.trim())))
            .collect::<Result<Vec<_>, _>>()?;
        if requirements.is_empty() {
            return Err("the selector is empty".to_owned());
        }
        Ok(Selector { requirements })
    }

    /// The same, for the Pods of one role only: those with a label that calls itself a role and has its name, such as
    /// `example.com/role=prefill`.
    pub(super) fn with_role(mut self, role: &str) -> Selector {
        self.requirements.push(Requirement::Role(role.to_owned()));
        self
    }

    /// The same without what keeps the other Pods of a group out.
    pub(super) fn with_whole_groups(mut self) -> Selector {
        self.requirements.retain(|requirement| {
            !LEADERS_ONLY.iter().any(|(key, value)| {
                matches!(requirement, Requirement::In(of, values) if of == key && values.len() == 1 && values.contains(*value))
            })
        });
        self
    }

    /// Whether a Pod with these labels is meant.
    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let number = |key: &String| labels.get(key).and_then(|value| value.parse::<i64>().ok());
        !self.requirements.is_empty()
            && self.requirements.iter().all(|requirement| match requirement {
                Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
                Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
                Requirement::Exists(key) => labels.contains_key(key),
                Requirement::Absent(key) => !labels.contains_key(key),
                Requirement::Greater(key, than) => number(key).is_some_and(|value| value > *than),
                Requirement::Less(key, than) => number(key).is_some_and(|value| value < *than),
                Requirement::Role(role) => labels.iter().any(|(key, value)| {
                    let key = key.to_ascii_lowercase();
                    value == role
                        && ["role", "role-name", "rolename"]
                            .iter()
                            .any(|ending| key.ends_with(ending))
                }),
            })
    }

    /// A label that every selected Pod has, for looking Pods up by it.
    pub(super) fn label(&self) -> Option<(&str, &str)> {
        self.requirements.iter().find_map(|requirement| match requirement {
            Requirement::In(key, values) if values.len() == 1 => Some((key.as_str(), values.first()?.as_str())),
            _ => None,
        })
    }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let parts = text.split(|c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.filter(|part| !part.trim().is_empty()).collect()
}

fn requirement(text: &str) -> Option<Requirement> {
    let key = |text: &str| {
        let text = text.trim();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        (!text.is_empty() && text.chars().all(is_plain)).then(|| text.to_owned())
    };
    let value = |text: &str| {
        let text = text.trim();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        text.chars().all(is_plain).then(|| text.to_owned())
    };
    if let Some(absent) = text.strip_prefix('!') {
        return Some(Requirement::Absent(key(absent)?));
    }
    if let Some(list) = text.strip_suffix(')') {
        let (before, list) = list.split_once('(')?;
        let values = list.split(',').map(value).collect::<Option<BTreeSet<_>>>()?;
        let (of, operator) = before.trim().rsplit_once(char::is_whitespace)?;
        return match operator {
            "in" => Some(Requirement::In(key(of)?, values)),
            "notin" => Some(Requirement::NotIn(key(of)?, values)),
            _ => None,
        };
    }
    for (operator, is_equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((of, is)) = text.split_once(operator) {
            let (key, values) = (key(of)?, [value(is)?].into());
            return Some(if is_equal {
                Requirement::In(key, values)
            } else {
                Requirement::NotIn(key, values)
            });
        }
    }
    if let Some((of, than)) = text.split_once('>') {
        return Some(Requirement::Greater(key(of)?, than.trim().parse().ok()?));
    }
    if let Some((of, than)) = text.split_once('<') {
        return Some(Requirement::Less(key(of)?, than.trim().parse().ok()?));
    }
    Some(Requirement::Exists(key(text)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[track_caller]
    fn check(selector: &str, yes: &[&str], no: &[&str]) {
        let read = Selector::parse(selector).unwrap();
        for pod in yes {
            assert!(read.matches(&labels(pod)), "{selector} should select {pod:?}");
        }
        for pod in no {
            assert!(!read.matches(&labels(pod)), "{selector} should not select {pod:?}");
        }
    }

    #[test]
    fn every_operator() {
        check("app=chat", &["app=chat", "app=chat x=y"], &["app=other", ""]);
        check(
            "app==chat,tier!=canary",
            &["app=chat", "app=chat tier=a"],
            &["app=chat tier=canary", "tier=a"],
        );
        check(
            "tier in (a, b),app=chat",
            &["tier=a app=chat", "tier=b app=chat"],
            &["tier=c app=chat", "app=chat"],
        );
        check("tier notin (a,b)", &["tier=c", ""], &["tier=a"]);
        check("gpu,!canary", &["gpu=h100"], &["gpu=h100 canary=1", ""]);
        check("gen>7,gen<10", &["gen=8"], &["gen=7", "gen=10", "gen=x", ""]);
        check("a.b/c-d=e_f.g", &["a.b/c-d=e_f.g"], &[]);
        check("empty=", &["empty="], &["empty=x"]);
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        for bad in ["", " , ", "a in b", "a in (b", "a b", "a=b c", "=x", "a>b", "!"] {
            assert!(Selector::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_role() {
        let decode = Selector::parse("app=x").unwrap().with_role("decode");
        assert!(decode.matches(&labels("app=x example.com/role=decode")));
        assert!(decode.matches(&labels("app=x modelserving.volcano.sh/roleName=decode")));
        assert!(!decode.matches(&labels("app=x example.com/role=prefill")));
        assert!(!decode.matches(&labels("app=x other=decode")));
    }

    #[test]
    fn whole_groups() {
        let lws =
            Selector::parse("leaderworkerset.sigs.k8s.io/name=x,leaderworkerset.sigs.k8s.io/worker-index=0").unwrap();
        let worker = labels("leaderworkerset.sigs.k8s.io/name=x leaderworkerset.sigs.k8s.io/worker-index=3");
        assert!(!lws.matches(&worker));
        assert!(lws.with_whole_groups().matches(&worker));
    }

    proptest! {
        #[test]
        fn a_selector_of_a_pods_own_labels_selects_it(pairs in proptest::collection::btree_map("[a-z]{1,4}(/[a-z]{1,3})?", "[a-z0-9]{0,5}", 1..6)) {
            let text: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let selector = Selector::parse(&text.join(",")).unwrap();
            prop_assert!(selector.matches(&pairs));
            let (key, value) = selector.label().unwrap();
            prop_assert_eq!(pairs.get(key).map(String::as_str), Some(value));
        }

        #[test]
        fn never_panics(text in "[a-z=!<>(), ]{0,30}") {
            let _ = Selector::parse(&text);
        }
    }
}
