//! The journal: decisions and what targets remember, on disk, bounded, safe against `kill -9`.
//!
//! Segments of lines, each `<crc32 in hex> <json>`. A line counts when its checksum fits, so a line torn by a crash is
//! passed over and everything before it stands. The writer is a thread of its own behind a bounded queue: a slow or full
//! disk delays no decision; what could not be written is counted and makes the decider's health "degraded".

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
};

use infer_core::decision::{Memory, Record};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A segment is closed when it has grown to this.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Oldest segments beyond this number are removed: 32 MiB in all, about ten thousand decisions of 3 KB.
const SEGMENTS_MAX: usize = 8;
/// Entries waiting for the disk: one decision and one checkpoint of 1,000 targets for one tick each.
const QUEUE: usize = 2048;
const SUFFIX: &str = "journal";

/// Why the journal could not be opened.
#[derive(Debug, Error)]
pub enum Error {
    /// The directory cannot be used.
    #[error("journal directory {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A journalled decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Ascending, unique over restarts.
    pub id: u64,
    /// When.
    pub unix_ms: i64,
    /// Whether the backend was told.
    pub applied: bool,
    /// Why not.
    pub not_applied: Option<String>,
    /// The decision in full.
    pub record: Record,
}

/// What a person has said about a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlEntry {
    /// About whom.
    pub target: String,
    /// "auto", "paused" or "override".
    pub control: String,
    /// With "override".
    pub replicas: Option<u32>,
    /// When it ends by itself.
    pub expires_unix_ms: Option<i64>,
    /// Why, in the person's words.
    pub reason: String,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Entry {
    /// A decision that changed something or would have.
    Decision(Box<Decision>),
    /// What a target remembers, between decisions.
    Checkpoint {
        /// About whom.
        target: String,
        /// When.
        unix_ms: i64,
        /// What.
        memory: Box<Memory>,
        /// The number the next decision will get: checkpoints outlive the decisions before them.
        #[serde(default)]
        next_decision_id: u64,
    },
    /// A person's word.
    Control(ControlEntry),
}

/// What was on disk.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Every entry, the oldest first.
    pub entries: Vec<Entry>,
    /// Lines whose checksum did not fit or that could not be read.
    pub torn: usize,
}

/// State shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Health {
    /// Entries on disk since the start.
    pub written: AtomicU64,
    /// Entries lost because the queue was full or the disk refused.
    pub lost: AtomicU64,
    problem: Mutex<Option<String>>,
}

impl Health {
    /// What is wrong now, if anything.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().ok().and_then(|problem| problem.clone())
    }

    fn set(&self, problem: Option<String>) {
        if let Ok(mut known) = self.problem.lock() {
            if let (None, Some(problem)) = (&*known, &problem) {
                tracing::error!(problem, "the journal cannot be written; decisions go on");
            } else if known.is_some() && problem.is_none() {
                tracing::info!("the journal is written again");
            }
            *known = problem;
        }
    }
}

enum Job {
    Write(Box<Entry>),
    Flush(SyncSender<()>),
}

/// Hands entries to the writer. Cheap to clone; never waits for the disk.
#[derive(Debug, Clone)]
pub struct Journal {
    queue: SyncSender<Job>,
    health: Arc<Health>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Journal {
    /// Opens the journal in `directory`, made if need be, reads what is there and starts the writer.
    ///
    /// # Errors
    /// When the directory cannot be made or listed, or the writer cannot be started.
    pub fn open(directory: &Path) -> Result<(Self, Recovered), Error> {
        let failed = |source| Error::Directory {
            path: directory.to_owned(),
            source,
        };
        fs::create_dir_all(directory).map_err(failed)?;
        let segments = segments(directory).map_err(failed)?;
        let mut recovered = Recovered::default();
        for (_, path) in &segments {
            read_segment(path, &mut recovered).map_err(failed)?;
        }
        let next = segments.last().map_or(1, |(number, _)| number + 1);
        // A decider that is started often must not push its past out with segments of a few lines each.
        let segment = segments.last().and_then(|(_, path)| Segment::resume(path).ok());
        let health = Arc::new(Health::default());
        let (queue, jobs) = sync_channel(QUEUE);
        let words = recovered
            .entries
            .iter()
            .filter_map(word)
            .map(|(target, entry)| (target, entry.clone()))
            .collect();
        let mut writer = Writer {
            directory: directory.to_owned(),
            next,
            segment,
            words,
            health: Arc::clone(&health),
        };
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&jobs))
            .map_err(failed)?;
        Ok((Journal { queue, health }, recovered))
    }

    /// Queues an entry; lost and counted when the queue is full.
    pub fn append(&self, entry: Entry) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.queue.try_send(Job::Write(Box::new(entry)))
        {
            self.health.lost.fetch_add(1, Ordering::Relaxed);
            self.health
                .set(Some("the journal's queue is full: the disk is too slow".to_owned()));
        }
    }

    /// Waits until everything queued before is on disk, or was refused by it. For the end of the process.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.send(Job::Flush(done)).is_ok() {
            let _ = wait.recv();
        }
    }

    /// Counts and problems.
    pub fn health(&self) -> &Health {
        &self.health
    }
}

