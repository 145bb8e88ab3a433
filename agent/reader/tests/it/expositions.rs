//! The parser: each dialect's oddities, and arbitrary bytes.

use infer_reader::{
    Reader, ReaderOptions,
    exposition::{Sample, Summary, Visitor, ends_well, float, for_each_sample, visit},
};
use proptest::prelude::*;

use crate::support::{capture, plain};

fn samples(body: &[u8]) -> (Vec<String>, Summary) {
    let mut seen = Vec::new();
    let summary = for_each_sample(body, |s: Sample<'_>| {
        let labels: Vec<String> = s
            .labels
            .iter()
            .map(|(n, v)| format!("{}={:?}", String::from_utf8_lossy(n), v.text()))
            .collect();
        seen.push(format!(
            "{}[{}]={}",
            String::from_utf8_lossy(s.name),
            labels.join(","),
            s.value
        ));
    });
    (seen, summary)
}

#[track_caller]
fn check(line: &str, expected: Option<&str>) {
    let (seen, summary) = samples(format!("{line}\n").as_bytes());
    assert_eq!(seen, expected.into_iter().collect::<Vec<_>>(), "{line}");
    assert_eq!(summary.skipped_lines, usize::from(expected.is_none()), "{line}");
    assert!(summary.complete);
}

#[test]
fn lines() {
    check("a 1", Some("a[]=1"));
    check("a{} 1", Some("a[]=1"));
    check("a{b=\"c\"} 1.5", Some("a[b=\"c\"]=1.5"));
    check(
        "vllm:x_total{engine=\"0\",model_name=\"m\"} 1e+06",
        Some("vllm:x_total[engine=\"0\",model_name=\"m\"]=1000000"),
    );
    check("a{b=\"c\",} 2", Some("a[b=\"c\"]=2"));
    check("a{ b = \"c\" , d = \"\" } 2", Some("a[b=\"c\",d=\"\"]=2"));
    check("a {b=\"c\"} 2", Some("a[b=\"c\"]=2"));
    check("a\t{b=\"c\"}\t2\t", Some("a[b=\"c\"]=2"));
    check("a NaN", Some("a[]=NaN"));
    check("a +Inf", Some("a[]=inf"));
    check("a -Inf", Some("a[]=-inf"));
    check("a -3", Some("a[]=-3"));
    check("a{le=\"+Inf\"} 3", Some("a[le=\"+Inf\"]=3"));
    // timestamps of both formats
    check("a 1 1395066363000", Some("a[]=1"));
    check("a 1 1520879607.789", Some("a[]=1"));
    check("a 1.0 -3", Some("a[]=1"));
    // exemplars
    check("a{le=\"1\"} 5 # {trace_id=\"x}\"} 0.67", Some("a[le=\"1\"]=5"));
    check("a{le=\"1\"} 5 123 # {trace_id=\"x\"} 0.67 456", Some("a[le=\"1\"]=5"));
    // carriage returns
    check("a{b=\"c\"} 1\r", Some("a[b=\"c\"]=1"));
    check("a 1\r", Some("a[]=1"));
    // braces, quotes and escapes inside of values
    check("a{b=\"}\"} 1", Some("a[b=\"}\"]=1"));
    check("a{b=\"} 9\"} 1", Some("a[b=\"} 9\"]=1"));
    check("a{b=\"x=\"} 1", Some("a[b=\"x=\"]=1"));
    check("a{b=\"x=}\"} 1", Some("a[b=\"x=}\"]=1"));
    check(r#"a{b="x\"} 9"} 1"#, Some(r#"a[b="x\"} 9"]=1"#));
    check(r#"a{b="\\"} 1"#, Some(r#"a[b="\\"]=1"#));
    check(r#"a{b="\\\""} 1"#, Some(r#"a[b="\\\""]=1"#));
    check(r#"a{b="l1\nl2"} 1"#, Some(r#"a[b="l1\nl2"]=1"#));
    check(r#"a{b="C:\DIR"} 1"#, Some(r#"a[b="C:\\DIR"]=1"#));
    check("a{b=\"ü€\"} 1", Some("a[b=\"ü€\"]=1"));
    check("a{b=\",c=\\\"d\"} 1", Some("a[b=\",c=\\\"d\"]=1"));
    // quoted names
    check("{\"my.metric\",b=\"c\"} 1", Some("my.metric[b=\"c\"]=1"));
    check("{\"my.metric\"} 1", Some("my.metric[]=1"));
    check("a{\"b c\"=\"d\"} 1", Some("a[b c=\"d\"]=1"));
    // not samples
    for garbage in [
        "<html>",
        "{\"loads\": []}",
        "a",
        "a{b=\"c\"",
        "a{b=\"c\"}",
        "a{b=\"c 1",
        "a 1x",
        "a 1 x",
        "a b",
        "1a 1",
        "= 3",
        "a{b=\"c\"} 1 2 3",
        "\u{fc} 1",
    ] {
        check(garbage, None);
    }
    // neither
    for nothing in ["", " ", "\r", "# HELP a b", "#", "# {", "# EOF"] {
        let (seen, summary) = samples(format!("{nothing}\n").as_bytes());
        assert_eq!((seen.len(), summary.skipped_lines), (0, 0), "{nothing:?}");
    }
}

#[test]
fn a_last_line_that_does_not_end_is_not_used() {
    let cases: &[(&str, usize, bool, bool)] = &[
        // body, samples, complete, end mark
        ("", 0, true, false),
        ("\n", 0, true, false),
        ("a 1\n", 1, true, false),
        ("a 1", 0, false, false),
        ("a 1\na 12", 1, false, false),
        ("a 1\n# EOF\n", 1, true, true),
        ("a 1\n# EOF", 1, true, true),
        ("a 1\r\n# EOF\r\n", 1, true, true),
        ("a 1\n# EO", 1, false, false),
        ("# EOF\na 1\n", 1, true, false),
        ("a 1\n# HELP b", 1, false, false),
    ];
    for &(body, expected, complete, eof) in cases {
        let (seen, summary) = samples(body.as_bytes());
        assert_eq!(
            (seen.len(), summary.complete, summary.saw_eof),
            (expected, complete, eof),
            "{body:?}"
        );
        assert_eq!(ends_well(body.as_bytes()), complete, "{body:?}");
    }
}

#[test]
fn long_lines_and_bad_utf8() {
    let long = format!("a{{b=\"{}\"}} 7\n", "x".repeat(1 << 20));
    assert_eq!(samples(long.as_bytes()).1.samples, 1);
    let unclosed = format!("a{{b=\"{}\n", "\\\"".repeat(1 << 20));
    assert_eq!(samples(unclosed.as_bytes()).1.skipped_lines, 1);
    let (seen, summary) = samples(b"a{b=\"\xff\xfe\"} 1\n\xff\xff 3\nc 4\n");
    assert_eq!(
        (seen.len(), summary.skipped_lines, summary.first_skipped_line),
        (2, 1, Some(2))
    );
}

#[test]
fn unwanted_names_are_left_early() {
    struct Only<'a>(Vec<&'a [u8]>, usize);
    impl<'a> Visitor<'a> for Only<'a> {
        fn wanted(&mut self, name: &'a [u8]) -> bool {
            self.0.push(name);
            name == b"b"
        }
        fn sample(&mut self, sample: Sample<'a>) {
            assert_eq!(sample.name, b"b");
            self.1 += 1;
        }
    }
    let mut only = Only(Vec::new(), 0);
    let summary = visit(
        b"a{x=\"1\"} 1\na{x=\"2\"} 1\nb{x=\"1\"} 1\nb{x=\"2\"} 1\nab{} 1\nb 2\n",
        &mut only,
    );
    assert_eq!((summary.samples, only.1), (3, 3));
    assert_eq!(only.0, [&b"a"[..], b"b", b"ab", b"b"], "asked once per run of a name");
}

#[test]
fn captures_equal_a_simple_reading() {
    for file in [
        "vllm-0.32.0-after.prom",
        "vllm-0.32.0-rustfe-after.prom",
        "sglang-0.5.23-after.prom",
        "vllm-0.8.5-V0-after.prom",
    ] {
        let Some(body) = capture(file) else { return };
        let expected = plain(&body);
        let mut at = 0;
        let summary = for_each_sample(&body, |sample| {
            let plain = &expected[at];
            assert_eq!(sample.name, plain.name.as_bytes());
            assert_eq!(sample.labels.iter().count(), plain.labels.len());
            for (name, value) in sample.labels.iter() {
                assert_eq!(value.text(), plain.labels[std::str::from_utf8(name).unwrap()]);
            }
            assert!(sample.value == plain.value || sample.value.is_nan() && plain.value.is_nan());
            at += 1;
        });
        assert_eq!((summary.samples, summary.skipped_lines), (expected.len(), 0), "{file}");
    }
}

proptest! {
    /// The fast path for short decimals rounds exactly as the standard library does.
    #[test]
    fn floats_are_correctly_rounded(text in "[0-9]{0,18}(\\.[0-9]{0,20})?(e[+-]?[0-9]{1,3})?") {
        prop_assert_eq!(float(text.as_bytes()).map(f64::to_bits), text.parse::<f64>().ok().map(f64::to_bits), "{}", text);
    }

    /// What is written is what is read, whatever is in the labels.
    #[test]
    fn label_values_survive(values in proptest::collection::vec("\\PC*|[\\\\\"\n{}=, #]{0,8}", 0..4), number: f64) {
        let escaped = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = values.iter().enumerate().map(|(i, v)| format!("l{i}=\"{}\"", escaped(v))).collect();
        let body = format!("m{{{}}} {number:?}\n", labels.join(","));
        let mut seen = 0;
        for_each_sample(body.as_bytes(), |sample| {
            let texts: Vec<String> = sample.labels.iter().map(|(_, v)| v.text()).collect();
            assert_eq!(texts, values);
            assert!(sample.value == number || number.is_nan());
            seen += 1;
        });
        prop_assert_eq!(seen, 1, "{}", body);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        samples(&body);
        let _ = Reader::new(ReaderOptions::default()).advance(&body);
    }

    #[test]
    fn arbitrary_lines_do_no_harm(lines in proptest::collection::vec("(vllm:num_requests_running|vllm:time_to_first_token_seconds_bucket|sglang:token_usage)?[{]?(engine|le|pid|tp_rank)?=?\"?[0-9.+eInfNa\\\\\"}]{0,12}[ 0-9.e+]{0,6}\r?", 0..30)) {
        let body = lines.join("\n") + "\n";
        let (_, summary) = samples(body.as_bytes());
        prop_assert!(summary.complete);
        let mut reader = Reader::new(ReaderOptions::default());
        let _ = reader.advance(body.as_bytes());
        let _ = reader.advance(body.as_bytes());
    }
}

/// Real bodies with bytes changed, cut out and doubled: every outcome is fine, panics and endless loops are not, and a
/// body that was refused changes nothing.
#[test]
fn mutated_captures_do_no_harm() {
    let files = [
        "vllm-0.32.0-loaded.prom",
        "vllm-0.32.0-rustfe-loaded.prom",
        "sglang-0.5.23-loaded.prom",
    ];
    for (seed, file) in files.into_iter().enumerate() {
        let Some(body) = capture(file) else { return };
        let mut random = Xorshift(0x9e37_79b9_7f4a_7c15 ^ seed as u64);
        for _ in 0..60 {
            let mut mutated = body.clone();
            for _ in 0..=random.below(20) {
                let at = random.below(mutated.len());
                match random.below(5) {
                    0 => mutated[at] = random.next() as u8,
                    1 => mutated[at] = b"\"{}\\\n =,#"[random.below(9)],
                    2 => mutated.truncate(at + 1),
                    3 => {
                        let end = (at + random.below(200)).min(mutated.len());
                        mutated.drain(at..end);
                        if mutated.is_empty() {
                            mutated.push(b'\n');
                        }
                    }
                    _ => {
                        let end = (at + random.below(200)).min(mutated.len());
                        let copy = mutated[at..end].to_vec();
                        mutated.splice(at..at, copy);
                    }
                }
            }
            let mut reader = Reader::new(ReaderOptions::default());
            reader.advance(&body).unwrap();
            if reader.advance(&mutated).is_err() {
                let advance = reader.advance(&body).unwrap();
                assert!(
                    !advance.engine_restarted && advance.histograms.is_empty(),
                    "{file}: an error changed the state"
                );
            }
            let _ = infer_reader::inspect(&mutated, None, None);
        }
    }
}

struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
