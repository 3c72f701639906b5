//! Threads that share one operation's tasks.
//!
//! A job is a number of tasks and a closure. The caller and the threads claim tasks one by one from a
//! ticket `(epoch, next task)`; a claim succeeds only while its epoch is current, so a thread that slept
//! through a job neither delays it nor touches it. Who runs a task must not matter to its result.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle thread spins before it sleeps: longer than the gap between two operations of a step.
const SPIN_MAX: Duration = Duration::from_micros(50);
/// Spins between two looks at the clock.
const SPINS_PER_LOOK: u32 = 64;
/// A sleeping thread looks around this often even if nobody wakes it.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// The caller spins this often for the last task before it yields its core to whoever runs it.
const FINISH_SPINS_MAX: u32 = 2_000;

/// The lower half of a ticket from which nothing can be claimed.
const CLOSED: u64 = u32::MAX as u64;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// A pool; the thread that calls [`Pool::run`] is one of its threads. Dropping it joins the others.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held for the length of a job.
    busy: Mutex<()>,
}

struct Shared {
    /// Upper half: the job's epoch; lower half: the next task to claim.
    ticket: AtomicU64,
    tasks: AtomicUsize,
    /// Tasks not finished yet.
    pending: AtomicUsize,
    job: UnsafeCell<Option<*const Task<'static>>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stopping: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only between jobs and read only by holders of a claimed task, see `work`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the closure behind the pointer is Sync.
unsafe impl Send for Shared {}

// === impl Pool ===

impl Pool {
    /// A pool of `threads` threads, the caller among them.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            tasks: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            stopping: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let threads = (1..threads)
            .filter_map(|index| {
                let shared = Arc::clone(&shared);
                let name = format!("kernel-{index}");
                // A thread that cannot start is one helper fewer: results do not depend on it.
                std::thread::Builder::new()
                    .name(name)
                    .spawn(move || shared.serve())
                    .inspect_err(|error| tracing::warn!(%error, index, "kernel thread not started"))
                    .ok()
            })
            .collect();
        Self { shared, threads, busy: Mutex::new(()) }
    }

