//! The public traces in their normal form, where they are at hand.

use infer_load::trace::{self, Format};
use std::path::Path;

#[test]
fn every_arrival_trace_is_read() {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/traces"));
    if !directory.is_dir() {
        eprintln!("skipped: {} not found", directory.display());
        return;
    }
    let mut read = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let file = entry.unwrap().path();
        match trace::load(&file, None) {
            Ok(trace) => {
                assert_eq!(trace.format, Format::Csv, "{}", file.display());
                assert!(trace.arrivals.is_sorted_by(|a, b| a.at_s <= b.at_s));
                assert!(
                    trace
                        .arrivals
                        .iter()
                        .all(|a| a.at_s >= 0.0 && a.input_tokens >= 1 && a.output_tokens >= 1)
                );
                assert!(
                    trace.arrivals.len() > 1000,
                    "{}: {}",
                    file.display(),
                    trace.arrivals.len()
                );
                read += 1;
            }
            // Tables of rates and of lengths are no arrivals, and are refused by their header.
            Err(error) => assert!(error.to_string().contains(":1:1: columns"), "{error}"),
        }
    }
    assert!(read >= 3, "only {read} arrival traces in {}", directory.display());
}
