//! Metric families as values, and the dialects in which real servers write them.
//!
//! * `Dialect::Python`: prometheus_client in one process. Labels sorted, values as Python prints floats (Go's exponent
//!   from the seventh digit on), `_created` as gauge families of their own.
//! * `Dialect::PythonMultiprocess`: the same library over per-process files: no `_created`, families without samples
//!   absent, `_sum` first and `_count` last. SGLang and vLLM with several API servers.
//! * `Dialect::PythonOpenMetrics`: what `/metrics/` answers to an OpenMetrics Accept header, with the library's habit of
//!   writing sample names with `_` where the family name has `:`.
//! * `Dialect::Rust`: the prometheus-client crate's OpenMetrics: integers stay integers, `le` first, sums before buckets.

use std::fmt::Write as _;

use super::stats::Histogram;

/// Which way of writing. See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// prometheus_client, one process.
    Python,
    /// prometheus_client, multiprocess mode.
    PythonMultiprocess,
    /// prometheus_client, OpenMetrics.
    PythonOpenMetrics,
    /// The Rust prometheus-client crate.
    Rust,
}

/// Label names and values, in the order of the Rust dialect; the Python dialects sort them.
pub type Labels = Vec<(&'static str, String)>;

/// A number, which the Rust dialect writes by its type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// An integer.
    Int(u64),
    /// A float.
    Float(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Int(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Value::Int(value as u64)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Value::Float(value)
    }
}

/// The series of a family.
#[derive(Debug, Clone)]
pub enum Data {
    /// Counters; the family name is without `_total`.
    Counter(Vec<(Labels, Value)>),
    /// Gauges.
    Gauge(Vec<(Labels, Value)>),
    /// Histograms.
    Histogram(Vec<(Labels, Histogram)>),
    /// Summaries without quantiles: count and sum.
    Summary(Vec<(Labels, u64, f64)>),
}

/// One metric family.
#[derive(Debug, Clone)]
pub struct Family {
    /// Name, without `_total` for counters.
    pub name: &'static str,
    /// Help text.
    pub help: &'static str,
    /// Series.
    pub data: Data,
    /// Unix time at which the series were made, where the Python library says so.
    pub created_s: Option<f64>,
}

/// Writes families. With `wanted`, only the samples of these names, as the Python library's `name[]` filter does.
pub fn encode(families: &[Family], dialect: Dialect, wanted: Option<&[String]>) -> String {
    let mut out = String::with_capacity(64 * 1024);
    for family in families {
        let series = match &family.data {
            Data::Counter(series) | Data::Gauge(series) => series.len(),
            Data::Histogram(series) => series.len(),
            Data::Summary(series) => series.len(),
        };
        if series == 0 && (dialect == Dialect::PythonMultiprocess || wanted.is_some()) {
            continue;
        }
        match dialect {
            Dialect::Rust => rust_family(&mut out, family),
            _ => python_family(&mut out, family, dialect, wanted),
        }
    }
    if matches!(dialect, Dialect::Rust | Dialect::PythonOpenMetrics) {
        out.push_str("# EOF\n");
    }
    out
}

fn kind(data: &Data) -> &'static str {
    match data {
        Data::Counter(_) => "counter",
        Data::Gauge(_) => "gauge",
        Data::Histogram(_) => "histogram",
        Data::Summary(_) => "summary",
    }
}

