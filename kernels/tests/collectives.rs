//! Groups of ranks sum like one rank, bit for bit, and every failure reaches every rank.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod data;

use std::time::Duration;

use data::{bf16_matrix, noise, rows_tensor};
use half::bf16;
use phalanx_kernels::Backend;
use phalanx_kernels::collective::{CollectiveError, HostCollective, Solo, Threads, WAIT_MAX};
use phalanx_kernels::cpu::{Cpu, CpuPath};
use phalanx_kernels::host::{HostMatrix, Summation, VIRTUAL_SHARDS};

/// Runs `work` on each rank of a group, each on its thread; the results in order.
fn on_ranks<R: Send>(world: usize, work: impl Fn(Threads) -> R + Sync) -> Vec<R> {
    let ranks = Threads::group(world, WAIT_MAX).unwrap();
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            ranks.into_iter().map(|rank| scope.spawn(move || work(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Columns `start..end` of a bf16 matrix.
fn columns(matrix: &HostMatrix, start: usize, end: usize) -> HostMatrix {
    let width = size_of::<bf16>();
    let rows = matrix.bytes.chunks_exact(matrix.cols * width);
    let bytes = rows.flat_map(|row| row[start * width..end * width].to_vec()).collect();
    HostMatrix { cols: end - start, bytes, ..*matrix }
}

#[test]
fn a_row_parallel_product_is_the_same_bits_on_one_two_four_and_eight_ranks() {
    let (rows, outputs, inputs) = (5, 40, 88 * 8);
    let matrix = bf16_matrix(outputs, inputs, 1);
    let x = noise(rows * inputs, 2);
    let product = |cpu: &mut Cpu, rank: usize, world: usize| {
        let (start, end) = (rank * inputs / world, (rank + 1) * inputs / world);
        let part = columns(&matrix, start, end);
        let x: Vec<f32> = x.chunks_exact(inputs).flat_map(|row| row[start..end].to_vec()).collect();
        let weight = cpu.weight(vec![part], Summation::Shards(VIRTUAL_SHARDS / world)).unwrap();
        let mut out = cpu.tensor(rows, outputs).unwrap();
        cpu.linear(&rows_tensor(cpu, &x, rows), &weight, &mut out);
        cpu.read(&out)
    };
    for path in CpuPath::ALL.into_iter().filter(|path| path.is_available()) {
        let alone = product(&mut Cpu::new(1, path), 0, 1);
        for world in [2, 4, 8] {
            let together = on_ranks(world, |mut rank| {
                let mut values = product(&mut Cpu::new(1, path), rank.rank(), world);
                rank.all_reduce_sum(&mut values).unwrap();
                values
            });
            for values in together {
                assert_eq!(values, alone, "{path}, {world} ranks");
            }
        }
    }
}

#[test]
fn a_long_run_of_mixed_operations_keeps_the_ranks_in_step() {
    for world in [1, 2, 4] {
        let results = on_ranks(world, |mut rank| {
            let own = rank.rank() as f32;
            let mut log = Vec::new();
            for round in 0..300 {
                let mut sum = [own + round as f32; 3];
                rank.all_reduce_sum(&mut sum).unwrap();
                let mut all = vec![0.0; world * 2];
                rank.all_gather(&[own, round as f32], &mut all).unwrap();
                let mut value = [own];
                rank.broadcast(&mut value, round % world).unwrap();
                log.push((sum[0], all, value[0]));
            }
            // Nobody leaves while another may still wait.
            rank.all_reduce_sum(&mut []).unwrap();
            log
        });
        let ranks = 0..world;
        for (round, (sum, all, value)) in results[0].iter().enumerate() {
            let expected: usize = ranks.clone().map(|rank| rank + round).sum();
            assert_eq!(*sum, expected as f32);
            let gathered = ranks.clone().flat_map(|rank| [rank as f32, round as f32]);
            assert_eq!(*all, gathered.collect::<Vec<_>>());
            assert_eq!(*value, (round % world) as f32);
        }
        assert!(results.iter().all(|log| *log == results[0]));
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_when_the_wait_ends() {
    let waited = Duration::from_millis(1);
    let mut ranks = Threads::group(2, waited).unwrap();
    let error = ranks[0].all_reduce_sum(&mut [1.0]).unwrap_err();
    assert_eq!(error, CollectiveError::Deadline { rank: 1, waited });
    assert_eq!(ranks[1].all_reduce_sum(&mut [1.0]), Err(error), "the group stays broken");
}

#[test]
fn an_abort_frees_a_waiting_rank() {
    let mut ranks = Threads::group(2, WAIT_MAX).unwrap();
    let abort = ranks[1].abort();
    let mut waiting = ranks.remove(0);
    let outcome = std::thread::scope(|scope| {
        let thread = scope.spawn(move || waiting.all_reduce_sum(&mut [1.0]));
        abort.abort();
        thread.join().unwrap()
    });
    assert_eq!(outcome, Err(CollectiveError::Aborted));
}

#[test]
fn a_rank_that_leaves_frees_the_others() {
    let results =
        on_ranks(
            4,
            |mut rank| {
                if rank.rank() == 2 { Ok(()) } else { rank.all_reduce_sum(&mut [1.0]) }
            },
        );
    let failures = results.iter().filter(|result| result.is_err()).count();
    assert_eq!(failures, 3, "{results:?}");
}

#[test]
fn ranks_that_disagree_about_length_all_hear_of_it() {
    let results = on_ranks(2, |mut rank| rank.all_reduce_sum(&mut vec![0.0; 3 + rank.rank()]));
    for result in results {
        assert!(matches!(result, Err(CollectiveError::Length { .. })), "{result:?}");
    }
}

#[test]
fn impossible_groups_roots_and_rooms_are_refused() {
    for world in [0, 3, 16] {
        let error = Threads::group(world, WAIT_MAX).unwrap_err();
        assert_eq!(error, CollectiveError::World { world, world_max: VIRTUAL_SHARDS });
    }
    let mut alone = Solo;
    assert_eq!(alone.broadcast(&mut [], 1), Err(CollectiveError::Root { root: 1, world: 1 }));
    let refused = alone.all_gather(&[1.0], &mut [0.0; 2]);
    assert_eq!(refused, Err(CollectiveError::Length { rank: 0, got: 1, expected: 2 }));
}
