//! The KV cache's bookkeeping: which block belongs to whom, and which prefix it holds.
//!
//! A block is held (by one or more sequences) or free. A free block keeps its contents, findable by the
//! chained hash of all tokens up to its end, until it is the least recently used one and a sequence needs
//! it. The idea is vLLM's; the size is nano-vllm's.
//!
//! ```text
//! free list (least recently used first):  [ 7 | 2* | 5* ]     * still findable by prefix
//! held:                                   3* by A and B, 4 by A, 6 by B
//! ```

use std::collections::HashMap;

use phalanx_chassis::chunk_feed::ChunkChange;
use phalanx_kernels::batch::BLOCK_TOKENS;
use phalanx_proto::prefix::ChunkHash;
use xxhash_rust::xxh3::xxh3_128;

use super::config::{PrefixCaching, blocks_for};

/// Chunks that may end in one block. A prompt has one in eight blocks; more come from prompts of the same tokens
/// that were put differently.
const BLOCK_CHUNKS_MAX: usize = 4;

/// A block of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockId(pub u32);

/// The chained hash of a block: its tokens, all tokens before it and the tenant's salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct BlockHash(u128);

/// The pool has fewer free blocks than were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} KV blocks are needed, {free} are free")]
pub struct OutOfBlocksError {
    /// Asked for.
    pub wanted: usize,
    /// There.
    pub free: usize,
}

/// Where in a prompt a chunk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEnd {
    /// The chunk, under its model's key.
    pub hash: ChunkHash,
    /// Tokens of the prompt up to its end, at least 1.
    pub tokens: u32,
}

/// The blocks one sequence holds, in order. Goes back to the pool by [`BlockPool::release`], and by nothing
/// else: dropping a table that still holds blocks would leak them, so it panics.
#[derive(Debug)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// Hashes of the leading blocks that are full and computed.
    hashes: Vec<BlockHash>,
    root: BlockHash,
}

#[derive(Debug, Default)]
struct Block {
    holders: u32,
    /// What the block holds, when it can be found by it.
    content: Option<Content>,
    /// The chunks that end in it, while it can be found.
    chunks: Vec<ChunkHash>,
    /// Neighbours in the free list, when free.
    previous: Option<BlockId>,
    next: Option<BlockId>,
}

/// Compared on a hit, so that a colliding hash is a miss and never another prompt's cache.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    hash: BlockHash,
    parent: BlockHash,
    tokens: [u32; BLOCK_TOKENS],
}

/// All blocks of one rank group.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    cached: HashMap<BlockHash, BlockId>,
    caching: PrefixCaching,
    free: usize,
    oldest: Option<BlockId>,
    newest: Option<BlockId>,
    /// What became of chunks since this was last asked for.
    changes: Vec<ChunkChange>,
}

// === impl BlockTable ===

impl BlockTable {
    /// The block ids, in order.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        assert!(
            self.blocks.is_empty() || std::thread::panicking(),
            "{} KV blocks were dropped instead of released",
            self.blocks.len()
        );
    }
}

// === impl BlockPool ===

impl BlockPool {
    /// A pool of `total` free blocks.
    pub fn new(total: u32, caching: PrefixCaching) -> Self {
        let mut pool = Self {
            blocks: (0..total).map(|_| Block::default()).collect(),
            cached: HashMap::new(),
            caching,
            free: 0,
            oldest: None,
            newest: None,
            changes: Vec::new(),
        };
        for id in 0..total {
            pool.push_free(BlockId(id));
        }
        pool
    }

    /// Blocks nobody holds, cached or not.
    pub const fn free(&self) -> usize {
        self.free
    }

    /// All blocks.
    pub const fn total(&self) -> usize {
        self.blocks.len()
    }