/// Name suffix, the `le` label, value.
type Sample = (&'static str, Option<f64>, Value);

/// The samples of one series in writing order.
fn series_samples(data: &Data, index: usize, dialect: Dialect) -> (&Labels, Vec<Sample>) {
    match data {
        Data::Counter(series) => (&series[index].0, vec![("_total", None, series[index].1)]),
        Data::Gauge(series) => (&series[index].0, vec![("", None, series[index].1)]),
        Data::Summary(series) => {
            let (labels, count, sum) = &series[index];
            (
                labels,
                vec![("_count", None, (*count).into()), ("_sum", None, (*sum).into())],
            )
        }
        Data::Histogram(series) => {
            let (labels, histogram) = &series[index];
            let sum = ("_sum", None, Value::Float(histogram.sum()));
            let count = ("_count", None, Value::Int(histogram.count()));
            let buckets = histogram
                .cumulative()
                .map(|(le, n)| ("_bucket", Some(le), Value::Int(n)));
            let samples = match dialect {
                Dialect::Rust => [sum, count].into_iter().chain(buckets).collect(),
                Dialect::PythonMultiprocess => [sum].into_iter().chain(buckets).chain([count]).collect(),
                Dialect::Python | Dialect::PythonOpenMetrics => buckets.chain([count, sum]).collect(),
            };
            (labels, samples)
        }
    }
}

fn series_count(data: &Data) -> usize {
    match data {
        Data::Counter(series) | Data::Gauge(series) => series.len(),
        Data::Histogram(series) => series.len(),
        Data::Summary(series) => series.len(),
    }
}

fn python_family(out: &mut String, family: &Family, dialect: Dialect, wanted: Option<&[String]>) {
    let open_metrics = dialect == Dialect::PythonOpenMetrics;
    let is_wanted = |suffix: &str| wanted.is_none_or(|names| names.iter().any(|n| is_joined(n, family.name, suffix)));
    let total = if matches!(family.data, Data::Counter(_)) && !open_metrics {
        "_total"
    } else {
        ""
    };
    let created_s = match family.data {
        Data::Gauge(_) => None,
        _ if dialect == Dialect::PythonMultiprocess => None,
        _ => family.created_s,
    };
    let name = if open_metrics {
        family.name.replace(':', "_")
    } else {
        family.name.to_owned()
    };
    let mut body = String::new();
    let mut created = String::new();
    for index in 0..series_count(&family.data) {
        let (labels, samples) = series_samples(&family.data, index, dialect);
        let mut sorted: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
        sorted.sort_unstable();
        for (suffix, le, value) in samples {
            if is_wanted(suffix) {
                body.push_str(&name);
                body.push_str(suffix);
                let le = le.map(python_float);
                python_labels(&mut body, &sorted, le.as_deref());
                let value = match value {
                    Value::Int(value) => value as f64,
                    Value::Float(value) => value,
                };
                let _ = writeln!(body, " {}", python_float(value));
            }
        }
        if let Some(created_s) = created_s
            && is_wanted("_created")
        {
            let target = if open_metrics { &mut body } else { &mut created };
            target.push_str(&name);
            target.push_str("_created");
            python_labels(target, &sorted, None);
            let _ = writeln!(target, " {}", python_float(created_s));
        }
    }
    if wanted.is_none() || !body.is_empty() {
        let _ = writeln!(out, "# HELP {}{total} {}", family.name, family.help);
        let _ = writeln!(out, "# TYPE {}{total} {}", family.name, kind(&family.data));
        out.push_str(&body);
    }
    if !created.is_empty() {
        let _ = writeln!(
            out,
            "# HELP {0}_created {1}\n# TYPE {0}_created gauge",
            family.name, family.help
        );
        out.push_str(&created);
    }
}

fn is_joined(whole: &str, name: &str, suffix: &str) -> bool {
    whole.strip_prefix(name) == Some(suffix)
}

fn python_labels(out: &mut String, sorted: &[(&str, &str)], le: Option<&str>) {
    if sorted.is_empty() && le.is_none() {
        return;
    }
    let mut le = le;
    let mut separator = '{';
    for (name, value) in sorted {
        if *name > "le"
            && let Some(bound) = le.take()
        {
            label(out, &mut separator, "le", bound);
        }
        label(out, &mut separator, name, value);
    }
    if let Some(bound) = le {
        label(out, &mut separator, "le", bound);
    }
    out.push('}');
}

fn label(out: &mut String, separator: &mut char, name: &str, value: &str) {
    out.push(*separator);
    *separator = ',';
    out.push_str(name);
    out.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn rust_family(out: &mut String, family: &Family) {
    let _ = writeln!(out, "# HELP {} {}.", family.name, family.help);
    let _ = writeln!(out, "# TYPE {} {}", family.name, kind(&family.data));
    for index in 0..series_count(&family.data) {
        let (labels, samples) = series_samples(&family.data, index, Dialect::Rust);
        for (suffix, le, value) in samples {
            out.push_str(family.name);
            out.push_str(suffix);
            let mut separator = '{';
            if let Some(le) = le {
                let bound = if le.is_infinite() {
                    "+Inf".into()
                } else {
                    rust_float(le)
                };
                label(out, &mut separator, "le", &bound);
            }
            for (name, value) in labels {
                label(out, &mut separator, name, value);
            }
            if separator == ',' {
                out.push('}');
            }
            let _ = match value {
                Value::Int(value) => writeln!(out, " {value}"),
                Value::Float(value) => writeln!(out, " {}", rust_float(value)),
            };
        }
    }
}

fn rust_float(value: f64) -> String {
    let text = value.to_string();
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        text + ".0"
    } else {
        text
    }
}

/// A float as prometheus_client's `floatToGoString` writes it: Python's `repr`, but with an exponent as soon as there
/// are more than six digits before the point.
pub fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    // Rust's Debug changes to an exponent at the same magnitudes as Python's repr; only the exponent's form differs.
    let text = format!("{value:?}");
    if let Some((mantissa, exponent)) = text.split_once('e') {
        return match exponent.strip_prefix('-') {
            Some(digits) => format!("{mantissa}e-{digits:0>2}"),
            None => format!("{mantissa}e+{exponent:0>2}"),
        };
    }
    match text.find('.') {
        Some(dot) if value > 0.0 && dot > 6 => {
            let digits = format!("{}.{}{}", &text[..1], &text[1..dot], &text[dot + 1..]);
            format!("{}e+0{}", digits.trim_end_matches(['0', '.']), dot - 1)
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_the_python_library_does() {
        // Left: values; right: what prometheus_client 0.26 prints for them.
        for (value, text) in [
            (4.0, "4.0"),
            (0.0, "0.0"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (14474.0, "14474.0"),
            (123_565.0, "123565.0"),
            (999_999.0, "999999.0"),
            (1_000_000.0, "1e+06"),
            (1_100_000.0, "1.1e+06"),
            (1_085_313_024.0, "1.085313024e+09"),
            (1.795_451_528_964_329_5e9, "1.7954515289643295e+09"),
            (12_345_678_901.0, "1.2345678901e+010"),
            (1e16, "1e+16"),
            (0.001 * 1.62, "0.0016200000000000001"),
            (f64::INFINITY, "+Inf"),
            (f64::NAN, "NaN"),
            (-3.0, "-3.0"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    fn families() -> Vec<Family> {
        let mut histogram = Histogram::new(&[0.5, 1.0][..]);
        histogram.observe(0.7);
        let labels: Labels = vec![("model_name", "m\"x".into()), ("engine", "0".into())];
        let family = |name, data| Family {
            name,
            help: "Help.",
            data,
            created_s: Some(1.5),
        };
        vec![
            family("a:c", Data::Counter(vec![(labels.clone(), 7u64.into())])),
            family("a:h", Data::Histogram(vec![(labels.clone(), histogram)])),
            family("a:g", Data::Gauge(vec![(vec![], 0.25.into())])),
            family("a:none", Data::Counter(vec![])),
        ]
    }

    #[test]
    fn python_text() {
        let text = encode(&families(), Dialect::Python, None);
        assert_eq!(
            text,
            "# HELP a:c_total Help.\n# TYPE a:c_total counter\na:c_total{engine=\"0\",model_name=\"m\\\"x\"} 7.0\n\
             # HELP a:c_created Help.\n# TYPE a:c_created gauge\na:c_created{engine=\"0\",model_name=\"m\\\"x\"} 1.5\n\
             # HELP a:h Help.\n# TYPE a:h histogram\n\
             a:h_bucket{engine=\"0\",le=\"0.5\",model_name=\"m\\\"x\"} 0.0\n\
             a:h_bucket{engine=\"0\",le=\"1.0\",model_name=\"m\\\"x\"} 1.0\n\
             a:h_bucket{engine=\"0\",le=\"+Inf\",model_name=\"m\\\"x\"} 1.0\n\
             a:h_count{engine=\"0\",model_name=\"m\\\"x\"} 1.0\na:h_sum{engine=\"0\",model_name=\"m\\\"x\"} 0.7\n\
             # HELP a:h_created Help.\n# TYPE a:h_created gauge\na:h_created{engine=\"0\",model_name=\"m\\\"x\"} 1.5\n\
             # HELP a:g Help.\n# TYPE a:g gauge\na:g 0.25\n# HELP a:none_total Help.\n# TYPE a:none_total counter\n"
        );
    }

    #[test]
    fn python_multiprocess_has_no_created_and_no_empty_families() {
        let text = encode(&families(), Dialect::PythonMultiprocess, None);
        assert!(!text.contains("_created") && !text.contains("a:none"));
        let order: Vec<_> = text
            .lines()
            .filter(|l| l.starts_with("a:h_"))
            .map(|l| &l[..6])
            .collect();
        assert_eq!(order, ["a:h_su", "a:h_bu", "a:h_bu", "a:h_bu", "a:h_co"]);
    }

    #[test]
    fn rust_text() {
        let text = encode(&families(), Dialect::Rust, None);
        assert_eq!(
            text,
            "# HELP a:c Help..\n# TYPE a:c counter\na:c_total{model_name=\"m\\\"x\",engine=\"0\"} 7\n\
             # HELP a:h Help..\n# TYPE a:h histogram\n\
             a:h_sum{model_name=\"m\\\"x\",engine=\"0\"} 0.7\na:h_count{model_name=\"m\\\"x\",engine=\"0\"} 1\n\
             a:h_bucket{le=\"0.5\",model_name=\"m\\\"x\",engine=\"0\"} 0\n\
             a:h_bucket{le=\"1.0\",model_name=\"m\\\"x\",engine=\"0\"} 1\n\
             a:h_bucket{le=\"+Inf\",model_name=\"m\\\"x\",engine=\"0\"} 1\n\
             # HELP a:g Help..\n# TYPE a:g gauge\na:g 0.25\n\
             # HELP a:none Help..\n# TYPE a:none counter\n# EOF\n"
        );
    }

    #[test]
    fn the_name_filter_selects_samples() {
        let wanted = ["a:g".to_owned(), "a:c_total".to_owned(), "a:none_total".to_owned()];
        let text = encode(&families(), Dialect::Python, Some(&wanted));
        let samples: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            samples,
            ["a:c_total{engine=\"0\",model_name=\"m\\\"x\"} 7.0", "a:g 0.25"]
        );
        assert_eq!(encode(&families(), Dialect::Python, Some(&["zz".to_owned()])), "");
    }

    #[test]
    fn open_metrics_renames_samples_but_not_families() {
        let text = encode(&families(), Dialect::PythonOpenMetrics, None);
        assert!(
            text.contains("# TYPE a:c counter\na_c_total{") && text.ends_with("# EOF\n"),
            "{text}"
        );
    }
}
