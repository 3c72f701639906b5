use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::mirror::{BELIEVED_FOR, Mirror};
use super::*;

fn index() -> Arc<PrefixIndex> {
    Arc::default()
}

/// The first `count` chunks of prompt `name`.
fn prompt(name: u64, count: u64) -> Vec<ChunkHash> {
    let hash =
        |at| ChunkHash(xxhash_rust::xxh3::xxh3_64(&[name, at].map(u64::to_le_bytes).concat()));
    (0..count).map(hash).collect()
}

fn depth(index: &PrefixIndex, slot: &EngineSlot, prompt: &[ChunkHash]) -> u16 {
    index.lookup(prompt.iter().copied()).of(slot)
}

#[test]
fn depth_is_what_is_held_from_the_beginning_without_a_gap() {
    let index = index();
    let [one, two, none] = [index.slot(), index.slot(), index.slot()];
    let prompt = prompt(1, 10);
    one.stored(prompt[..6].to_vec());
    two.stored(prompt.clone());
    two.evicted([prompt[3]]);
    let depths = index.lookup(prompt.iter().copied());
    assert_eq!([depths.of(&one), depths.of(&two), depths.of(&none)], [6, 3, 0]);
    assert_eq!(index.lookup(std::iter::empty()).of(&one), 0);
}

#[test]
fn a_departed_engines_entries_are_gone_and_its_slot_is_used_again_empty() {
    let index = index();
    let prompt = prompt(1, 4);
    for _ in 0..1000 {
        let engine = index.slot();
        assert_eq!(depth(&index, &engine, &prompt), 0);
        engine.stored(prompt.clone());
        assert_eq!(depth(&index, &engine, &prompt), 4);
    }
    assert!(index.slots_used.load(Ordering::Relaxed) < 8, "slots are used again");
    let engine = index.slot();
    engine.stored(prompt.clone());
    engine.clear();
    assert_eq!(depth(&index, &engine, &prompt), 0);
    engine.stored(prompt[..2].to_vec());
    assert_eq!(depth(&index, &engine, &prompt), 2);
}

#[test]
fn engines_beyond_the_last_slot_hold_nothing() {
    let index = index();
    let engines: Vec<_> = (0..=SLOTS_MAX).map(|_| index.slot()).collect();
    let prompt = prompt(1, 1);
    for engine in [&engines[0], &engines[SLOTS_MAX as usize - 1], &engines[SLOTS_MAX as usize]] {
        engine.stored(prompt.clone());
    }
    let held = |at: usize| depth(&index, &engines[at], &prompt);
    assert_eq!([held(0), held(SLOTS_MAX as usize - 1), held(SLOTS_MAX as usize)], [1, 1, 0]);
}

#[test]
fn a_million_prefixes_fit_the_bound_and_the_newest_are_there() {
    let index = index();
    let engine = index.slot();
    let (mut first, mut grown) = (0, 0);
    for name in 0..2_000_000 {
        engine.stored(prompt(name, 1));
        if name == 1_000_000 {
            first = index.bytes();
        }
    }
    grown += index.bytes();
    assert!(first <= INDEX_BYTES_MAX && grown <= INDEX_BYTES_MAX, "{first} {grown}");
    let newest =
        (1_900_000..2_000_000).filter(|name| depth(&index, &engine, &prompt(*name, 1)) == 1);
    assert_eq!(newest.count(), 100_000);
    assert_eq!(depth(&index, &engine, &prompt(0, 1)), 0);
}

#[test]
fn what_is_asked_for_is_kept_when_others_are_forgotten() {
    let index = index();
    let engine = index.slot();
    let hot = prompt(u64::MAX, 4);
    engine.stored(hot.clone());
    for name in 0..2_000_000 {
        engine.stored(prompt(name, 1));
        if name % 1000 == 0 {
            assert_eq!(depth(&index, &engine, &hot), 4, "after {name} others");
        }
    }
}

#[test]
fn chunks_that_thousands_hold_stay_within_the_bound() {
    let index = index();
    let engines: Vec<_> = (0..4000).map(|_| index.slot()).collect();
    for name in 0..100 {
        for engine in &engines {
            engine.stored(prompt(name, 16));
        }
    }
    assert!(index.bytes() <= INDEX_BYTES_MAX);
    let depths = index.lookup(prompt(99, 16).into_iter());
    assert!(engines.iter().all(|engine| depths.of(engine) == 16));
}

