//! What the prefix cache holds, told to routers in the chunks that they know prompts by ([`phalanx_proto::prefix`]).
//!
//! ```text
//! an engine's cache ── tied, untied ──► ChunkFeed: what is held, and a log of what changed ──► one cursor a router
//! ```
//! A chunk is held while some block that holds its end is. Pure but for a lock: the engine's thread writes, and
//! followers read when they have time. One that was away for longer than the log reaches gets a snapshot.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use phalanx_proto::pb;
use phalanx_proto::prefix::ChunkHash;

/// Changes kept for followers that read a while later: more than an engine makes in a second, and 1 MiB.
const LOG_MAX: usize = 64 << 10;
/// Most chunks told in one message: half a MiB, so that reports of the load are not held up by more.
const MESSAGE_CHUNKS_MAX: usize = 64 << 10;

/// A chunk got a block that holds its end, or lost one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkChange {
    /// A block holds its end.
    Tied(ChunkHash),
    /// The block does not any more.
    Untied(ChunkHash),
}

/// What a follower has to know to be up to date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkNews {
    /// How many changes the follower knew of.
    pub since: u64,
    /// How many it knows of now.
    pub until: u64,
    /// Whether `stored` is all there is.
    pub is_snapshot: bool,
    /// Chunks that are not held any more.
    pub evicted: Vec<ChunkHash>,
    /// Chunks that are held now.
    pub stored: Vec<ChunkHash>,
}

/// What one engine's prefix cache holds.
#[derive(Debug, Default)]
pub struct ChunkFeed(Mutex<Ledger>);

#[derive(Debug, Default)]
struct Ledger {
    /// By how many blocks.
    held: HashMap<ChunkHash, u32>,
    /// The newest changes; true: stored.
    log: VecDeque<(ChunkHash, bool)>,
    /// All changes there ever were.
    changes: u64,
}

// === impl ChunkFeed ===

impl ChunkFeed {
    /// Takes what happened in the pool, in order.
    pub fn apply(&self, changes: impl IntoIterator<Item = ChunkChange>) {
        let mut ledger = self.0.lock();
        for change in changes {
            ledger.apply(change);
        }
    }

    /// What a follower must be told that knows `known` changes; one that knows nothing yet gets a snapshot.
    pub fn news(&self, known: Option<u64>) -> ChunkNews {
        self.0.lock().news(known)
    }
}

// === impl ChunkNews ===

impl ChunkNews {
    /// What says it on the wire: nothing when there are none or nothing was ever stored, and more than one message when there
    /// are many.
    pub fn messages(&self) -> Vec<pb::PrefixChanges> {
        if self.since == self.until && (!self.is_snapshot || self.until == 0) {
            return Vec::new();
        }
        let hashes = |chunks: &[ChunkHash]| chunks.iter().map(|chunk| chunk.0).collect();
        let mut parts = self.stored.chunks(MESSAGE_CHUNKS_MAX);
        let mut messages = vec![pb::PrefixChanges {
            since: self.since,
            until: self.until,
            snapshot: self.is_snapshot,
            evicted: hashes(&self.evicted),
            stored: parts.next().map_or_else(Vec::new, hashes),
        }];
        let (since, until) = (self.until, self.until);
        messages.extend(parts.map(|part| pb::PrefixChanges {
            since,
            until,
            stored: hashes(part),
            ..pb::PrefixChanges::default()
        }));
        messages
    }
}

// === impl Ledger ===

impl Ledger {
    fn apply(&mut self, change: ChunkChange) {
        match change {
            ChunkChange::Tied(hash) => {
                let blocks = self.held.entry(hash).or_insert(0);
                *blocks += 1;
                if *blocks == 1 {
                    self.note(hash, true);
                }
            }
            ChunkChange::Untied(hash) => {
                let Some(blocks) = self.held.get_mut(&hash) else { return };
                *blocks -= 1;
                if *blocks == 0 {
                    self.held.remove(&hash);
                    self.note(hash, false);
                }
            }
        }
    }

    fn note(&mut self, hash: ChunkHash, is_stored: bool) {
        if self.log.len() == LOG_MAX {
            self.log.pop_front();
        }
        self.log.push_back((hash, is_stored));
        self.changes += 1;
    }

