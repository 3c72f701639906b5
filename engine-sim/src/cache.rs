//! The prefix cache: chunks, least recently used out first.

use std::collections::{BTreeMap, HashMap};

use phalanx_chassis::chunk_feed::ChunkChange;
use phalanx_proto::prefix::ChunkHash;

use crate::prompt::CHUNK_TOKENS;

/// Chunks that were computed before.
#[derive(Debug)]
pub struct PrefixCache {
    chunks_max: usize,
    /// When each chunk was used last.
    used: HashMap<ChunkHash, u64>,
    /// The same the other way round: the first is the next to go.
    by_use: BTreeMap<u64, ChunkHash>,
    clock: u64,
    /// What came and went since this was asked last.
    changes: Vec<ChunkChange>,
}

// === impl PrefixCache ===

impl PrefixCache {
    /// A cache of at most `tokens`.
    pub fn new(tokens: u64) -> Self {
        let chunks_max = usize::try_from(tokens / u64::from(CHUNK_TOKENS)).unwrap_or(usize::MAX);
        Self {
            chunks_max,
            used: HashMap::new(),
            by_use: BTreeMap::new(),
            clock: 0,
            changes: Vec::new(),
        }
    }

    /// How many leading chunks of a prompt are there; they count as used now.
    pub fn find(&mut self, prompt: &[ChunkHash]) -> usize {
        let found = prompt.iter().take_while(|chunk| self.used.contains_key(chunk)).count();
        self.touch(&prompt[..found]);
        found
    }

    /// Keeps a prompt's chunks, as many as there is room for.
    pub fn keep(&mut self, prompt: &[ChunkHash]) {
        // Without its beginning a chunk is of no use: the beginning is what is kept.
        self.touch(&prompt[..prompt.len().min(self.chunks_max)]);
        while self.used.len() > self.chunks_max {
            let Some((_, chunk)) = self.by_use.pop_first() else { return };
            self.used.remove(&chunk);
            self.changes.push(ChunkChange::Untied(chunk));
        }
    }

    /// What came and went since this was asked last, in order.
    pub fn take_changes(&mut self) -> Vec<ChunkChange> {
        std::mem::take(&mut self.changes)
    }

    /// Tokens held.
    pub fn tokens(&self) -> u64 {
        self.used.len() as u64 * u64::from(CHUNK_TOKENS)
    }

    /// The deepest chunk is the oldest of a prompt: prefixes lose their ends first.
    fn touch(&mut self, prompt: &[ChunkHash]) {
        for &chunk in prompt.iter().rev() {
            self.clock += 1;
            match self.used.insert(chunk, self.clock) {
                Some(before) => {
                    self.by_use.remove(&before);
                }
                None => self.changes.push(ChunkChange::Tied(chunk)),
            }
            self.by_use.insert(self.clock, chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks<const N: usize>(hashes: [u64; N]) -> [ChunkHash; N] {
        hashes.map(ChunkHash)
    }

    #[test]
    fn the_least_recently_used_end_goes_first() {
        let mut cache = PrefixCache::new(4 * u64::from(CHUNK_TOKENS));
        cache.keep(&chunks([1, 2, 3]));
        cache.keep(&chunks([10]));
        assert_eq!(cache.find(&chunks([1, 2, 3])), 3);
        cache.keep(&chunks([20])); // in place of 10
        assert_eq!(cache.find(&chunks([10])), 0);
        cache.take_changes();
        cache.keep(&chunks([30])); // in place of 3, the end of the prefix
        let changes = cache.take_changes();
        assert_eq!(changes, [ChunkChange::Tied(ChunkHash(30)), ChunkChange::Untied(ChunkHash(3))]);
        assert_eq!(cache.find(&chunks([1, 2, 3])), 2);
        assert_eq!(cache.tokens(), 4 * u64::from(CHUNK_TOKENS));
    }

    #[test]
    fn a_prompt_larger_than_the_cache_keeps_its_beginning() {
        let mut cache = PrefixCache::new(2 * u64::from(CHUNK_TOKENS));
        cache.keep(&chunks([1, 2, 3, 4]));
        assert_eq!(cache.find(&chunks([1, 2, 3, 4])), 2);
    }

    #[test]
    fn a_cache_of_nothing_keeps_nothing() {
        let mut cache = PrefixCache::new(0);
        cache.keep(&chunks([1]));
        assert_eq!(cache.find(&chunks([1])), 0);
    }
}
