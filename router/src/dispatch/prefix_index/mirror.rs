//! What an engine that says nothing of its cache is believed to hold: the chunks of what was sent there, the
//! least recently used ones out first, as engines do it. Pure but for a lock.
//!
//! Belief has limits, all of them learnt from the cached tokens that the engine reports. A mirror that promises
//! more than is found shrinks, one that is full and keeps its promises grows; what nobody used for long is not
//! believed any more.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use phalanx_proto::prefix::ChunkHash;

use super::{EngineSlot, MIRROR_BYTES_MAX, PrefixIndex};

/// What an engine is believed to keep before it showed: 512 Ki tokens of about four bytes, a small GPU's.
const CHUNKS_GUESSED: usize = 4096;
/// What a mirror learns stays between these: a cache that holds less (32 Ki tokens) is smaller than any that is in
/// use, one that holds more (16 Mi) is not worth the memory to know it.
const CHUNKS_MIN: usize = 256;
const CHUNKS_MAX: usize = 128 << 10;
/// What is known of one chunk, in bytes: hash and stamp in the map, and two entries in the queue before it is
/// cleared of those out of date.
const CHUNK_BYTES_KEPT: usize = 80;
/// Weight of the newest sample in the confidence.
const LEARNING_SHARE: f64 = 0.05;
/// A promise also fails while the prompt that it is about still waits to be computed, so that a fleet under load would
/// stop to believe in prefixes just when they matter: each then goes everywhere, and all caches are too small.
const CONFIDENCE_MIN: f64 = 0.5;
/// Promises that are kept to within this share are kept.
const SHORTFALL_FORGIVEN: f64 = 0.1;

/// How long chunks are believed in that nobody used. Engines have other clients, and restart unseen.
pub(crate) const BELIEVED_FOR: Duration = Duration::from_secs(600);
/// How long a native worker may take to say itself what a request left in its cache, queueing included.
pub(crate) const SPOKEN_FOR_WITHIN: Duration = Duration::from_secs(5);

/// One engine's cache, as this router imagines it.
#[derive(Debug)]
pub(crate) struct Mirror {
    slot: EngineSlot,
    index: Arc<PrefixIndex>,
    believed_for: Duration,
    lru: Mutex<Lru>,
    /// What share of what is promised is found; the bits of an `f32`.
    confidence: AtomicU32,
    /// Whether the engine ever reported tokens as found.
    says_found: AtomicBool,
}

#[derive(Debug)]
struct Lru {
    used: HashMap<ChunkHash, u64>,
    /// The least recently used first. An entry whose stamp is not the chunk's is out of date.
    order: VecDeque<(ChunkHash, u64, Instant)>,
    stamp: u64,
    chunks_max: usize,
    is_learning: bool,
}

// === impl Mirror ===

impl Mirror {
    /// A mirror of a cache of `chunks_max`, or of one whose size is to be learnt.
    pub(crate) fn new(
        index: &Arc<PrefixIndex>,
        chunks_max: Option<usize>,
        believed_for: Duration,
    ) -> Self {
        let lru = Lru {
            used: HashMap::new(),
            order: VecDeque::new(),
            stamp: 0,
            chunks_max: chunks_max.map_or(CHUNKS_GUESSED, |known| known.clamp(1, CHUNKS_MAX)),
            is_learning: chunks_max.is_none(),
        };
        Self {
            slot: index.slot(),
            index: Arc::clone(index),
            believed_for,
            lru: Mutex::new(lru),
            confidence: AtomicU32::new(1.0_f32.to_bits()),
            says_found: AtomicBool::new(false),
        }
    }

    pub(crate) const fn slot(&self) -> &EngineSlot {
        &self.slot
    }

    /// A prompt of these chunks was sent to the engine.
    pub(crate) fn sent<I>(&self, prompt: I, now: Instant)
    where
        I: DoubleEndedIterator<Item = ChunkHash> + ExactSizeIterator + Clone,
    {
        let mut lru = self.lru.lock();
        let before = lru.used.len();
        // Without its beginning a chunk is of no use: the beginning is what is kept.
        let kept = prompt.take(lru.chunks_max);
        lru.touch(kept.clone(), now);
        let mut forgotten = lru.expired(now, self.believed_for);
        while lru.used.len() > lru.chunks_max
            || (self.is_over_budget(before, lru.used.len()) && lru.used.len() > kept.len())
        {
            let Some(hash) = lru.pop() else { break };
            forgotten.push(hash);
        }
        lru.tidy();
        self.account(before, lru.used.len());
        // Under the lock: two requests must not be told in another order than they were noted.
        self.slot.stored(kept);
        self.slot.evicted(forgotten);
    }

