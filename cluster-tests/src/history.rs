//! What writers sent, what they were answered and what a watcher was shown of it, and whether all that fits:
//! nothing lost, nothing applied twice, nothing out of order. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_proto::id::ViewIndex;

/// How many contradictions are kept: the first ones tell what went wrong.
const FAULTS_MAX: usize = 20;

/// The writes of all clients. Times count from any one moment.
#[derive(Debug, Default)]
pub struct History {
    clients: BTreeMap<String, Client>,
    faults: Vec<String>,
}

/// The writes of one client. Its sequence counts from 1.
#[derive(Debug, Default)]
struct Client {
    writes: Vec<Write>,
    /// How many of them the watcher has seen applied.
    shown: usize,
}

#[derive(Debug)]
struct Write {
    due: Duration,
    tries: u32,
    acknowledged: Option<(ViewIndex, Duration)>,
    shown: Option<Shown>,
}

/// Where a watcher saw a write.
#[derive(Clone, Copy, Debug)]
enum Shown {
    /// As a change of its own.
    At(ViewIndex),
    /// Within a snapshot of the view.
    By(ViewIndex),
}

/// What came of the writes that were acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How many they are.
    pub writes: usize,
    /// How many of them had to be sent more than once.
    pub repeated: usize,
    /// The longest time from when a write was due to its acknowledgement.
    pub wait_max: Duration,
    /// The longest time in which no write was acknowledged.
    pub silence_max: Duration,
}

// === impl History ===

impl History {
    /// A client has its next write to send; gives the sequence that names it.
    pub fn due(&mut self, client: &str, now: Duration) -> u64 {
        let writes = &mut self.clients.entry(client.to_owned()).or_default().writes;
        writes.push(Write { due: now, tries: 0, acknowledged: None, shown: None });
        sequence_at(writes.len() - 1)
    }

    /// A client sends its latest write, for the first time or again.
    pub fn sent(&mut self, client: &str) {
        let latest = self.clients.get_mut(client).and_then(|client| client.writes.last_mut());
        if let Some(write) = latest {
            write.tries += 1;
        }
    }

    /// A client learns that its latest write was applied at `index`.
    pub fn acknowledged(&mut self, client: &str, index: ViewIndex, now: Duration) {
        let latest = self.clients.get_mut(client).and_then(|client| client.writes.last_mut());
        if let Some(write) = latest {
            write.acknowledged = Some((index, now));
        }
    }

    /// A watcher sees that a client's write was applied at `index`. Of one client it must see each once, and
    /// in order.
    pub fn shown(&mut self, client: &str, sequence: u64, index: ViewIndex) {
        let known = self.clients.entry(client.to_owned()).or_default();
        let expected = sequence_at(known.shown);
        if sequence != expected {
            let fault = format!("{client} has {sequence} applied at {index}, {expected} was next");
            return self.fault(fault);
        }
        self.show(client, sequence, Shown::At(index));
    }

    /// A watcher sees by a snapshot, made at `index`, which of a client's writes was its latest.
    pub fn shown_latest(&mut self, client: &str, sequence: u64, index: ViewIndex) {
        let known = self.clients.entry(client.to_owned()).or_default();
        let seen = sequence_at(known.shown);
        if sequence + 1 < seen {
            let fault = format!("{client} is back at {sequence} at {index}, {seen} was next");
            return self.fault(fault);
        }
        self.show(client, sequence, Shown::By(index));
    }

    fn show(&mut self, client: &str, sequence: u64, shown: Shown) {
        let known = self.clients.entry(client.to_owned()).or_default();
        let end = usize::try_from(sequence).unwrap_or(usize::MAX);
        if end > known.writes.len() {
            let sent = known.writes.len();
            return self.fault(format!("{client} has {sequence} applied, but sent only {sent}"));
        }
        for write in &mut known.writes[known.shown.min(end)..end] {
            write.shown = Some(shown);
        }
        known.shown = known.shown.max(end);
    }

