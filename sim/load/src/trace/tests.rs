use super::*;
use std::io::Write;

fn read(text: &str, format: Option<Format>) -> Result<Trace, Error> {
    parse(text.as_bytes(), Path::new("trace"), format)
}

#[track_caller]
fn check(text: &str, format: Format, expected: &[(f64, u32, u32)]) {
    for wanted in [None, Some(format)] {
        let trace = read(text, wanted).unwrap();
        assert_eq!(trace.format, format);
        let have: Vec<_> = trace
            .arrivals
            .iter()
            .map(|a| (a.input_tokens, a.output_tokens))
            .collect();
        let want: Vec<_> = expected.iter().map(|(_, input, output)| (*input, *output)).collect();
        assert_eq!(have, want);
        for (arrival, (at_s, ..)) in trace.arrivals.iter().zip(expected) {
            assert!((arrival.at_s - at_s).abs() < 1e-6, "{} is not {at_s}", arrival.at_s);
        }
    }
}

#[track_caller]
fn refuse(text: &str, format: Option<Format>, place: &str, words: &str) {
    let error = read(text, format).unwrap_err().to_string();
    assert!(error.starts_with(place), "{error:?} should start with {place:?}");
    assert!(error.contains(words), "{error:?} should contain {words:?}");
}

#[test]
fn azure_2023_and_2024() {
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5000000,100,10\n2023-11-16 18:15:47.7500000,200,20\n";
    check(text, Format::Azure, &[(0.0, 100, 10), (1.25, 200, 20)]);
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2024-05-10 23:59:59.250000+00:00,7,3\r\n2024-05-11 00:00:01+00:00,8,4\r\n";
    check(text, Format::Azure, &[(0.0, 7, 3), (1.75, 8, 4)]);
}

#[test]
fn mooncake_in_milliseconds_and_bailian_in_seconds() {
    let text = "{\"timestamp\": 1500, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [1, 2]}\n{\"timestamp\": 3000, \"input_length\": 7, \"output_length\": 8, \"hash_ids\": []}\n";
    check(text, Format::Mooncake, &[(1.5, 600, 5), (3.0, 7, 8)]);
    let text = "{\"chat_id\": 4, \"timestamp\": 2.25, \"input_length\": 6, \"output_length\": 5, \"hash_ids\": [1]}\n";
    check(text, Format::Mooncake, &[(2.25, 6, 5)]);
}

#[test]
fn burstgpt_of_both_widths() {
    let text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,40,0,40,Conversation log\n45.5,GPT-4,10,2,12,\"API, log\"\n";
    check(text, Format::BurstGpt, &[(5.0, 40, 1), (45.5, 10, 2)]);
    let text = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,a,1.5,ChatGPT,40,3,43,x\n";
    check(text, Format::BurstGpt, &[(5.0, 40, 3)]);
}

#[test]
fn servegen_in_csv_and_json() {
    check(
        "request_id,timestamp,input_tokens,output_tokens\n0,0.5,11,12.0\n",
        Format::ServeGen,
        &[(0.5, 11, 12)],
    );
    let array = "[\n {\"timestamp\": 2.0, \"data\": {\"input_tokens\": 1, \"output_tokens\": 2}},\n {\"timestamp\": 1.0, \"input_tokens\": 3, \"output_tokens\": 4}\n]";
    check(array, Format::ServeGen, &[(1.0, 3, 4), (2.0, 1, 2)]);
    check(
        "{\"timestamp\": 2.0, \"input_tokens\": 1, \"output_tokens\": 2}\n",
        Format::ServeGen,
        &[(2.0, 1, 2)],
    );
}

#[test]
fn normal_form_sorted_and_with_other_units() {
    let text = "\u{feff}arrival_time_s,input_tokens,output_tokens,client\n2.5,1,2,9\n\n0.5,3,4,9\n";
    check(text, Format::Csv, &[(0.5, 3, 4), (2.5, 1, 2)]);
    check(
        "timestamp_ms,prompt_tokens,output_tokens\n1500,3,4\n",
        Format::Csv,
        &[(1.5, 3, 4)],
    );
    // A wall clock in seconds starts at its first arrival.
    check(
        "arrival_time_s,input_tokens,output_tokens\n1700000000.5,1,2\n1700000002,3,4",
        Format::Csv,
        &[(0.0, 1, 2), (1.5, 3, 4)],
    );
}

#[test]
fn mistakes_name_their_place() {
    let csv = |row: &str| format!("arrival_time_s,input_tokens,output_tokens\n0,1,2\n{row}\n");
    refuse(
        &csv("1.0,x,2"),
        None,
        "trace:3:5: ",
        "\"input_tokens\" is \"x\": expected a whole number",
    );
    refuse(&csv("1.0,3,-2"), None, "trace:3:7: ", "\"output_tokens\"");
    refuse(&csv("-1,3,2"), None, "trace:3:1: ", "expected a number, zero or more");
    refuse(
        &csv("2023-11-16 18:15:46,3,2"),
        None,
        "trace:3:1: ",
        "as in the lines before",
    );
    refuse(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n5,1,2\n",
        None,
        "trace:2:1: ",
        "2023-11-16",
    );
    refuse(&csv("1.0,3"), None, "trace:3:6: ", "2 fields, so no \"output_tokens\"");
    refuse("t_s,rps\n0,1\n", None, "trace:1:1: ", "columns \"t_s,rps\"");
    refuse("0,10,20\n", None, "trace:1:1: ", "no header");
    refuse(
        "0,1.33,8.59,Weibull,0.37,0.39\n",
        None,
        "trace:1:1: ",
        "save_requests_to_csv",
    );
    refuse(
        "a,b\n",
        Some(Format::Azure),
        "trace:1:1: ",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
    );
    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n";
    refuse(azure, None, "trace:2:1: ", "2023-11-16 18:15:46.6805900");
    refuse(
        "{\"timestamp\": 1, \"input_length\": 2}\n",
        None,
        "trace:1:1: ",
        "no \"output_length\"",
    );
    refuse(
        "{\"timestamp\": 1, \"input_length\": 2, \"output_length\": 3}\n{\"timestamp\": oops}\n",
        None,
        "trace:2:15: ",
        "one JSON object",
    );
    refuse(
        "{\"input_length\": 2, \"hash_ids\": [1]}\n",
        None,
        "trace:1:1: ",
        "no \"timestamp\"",
    );
    refuse(
        "[{\"timestamp\": 1},\n{\"timestamp\"}]",
        None,
        "trace:2:13: ",
        "array of requests",
    );
    refuse("{\"timestamp\": 1}", Some(Format::Csv), "trace:1:1: ", "format csv");
    refuse("", None, "trace: ", "no request");
    refuse(
        "arrival_time_s,input_tokens,output_tokens\n",
        None,
        "trace: ",
        "no request",
    );
}

#[test]
fn gzip_is_seen_from_the_content() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace.csv");
    let mut encoder = flate2::write::GzEncoder::new(File::create(&file).unwrap(), flate2::Compression::fast());
    encoder
        .write_all(b"arrival_time_s,input_tokens,output_tokens\n1,2,3\n")
        .unwrap();
    encoder.finish().unwrap();
    let trace = load(&file, None).unwrap();
    assert_eq!(
        trace.arrivals,
        [Arrival {
            at_s: 1.0,
            input_tokens: 2,
            output_tokens: 3
        }]
    );
    let error = load(&directory.path().join("absent.csv"), None).unwrap_err();
    assert!(error.to_string().contains("absent.csv: cannot be read"), "{error}");
}
