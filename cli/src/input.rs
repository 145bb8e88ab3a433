//! Documents that people give, from files or stdin.

use std::io::Read;
use std::path::Path;

use crate::failure::Failure;

/// A file longer than this is no document that somebody wrote.
const LARGEST_FILE: u64 = 16 * 1024 * 1024;

/// Reads a file, or stdin for `-`. Answers its name for messages, and its text.
pub(crate) fn read(file: &Path) -> Result<(String, String), Failure> {
    let name = if file.as_os_str() == "-" {
        "<stdin>".to_owned()
    } else {
        file.display().to_string()
    };
    match text(file) {
        Ok(text) => Ok((name, text)),
        Err(error) => Err(Failure::Usage(format!("cannot read {name}: {error}"))),
    }
}

fn text(file: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().lock().take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(file)?
            .take(LARGEST_FILE + 1)
            .read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(std::io::Error::other(format!("longer than {} MiB", LARGEST_FILE >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        std::io::Error::other(format!("not UTF-8 text, first in line {}", line + 1))
    })
}
