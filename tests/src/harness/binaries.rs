//! Where the programs are.

use std::path::{Path, PathBuf};

use super::Error;

/// The directory that holds the workspace's programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Beside the running program; for a test, which lies one deeper in `deps`, beside its parent.
    ///
    /// # Errors
    /// [`Error::NotBuilt`] when `infer-decider`, `infer-agent`, `infersim` or `inferctl` is not there.
    pub fn find() -> Result<Self, Error> {
        let own = std::env::current_exe().map_err(|source| Error::Io {
            action: "find",
            path: PathBuf::from("the running program"),
            source,
        })?;
        let mut directory = own.parent().unwrap_or(Path::new(".")).to_path_buf();
        if directory.ends_with("deps") {
            directory.pop();
        }
        let binaries = Binaries { directory };
        for name in ["infer-decider", "infer-agent", "infersim", "inferctl"] {
            let path = binaries.path(name);
            if !path.is_file() {
                return Err(Error::NotBuilt { path });
            }
        }
        Ok(binaries)
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// One program, whether or not it is there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// `PATH` with the directory in front, so that fleets can name programs without a path.
    pub fn search_path(&self) -> String {
        let before = std::env::var("PATH").unwrap_or_default();
        format!("{}:{before}", self.directory.display())
    }
}