    fn fault(&mut self, fault: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        }
    }

    /// The highest index that a client was told.
    pub fn index_max(&self) -> ViewIndex {
        let indexes = self.acknowledgements().map(|(_write, index, _at)| index);
        indexes.max().unwrap_or_default()
    }

    /// When the first of the writes that were due after `moment` was acknowledged.
    pub fn first_after(&self, moment: Duration) -> Option<Duration> {
        let after = self.acknowledgements().filter(|(write, _index, _at)| write.due >= moment);
        after.map(|(_write, _index, at)| at).min()
    }

    /// The longest time without an acknowledgement from `moment` to the last one.
    pub fn silence_max_since(&self, moment: Duration) -> Duration {
        let later = self.acknowledgements().map(|(_write, _index, at)| at);
        let mut times: Vec<Duration> = later.filter(|at| *at > moment).collect();
        times.push(moment);
        times.sort_unstable();
        let silences = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        silences.max().unwrap_or_default()
    }

    /// Where each acknowledged write was applied, and when its client learnt of it.
    pub fn applied(&self) -> impl Iterator<Item = (ViewIndex, Duration)> {
        self.acknowledgements().map(|(_write, index, at)| (index, at))
    }

    /// How long each acknowledged write took from when it was due.
    pub fn waits(&self) -> impl Iterator<Item = Duration> {
        self.acknowledgements().map(|(write, _index, at)| at.saturating_sub(write.due))
    }

    /// Checks that every acknowledged write was applied once, in its client's order and where the client was
    /// told. A write without an answer may have been applied or not.
    ///
    /// # Errors
    /// The contradictions found.
    pub fn check(&self) -> Result<Summary> {
        let mut faults = self.faults.clone();
        for (name, client) in &self.clients {
            for (at, write) in client.writes.iter().enumerate() {
                let Some((told, _at)) = write.acknowledged else { continue };
                let sequence = sequence_at(at);
                match write.shown {
                    None => faults.push(format!("{name} lost {sequence}, told to be at {told}")),
                    Some(Shown::At(index)) if index != told => {
                        faults.push(format!("{name} has {sequence} at {index}, told {told}"));
                    }
                    Some(Shown::By(index)) if index < told => {
                        faults.push(format!("{name} has {sequence} by {index}, told {told}"));
                    }
                    Some(Shown::At(_) | Shown::By(_)) => {}
                }
            }
        }
        faults.truncate(FAULTS_MAX);
        ensure!(faults.is_empty(), "the history does not fit:\n{}", faults.join("\n"));
        Ok(self.summary())
    }

    fn summary(&self) -> Summary {
        let first = self.applied().map(|(_index, at)| at).min().unwrap_or_default();
        Summary {
            writes: self.acknowledgements().count(),
            repeated: self.acknowledgements().filter(|(write, ..)| write.tries > 1).count(),
            wait_max: self.waits().max().unwrap_or_default(),
            silence_max: self.silence_max_since(first),
        }
    }

    fn acknowledgements(&self) -> impl Iterator<Item = (&Write, ViewIndex, Duration)> {
        let writes = self.clients.values().flat_map(|client| &client.writes);
        writes.filter_map(|write| {
            let (index, at) = write.acknowledged?;
            Some((write, index, at))
        })
    }
}

// === impl Summary ===

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writes, repeated, wait_max, silence_max } = self;
        write!(
            f,
            "{writes} writes, {repeated} of them repeated; the longest wait was {wait_max:.0?}, "
        )?;
        write!(f, "the longest time without an acknowledgement {silence_max:.0?}")
    }
}

fn sequence_at(place: usize) -> u64 {
    u64::try_from(place).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Two writes of one client, told to be applied at 5 and 6.
    fn two_writes() -> History {
        let mut history = History::default();
        for (sequence, index) in [(1, 5), (2, 6)] {
            assert_eq!(history.due("a", MS * sequence), u64::from(sequence));
            history.sent("a");
            history.acknowledged("a", ViewIndex(index), MS * (sequence * 10));
        }
        history
    }

    #[track_caller]
    fn check(shown: &[(u64, u64)], expected: Option<&str>) {
        let mut history = two_writes();
        for (sequence, index) in shown {
            history.shown("a", *sequence, ViewIndex(*index));
        }
        let found = history.check().err().map(|error| error.to_string());
        let expected = expected.map(|fault| format!("the history does not fit:\n{fault}"));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_write_that_is_lost_repeated_or_moved_is_found() {
        check(&[(1, 5), (2, 6)], None);
        check(&[(1, 5)], Some("a lost 2, told to be at 6"));
        check(&[(1, 5), (2, 6), (1, 7)], Some("a has 1 applied at 7, 3 was next"));
        check(&[(1, 5), (2, 6), (2, 7)], Some("a has 2 applied at 7, 3 was next"));
        check(&[(1, 5), (2, 8)], Some("a has 2 at 8, told 6"));
        check(&[(1, 5), (2, 6), (3, 7)], Some("a has 3 applied, but sent only 2"));
    }

    #[test]
    fn a_snapshot_shows_all_that_led_to_it_and_never_goes_back() {
        let mut history = two_writes();
        history.shown_latest("a", 2, ViewIndex(9));
        assert!(history.check().is_ok());
        history.shown_latest("a", 1, ViewIndex(10));
        let fault = history.check().unwrap_err().to_string();
        assert_eq!(fault, "the history does not fit:\na is back at 1 at 10, 3 was next");

        let mut early = two_writes();
        early.shown_latest("a", 2, ViewIndex(5));
        let fault = early.check().unwrap_err().to_string();
        assert_eq!(fault, "the history does not fit:\na has 2 by 5, told 6");
    }

    #[test]
    fn a_write_without_an_answer_may_have_been_applied_or_not() {
        let mut history = two_writes();
        assert_eq!(history.due("a", MS * 30), 3);
        history.sent("a");
        history.sent("a");
        history.shown("a", 1, ViewIndex(5));
        history.shown("a", 2, ViewIndex(6));
        let (wait_max, silence_max) = (MS * 18, MS * 10);
        let before = Summary { writes: 2, repeated: 0, wait_max, silence_max };
        assert_eq!(history.check().unwrap(), before);
        history.shown("a", 3, ViewIndex(7));
        assert_eq!(history.check().unwrap(), before);

        history.acknowledged("a", ViewIndex(7), MS * 33);
        let after = Summary { writes: 3, repeated: 1, wait_max, silence_max: MS * 13 };
        assert_eq!(history.check().unwrap(), after);
        assert_eq!(
            (history.first_after(MS * 3), history.index_max()),
            (Some(MS * 33), ViewIndex(7))
        );
    }
}
