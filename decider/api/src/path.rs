//! `replicasPath`: where in an object a replica count stands.

/// One step of a path into an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathStep {
    /// Into this field of a mapping.
    Field(String),
    /// Into the item of a list whose field `key` has this value.
    Item {
        /// Name of the field.
        key: String,
        /// Its value.
        value: String,
    },
}

/// Reads `.spec.roles[?(@.name=="prefill")].replicas`, or shorter `.spec.roles[name=prefill].replicas`; the dot in front
/// may be left out. A path begins with `spec` and ends with a field. Items are found by a field's value and never by
/// position, which may come to mean another role. `None` for anything else.
pub fn parse_replicas_path(text: &str) -> Option<Vec<PathStep>> {
    let text = text.strip_prefix('.').unwrap_or(text);
    let mut rest = text.strip_prefix("spec")?;
    let mut steps = vec![PathStep::Field("spec".to_owned())];
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let (name, after) = after.split_at(after.find(['.', '[']).unwrap_or(after.len()));
            steps.push(PathStep::Field(field(name)?));
            rest = after;
        } else {
            let (filter, after) = rest.strip_prefix('[')?.split_once(']')?;
            steps.push(item(filter)?);
            rest = after;
        }
    }
    (steps.len() > 1 && matches!(steps.last(), Some(PathStep::Field(_)))).then_some(steps)
}

fn item(filter: &str) -> Option<PathStep> {
    let long = filter.strip_prefix("?(@.").and_then(|filter| filter.strip_suffix(')'));
    let (key, value) = match long {
        Some(long) => {
            let (key, quoted) = long.split_once("==")?;
            let quote = quoted.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            (key, quoted.strip_prefix(quote)?.strip_suffix(quote)?)
        }
        None => filter.split_once('=')?,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (!value.is_empty() && value.chars().all(is_plain)).then_some(())?;
    Some(PathStep::Item {
        key: field(key)?,
        value: value.to_owned(),
    })
}

fn field(name: &str) -> Option<String> {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    (name.starts_with(is_first) && name.chars().all(is_inner)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> Option<String> {
        let steps = parse_replicas_path(text)?.into_iter().map(|step| match step {
            PathStep::Field(name) => name,
            PathStep::Item { key, value } => format!("{key}:{value}"),
        });
        Some(steps.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn reads_both_ways_of_writing() {
        for text in [
            r#".spec.roles[?(@.name=="prefill")].replicas"#,
            "spec.roles[?(@.name=='prefill')].replicas",
            ".spec.roles[name=prefill].replicas",
        ] {
            assert_eq!(
                show(text).as_deref(),
                Some("spec roles name:prefill replicas"),
                "{text}"
            );
        }
        assert_eq!(show("spec.a.b[x=1][y=2].c").as_deref(), Some("spec a b x:1 y:2 c"));
    }

    #[test]
    fn refuses_what_it_cannot_mean() {
        for text in [
            "",
            "spec",
            ".spec",
            "status.replicas",
            "specs.replicas",
            "spec.roles[0].replicas",
            "spec.roles[name=prefill]",
            "spec..replicas",
            "spec.roles[name=].replicas",
            "spec.roles[?(@.name==\"prefill')].replicas",
            "spec.roles[*].replicas",
            "spec.roles[name=a b].replicas",
            "spec.replicas ",
        ] {
            assert_eq!(parse_replicas_path(text), None, "{text}");
        }
    }
}