    /// A table that holds the longest cached prefix of `tokens` under `salt`, in whole blocks. The last token
    /// is never taken from the cache: somebody has to compute the logits.
    pub fn match_prefix(&mut self, tokens: &[u32], salt: &str) -> BlockTable {
        let root = BlockHash(xxh3_128(salt.as_bytes()));
        let mut table = BlockTable { blocks: Vec::new(), hashes: Vec::new(), root };
        if self.caching == PrefixCaching::Off {
            return table;
        }
        let usable = tokens.len().saturating_sub(1);
        let (chunks, _) = tokens[..usable].as_chunks::<BLOCK_TOKENS>();
        let mut parent = root;
        for chunk in chunks {
            let hash = chain(parent, chunk);
            let Some(&id) = self.cached.get(&hash) else { break };
            let expected = Content { hash, parent, tokens: *chunk };
            if self.block(id).content.as_ref() != Some(&expected) {
                break;
            }
            self.hold(id);
            table.blocks.push(id);
            table.hashes.push(hash);
            parent = hash;
        }
        table
    }

    /// Grows `table` until it has room for `tokens` tokens. All or nothing.
    ///
    /// # Errors
    /// When too few blocks are free; nothing is changed.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> Result<(), OutOfBlocksError> {
        let wanted = blocks_for(tokens).saturating_sub(table.blocks.len());
        if wanted > self.free {
            return Err(OutOfBlocksError { wanted, free: self.free });
        }
        for _ in 0..wanted {
            let id = self.oldest.expect("the free count was checked above");
            self.unlink(id);
            self.forget(id);
            self.block_mut(id).holders = 1;
            table.blocks.push(id);
        }
        Ok(())
    }

    /// Makes the blocks that `computed` tokens have filled findable. `tokens` are the sequence's, from its start.
    pub fn cache_computed(&mut self, table: &mut BlockTable, tokens: &[u32], computed: usize) {
        if self.caching == PrefixCaching::Off {
            return;
        }
        let (chunks, _) = tokens[..computed].as_chunks::<BLOCK_TOKENS>();
        for (index, chunk) in chunks.iter().enumerate().skip(table.hashes.len()) {
            let parent = table.hashes.last().copied().unwrap_or(table.root);
            let hash = chain(parent, chunk);
            table.hashes.push(hash);
            // Two sequences may compute the same prefix side by side: the first to finish is the one found.
            if let std::collections::hash_map::Entry::Vacant(entry) = self.cached.entry(hash) {
                let id = table.blocks[index];
                entry.insert(id);
                self.block_mut(id).content = Some(Content { hash, parent, tokens: *chunk });
            }
        }
    }

    /// Ties chunks to the findable blocks that hold their ends, of the tokens from `from` to `to`.
    pub fn tie(&mut self, table: &BlockTable, chunks: &[ChunkEnd], from: usize, to: usize) {
        let begin = chunks.partition_point(|chunk| chunk.tokens as usize <= from);
        for chunk in chunks[begin..].iter().take_while(|chunk| chunk.tokens as usize <= to) {
            let Some(hash) = table.hashes.get((chunk.tokens as usize - 1) / BLOCK_TOKENS) else {
                return;
            };
            // It may be another table's block that is found for these tokens.
            let Some(&id) = self.cached.get(hash) else { continue };
            let held = &mut self.block_mut(id).chunks;
            if held.len() < BLOCK_CHUNKS_MAX && !held.contains(&chunk.hash) {
                held.push(chunk.hash);
                self.changes.push(ChunkChange::Tied(chunk.hash));
            }
        }
    }

    /// What became of chunks since this was last called.
    pub fn take_chunk_changes(&mut self) -> Vec<ChunkChange> {
        std::mem::take(&mut self.changes)
    }

    /// Takes a table's blocks back. The tail is freed first, so that it is evicted before the prefix it needs.
    pub fn release(&mut self, mut table: BlockTable) {
        for id in std::mem::take(&mut table.blocks).into_iter().rev() {
            let block = self.block_mut(id);
            assert!(block.holders > 0, "block {id:?} was released twice");
            block.holders -= 1;
            if block.holders == 0 {
                self.push_free(id);
            }
        }
    }

    /// Checks that free and held blocks make the total, and that each held block is held by somebody.
    ///
    /// # Panics
    /// When a block leaked or is in two places.
    pub fn assert_conserved<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut holders = vec![0u32; self.blocks.len()];
        for id in tables.flat_map(|table| &table.blocks) {
            holders[id.0 as usize] += 1;
        }
        let held = holders.iter().filter(|&&count| count > 0).count();
        assert_eq!(self.free + held, self.blocks.len(), "a KV block leaked");
        for (index, (block, count)) in self.blocks.iter().zip(&holders).enumerate() {
            assert_eq!(block.holders, *count, "block {index} has the wrong number of holders");
        }
    }

    fn hold(&mut self, id: BlockId) {
        if self.block(id).holders == 0 {
            self.unlink(id);
        }
        self.block_mut(id).holders += 1;
    }

    /// Makes a block's contents unfindable.
    fn forget(&mut self, id: BlockId) {
        let Some(content) = self.block_mut(id).content.take() else { return };
        self.cached.remove(&content.hash);
        let chunks = std::mem::take(&mut self.block_mut(id).chunks);
        self.changes.extend(chunks.into_iter().map(ChunkChange::Untied));
    }

    fn push_free(&mut self, id: BlockId) {
        let last = self.newest.replace(id);
        let block = self.block_mut(id);
        block.previous = last;
        block.next = None;
        match last {
            Some(last) => self.block_mut(last).next = Some(id),
            None => self.oldest = Some(id),
        }
        self.free += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let block = self.block_mut(id);
        let (previous, next) = (block.previous.take(), block.next.take());
        match previous {
            Some(previous) => self.block_mut(previous).next = next,
            None => self.oldest = next,
        }
        match next {
            Some(next) => self.block_mut(next).previous = previous,
            None => self.newest = previous,
        }
        self.free -= 1;
    }

    fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id.0 as usize]
    }

    fn block_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id.0 as usize]
    }
}