    fn news(&self, known: Option<u64>) -> ChunkNews {
        let until = self.changes;
        let missed = known.and_then(|known| usize::try_from(until.checked_sub(known)?).ok());
        let Some(missed) = missed.filter(|missed| *missed <= self.log.len()) else {
            let stored = self.held.keys().copied().collect();
            return ChunkNews {
                since: until,
                until,
                is_snapshot: true,
                evicted: Vec::new(),
                stored,
            };
        };
        // Of a chunk that came and went, only the end counts.
        let newest: HashMap<ChunkHash, bool> =
            self.log.range(self.log.len() - missed..).copied().collect();
        let (stored, evicted): (Vec<_>, Vec<_>) =
            newest.into_iter().partition(|(_, is_stored)| *is_stored);
        let hashes = |changes: Vec<(ChunkHash, bool)>| changes.into_iter().map(|it| it.0).collect();
        ChunkNews {
            since: until - missed as u64,
            until,
            is_snapshot: false,
            evicted: hashes(evicted),
            stored: hashes(stored),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Does what a router does.
    fn follow(known: &mut BTreeSet<ChunkHash>, news: &ChunkNews) {
        if news.is_snapshot {
            known.clear();
        }
        for hash in &news.evicted {
            known.remove(hash);
        }
        known.extend(&news.stored);
    }

    fn held(feed: &ChunkFeed) -> BTreeSet<ChunkHash> {
        feed.0.lock().held.keys().copied().collect()
    }

    #[test]
    fn a_follower_that_was_away_for_too_long_gets_a_snapshot() {
        let feed = ChunkFeed::default();
        feed.apply([ChunkChange::Tied(ChunkHash(1))]);
        let first = feed.news(None);
        assert_eq!((first.is_snapshot, first.until), (true, 1));
        for change in 0..LOG_MAX as u64 {
            feed.apply([ChunkChange::Tied(ChunkHash(10 + change))]);
        }
        assert!(!feed.news(Some(1)).is_snapshot);
        feed.apply([ChunkChange::Untied(ChunkHash(1))]);
        let news = feed.news(Some(1));
        assert!(news.is_snapshot);
        assert_eq!(news.stored.len(), LOG_MAX);
        assert_eq!(feed.0.lock().log.len(), LOG_MAX);
    }

    #[test]
    fn a_chunk_is_held_while_any_block_holds_its_end() {
        let feed = ChunkFeed::default();
        let chunk = ChunkHash(7);
        feed.apply([
            ChunkChange::Tied(chunk),
            ChunkChange::Tied(chunk),
            ChunkChange::Untied(chunk),
        ]);
        assert_eq!(feed.news(None).stored, [chunk]);
        feed.apply([ChunkChange::Untied(chunk)]);
        assert_eq!(feed.news(None).stored, []);
        assert_eq!(feed.news(Some(1)).evicted, [chunk]);
    }

    #[test]
    fn a_large_snapshot_is_told_in_parts_that_follow_each_other() {
        let stored: Vec<_> = (0..2 * MESSAGE_CHUNKS_MAX as u64 + 1).map(ChunkHash).collect();
        let news = ChunkNews { since: 9, until: 9, is_snapshot: true, evicted: Vec::new(), stored };
        let parts = news.messages();
        let shapes: Vec<_> =
            parts.iter().map(|it| (it.since, it.until, it.snapshot, it.stored.len())).collect();
        let most = MESSAGE_CHUNKS_MAX;
        assert_eq!(shapes, [(9, 9, true, most), (9, 9, false, most), (9, 9, false, 1)]);
        assert!(ChunkNews { is_snapshot: false, stored: Vec::new(), ..news }.messages().is_empty());
    }

    proptest! {
        #[test]
        fn followers_know_what_is_held_however_seldom_they_read(
            changes in prop::collection::vec((any::<bool>(), 0u64..20, any::<bool>()), 1..300)
        ) {
            let feed = ChunkFeed::default();
            let (mut known, mut cursor) = (BTreeSet::new(), None);
            for (ties, chunk, reads) in changes {
                let chunk = ChunkHash(chunk);
                feed.apply([if ties { ChunkChange::Tied(chunk) } else { ChunkChange::Untied(chunk) }]);
                if reads {
                    let news = feed.news(cursor);
                    prop_assert!(news.is_snapshot == cursor.is_none());
                    follow(&mut known, &news);
                    cursor = Some(news.until);
                    prop_assert_eq!(&known, &held(&feed));
                }
            }
        }
    }
}
