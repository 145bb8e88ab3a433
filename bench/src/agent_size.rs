//! The agent's binary: how large, and whether it needs anything beside it.

use std::path::Path;

use anyhow::{Context as _, bail};

use crate::{
    Setting,
    report::{Figure, Report, Target},
};

const MIB: f64 = (1 << 20) as f64;

/// Measures.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let path = setting.binary("infer-agent")?;
    let bytes = std::fs::read(&path).context("reading infer-agent")?;
    let needs = needs(&bytes).context("reading infer-agent's ELF header")?;
    report.figure(
        Figure::total("infer-agent on disk", "MiB", bytes.len() as f64 / MIB, &[]).promised(Target::AtMost(5.0)),
    );
    report.figure(
        Figure::total(
            "needs a dynamic linker or libraries",
            "0 or 1",
            f64::from(u8::from(needs)),
            &[],
        )
        .promised(Target::AtMost(0.0))
        .note("from the ELF program headers: PT_INTERP, or DT_NEEDED in PT_DYNAMIC"),
    );
    if let Some(told) = file_says(&path) {
        report.note(format!("file says: {told}"));
    }
    if needs {
        report.note("dynamically linked: the musl target was not installed where this was built");
    }
    Ok(())
}

fn file_says(path: &Path) -> Option<String> {
    crate::machine::first_line("file", &["--brief", path.to_str()?])
}

const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NEEDED: u64 = 1;

/// Whether a 64-bit little-endian ELF file asks for a dynamic linker or for libraries.
fn needs(elf: &[u8]) -> anyhow::Result<bool> {
    let number = |at: usize, length: usize| -> anyhow::Result<u64> {
        let bytes = elf.get(at..at + length).context("the file is cut")?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("not a 64-bit little-endian ELF file");
    }
    let (table, size, count) = (
        number(0x20, 8)? as usize,
        number(0x36, 2)? as usize,
        number(0x38, 2)? as usize,
    );
    for header in (0..count).map(|index| table + index * size) {
        let (offset, length) = (number(header + 8, 8)? as usize, number(header + 0x20, 8)? as usize);
        match number(header, 4)? {
            PT_INTERP => return Ok(true),
            PT_DYNAMIC => {
                for entry in (offset..offset + length).step_by(16) {
                    if number(entry, 8)? == DT_NEEDED {
                        return Ok(true);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_none() {
        // Tests are linked dynamically on the targets this is developed on.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(needs(&own).unwrap(), !cfg!(target_feature = "crt-static"));
        assert!(needs(b"#!/bin/sh").is_err());
    }
}
