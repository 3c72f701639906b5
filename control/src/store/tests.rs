//! A process that writes the log and is killed at any moment, again and again: what it was told is on disk, is
//! on disk, and what it was not told is there whole or not at all, in order.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use phalanx_proto::change::Change;
use phalanx_proto::id::NodeId;
use phalanx_proto::view::Model;
use tokio::sync::Semaphore;

use super::record::{EntryContent, EntryRecord, LogPosition, VoteRecord};
use super::{LogStore as _, LogWrite, RedbStore, StoredLog, writer};
use crate::command::Command as Entry;

const KILLS: u64 = 200;

/// Writes that are under way at once, as a leader has several.
const UNDER_WAY_MAX: u64 = 8;

/// Above this many entries the script drops those that are committed, so that 200 lives stay quick.
const ENTRIES_MAX: usize = 100;

/// Tells the writing process its folder and the seed of its script.
const FOLDER: &str = "PHALANX_TEST_KILLED_WRITER_FOLDER";
const SEED: &str = "PHALANX_TEST_KILLED_WRITER_SEED";

/// Goes before the number of a write that is on disk.
const TOLD: &str = "told: ";

/// SIGKILL.
const KILLED: Option<i32> = Some(9);

/// Numbers that only depend on the seed (SplitMix64).
struct Numbers(u64);

/// What a node may write next: a function of the seed and of the log it starts with.
struct Script {
    numbers: Numbers,
    log: StoredLog,
}

// === impl Numbers ===

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to and including `last`.
    fn up_to(&mut self, last: u64) -> u64 {
        self.next() % (last + 1)
    }
}

// === impl Script ===

impl Script {
    fn new(seed: u64, log: StoredLog) -> Self {
        Self { numbers: Numbers(seed), log }
    }

    /// Keeps to a log's rules: what is committed is never truncated, and only that is ever purged.
    fn draw(&mut self) -> LogWrite {
        let last = end(&self.log);
        let committed = self.log.committed.map_or(0, |at| at.index);
        let purged = self.log.purged.map_or(0, |at| at.index);
        let kind = self.numbers.up_to(9);
        if self.log.entries.len() > ENTRIES_MAX && committed > purged {
            return LogWrite::Purge(self.at(committed));
        }
        match kind {
            0 => {
                let term = self.term() + 1;
                LogWrite::Vote(VoteRecord {
                    term,
                    node: 1 + self.numbers.up_to(2),
                    committed: false,
                })
            }
            1 if last > committed => {
                LogWrite::TruncateAfter(Some(committed + self.numbers.up_to(last - committed - 1)))
            }
            2 if committed > purged => {
                let index = purged + 1 + self.numbers.up_to(committed - purged - 1);
                LogWrite::Purge(self.at(index))
            }
            3..=5 if last > committed => {
                let index = committed + 1 + self.numbers.up_to(last - committed - 1);
                LogWrite::Committed(Some(self.at(index)))
            }
            _ => self.append(last),
        }
    }

    fn append(&mut self, last: u64) -> LogWrite {
        let term = self.term();
        let entries = (0..=self.numbers.up_to(3)).map(|place| {
            let bytes = usize::try_from(self.numbers.up_to(200)).unwrap();
            let model = Model { name: "m".into(), revision: "r".repeat(bytes).as_str().into() };
            let content = EntryContent::Command(Entry::Internal(Change::PutModel(model)));
            EntryRecord { at: LogPosition { term, index: last + 1 + place }, content }
        });
        LogWrite::Append(entries.collect())
    }

    fn term(&self) -> u64 {
        self.log.vote.map_or(1, |vote| vote.term)
    }

    fn at(&self, index: u64) -> LogPosition {
        let entry = self.log.entries.iter().find(|entry| entry.at.index == index);
        entry.expect("the script names entries that are there").at
    }
}

impl Iterator for Script {
    type Item = LogWrite;

    fn next(&mut self) -> Option<LogWrite> {
        let write = self.draw();
        apply(&mut self.log, &write);
        Some(write)
    }
}

/// The last index that was ever reached, purged entries included.
fn end(log: &StoredLog) -> u64 {
    log.entries.last().map(|entry| entry.at).or(log.purged).map_or(0, |at| at.index)
}