/// Segments in the directory, by number.
fn segments(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.parse().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|extension| extension == SUFFIX)) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

fn read_segment(path: &Path, recovered: &mut Recovered) -> io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        match parse_line(&line) {
            Some(entry) => recovered.entries.push(entry),
            None => recovered.torn += 1,
        }
    }
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let line = line.strip_suffix(b"\n")?;
    let (checksum, json) = line.split_at_checked(9)?;
    let checksum = u32::from_str_radix(std::str::from_utf8(checksum).ok()?.strip_suffix(' ')?, 16).ok()?;
    (crc32fast::hash(json) == checksum)
        .then(|| serde_json::from_slice(json).ok())
        .flatten()
}

/// The file that is written now.
struct Segment {
    file: File,
    path: PathBuf,
    /// Bytes of whole lines.
    size: u64,
}

impl Segment {
    fn create(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().create_new(true).append(true).open(&path)?;
        Ok(Segment { file, path, size: 0 })
    }

    /// Goes on with a segment of an earlier run; a line that a crash has torn gets its end.
    fn resume(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).open(path)?;
        let mut size = file.metadata()?.len();
        if size > 0 {
            let mut last = [0];
            file.read_exact_at(&mut last, size - 1)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        Ok(Segment {
            file,
            path: path.to_owned(),
            size,
        })
    }

    /// Appends lines, all or nothing.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(lines);
        match &written {
            Ok(()) => self.size += lines.len() as u64,
            // What did not fit whole is taken back; if even that fails the checksum tells.
            Err(_) => self.file.set_len(self.size).unwrap_or_default(),
        }
        written
    }

    /// Whether what is written is still found under the path: somebody may have removed or moved the directory.
    fn in_place(&self) -> io::Result<bool> {
        let (open, named) = (self.file.metadata()?, fs::metadata(&self.path)?);
        Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
    }
}

struct Writer {
    directory: PathBuf,
    next: u64,
    segment: Option<Segment>,
    /// The last word on each target. Said again at the head of each segment, so that a pause outlives the segment it
    /// was first said in.
    words: BTreeMap<String, Entry>,
    health: Arc<Health>,
}

/// Whose word an entry is.
fn word(entry: &Entry) -> Option<(String, &Entry)> {
    match entry {
        Entry::Control(control) => Some((control.target.clone(), entry)),
        Entry::Decision(_) | Entry::Checkpoint { .. } => None,
    }
}

fn to_line(entry: &Entry) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(entry)?;
    let mut line = format!("{:08x} ", crc32fast::hash(&json)).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    Ok(line)
}

