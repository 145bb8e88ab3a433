//! Captures, and a second, slow and simple reading of them to compare with.

use std::{collections::BTreeMap, io::Read, path::PathBuf};

/// The captures' directory; `None`, said on stderr, where it is not there.
pub(crate) fn captures() -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/engines"));
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("skipped: {} not found", path.display());
    None
}

pub(crate) fn capture(name: &str) -> Option<Vec<u8>> {
    Some(std::fs::read(captures()?.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// `{"status": 200, "ts": [..], ..}` lines of a client's own measurements.
pub(crate) fn client(name: &str) -> Option<Vec<serde_json::Value>> {
    let file = std::fs::File::open(captures()?.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// One sample, the simple way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plain {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// Good for the captures only: no blanks in odd places, no escapes.
pub(crate) fn plain(body: &[u8]) -> Vec<Plain> {
    let text = std::str::from_utf8(body).unwrap();
    let samples = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = match series.split_once('{') {
                Some((name, rest)) => (name, rest.strip_suffix('}').unwrap()),
                None => (series, ""),
            };
            let mut labels_of = BTreeMap::new();
            let mut rest = labels;
            while let Some((label, after)) = rest.split_once("=\"") {
                let (value, after) = after.split_once('"').unwrap();
                labels_of.insert(label.to_owned(), value.to_owned());
                rest = after.strip_prefix(',').unwrap_or(after);
            }
            let value = value.parse().unwrap();
            Plain {
                name: name.replacen('_', ":", usize::from(is_underscored(name))),
                labels: labels_of,
                value,
            }
        });
    samples.collect()
}

fn is_underscored(name: &str) -> bool {
    name.starts_with("vllm_") || name.starts_with("sglang_")
}

/// Sum of the samples of this name with these labels; `None` when there is none.
pub(crate) fn total(samples: &[Plain], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let wanted = |s: &&Plain| s.name == name && labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|x| x == v));
    samples.iter().filter(wanted).map(|s| s.value).reduce(|a, b| a + b)
}
