//! Images of the project's own programs, from static binaries that `make e2e-node` builds.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

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
/// Below the directory of the ordinary binaries.
const ARCHIVES: &str = "node-images";

/// Makes an archive of every image, the pause image among them, unless it is there and younger than its program; returns
/// their directory.
///
/// # Errors
/// Programs that are not built; a file that cannot be written.
pub fn build() -> Result<PathBuf, cluster::Error> {
    let binaries = Binaries::find()?;
    let directory = binaries.directory().join(ARCHIVES);
    fs::create_dir_all(&directory).map_err(|source| Error::Io {
        action: "create",
        path: directory.clone(),
        source,
    })?;
    if !directory.join("pause.tar").is_file() {
        pause(&directory)?;
    }
    for (program, name) in PROGRAMS {
        let binary = binaries.directory().join(STATIC).join(program);
        let Some(built) = changed(&binary) else {
            return Err(Error::NotBuilt { path: binary }.into());
        };
        let archive = directory.join(format!("{program}.tar"));
        if changed(&archive).is_none_or(|made| made <= built) {
            // Under another name until it is whole.
            let part = archive.with_extension("part");
            image(&binary, name, &part)?;
            fs::rename(&part, &archive).map_err(|source| Error::Io {
                action: "write",
                path: archive.clone(),
                source,
            })?;
        }
    }
    Ok(directory)
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}