impl Writer {
    fn run(&mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            // Whatever has queued up meanwhile shares one sync.
            let mut waiting = Vec::new();
            let mut written = 0;
            let mut result = Ok(());
            for job in std::iter::once(first).chain(jobs.try_iter().take(QUEUE)) {
                match job {
                    Job::Flush(done) => waiting.push(done),
                    Job::Write(entry) => match self.write(&entry) {
                        Ok(()) => written += 1,
                        Err(error) => {
                            self.health.lost.fetch_add(1, Ordering::Relaxed);
                            result = Err(error);
                        }
                    },
                }
            }
            if written > 0 {
                match self.segment.as_ref().map_or(Ok(()), |segment| segment.file.sync_data()) {
                    Ok(()) => self.health.written.fetch_add(written, Ordering::Relaxed),
                    Err(error) => {
                        // What the system could not write it forgets; what comes next goes elsewhere.
                        self.segment = None;
                        result = Err(error);
                        self.health.lost.fetch_add(written, Ordering::Relaxed)
                    }
                };
            }
            match result {
                Err(error) => self.health.set(Some(format!("{}: {error}", self.directory.display()))),
                Ok(()) if written > 0 => self.health.set(None),
                Ok(()) => {}
            }
            for done in waiting {
                let _ = done.send(());
            }
        }
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        if let Some((target, entry)) = word(entry) {
            self.words.insert(target, entry.clone());
        }
        let usable = |segment: &Segment| segment.size < SEGMENT_BYTES && segment.in_place().unwrap_or(false);
        let mut lines = Vec::new();
        if !self.segment.as_ref().is_some_and(usable) {
            self.segment = None;
            self.segment = Some(Segment::create(
                self.directory.join(format!("{:010}.{SUFFIX}", self.next)),
            )?);
            self.next += 1;
        }
        let Some(segment) = &mut self.segment else {
            return Err(io::Error::other("no segment"));
        };
        let is_new = segment.size == 0;
        if is_new {
            for word in self.words.values().filter(|word| *word != entry) {
                lines.extend(to_line(word)?);
            }
        }
        lines.extend(to_line(entry)?);
        // On failure the segment stays: a full disk must not fill the directory with empty ones.
        segment.write(&lines)?;
        if is_new { self.drop_oldest() } else { Ok(()) }
    }

    /// Removes the oldest segments over the limit; not before the newest one holds something.
    fn drop_oldest(&self) -> io::Result<()> {
        let segments = segments(&self.directory)?;
        for (_, old) in segments.iter().take(segments.len().saturating_sub(SEGMENTS_MAX)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(target: &str) -> Entry {
        Entry::Control(ControlEntry {
            target: target.to_owned(),
            control: "paused".to_owned(),
            replicas: None,
            expires_unix_ms: Some(7),
            reason: "test".to_owned(),
        })
    }

    #[test]
    fn what_was_flushed_is_there_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, recovered) = Journal::open(directory.path()).unwrap();
        assert!(recovered.entries.is_empty());
        journal.append(control("a"));
        journal.append(control("b"));
        journal.flush();
        let (_, recovered) = Journal::open(directory.path()).unwrap();
        assert_eq!(recovered.entries, [control("a"), control("b")]);
        assert_eq!(recovered.torn, 0);
    }

    #[test]
    fn a_torn_or_damaged_line_harms_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path()).unwrap();
        for target in ["a", "b", "c"] {
            journal.append(control(target));
        }
        journal.flush();
        let (_, segment) = segments(directory.path()).unwrap().pop().unwrap();
        let mut bytes = fs::read(&segment).unwrap();
        let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 20;
        bytes[second] ^= 1;
        bytes.truncate(bytes.len() - 3);
        fs::write(&segment, bytes).unwrap();
        let (journal, recovered) = Journal::open(directory.path()).unwrap();
        assert_eq!(recovered.entries, [control("a")]);
        assert_eq!(recovered.torn, 2);
        journal.append(control("d"));
        journal.flush();
        let (_, recovered) = Journal::open(directory.path()).unwrap();
        assert_eq!(recovered.entries, [control("a"), control("d")]);
    }

    #[test]
    fn the_oldest_segments_go() {
        let directory = tempfile::tempdir().unwrap();
        let health = Arc::default();
        let directory_path = directory.path().to_owned();
        let mut writer = Writer {
            directory: directory_path,
            next: 1,
            segment: None,
            words: BTreeMap::new(),
            health,
        };
        writer.write(&control("first")).unwrap();
        for _ in 0..SEGMENTS_MAX + 2 {
            writer.segment = None;
            writer.write(&control("a")).unwrap();
        }
        let numbers: Vec<_> = segments(directory.path())
            .unwrap()
            .into_iter()
            .map(|(number, _)| number)
            .collect();
        assert_eq!(numbers, (4..=SEGMENTS_MAX as u64 + 3).collect::<Vec<_>>());
        // What a person has said is not gone with them.
        let (_, recovered) = Journal::open(directory.path()).unwrap();
        assert!(recovered.entries.contains(&control("first")));
    }

    #[test]
    fn starting_often_makes_no_segments() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..SEGMENTS_MAX + 3 {
            let (journal, _) = Journal::open(directory.path()).unwrap();
            journal.append(control("a"));
            journal.flush();
        }
        let (_, recovered) = Journal::open(directory.path()).unwrap();
        assert_eq!(recovered.entries.len(), SEGMENTS_MAX + 3);
        assert_eq!(segments(directory.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_directory_that_vanishes_degrades_health_and_stops_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (journal, _) = Journal::open(&path).unwrap();
        fs::remove_dir_all(&path).unwrap();
        journal.append(control("a"));
        journal.flush();
        assert!(journal.health().problem().is_some());
        assert_eq!(journal.health().lost.load(Ordering::Relaxed), 1);
        fs::create_dir_all(&path).unwrap();
        journal.append(control("b"));
        journal.flush();
        assert_eq!(journal.health().problem(), None);
        // Likewise when a segment is open in it.
        fs::remove_dir_all(&path).unwrap();
        journal.append(control("c"));
        journal.flush();
        assert!(journal.health().problem().is_some());
        assert_eq!(journal.health().lost.load(Ordering::Relaxed), 2);
    }
}
