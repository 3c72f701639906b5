//! Many seeds, the same seed twice, and the faults that were planted.

use super::run;
use crate::planted::Bug;

/// Runs of each of the functions below, which nextest runs side by side.
const SEEDS_PER_SHARD: u64 = 25;

/// A planted fault is found within this many seeds.
const SEEDS_FOR_A_BUG: u64 = 500;

#[track_caller]
fn check_shard(shard: u64) {
    // One seed, to see it again.
    let only = std::env::var("PHALANX_SIMULATION_SEED").ok().map(|seed| seed.parse().unwrap());
    let first = shard * SEEDS_PER_SHARD;
    let seeds = only.map_or(first..first + SEEDS_PER_SHARD, |seed| seed..seed + 1);
    for seed in seeds {
        let outcome = run(seed, None);
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
        println!("seed {seed}: writes passed {:?} ms after the last fault", outcome.recovered_ms);
    }
}

macro_rules! shards {
    ($($name:ident $shard:literal)*) => {
        $(#[test]
        fn $name() {
            check_shard($shard);
        })*
    };
}

shards! {
    every_seed_keeps_every_promise_1_of_8 0
    every_seed_keeps_every_promise_2_of_8 1
    every_seed_keeps_every_promise_3_of_8 2
    every_seed_keeps_every_promise_4_of_8 3
    every_seed_keeps_every_promise_5_of_8 4
    every_seed_keeps_every_promise_6_of_8 5
    every_seed_keeps_every_promise_7_of_8 6
    every_seed_keeps_every_promise_8_of_8 7
}

#[test]
fn the_same_seed_twice_gives_the_same_trace() {
    for seed in [1, 2, 3, 5, 8] {
        assert_eq!(run(seed, None).trace, run(seed, None).trace, "seed {seed}");
    }
    assert_ne!(run(1, None).trace, run(2, None).trace);
}

#[track_caller]
fn check_found(bug: Bug) {
    for seed in 0..SEEDS_FOR_A_BUG {
        if let Some(violation) = run(seed, Some(bug)).violations.first() {
            println!("{bug:?} is found by seed {seed}: {violation}");
            return;
        }
    }
    panic!("{bug:?} was not found in {SEEDS_FOR_A_BUG} seeds");
}

#[test]
fn entries_acknowledged_before_they_are_on_disk_are_found() {
    check_found(Bug::AckBeforeSync);
}

#[test]
fn heartbeats_taken_from_fenced_members_are_found() {
    check_found(Bug::FenceCheckSkipped);
}

#[test]
fn an_epoch_given_twice_is_found() {
    check_found(Bug::EpochReused);
}

#[test]
fn a_watch_that_misses_one_change_is_found() {
    check_found(Bug::WatchOffByOne);
}

#[test]
fn leases_not_armed_anew_are_found() {
    check_found(Bug::LeaseNotRearmed);
}

#[test]
fn a_watch_that_crosses_into_another_history_is_found() {
    check_found(Bug::LineageIgnored);
}

#[test]
fn a_command_applied_twice_is_found() {
    check_found(Bug::DedupSkipped);
}

#[test]
fn a_snapshot_that_watchers_do_not_hear_of_is_found() {
    check_found(Bug::SnapshotUnannounced);
}

#[test]
fn a_group_that_meets_at_two_places_is_found() {
    check_found(Bug::RendezvousReplaced);
}

#[test]
fn a_snapshot_whose_name_is_not_on_disk_is_found() {
    check_found(Bug::SnapshotInPlace);
}
