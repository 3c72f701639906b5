//! Which engine holds how much of a prompt, by the chained hashes of its chunks ([`phalanx_proto::prefix`]).
//!
//! ```text
//! native worker ── stored, evicted ──► EngineSlot ─┐
//! this router, at dispatch ─► Mirror ─► EngineSlot ┴─► table: chunk -> engines ─► lookup -> Depths
//! ```
//! An engine has a slot per source of knowledge: what it says itself is certain, and what this router makes of the
//! requests it sent there ([`mirror`]) is not. Tables are sharded by hash and bounded in bytes; what was not used
//! for longest is forgotten, and costs a prefill. No clock, no I/O.

pub(crate) mod holding;
pub(crate) mod mirror;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::Mutex;
use phalanx_proto::prefix::ChunkHash;

use self::table::Shard;

/// What the whole index takes at most, in bytes: nearly a million chunks, which is more than 100 million tokens
/// of KV cache, and leaves a router at 10,000 requests a second below 100 MiB.
pub(crate) const INDEX_BYTES_MAX: usize = 64 << 20;
/// Half of that is for the tables, half for what mirrors keep to know which chunk an engine forgets next.
const MIRROR_BYTES_MAX: usize = INDEX_BYTES_MAX / 2;
/// Threads that look up at once seldom meet: there are fewer cores than this.
const SHARDS: usize = 64;
/// Most slots that are given out: engines of any real fleet, twice. Engines beyond it have no entries.
const SLOTS_MAX: u32 = 1 << 16;

/// The index. Shared by all requests of a router.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    shards: Box<[Mutex<Shard>]>,
    slots: Mutex<Slots>,
    /// One more than the largest slot ever given out.
    slots_used: AtomicU32,
    /// What all mirrors take.
    mirror_bytes: AtomicUsize,
}

/// Which slots may be given out.
#[derive(Debug, Default)]
struct Slots {
    free: Vec<u16>,
    /// Given back, their entries not swept yet.
    retired: Vec<u16>,
}

/// One engine's place in the index. Its entries go with it.
#[derive(Debug)]
pub(crate) struct EngineSlot {
    index: Arc<PrefixIndex>,
    /// `SLOTS_MAX`: there was none left.
    slot: AtomicU32,
}

/// How many leading chunks of a prompt each slot holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Depths {
    by_slot: Vec<u16>,
}

// === impl PrefixIndex ===

impl Default for PrefixIndex {
    fn default() -> Self {
        let shard = |_| Mutex::new(Shard::new((INDEX_BYTES_MAX - MIRROR_BYTES_MAX) / SHARDS));
        Self {
            shards: (0..SHARDS).map(shard).collect(),
            slots: Mutex::default(),
            slots_used: AtomicU32::new(0),
            mirror_bytes: AtomicUsize::new(0),
        }
    }
}

impl PrefixIndex {
    /// A place for one more engine.
    pub(crate) fn slot(self: &Arc<Self>) -> EngineSlot {
        EngineSlot { index: Arc::clone(self), slot: AtomicU32::new(self.take_slot()) }
    }

    /// How many leading chunks of a prompt are where.
    pub(crate) fn lookup(&self, prompt: impl ExactSizeIterator<Item = ChunkHash>) -> Depths {
        let slots = self.slots_used.load(Ordering::Relaxed) as usize;
        let mut by_slot = vec![0; slots];
        let mut holding = vec![u64::MAX; slots.div_ceil(64)];
        let mut still = vec![0; holding.len()];
        let chunks = u16::try_from(prompt.len()).unwrap_or(u16::MAX);
        for (depth, hash) in (0..chunks).zip(prompt) {
            still.fill(0);
            self.shard(hash).lock().intersect(hash, &holding, &mut still);
            // At the first chunk those that hold nothing leave, and nothing is what they have already.
            if depth > 0 {
                let ended = holding.iter().zip(&still).map(|(before, now)| before & !now);
                note(&mut by_slot, ended, depth);
            }
            std::mem::swap(&mut holding, &mut still);
            if holding.iter().all(|word| *word == 0) {
                return Depths { by_slot };
            }
        }
        if chunks > 0 {
            note(&mut by_slot, holding.into_iter(), chunks);
        }
        Depths { by_slot }
    }

    /// What everything takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let tables: usize = self.shards.iter().map(|shard| shard.lock().bytes()).sum();
        tables + self.mirror_bytes.load(Ordering::Relaxed)
    }

    fn shard(&self, hash: ChunkHash) -> &Mutex<Shard> {
        // Other bits than those that the tables go by.
        &self.shards[usize::from((hash.0 >> 24).to_le_bytes()[0]) % SHARDS]
    }

    fn take_slot(&self) -> u32 {
        let mut slots = self.slots.lock();
        let used = self.slots_used.load(Ordering::Relaxed);
        // A sweep walks all tables: it waits until it frees a good part of the slots.
        if slots.free.is_empty() && slots.retired.len() * 4 > used as usize {
            let retired = std::mem::take(&mut slots.retired);
            for shard in &self.shards {
                shard.lock().sweep(&retired);
            }
            slots.free = retired;
        }
        if let Some(slot) = slots.free.pop() {
            return slot.into();
        }
        if used < SLOTS_MAX {
            self.slots_used.store(used + 1, Ordering::Relaxed);
        }
        used
    }

    fn retire(&self, slot: u32) {
        if let Ok(slot) = u16::try_from(slot) {
            self.slots.lock().retired.push(slot);
        }
    }
}

fn note(by_slot: &mut [u16], words: impl Iterator<Item = u64>, depth: u16) {
    for (slots, mut word) in by_slot.chunks_mut(64).zip(words) {
        while word != 0 {
            let bit = word.trailing_zeros() as usize;
            word &= word - 1;
            if let Some(slot) = slots.get_mut(bit) {
                *slot = depth;
            }
        }
    }
}

// === impl Depths ===

impl Depths {
    /// How many leading chunks the engine of `slot` holds.
    pub(crate) fn of(&self, slot: &EngineSlot) -> u16 {
        let slot = slot.slot.load(Ordering::Relaxed) as usize;
        self.by_slot.get(slot).copied().unwrap_or(0)
    }
}

// === impl EngineSlot ===

impl EngineSlot {
    /// The engine holds these chunks.
    pub(crate) fn stored(&self, chunks: impl IntoIterator<Item = ChunkHash>) {
        let Ok(slot) = u16::try_from(self.slot.load(Ordering::Relaxed)) else { return };
        for hash in chunks {
            self.index.shard(hash).lock().add(hash, slot);
        }
    }

    /// The engine does not hold these chunks any more.
    pub(crate) fn evicted(&self, chunks: impl IntoIterator<Item = ChunkHash>) {
        let Ok(slot) = u16::try_from(self.slot.load(Ordering::Relaxed)) else { return };
        for hash in chunks {
            self.index.shard(hash).lock().remove(hash, slot);
        }
    }

    /// The engine holds nothing that is known.
    pub(crate) fn clear(&self) {
        let slot = self.index.take_slot();
        self.index.retire(self.slot.swap(slot, Ordering::Relaxed));
    }
}

impl Drop for EngineSlot {
    fn drop(&mut self) {
        self.index.retire(self.slot.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests;
