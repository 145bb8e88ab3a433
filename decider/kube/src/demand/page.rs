//! Gauges of a page in the Prometheus text format.

use std::collections::BTreeMap;

use infer_api::PrometheusDemand;

/// For each source the sum of its series; `None` where there is none. One walk over the page, however many ask.
pub(super) fn sums(page: &str, sources: &[PrometheusDemand]) -> Vec<Option<f64>> {
    let mut sums = vec![None; sources.len()];
    for line in page.lines() {
        let line = line.trim_start();
        let name = &line[..line.find(|c: char| c == '{' || c.is_whitespace()).unwrap_or(line.len())];
        if name.is_empty() || name.starts_with('#') || sources.iter().all(|source| source.metric != name) {
            continue;
        }
        let Some((labels, value)) = series(&line[name.len()..]) else {
            continue;
        };
        for (source, sum) in sources.iter().zip(&mut sums) {
            let has = |(name, value): (&String, &String)| labels.get(name.as_str()) == Some(value);
            if source.metric == name && source.labels.iter().all(has) {
                *sum = Some(sum.unwrap_or(0.0) + value.max(0.0));
            }
        }
    }
    sums
}

/// Labels and value of a line, after the name; `None` for what is malformed or no finite number.
fn series(rest: &str) -> Option<(BTreeMap<&str, String>, f64)> {
    let mut labels = BTreeMap::new();
    let rest = rest.trim_start();
    let mut rest = match rest.strip_prefix('{') {
        Some(inner) => {
            let mut inner = inner.trim_start();
            while !inner.starts_with('}') {
                let (name, after) = inner.split_once('=')?;
                let (value, after) = quoted(after.trim_start())?;
                labels.insert(name.trim(), value);
                inner = after.trim_start();
                inner = inner.strip_prefix(',').map_or(inner, str::trim_start);
            }
            inner.strip_prefix('}')?
        }
        None => rest,
    }
    .split_whitespace();
    let value: f64 = rest.next()?.parse().ok()?;
    value.is_finite().then_some((labels, value))
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &inner[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            plain => value.push(plain),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(metric: &str, labels: &[(&str, &str)]) -> PrometheusDemand {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        PrometheusDemand {
            url: "http://g".to_owned(),
            metric: metric.to_owned(),
            labels: labels.collect(),
        }
    }

    const PAGE: &str = r#"
# HELP queue Requests that wait.
# TYPE queue gauge
queue{pool="chat",model="a"} 3
queue{pool="chat",model="b,}\"",} 4.5 1700000000000
queue{pool="code"} NaN
queue { pool = "spaced" } 1e1
queue_total{pool="chat"} 100
plain 7
broken{pool="chat" 8
negative -1
"#;

    #[test]
    fn adds_up_the_series_that_match_and_tells_none_from_zero() {
        type Labels<'a> = &'a [(&'a str, &'a str)];
        let cases: [(&str, Labels<'_>, Option<f64>); 9] = [
            ("queue", &[("pool", "chat")], Some(7.5)),
            ("queue", &[("pool", "chat"), ("model", "b,}\"")], Some(4.5)),
            ("queue", &[], Some(17.5)),
            ("queue", &[("pool", "code")], None),
            ("queue", &[("pool", "spaced")], Some(10.0)),
            ("queue", &[("pool", "other")], None),
            ("plain", &[], Some(7.0)),
            ("broken", &[], None),
            ("negative", &[], Some(0.0)),
        ];
        let sources: Vec<PrometheusDemand> = cases.iter().map(|(metric, labels, _)| source(metric, labels)).collect();
        for ((metric, labels, expected), found) in cases.iter().zip(sums(PAGE, &sources)) {
            assert_eq!(found, *expected, "{metric} {labels:?}");
        }
    }

    proptest! {
        #[test]
        fn no_page_is_too_strange(page in "(queue|[{}=\",\\\\ \n#a0ü])*") {
            sums(&page, &[source("queue", &[("a", "0")])]);
        }
    }
}