/// What a write does to a log, said without a disk.
fn apply(log: &mut StoredLog, write: &LogWrite) {
    match write {
        LogWrite::Vote(vote) => log.vote = Some(*vote),
        LogWrite::Committed(at) => log.committed = *at,
        LogWrite::Append(entries) => log.entries.extend(entries.iter().cloned()),
        LogWrite::TruncateAfter(last) => {
            log.entries.retain(|entry| last.is_some_and(|last| entry.at.index <= last));
        }
        LogWrite::Purge(at) => {
            log.entries.retain(|entry| entry.at.index > at.index);
            log.purged = Some(*at);
        }
    }
}

/// The child: writes what its script says until it is killed, and says which write it was told of. Without a
/// folder it is not a child, and has nothing to do.
#[test]
fn writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let mut store = RedbStore::open(Path::new(&folder), NodeId(1)).unwrap();
    let script = Script::new(seed, store.load().unwrap());
    let (queue, _thread) = writer::start(store).unwrap();
    let permits = Arc::new(Semaphore::new(usize::try_from(UNDER_WAY_MAX).unwrap()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut number = 0;
        for write in script {
            if matches!(write, LogWrite::Committed(_)) {
                queue.write_lazily(write).await.unwrap();
                continue;
            }
            let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
            number += 1;
            let done = move |written: std::io::Result<()>| {
                written.unwrap();
                writeln!(std::io::stdout().lock(), "{TOLD}{number}").unwrap();
                drop(permit);
            };
            queue.write(write, Box::new(done)).await.unwrap();
        }
    });
}

/// Lets a child write, kills it at a moment drawn from `numbers`, and gives how many writes it was told of.
fn live_and_die(folder: &Path, seed: u64, numbers: &mut Numbers) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::writes_until_it_is_killed", "--nocapture"])
        .env(FOLDER, folder)
        .env(SEED, seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut told = 0;
    // Some die before they were told of anything: while they open the store, or recover it.
    let until = numbers.up_to(24).saturating_sub(4);
    while told < until {
        let line = lines.next().expect("the child lives until it is killed");
        told = number_in(&line).unwrap_or(told);
    }
    std::thread::sleep(Duration::from_micros(numbers.up_to(if until == 0 {
        30_000
    } else {
        3000
    })));
    child.kill().unwrap();
    for line in lines {
        told = number_in(&line).unwrap_or(told);
    }
    assert_eq!(child.wait().unwrap().signal(), KILLED);
    told
}

fn number_in(line: &str) -> Option<u64> {
    line.split_once(TOLD)?.1.parse().ok()
}

/// What a killed child left, read from a copy: the next child has to recover the original.
fn left_in(folder: &Path) -> StoredLog {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    RedbStore::open(copy.path(), NodeId(1)).unwrap().load().unwrap()
}

/// Checks that `found` is what `before` becomes by the first of the script's writes, all those told of among
/// them.
#[track_caller]
fn check(seed: u64, before: StoredLog, told: u64, found: &StoredLog) {
    let mut script = Script::new(seed, before.clone()).peekable();
    // A commit position goes along with the write before it or the one after, so there may be several.
    let mut positions = vec![before.committed];
    let mut log = before;
    for done in 0..=told + UNDER_WAY_MAX {
        while let Some(LogWrite::Committed(position)) =
            script.next_if(|write| matches!(write, LogWrite::Committed(_)))
        {
            if done < told {
                positions.clear();
            }
            positions.push(position);
        }
        log.committed = found.committed;
        if done >= told && log == *found && positions.contains(&found.committed) {
            return;
        }
        apply(&mut log, &script.next().expect("a script has no end"));
    }
    panic!("life {seed} was told of {told} writes, but left {found:?}, committed: {positions:?}");
}

#[test]
fn nothing_told_to_be_on_disk_is_lost_in_200_kills() {
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = Numbers(7);
    let (mut log, mut told_in_all) = (StoredLog::default(), 0);
    for life in 0..KILLS {
        let told = live_and_die(folder.path(), life, &mut numbers);
        let found = left_in(folder.path());
        check(life, log, told, &found);
        told_in_all += told;
        log = found;
    }
    assert!(told_in_all > KILLS, "only {told_in_all} writes were told of in {KILLS} lives");
}
