//! What is known of one engine's cache: what it says, and what it was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use phalanx_proto::pb;
use phalanx_proto::prefix::ChunkHash;

use super::mirror::{BELIEVED_FOR, Mirror, SPOKEN_FOR_WITHIN};
use super::{Depths, EngineSlot, PrefixIndex};

/// One engine's places in the index; its entries go with it.
#[derive(Debug)]
pub(crate) struct Holding {
    /// What the engine says itself, if it is of a kind that does.
    reported: Option<EngineSlot>,
    /// How many changes it reported.
    changes: AtomicU64,
    /// How many chunks it holds, as it reported.
    chunks: AtomicU64,
    /// What it was sent: all that is known of one that says nothing, and of one that does, what it had no time to
    /// say. Requests with one prefix that come together would else be strangers to each other.
    mirror: Mirror,
}

// === impl Holding ===

impl Holding {
    /// Of an engine that reports what it stores and evicts.
    pub(crate) fn reported(index: &Arc<PrefixIndex>) -> Self {
        let mirror = Mirror::new(index, None, SPOKEN_FOR_WITHIN);
        Self {
            reported: Some(index.slot()),
            changes: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
            mirror,
        }
    }

    /// Of an engine that says nothing, nor how large its cache is.
    pub(crate) fn guessed(index: &Arc<PrefixIndex>) -> Self {
        let mirror = Mirror::new(index, None, BELIEVED_FOR);
        Self { reported: None, changes: AtomicU64::new(0), chunks: AtomicU64::new(0), mirror }
    }

    /// Takes what the engine reports. Reports of one engine come one after another.
    ///
    /// # Errors
    /// Changes were lost: the number of the last one known, and of the first that came.
    pub(crate) fn follow(&self, changes: &pb::PrefixChanges) -> Result<(), (u64, u64)> {
        let Some(slot) = &self.reported else { return Ok(()) };
        let known = self.changes.load(Ordering::Relaxed);
        if changes.snapshot {
            slot.clear();
            self.chunks.store(0, Ordering::Relaxed);
        } else if changes.since != known {
            return Err((known, changes.since));
        }
        let hashes = |hashes: &[u64]| hashes.iter().copied().map(ChunkHash).collect::<Vec<_>>();
        slot.evicted(hashes(&changes.evicted));
        slot.stored(hashes(&changes.stored));
        self.changes.store(changes.until, Ordering::Relaxed);
        let (stored, evicted) = (changes.stored.len() as u64, changes.evicted.len() as u64);
        let chunks = self.chunks.load(Ordering::Relaxed).saturating_add(stored);
        self.chunks.store(chunks.saturating_sub(evicted), Ordering::Relaxed);
        Ok(())
    }

    /// How many chunks the engine says it holds; none of one that says nothing.
    pub(crate) fn chunks_reported(&self) -> Option<u64> {
        self.reported.is_some().then(|| self.chunks.load(Ordering::Relaxed))
    }

    /// How many leading chunks of the prompt of `depths` it holds, and how far that is to be believed.
    pub(crate) fn depth(&self, depths: &Depths) -> (u16, f64) {
        let reported = self.reported.as_ref().map_or(0, |slot| depths.of(slot));
        (reported.max(depths.of(self.mirror.slot())), self.mirror.confidence())
    }

    /// A prompt of these chunks was sent there.
    pub(crate) fn sent<I>(&self, prompt: I, now: Instant)
    where
        I: DoubleEndedIterator<Item = ChunkHash> + ExactSizeIterator + Clone,
    {
        self.mirror.sent(prompt, now);
    }

    /// It found `found` tokens of a prompt in its cache, where `promised` were predicted.
    pub(crate) fn settle(&self, promised: u64, found: u64) {
        self.mirror.settle(promised, found);
    }

    /// Forgets what nobody used for too long.
    pub(crate) fn forget_old(&self, now: Instant) {
        self.mirror.forget_old(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(since: u64, until: u64, snapshot: bool, stored: &[u64]) -> pb::PrefixChanges {
        let (evicted, stored) = (Vec::new(), stored.to_vec());
        pb::PrefixChanges { since, until, snapshot, evicted, stored }
    }

    #[test]
    fn reports_are_followed_in_order_and_a_gap_is_told() {
        let index = Arc::<PrefixIndex>::default();
        let holding = Holding::reported(&index);
        let depth = || {
            let prompt = [1, 2, 3].map(ChunkHash);
            holding.depth(&index.lookup(prompt.into_iter())).0
        };
        holding.follow(&told(7, 7, true, &[1])).unwrap();
        // The snapshot's second part, and then a change.
        holding.follow(&told(7, 7, false, &[2])).unwrap();
        assert_eq!(depth(), 2);
        holding.follow(&told(7, 8, false, &[3])).unwrap();
        assert_eq!(depth(), 3);
        let evicted = pb::PrefixChanges { evicted: vec![2], ..told(8, 9, false, &[]) };
        holding.follow(&evicted).unwrap();
        assert_eq!(depth(), 1);
        assert_eq!(holding.follow(&told(10, 11, false, &[2])), Err((9, 10)));
        holding.follow(&told(11, 11, true, &[1, 2])).unwrap();
        assert_eq!((depth(), holding.chunks_reported()), (2, Some(2)));
    }

    #[test]
    fn what_was_just_sent_counts_until_the_engine_had_time_to_say_so() {
        let index = Arc::<PrefixIndex>::default();
        let holding = Holding::reported(&index);
        let prompt = [1, 2].map(ChunkHash);
        let depth = || holding.depth(&index.lookup(prompt.into_iter())).0;
        let now = Instant::now();
        holding.sent(prompt.into_iter(), now);
        assert_eq!(depth(), 2);
        holding.follow(&told(0, 0, true, &[1])).unwrap();
        holding.forget_old(now + SPOKEN_FOR_WITHIN);
        assert_eq!(depth(), 1);
    }
}
