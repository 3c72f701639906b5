//! Two and four ranks make the same bits as one: layers shard, row-parallel sums keep their tree.

use std::thread;

use phalanx_kernels::collective::{Threads, WAIT_MAX};
use phalanx_kernels::cpu::{Cpu, CpuPath};
use phalanx_worker::engine::RawEngine;
use phalanx_worker::weights::safetensors::Shard;

use crate::harness::{Answer, Harness, greedy};

/// What every rank of a group of `world` answers.
fn answers(world: usize, prompts: &[Vec<u32>]) -> Vec<Vec<Answer>> {
    let ranks = Threads::group(world, WAIT_MAX).unwrap();
    let requests =
        |max_tokens| prompts.iter().map(move |prompt| greedy(prompt, max_tokens)).collect();
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..)
            .zip(ranks)
            .map(|(rank, collective)| {
                scope.spawn(move || {
                    let shard = Shard { rank, world };
                    let backend = Cpu::new(1, CpuPath::detect());
                    let mut harness =
                        Harness::of_rank(backend, (shard, collective), RawEngine::default());
                    harness.run(requests(12))
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn every_rank_of_any_group_makes_the_bits_of_one() {
    let prompts: Vec<Vec<u32>> =
        [5, 40, 130].map(|length| (0..length).map(|at| 3 + (at * 37) % 3000).collect()).to_vec();
    let alone = answers(1, &prompts).remove(0);
    for world in [2, 4] {
        for (rank, answers) in answers(world, &prompts).into_iter().enumerate() {
            assert!(answers == alone, "rank {rank} of {world} differs from a group of one");
        }
    }
}