fn chain(parent: BlockHash, tokens: &[u32; BLOCK_TOKENS]) -> BlockHash {
    let mut bytes = [0u8; 16 + 4 * BLOCK_TOKENS];
    bytes[..16].copy_from_slice(&parent.0.to_le_bytes());
    for (slot, token) in bytes[16..].chunks_exact_mut(4).zip(tokens) {
        slot.copy_from_slice(&token.to_le_bytes());
    }
    BlockHash(xxh3_128(&bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use phalanx_chassis::chunk_feed::ChunkFeed;
    use proptest::prelude::*;

    use super::*;

    fn tokens(count: u32) -> Vec<u32> {
        (0..count).collect()
    }

    /// Computes a prompt of `count` tokens to its end and gives its blocks back.
    fn compute(pool: &mut BlockPool, prompt: &[u32], salt: &str) {
        let mut table = pool.match_prefix(prompt, salt);
        pool.grow(&mut table, prompt.len()).unwrap();
        pool.cache_computed(&mut table, prompt, prompt.len());
        pool.release(table);
    }

    fn cached_blocks(pool: &mut BlockPool, prompt: &[u32], salt: &str) -> usize {
        let table = pool.match_prefix(prompt, salt);
        let found = table.blocks().len();
        pool.release(table);
        found
    }

    #[test]
    fn a_computed_prefix_is_found_in_whole_blocks_and_never_to_the_last_token() {
        let mut pool = BlockPool::new(8, PrefixCaching::On);
        compute(&mut pool, &tokens(40), "");
        assert_eq!(cached_blocks(&mut pool, &tokens(40), ""), 2);
        assert_eq!(cached_blocks(&mut pool, &tokens(33), ""), 2);
        assert_eq!(cached_blocks(&mut pool, &tokens(32), ""), 1);
        assert_eq!(cached_blocks(&mut pool, &tokens(16), ""), 0);
        assert_eq!(pool.free(), 8);
    }

    #[test]
    fn another_salt_sees_nothing() {
        let mut pool = BlockPool::new(8, PrefixCaching::On);
        compute(&mut pool, &tokens(40), "tenant a");
        assert_eq!(cached_blocks(&mut pool, &tokens(40), "tenant b"), 0);
        assert_eq!(cached_blocks(&mut pool, &tokens(40), "tenant a"), 2);
    }

    #[test]
    fn caching_off_finds_nothing() {
        let mut pool = BlockPool::new(8, PrefixCaching::Off);
        compute(&mut pool, &tokens(40), "");
        assert_eq!(cached_blocks(&mut pool, &tokens(40), ""), 0);
    }

    #[test]
    fn the_tail_of_the_least_recently_used_prefix_is_evicted_first() {
        let mut pool = BlockPool::new(4, PrefixCaching::On);
        compute(&mut pool, &tokens(64), "");
        let mut other = pool.match_prefix(&[], "");
        pool.grow(&mut other, 16).unwrap();
        assert_eq!(cached_blocks(&mut pool, &tokens(65), ""), 3);
        pool.release(other);
    }

    #[test]
    fn growing_is_all_or_nothing() {
        let mut pool = BlockPool::new(2, PrefixCaching::On);
        let mut table = pool.match_prefix(&[], "");
        let error = pool.grow(&mut table, 33).unwrap_err();
        assert_eq!(error, OutOfBlocksError { wanted: 3, free: 2 });
        pool.assert_conserved(std::iter::once(&table));
        pool.release(table);
    }

    #[test]
    fn a_shared_block_is_free_only_when_its_last_holder_lets_go() {
        let mut pool = BlockPool::new(4, PrefixCaching::On);
        compute(&mut pool, &tokens(17), "");
        let first = pool.match_prefix(&tokens(17), "");
        let second = pool.match_prefix(&tokens(17), "");
        assert_eq!(first.blocks(), second.blocks());
        pool.release(first);
        assert_eq!(pool.free(), 3);
        pool.release(second);
        assert_eq!(pool.free(), 4);
    }

    /// What a router knows after all that `pool` told so far.
    fn told(feed: &ChunkFeed, pool: &mut BlockPool) -> BTreeSet<ChunkHash> {
        feed.apply(pool.take_chunk_changes());
        feed.news(None).stored.into_iter().collect()
    }

    /// A chunk ends every 24 tokens of prompt `family`, so in the middle of blocks and at their ends.
    fn chunk_ends(family: u32, tokens: u32) -> Vec<ChunkEnd> {
        let hash = |tokens| ChunkHash(u64::from(family) << 32 | u64::from(tokens));
        (1..=tokens / 24)
            .map(|chunk| ChunkEnd { hash: hash(24 * chunk), tokens: 24 * chunk })
            .collect()
    }

    proptest! {
        /// Whatever is computed, found again and evicted: what is told is what can be found.
        #[test]
        fn chunks_are_told_as_held_while_the_blocks_of_their_ends_can_be_found(
            prompts in prop::collection::vec((0u32..6, 1u32..200, 1usize..40), 1..60)
        ) {
            let (mut pool, feed) = (BlockPool::new(14, PrefixCaching::On), ChunkFeed::default());
            for (family, length, step) in prompts {
                let prompt: Vec<u32> = (0..length).map(|token| family * 1000 + token).collect();
                let ends = chunk_ends(family, length);
                let mut table = pool.match_prefix(&prompt, "");
                let mut computed = table.blocks().len() * BLOCK_TOKENS;
                pool.grow(&mut table, prompt.len()).unwrap();
                pool.tie(&table, &ends, 0, computed);
                while computed < prompt.len() {
                    let tied = computed - computed % BLOCK_TOKENS;
                    computed = (computed + step).min(prompt.len());
                    pool.cache_computed(&mut table, &prompt, computed);
                    pool.tie(&table, &ends, tied, computed);
                }
                pool.release(table);
                let told = told(&feed, &mut pool);
                for family in 0..6 {
                    let prompt: Vec<u32> = (0..201).map(|token| family * 1000 + token).collect();
                    let mut parent = BlockHash(xxh3_128(b""));
                    let (blocks, _) = prompt.as_chunks::<BLOCK_TOKENS>();
                    let found: Vec<bool> = blocks.iter().map(|tokens| {
                        parent = chain(parent, tokens);
                        pool.cached.contains_key(&parent)
                    }).collect();
                    for ChunkEnd { hash, tokens } in chunk_ends(family, 192) {
                        let is_told = told.contains(&hash);
                        let is_found = found[(tokens as usize - 1) / BLOCK_TOKENS];
                        prop_assert_eq!(is_told, is_found, "{} {}", family, tokens);
                    }
                }
            }
        }
    }
}