    /// Its threads, the caller among them.
    pub(crate) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `task(0)` to `task(tasks - 1)`, each once, and returns when all have finished. A panic of a
    /// task comes out here, once. A job within a job runs on its own thread alone.
    pub(crate) fn run(&self, tasks: usize, task: &Task<'_>) {
        let claim =
            if tasks > 1 && !self.threads.is_empty() { self.busy.try_lock().ok() } else { None };
        let Some(claim) = claim else {
            for index in 0..tasks {
                task(index);
            }
            return;
        };
        self.shared.publish(tasks, task);
        self.shared.work();
        self.shared.finish();
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            drop(claim);
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.wake_all();
        for thread in self.threads.drain(..) {
            // Tasks' panics are caught, so a thread ends only by being told to.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    fn publish(&self, tasks: usize, task: &Task<'_>) {
        assert!((tasks as u64) < CLOSED, "{tasks} tasks in one job");
        let epoch = self.ticket.load(Ordering::SeqCst) >> 32;
        // Closed first: a late thread still holding the last job's ticket must not claim from the new count.
        self.ticket.store(epoch << 32 | CLOSED, Ordering::SeqCst);
        // SAFETY: only the lifetime changes, and `run` does not return while a task may still be called.
        let task = unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        // SAFETY: the last job has finished and no task of it is claimed, so nobody reads the cell.
        unsafe { *self.job.get() = Some(std::ptr::from_ref(task)) };
        self.pending.store(tasks, Ordering::SeqCst);
        self.tasks.store(tasks, Ordering::SeqCst);
        self.ticket.store(epoch.wrapping_add(1) << 32, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_all();
        }
    }

    fn wake_all(&self) {
        // The lock orders this after a thread's last look and before its sleep, or after it sleeps.
        drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }

    /// Claims a task of the current job.
    fn claim(&self) -> Option<usize> {
        let mut ticket = self.ticket.load(Ordering::SeqCst);
        loop {
            let next = usize::try_from(ticket & u64::from(u32::MAX)).unwrap_or(usize::MAX);
            // A count newer than the ticket is harmless: the ticket was closed before the count changed, so the
            // exchange below fails.
            if next >= self.tasks.load(Ordering::SeqCst) {
                return None;
            }
            match self.ticket.compare_exchange_weak(
                ticket,
                ticket + 1,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => return Some(next),
                Err(current) => ticket = current,
            }
        }
    }

    /// Runs tasks until none is left to claim.
    fn work(&self) {
        while let Some(index) = self.claim() {
            // SAFETY: while a claimed task is pending the job is not replaced.
            let job = unsafe { *self.job.get() };
            if let Some(task) = job {
                // SAFETY: `run` keeps the closure alive until no task is pending.
                let task = unsafe { &*task };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(index))) {
                    self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                }
            }
            self.pending.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Waits for the tasks that other threads claimed: they are running, so the wait ends with them.
    fn finish(&self) {
        let mut spins = 0;
        while self.pending.load(Ordering::SeqCst) > 0 {
            if spins < FINISH_SPINS_MAX {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    fn serve(&self) {
        while !self.stopping.load(Ordering::SeqCst) {
            // Read first: a job published while this one is worked on is then news.
            let seen = self.ticket.load(Ordering::SeqCst) >> 32;
            self.work();
            if !self.spin(seen) {
                self.doze(seen);
            }
        }
    }

    fn has_news(&self, seen: u64) -> bool {
        self.ticket.load(Ordering::SeqCst) >> 32 != seen || self.stopping.load(Ordering::SeqCst)
    }

    /// Whether a job came while spinning.
    fn spin(&self, seen: u64) -> bool {
        let start = Instant::now();
        while start.elapsed() < SPIN_MAX {
            for _ in 0..SPINS_PER_LOOK {
                if self.has_news(seen) {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        false
    }

    fn doze(&self, seen: u64) {
        let guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        // Either the publisher sees this sleeper and wakes it, or the sleeper sees the publisher's ticket.
        if !self.has_news(seen) {
            drop(self.wake.wait_timeout(guard, SLEEP_MAX));
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_threads() {
        for threads in 1..=4 {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 1000] {
                let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|index| {
                    runs[index].fetch_add(1, Ordering::SeqCst);
                });
                assert!(runs.iter().all(|count| count.load(Ordering::SeqCst) == 1));
            }
        }
    }

    #[test]
    fn jobs_of_changing_size_in_quick_succession_run_each_task_once() {
        let pool = Pool::new(4);
        let runs: Vec<AtomicUsize> = (0..64).map(|_| AtomicUsize::new(0)).collect();
        for job in 0..100_000 {
            // Growing and shrinking: a late thread of one job must not take a task of the next.
            let tasks = 2 + job * 7 % 61;
            pool.run(tasks, &|index| {
                runs[index].fetch_add(1, Ordering::SeqCst);
            });
            for (index, count) in runs.iter().enumerate() {
                let expected = usize::from(index < tasks);
                assert_eq!(count.swap(0, Ordering::SeqCst), expected, "task {index} of {tasks}");
            }
        }
    }

    #[test]
    fn a_panic_of_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for _ in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(50, &|index| assert!(index != 17, "task 17 fails"));
            }));
            let message = caught.unwrap_err();
            assert_eq!(message.downcast_ref::<&str>(), Some(&"task 17 fails"));
            let sum = AtomicUsize::new(0);
            pool.run(10, &|index| {
                sum.fetch_add(index, Ordering::SeqCst);
            });
            assert_eq!(sum.load(Ordering::SeqCst), 45);
        }
    }

    #[test]
    fn a_job_within_a_job_runs_to_its_end() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(4, &|index| {
                sum.fetch_add(index, Ordering::SeqCst);
            });
        });
        assert_eq!(sum.load(Ordering::SeqCst), 24);
    }

    #[test]
    fn a_sleeping_thread_wakes_for_the_next_job() {
        let pool = Pool::new(2);
        while pool.shared.sleepers.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        // Both tasks meet at the barrier, so the sleeper must have taken one.
        let barrier = std::sync::Barrier::new(2);
        pool.run(2, &|_| {
            barrier.wait();
        });
    }
}
