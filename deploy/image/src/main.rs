//! `infer-image`: a static binary becomes an OCI image, in a file.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use clap::Parser;
use infer_image::{Image, archive};

/// Makes an OCI image of one static binary, without a container engine.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 written; 1 a file cannot be read, written or used; 2 a mistake in usage."
)]
struct Args {
    /// The binary; statically linked, because there is nothing else in the image.
    #[arg(long)]
    binary: PathBuf,
    /// Name of the image, with its tag.
    #[arg(long)]
    name: String,
    /// Where the archive is written.
    #[arg(long)]
    out: PathBuf,
    /// The binary's architecture, as container engines name it.
    #[arg(long, default_value = "amd64")]
    architecture: String,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let path = args.binary.display();
    let binary = fs::read(&args.binary).with_context(|| format!("cannot read {path}"))?;
    ensure!(binary.starts_with(b"\x7fELF"), "{path} is not an ELF binary");
    ensure!(
        !has_interpreter(&binary),
        "{path} asks for a dynamic linker, and there is none in the image; build it with --target x86_64-unknown-linux-musl"
    );
    let program = args
        .binary
        .file_name()
        .and_then(|name| name.to_str())
        .context("the binary has no name")?;
    let image = Image {
        name: &args.name,
        program,
        binary: &binary,
        architecture: &args.architecture,
        labels: &[
            ("org.opencontainers.image.title", program),
            ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION")),
            ("org.opencontainers.image.licenses", "Apache-2.0"),
        ],
    };
    if let Some(directory) = args.out.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(&args.out, archive(&image)?).with_context(|| format!("cannot write {}", args.out.display()))?;
    Ok(())
}

/// Whether a 64-bit little-endian ELF file names a dynamic linker (a PT_INTERP program header).
fn has_interpreter(elf: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let field = elf.get(at..at.checked_add(bytes)?)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | usize::from(*byte)),
        )
    };
    let (Some(start), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return false;
    };
    (0..count).any(|index| start.checked_add(index * size).and_then(|at| number(at, 4)) == Some(3))
}

#[cfg(test)]
mod tests {
    /// The test itself is linked dynamically, or else there is nothing to see here.
    #[test]
    fn a_dynamic_binary_is_told_from_none() {
        let Ok(own) = std::env::current_exe().and_then(std::fs::read) else {
            panic!("a test can read itself");
        };
        assert_eq!(super::has_interpreter(&own), cfg!(not(target_feature = "crt-static")));
        assert!(!super::has_interpreter(b"\x7fELF"));
    }
}
