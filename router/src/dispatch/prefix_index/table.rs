//! One shard of the index: chunk hashes to the slots that hold them, in bounded memory.
//!
//! ```text
//! add, hit ─► young ── full ──► old ── the next time ──► forgotten
//!              ▲── hit ──────────┘
//! ```
//! Two generations forget what was used least recently, nearly, without a list of who was used when.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use phalanx_proto::prefix::ChunkHash;

/// Slots named one by one before a bit for each is less.
const FEW_MAX: usize = 7;
/// What one entry takes beside its bits: hash, holders and the table's own byte.
const ENTRY_BYTES: usize = size_of::<(ChunkHash, Holders)>() + 1;

/// The slots that hold one chunk.
#[derive(Debug)]
enum Holders {
    Few { count: u8, slots: [u16; FEW_MAX] },
    Many(Box<Bits>),
}

/// A bit for each slot. Boxed where it is used, so that the many entries with few holders stay small.
#[derive(Debug)]
struct Bits(Vec<u64>);

/// Hashes are as good as random already.
#[derive(Debug, Default)]
struct AsItIs(u64);

#[derive(Debug, Default)]
struct Generation {
    entries: HashMap<ChunkHash, Holders, BuildHasherDefault<AsItIs>>,
    /// What the bits of the entries take.
    bits_bytes: usize,
}

/// One shard.
#[derive(Debug)]
pub(super) struct Shard {
    young: Generation,
    old: Generation,
    /// Bounds of one generation.
    entries_max: usize,
    bits_bytes_max: usize,
}

// === impl AsItIs ===

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

// === impl Holders ===

impl Holders {
    /// Adds a slot; says by how many bytes this grew.
    fn add(&mut self, slot: u16) -> usize {
        match self {
            Self::Few { count, slots } => {
                let used = usize::from(*count);
                if slots[..used].contains(&slot) {
                    return 0;
                }
                if let Some(free) = slots.get_mut(used) {
                    (*free, *count) = (slot, *count + 1);
                    return 0;
                }
                let largest = slots.iter().copied().fold(slot, u16::max);
                let mut bits = vec![0; usize::from(largest) / 64 + 1];
                for slot in slots.iter().chain([&slot]) {
                    bits[usize::from(*slot) / 64] |= 1 << (slot % 64);
                }
                *self = Self::Many(Box::new(Bits(bits)));
                self.bits_bytes()
            }
            Self::Many(bits) => {
                let (word, before) = (usize::from(slot) / 64, bits.bytes());
                let words = bits.0.len().max(word + 1);
                bits.0.resize(words, 0);
                bits.0[word] |= 1 << (slot % 64);
                bits.bytes() - before
            }
        }
    }

    fn remove(&mut self, slot: u16) {
        match self {
            Self::Few { count, slots } => {
                let used = usize::from(*count);
                if let Some(at) = slots[..used].iter().position(|held| *held == slot) {
                    slots.swap(at, used - 1);
                    *count -= 1;
                }
            }
            Self::Many(bits) => {
                if let Some(word) = bits.0.get_mut(usize::from(slot) / 64) {
                    *word &= !(1 << (slot % 64));
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Few { count, .. } => *count == 0,
            Self::Many(bits) => bits.0.iter().all(|word| *word == 0),
        }
    }

    /// Sets in `found` the bits of the slots that are here and in `of`.
    fn intersect(&self, of: &[u64], found: &mut [u64]) {
        match self {
            Self::Few { count, slots } => {
                for slot in &slots[..usize::from(*count)] {
                    let word = usize::from(*slot) / 64;
                    if let (Some(of), Some(found)) = (of.get(word), found.get_mut(word)) {
                        *found |= of & (1 << (slot % 64));
                    }
                }
            }
            Self::Many(bits) => {
                for ((held, of), found) in bits.0.iter().zip(of).zip(found) {
                    *found = held & of;
                }
            }
        }
    }

    fn bits_bytes(&self) -> usize {
        match self {
            Self::Few { .. } => 0,
            Self::Many(bits) => bits.bytes(),
        }
    }
}

// === impl Bits ===

impl Bits {
    const fn bytes(&self) -> usize {
        size_of::<Self>() + self.0.capacity() * 8
    }
}

// === impl Generation ===

impl Generation {
    fn take(&mut self, hash: ChunkHash) -> Option<Holders> {
        let holders = self.entries.remove(&hash)?;
        self.bits_bytes -= holders.bits_bytes();
        Some(holders)
    }

    fn remove(&mut self, hash: ChunkHash, slot: u16) {
        let Some(holders) = self.entries.get_mut(&hash) else { return };
        holders.remove(slot);
        if holders.is_empty() {
            self.take(hash);
        }
    }

    fn sweep(&mut self, slots: &[u16]) {
        let bits_bytes = &mut self.bits_bytes;
        self.entries.retain(|_, holders| {
            for slot in slots {
                holders.remove(*slot);
            }
            let is_held = !holders.is_empty();
            if !is_held {
                *bits_bytes -= holders.bits_bytes();
            }
            is_held
        });
    }

    fn bytes(&self) -> usize {
        // The table fills seven places of eight before it doubles; the smallest ones, fewer.
        self.entries.capacity() * 8 / 7 * ENTRY_BYTES + self.bits_bytes
    }
}

// === impl Shard ===

impl Shard {
    /// A shard that never takes more than `bytes_max`, but for the moment in which a table doubles.
    pub(super) fn new(bytes_max: usize) -> Self {
        // A generation has half; an eighth of that is for bits. Tables come in powers of two.
        let (entry_bytes, bits_bytes_max) = (bytes_max * 7 / 16, bytes_max / 16);
        let places = (entry_bytes / ENTRY_BYTES + 1).next_power_of_two() / 2;
        Self {
            young: Generation::default(),
            old: Generation::default(),
            entries_max: places / 8 * 7,
            bits_bytes_max,
        }
    }

    pub(super) fn add(&mut self, hash: ChunkHash, slot: u16) {
        self.rejuvenate(hash);
        let holders = (self.young.entries.entry(hash))
            .or_insert(Holders::Few { count: 0, slots: [0; FEW_MAX] });
        self.young.bits_bytes += holders.add(slot);
        self.age();
    }

    pub(super) fn remove(&mut self, hash: ChunkHash, slot: u16) {
        self.young.remove(hash, slot);
        self.old.remove(hash, slot);
    }

    /// Sets in `found` the bits of those slots of `of` that hold the chunk.
    pub(super) fn intersect(&mut self, hash: ChunkHash, of: &[u64], found: &mut [u64]) {
        self.rejuvenate(hash);
        if let Some(holders) = self.young.entries.get(&hash) {
            holders.intersect(of, found);
            self.age();
        }
    }

    /// Forgets what these slots hold.
    pub(super) fn sweep(&mut self, slots: &[u16]) {
        self.young.sweep(slots);
        self.old.sweep(slots);
    }

    pub(super) fn bytes(&self) -> usize {
        self.young.bytes() + self.old.bytes()
    }

    fn rejuvenate(&mut self, hash: ChunkHash) {
        if let Some(holders) = self.old.take(hash) {
            self.young.bits_bytes += holders.bits_bytes();
            self.young.entries.insert(hash, holders);
        }
    }

    fn age(&mut self) {
        if self.young.entries.len() >= self.entries_max
            || self.young.bits_bytes >= self.bits_bytes_max
        {
            self.old = std::mem::take(&mut self.young);
        }
    }
}
