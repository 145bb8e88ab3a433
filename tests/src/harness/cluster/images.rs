//! Images of the project's own programs, without a registry and without a container engine.

use std::{fs, path::Path, process::Command};

use super::{Error, PAUSE};

const TARGET: &str = "x86_64-unknown-linux-musl";
/// Holds a Pod's namespaces and does nothing else.
const SOURCE: &str = "fn main() { loop { std::thread::park() } }";

/// Writes the OCI archive of one static program.
///
/// # Errors
/// [`Error::Io`].
pub fn image(binary: &Path, name: &str, archive: &Path) -> Result<(), Error> {
    let bytes = fs::read(binary).map_err(Error::io("read", binary))?;
    let program = binary.file_name().and_then(|name| name.to_str()).unwrap_or("program");
    let image = infer_image::Image {
        name,
        program,
        binary: &bytes,
        architecture: "amd64",
        labels: &[],
    };
    let bytes = infer_image::archive(&image).map_err(Error::io("make", archive))?;
    fs::write(archive, bytes).map_err(Error::io("write", archive))
}

/// Builds the pause image into a directory.
///
/// # Errors
/// [`Error::Node`] without the compiler's target.
pub fn pause(directory: &Path) -> Result<(), Error> {
    let (source, binary) = (directory.join("pause.rs"), directory.join("pause"));
    fs::write(&source, SOURCE).map_err(Error::io("write", &source))?;
    let output = Command::new("rustc")
        .args(["--target", TARGET, "--edition", "2024", "-O", "-C", "panic=abort", "-o"])
        .arg(&binary)
        .arg(&source)
        .output()
        .map_err(Error::io("start", Path::new("rustc")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Node(format!("rustup target add {TARGET}: {said}")));
    }
    image(&binary, PAUSE, &directory.join("pause.tar"))
}
