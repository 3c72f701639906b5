//! Ranks that are threads of one process.
//!
//! Each rank has two buffers and uses them in turn. It fills one, says so by its count of arrivals, and
//! waits until every rank's count is as high; then it reads the others'. A rank that is one operation
//! ahead writes its other buffer, and cannot be two ahead, since that takes everybody's next arrival.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::{CollectiveError, HostCollective, check_gather};
use crate::host::VIRTUAL_SHARDS;

/// How long a rank waits for the others: far longer than one operation of the largest step takes, and
/// short enough that a request meets its failure rather than its own deadline.
pub const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a rank spins before it sleeps: ranks do equal work, so the others are close.
const SPIN_MAX: Duration = Duration::from_micros(50);
/// Spins between two looks at the clock.
const SPINS_PER_LOOK: u32 = 64;

/// One rank of a group of threads. Dropping it breaks the group for the others.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    /// Operations begun.
    operation: u64,
    group: Arc<Group>,
}

/// Breaks a group from outside, so that all its ranks return.
#[derive(Clone, Debug)]
pub struct Abort {
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    wait_max: Duration,
    ranks: Vec<Rank>,
    broken: OnceLock<CollectiveError>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Rank {
    /// Operations for which this rank has filled its buffer.
    arrivals: AtomicU64,
    buffers: [RwLock<Vec<f32>>; 2],
}

// === impl Threads ===

impl Threads {
    /// The ranks of a group of `world`, in order; each wait lasts at most `wait_max` ([`WAIT_MAX`] in service).
    ///
    /// # Errors
    /// When `world` is no power of two or more than the virtual shards of a weight.
    pub fn group(world: usize, wait_max: Duration) -> Result<Vec<Self>, CollectiveError> {
        if !world.is_power_of_two() || world > VIRTUAL_SHARDS {
            return Err(CollectiveError::World { world, world_max: VIRTUAL_SHARDS });
        }
        let group = Arc::new(Group {
            wait_max,
            ranks: (0..world).map(|_| Rank::default()).collect(),
            broken: OnceLock::new(),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let rank = |rank| Self { rank, operation: 0, group: Arc::clone(&group) };
        Ok((0..world).map(rank).collect())
    }

    /// A handle that aborts the group.
    pub fn abort(&self) -> Abort {
        Abort { group: Arc::clone(&self.group) }
    }

    /// Shows `values` to the other ranks and waits for theirs.
    fn exchange(&mut self, values: &[f32]) -> Result<(), CollectiveError> {
        if let Some(error) = self.group.broken.get() {
            return Err(error.clone());
        }
        self.operation += 1;
        let own = &self.group.ranks[self.rank];
        {
            let mut buffer =
                own.buffers[self.side()].write().unwrap_or_else(PoisonError::into_inner);
            buffer.clear();
            buffer.extend_from_slice(values);
        }
        own.arrivals.store(self.operation, Ordering::SeqCst);
        self.group.wake();
        self.group.wait(self.operation)
    }

    /// Which buffers the current operation uses.
    fn side(&self) -> usize {
        usize::from(self.operation % 2 == 1)
    }

    /// Reads what a rank brought to the current operation; it must be `length` elements.
    fn read<R>(
        &self,
        rank: usize,
        length: usize,
        read: impl FnOnce(&[f32]) -> R,
    ) -> Result<R, CollectiveError> {
        let buffer = self.group.ranks[rank].buffers[self.side()].read();
        let buffer = buffer.unwrap_or_else(PoisonError::into_inner);
        if buffer.len() == length {
            return Ok(read(&buffer));
        }
        let error = CollectiveError::Length { rank, got: buffer.len(), expected: length };
        Err(self.group.break_with(error))
    }

    /// The sum over `ranks`, halves first.
    fn sum(
        &self,
        ranks: std::ops::Range<usize>,
        length: usize,
    ) -> Result<Vec<f32>, CollectiveError> {
        if ranks.len() == 1 {
            return self.read(ranks.start, length, <[f32]>::to_vec);
        }
        let middle = ranks.start + ranks.len() / 2;
        let mut sum = self.sum(ranks.start..middle, length)?;
        let upper = self.sum(middle..ranks.end, length)?;
        for (sum, upper) in sum.iter_mut().zip(upper) {
            *sum += upper;
        }
        Ok(sum)
    }
}

impl HostCollective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.group.ranks.len()
    }

    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.exchange(values)?;
        values.copy_from_slice(&self.sum(0..self.world(), values.len())?);
        Ok(())
    }

    fn all_gather(&mut self, local: &[f32], all: &mut [f32]) -> Result<(), CollectiveError> {
        check_gather((self.rank, self.world()), local, all)
            .map_err(|error| self.group.break_with(error))?;
        self.exchange(local)?;
        for rank in 0..self.world() {
            let part = &mut all[rank * local.len()..(rank + 1) * local.len()];
            self.read(rank, local.len(), |values| part.copy_from_slice(values))?;
        }
        Ok(())
    }

    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<(), CollectiveError> {
        let world = self.world();
        if root >= world {
            return Err(self.group.break_with(CollectiveError::Root { root, world }));
        }
        self.exchange(if self.rank == root { values } else { &[] })?;
        self.read(root, values.len(), |from| values.copy_from_slice(from))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.group.break_with(CollectiveError::Left { rank: self.rank });
    }
}

// === impl Abort ===

impl Abort {
    /// Makes every rank's present and future operations fail.
    pub fn abort(&self) {
        self.group.break_with(CollectiveError::Aborted);
    }
}

// === impl Group ===

impl Group {
    /// Breaks the group, if it is not broken yet; why it is.
    fn break_with(&self, error: CollectiveError) -> CollectiveError {
        let error = self.broken.get_or_init(|| error).clone();
        self.wake();
        error
    }

    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // The lock orders this after a sleeper's last look and before its sleep, or after it sleeps.
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// The first rank that has not come to `operation`.
    fn missing(&self, operation: u64) -> Option<usize> {
        self.ranks.iter().position(|rank| rank.arrivals.load(Ordering::SeqCst) < operation)
    }

    /// What a wait for `operation` ends with, if it ends now. A full house counts even if the group broke since.
    fn outcome(&self, operation: u64) -> Option<Result<(), CollectiveError>> {
        if self.missing(operation).is_none() {
            return Some(Ok(()));
        }
        self.broken.get().cloned().map(Err)
    }

    fn wait(&self, operation: u64) -> Result<(), CollectiveError> {
        let start = Instant::now();
        while start.elapsed() < SPIN_MAX.min(self.wait_max) {
            for _ in 0..SPINS_PER_LOOK {
                if let Some(outcome) = self.outcome(operation) {
                    return outcome;
                }
                std::hint::spin_loop();
            }
        }
        let guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let left = self.wait_max.saturating_sub(start.elapsed());
        let waited =
            self.wake.wait_timeout_while(guard, left, |()| self.outcome(operation).is_none());
        drop(waited);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        match (self.outcome(operation), self.missing(operation)) {
            (Some(outcome), _) => outcome,
            (None, Some(rank)) => {
                Err(self.break_with(CollectiveError::Deadline { rank, waited: self.wait_max }))
            }
            (None, None) => Ok(()),
        }
    }
}