#[test]
fn a_mirror_forgets_ends_first_and_what_is_old() {
    let index = index();
    let mirror = Mirror::new(&index, Some(20), BELIEVED_FOR);
    let start = Instant::now();
    let (one, two) = (prompt(1, 12), prompt(2, 12));
    mirror.sent(one.iter().copied(), start);
    let later = start + Duration::from_secs(1);
    mirror.sent(two.iter().copied(), later);
    let held = |prompt: &[ChunkHash]| depth(&index, mirror.slot(), prompt);
    assert_eq!((held(&one), held(&two)), (8, 12));
    mirror.forget_old(start + BELIEVED_FOR);
    assert_eq!((held(&one), held(&two)), (0, 12));
    mirror.forget_old(later + BELIEVED_FOR);
    assert_eq!(held(&two), 0);
    assert_eq!(index.mirror_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn a_mirror_learns_the_size_of_the_cache_and_how_far_to_trust_it() {
    let index = index();
    let mirror = Mirror::new(&index, None, BELIEVED_FOR);
    let now = Instant::now();
    mirror.settle(1, 1);
    // The engine keeps the last 64 prompts of 4 chunks; each is asked for again after 100 others, or after 40.
    for (again_after, expected) in [(100, 0), (40, 4)] {
        for name in 0..3000 {
            mirror.sent(prompt(name, 4).into_iter(), now);
            if let Some(before) = name.checked_sub(again_after) {
                let promised = depth(&index, mirror.slot(), &prompt(before, 4));
                let found = if again_after <= 64 { promised } else { 0 };
                mirror.settle(promised.into(), found.into());
            }
        }
        let promised = depth(&index, mirror.slot(), &prompt(2999 - again_after, 4));
        assert_eq!(promised, expected, "asked for again after {again_after}");
    }
    assert!(mirror.confidence() > 0.5);
}

#[test]
fn all_mirrors_together_stay_within_the_bound_and_give_back_what_they_took() {
    let index = index();
    let mirrors: Vec<_> =
        (0..200).map(|_| Mirror::new(&index, Some(100_000), BELIEVED_FOR)).collect();
    let now = Instant::now();
    for (name, mirror) in (0..).zip(&mirrors) {
        for part in 0..40 {
            mirror.sent(prompt(name * 1000 + part, 100).into_iter(), now);
        }
    }
    assert!(index.bytes() <= INDEX_BYTES_MAX);
    let newest = depth(&index, mirrors[199].slot(), &prompt(199 * 1000 + 39, 100));
    assert_eq!(newest, 100, "the newest is kept whole");
    drop(mirrors);
    assert_eq!(index.mirror_bytes.load(Ordering::Relaxed), 0);
}

#[derive(Clone, Debug)]
enum Happening {
    Stored(usize, u64, u64),
    Evicted(usize, u64, u64),
    Left(usize),
    Cleared(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    let chunk = || (0..12_usize, 0..4_u64, 0..6_u64);
    prop_oneof![
        6 => chunk().prop_map(|(who, name, at)| Happening::Stored(who, name, at)),
        3 => chunk().prop_map(|(who, name, at)| Happening::Evicted(who, name, at)),
        1 => (0..12_usize).prop_map(Happening::Left),
        1 => (0..12_usize).prop_map(Happening::Cleared),
    ]
}

proptest! {
    /// Whatever is stored, evicted and left: the index says what the engines hold, no more and no less.
    #[test]
    fn the_index_says_what_engines_hold(happenings in prop::collection::vec(happening(), 1..300)) {
        let index = index();
        let mut engines: HashMap<usize, (EngineSlot, BTreeSet<ChunkHash>)> = HashMap::new();
        for happening in happenings {
            let (Happening::Stored(who, ..) | Happening::Evicted(who, ..) | Happening::Left(who)
                | Happening::Cleared(who)) = happening;
            let (slot, held) = engines.entry(who).or_insert_with(|| (index.slot(), BTreeSet::new()));
            match happening {
                Happening::Stored(_, name, count) => {
                    slot.stored(prompt(name, count));
                    held.extend(prompt(name, count));
                }
                Happening::Evicted(_, name, at) => {
                    let gone = prompt(name, 6).split_off(usize::try_from(at).unwrap());
                    gone.iter().for_each(|hash| { held.remove(hash); });
                    slot.evicted(gone);
                }
                Happening::Cleared(_) => {
                    slot.clear();
                    held.clear();
                }
                Happening::Left(_) => {
                    engines.remove(&who);
                }
            }
            for name in 0..4 {
                let prompt = prompt(name, 6);
                let depths = index.lookup(prompt.iter().copied());
                for (slot, held) in engines.values() {
                    let expected = prompt.iter().take_while(|hash| held.contains(hash)).count();
                    prop_assert_eq!(usize::from(depths.of(slot)), expected);
                }
            }
        }
    }
}
