//! Images of the project's own programs, from static binaries that `make e2e-node` builds.

use std::{fs, path::Path};

use crate::harness::{
    Binaries, Error,
    cluster::{self, image, pause},
};

/// As the chart names it.
pub const DECIDER_IMAGE: &str = concat!("matrixinfer/infer-decider:", env!("CARGO_PKG_VERSION"));
/// As the chart names it.
pub const AGENT_IMAGE: &str = concat!("matrixinfer/infer-agent:", env!("CARGO_PKG_VERSION"));
/// Stands in for an engine.
pub const ENGINE_IMAGE: &str = concat!("localhost/infersim:", env!("CARGO_PKG_VERSION"));
const PROGRAMS: [(&str, &str); 3] = [
    ("infer-decider", DECIDER_IMAGE),
    ("infer-agent", AGENT_IMAGE),
    ("infersim", ENGINE_IMAGE),
];
/// Beside the directory of the ordinary binaries.
const STATIC: &str = "../x86_64-unknown-linux-musl/debug";

/// Writes every image's archive, the pause image's as well, into a directory.
///
/// # Errors
/// Programs that are not built; a file that cannot be written.
pub fn build(directory: &Path) -> Result<(), cluster::Error> {
    let binaries = Binaries::find()?.directory().join(STATIC);
    fs::create_dir_all(directory).map_err(|source| Error::Io {
        action: "create",
        path: directory.to_path_buf(),
        source,
    })?;
    pause(directory)?;
    for (program, name) in PROGRAMS {
        let binary = binaries.join(program);
        if !binary.is_file() {
            return Err(Error::NotBuilt { path: binary }.into());
        }
        image(&binary, name, &directory.join(format!("{program}.tar")))?;
    }
    Ok(())
}