    /// Forgets what nobody used for too long.
    pub(crate) fn forget_old(&self, now: Instant) {
        let mut lru = self.lru.lock();
        let before = lru.used.len();
        let forgotten = lru.expired(now, self.believed_for);
        lru.tidy();
        self.account(before, lru.used.len());
        self.slot.evicted(forgotten);
    }

    /// The engine found `found` tokens of a prompt in its cache, where `promised` were predicted.
    pub(crate) fn settle(&self, promised: u64, found: u64) {
        // An engine that never reports cached tokens does not deny them.
        let says = found > 0 || self.says_found.load(Ordering::Relaxed);
        if promised == 0 || !says {
            return;
        }
        self.says_found.store(true, Ordering::Relaxed);
        let kept = (real(found) / real(promised)).min(1.0);
        let before = self.confidence();
        let after = (before + LEARNING_SHARE * (kept - before)).clamp(CONFIDENCE_MIN, 1.0);
        #[expect(clippy::cast_possible_truncation, reason = "a share needs no more precision")]
        self.confidence.store((after as f32).to_bits(), Ordering::Relaxed);
        self.lru.lock().learn(kept >= 1.0 - SHORTFALL_FORGIVEN);
    }

    /// What share of the chunks that this mirror shows is found, lately.
    pub(crate) fn confidence(&self) -> f64 {
        f32::from_bits(self.confidence.load(Ordering::Relaxed)).into()
    }

    fn is_over_budget(&self, before: usize, now: usize) -> bool {
        let grown = now.saturating_sub(before) * CHUNK_BYTES_KEPT;
        self.index.mirror_bytes.load(Ordering::Relaxed) + grown > MIRROR_BYTES_MAX
    }

    fn account(&self, before: usize, now: usize) {
        let bytes = &self.index.mirror_bytes;
        if now >= before {
            bytes.fetch_add((now - before) * CHUNK_BYTES_KEPT, Ordering::Relaxed);
        } else {
            bytes.fetch_sub((before - now) * CHUNK_BYTES_KEPT, Ordering::Relaxed);
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.account(self.lru.lock().used.len(), 0);
    }
}

// === impl Lru ===

impl Lru {
    /// Marks a prompt's chunks as just used. Its end is the older: engines keep beginnings for longer.
    fn touch(&mut self, prompt: impl DoubleEndedIterator<Item = ChunkHash>, now: Instant) {
        for hash in prompt.rev() {
            self.stamp += 1;
            self.used.insert(hash, self.stamp);
            self.order.push_back((hash, self.stamp, now));
        }
    }

    /// Takes out the least recently used chunk.
    fn pop(&mut self) -> Option<ChunkHash> {
        while let Some((hash, stamp, _)) = self.order.pop_front() {
            if self.used.get(&hash) == Some(&stamp) {
                self.used.remove(&hash);
                return Some(hash);
            }
        }
        None
    }

    /// Takes out what was used longer than `believed_for` ago.
    fn expired(&mut self, now: Instant, believed_for: Duration) -> Vec<ChunkHash> {
        let mut expired = Vec::new();
        while let Some((hash, stamp, at)) = self.order.front().copied() {
            let is_current = self.used.get(&hash) == Some(&stamp);
            if is_current && now.saturating_duration_since(at) < believed_for {
                break;
            }
            self.order.pop_front();
            if is_current {
                self.used.remove(&hash);
                expired.push(hash);
            }
        }
        expired
    }

    /// Drops what is out of date once it is half of the queue.
    fn tidy(&mut self) {
        if self.order.len() > 2 * self.used.len() + CHUNKS_MIN {
            let used = &self.used;
            self.order.retain(|(hash, stamp, _)| used.get(hash) == Some(stamp));
        }
    }

    fn learn(&mut self, is_kept: bool) {
        if !self.is_learning {
            return;
        }
        if !is_kept {
            // From what was really believed: a mirror far from full would shrink without effect. No faster than it
            // grows, as some promises fail for want of time.
            self.chunks_max = (self.chunks_max.min(self.used.len()) * 63 / 64).max(CHUNKS_MIN);
        } else if self.used.len() >= self.chunks_max {
            self.chunks_max = (self.chunks_max + self.chunks_max / 64 + 1).min(CHUNKS_MAX);
        }
    }
}

/// Token counts are far below 2^52, where the conversion would begin to round.
#[expect(clippy::cast_precision_loss, reason = "see the function's own doc")]
const fn real(tokens: u64) -> f64 {
    tokens as f64
}
