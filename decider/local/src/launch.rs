//! Starting processes, and their logs.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
};

use tokio::{
    process::{Child, Command},
    time::Instant,
};

use crate::{
    FleetSpec, StateDir,
    process::{self, Identity},
    spec::Engine,
    template::Values,
};

/// A process that was just started.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Just before the process was there, so that a start-up time is never measured too short.
    pub(crate) at: Instant,
    pub(crate) child: Child,
    pub(crate) identity: Identity,
}

/// What one start of one replica needs.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) spec: &'a FleetSpec,
    pub(crate) state_dir: &'a StateDir,
    pub(crate) boot_id: &'a str,
    pub(crate) target: &'a str,
    pub(crate) decider: &'a str,
    pub(crate) replica: &'a str,
    pub(crate) index: u32,
    pub(crate) uid: &'a str,
    pub(crate) port: u16,
}

impl Launch<'_> {
    /// Starts the engine; in words why it cannot.
    pub(crate) fn engine(&self) -> Result<Launched, String> {
        let Engine {
            command,
            env,
            working_dir,
        } = &self.spec.engine;
        self.spawn("engine", command, env, working_dir.as_deref())
    }

    /// Starts the agent, given its command template; in words why it cannot.
    pub(crate) fn agent(&self, command: &[String]) -> Result<Launched, String> {
        self.spawn("agent", command, &self.spec.agent_env, None)
    }

    /// What the placeholders stand for.
    fn values(&self) -> Values<'_> {
        Values {
            port: self.port,
            host: self.spec.host.to_string(),
            replica: self.replica,
            index: self.index,
            uid: self.uid,
            model: &self.spec.model,
            fleet: &self.spec.name,
            engine_url: format!("http://{}", self.spec.address(self.port)),
            target: self.target,
            decider: self.decider,
        }
    }

    /// A command template as this start would run it.
    pub(crate) fn argv(&self, command: &[String]) -> Vec<String> {
        let values = self.values();
        command.iter().map(|text| values.render(text)).collect()
    }

    fn spawn(
        &self,
        role: &str,
        command: &[String],
        env: &BTreeMap<String, String>,
        working_dir: Option<&Path>,
    ) -> Result<Launched, String> {
        let values = self.values();
        let argv = self.argv(command);
        let Some((program, arguments)) = argv.split_first() else {
            return Err(format!("{role}.command is empty"));
        };
        let log_path = self.state_dir.log_path(self.replica, role);
        let log = open_log(&log_path).map_err(|error| format!("cannot open log {}: {error}", log_path.display()))?;
        let log_too = log
            .try_clone()
            .map_err(|error| format!("cannot open log {}: {error}", log_path.display()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(env.iter().map(|(key, text)| (key, values.render(text))))
            .env(process::ENV_FLEET_ID, self.state_dir.fleet_id())
            .env(process::ENV_UID, self.uid)
            .env(process::ENV_FLEET, &self.spec.name)
            .env(process::ENV_INDEX, self.index.to_string())
            .env(process::ENV_PORT, self.port.to_string())
            .env(process::ENV_ROLE, role)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            // A group of its own: a terminal's interrupt does not reach it, and it is ended with all its children.
            .process_group(0);
        if let Some(dir) = working_dir {
            if !dir.is_dir() {
                return Err(format!("{role}.working_dir {} is not a directory", dir.display()));
            }
            command.current_dir(dir);
        }
        let at = Instant::now();
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!(
                "cannot start {role} \"{}\": program not found; {role}.command[0] must be a path or a program on PATH",
                argv.join(" ")
            ),
            _ => format!("cannot start {role} \"{}\": {error}", argv.join(" ")),
        })?;
        // A child that has ended already is a zombie until waited for, so its start time is there to read.
        let identity = child.id().and_then(|pid| Identity::of(pid, self.boot_id, &argv));
        match identity {
            Some(identity) => Ok(Launched { at, child, identity }),
            None => Err(format!("{role} \"{}\" ended at once", argv.join(" "))),
        }
    }
}

/// A log for a new process; the one of the process before is kept as `<name>.1`.
fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > 0) {
        fs::rename(path, rotated(path))?;
    }
    // Appending, so that a log cut short under the process is written from its new end.
    File::options().create(true).append(true).open(path)
}

/// Cuts a log that outgrew its bound while its process writes it: its content becomes `<name>.1`. Lines written between
/// the copy and the cut are lost.
pub(crate) fn bound_log(path: &Path, max_bytes: u64) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > max_bytes) {
        fs::copy(path, rotated(path))?;
        File::options().write(true).open(path)?.set_len(0)?;
    }
    Ok(())
}

fn rotated(path: &Path) -> std::path::PathBuf {
    path.with_extension("log.1")
}

/// Whether nothing listens on a port. Listening oneself is the only sure test.
pub(crate) fn port_is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

/// A random name of one start of one replica, 16 hexadecimal digits.
pub(crate) fn new_uid() -> String {
    format!("{:016x}", fastrand::u64(..))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_is_rotated_at_a_start_and_cut_beyond_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat-0.engine.log");
        let old = dir.path().join("chat-0.engine.log.1");
        open_log(&path).unwrap().write_all(b"first").unwrap();
        let mut log = open_log(&path).unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "first");
        log.write_all(b"0123456789").unwrap();
        bound_log(&path, 10).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "0123456789",
            "at its bound, not beyond"
        );
        log.write_all(b"x").unwrap();
        bound_log(&path, 10).unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "0123456789x");
        log.write_all(b"after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
    }
}
