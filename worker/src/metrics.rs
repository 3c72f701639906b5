//! The worker's metrics, one series per worker of the process.

use phalanx_chassis::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

use crate::engine::{EngineLoad, StepObserver};

/// From an empty step on a tiny model to a long prefill chunk of a large one.
const STEP_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5, 1.0, 2.0, 5.0];
/// The engine's own part of a step is to stay under 150 microseconds at batch 16.
const ENGINE_SECONDS: [f64; 8] =
    [0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_15, 0.000_3, 0.001, 0.01];

/// Which worker of the process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabels {
    worker: String,
}

/// The families of all workers of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    running: Family<WorkerLabels, Gauge>,
    waiting: Family<WorkerLabels, Gauge>,
    kv_blocks_free: Family<WorkerLabels, Gauge>,
    kv_blocks_total: Family<WorkerLabels, Gauge>,
    preemptions: Family<WorkerLabels, Counter>,
    steps: Family<WorkerLabels, Counter>,
    step_seconds: Family<WorkerLabels, Histogram, fn() -> Histogram>,
    step_engine_seconds: Family<WorkerLabels, Histogram, fn() -> Histogram>,
}

/// One worker's series; dropping it takes them out of the process' metrics.
#[derive(Debug)]
pub(crate) struct WorkerMeter {
    families: WorkerMetrics,
    labels: WorkerLabels,
}

// === impl WorkerMetrics ===

impl WorkerMetrics {
    /// Registers the families; once per process, however many workers it runs.
    pub fn register(metrics: &Metrics) -> Self {
        let families = Self {
            running: Family::default(),
            waiting: Family::default(),
            kv_blocks_free: Family::default(),
            kv_blocks_total: Family::default(),
            preemptions: Family::default(),
            steps: Family::default(),
            step_seconds: Family::new_with_constructor(|| Histogram::new(STEP_SECONDS)),
            step_engine_seconds: Family::new_with_constructor(|| Histogram::new(ENGINE_SECONDS)),
        };
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("worker");
            for (name, help, family) in [
                ("running", "Sequences in the running batch", &families.running),
                ("waiting", "Sequences waiting to be admitted", &families.waiting),
                ("kv_blocks_free", "KV blocks no running sequence needs", &families.kv_blocks_free),
                ("kv_blocks_total", "All KV blocks", &families.kv_blocks_total),
            ] {
                registry.register(name, help, family.clone());
            }
            let preemptions = families.preemptions.clone();
            registry.register("preemptions", "Sequences thrown back to waiting", preemptions);
            registry.register("steps", "Steps run", families.steps.clone());
            let step_seconds = families.step_seconds.clone();
            registry.register("step_seconds", "Time of a step", step_seconds);
            let outside = families.step_engine_seconds.clone();
            registry.register("step_engine_seconds", "Time of a step outside the model", outside);
        });
        families
    }

    pub(crate) fn meter(&self, worker: String) -> WorkerMeter {
        WorkerMeter { families: self.clone(), labels: WorkerLabels { worker } }
    }
}

// === impl WorkerMeter ===

impl WorkerMeter {
    /// What the engine calls after each step.
    pub(crate) fn step_observer(&self) -> StepObserver {
        let steps = self.families.step_seconds.get_or_create_owned(&self.labels);
        let outside = self.families.step_engine_seconds.get_or_create_owned(&self.labels);
        Box::new(move |step| {
            steps.observe((step.executor + step.engine).as_secs_f64());
            outside.observe(step.engine.as_secs_f64());
        })
    }

    /// Shows the engine's load until the engine is gone, and then none.
    pub(crate) async fn follow(&self, mut load: watch::Receiver<EngineLoad>) {
        let before = self.totals();
        loop {
            let now = *load.borrow_and_update();
            self.show(&now, before);
            if load.changed().await.is_err() {
                return self.show(&EngineLoad::default(), before);
            }
        }
    }

    /// Preemptions and steps of all engines so far.
    fn totals(&self) -> (u64, u64) {
        let Self { families, labels } = self;
        let preemptions = families.preemptions.get_or_create(labels).get();
        (preemptions, families.steps.get_or_create(labels).get())
    }

    /// Shows `load` of an engine before which there were as many preemptions and steps as `before` says.
    fn show(&self, load: &EngineLoad, before: (u64, u64)) {
        let Self { families, labels } = self;
        families.running.get_or_create(labels).set(load.running.into());
        families.waiting.get_or_create(labels).set(load.waiting.into());
        families.kv_blocks_free.get_or_create(labels).set(load.kv_blocks_free.into());
        families.kv_blocks_total.get_or_create(labels).set(load.kv_blocks_total.into());
        raise(&families.preemptions.get_or_create(labels), before.0 + load.preemptions_total);
        raise(&families.steps.get_or_create(labels), before.1 + load.steps_total);
    }
}

fn raise(counter: &Counter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

impl Drop for WorkerMeter {
    fn drop(&mut self) {
        let Self { families, labels } = self;
        families.running.remove(labels);
        families.waiting.remove(labels);
        families.kv_blocks_free.remove(labels);
        families.kv_blocks_total.remove(labels);
        families.preemptions.remove(labels);
        families.steps.remove(labels);
        families.step_seconds.remove(labels);
        families.step_engine_seconds.remove(labels);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::StepReport;

    #[test]
    fn each_worker_has_its_series_until_it_is_gone() {
        let metrics = Metrics::default();
        let families = WorkerMetrics::register(&metrics);
        let (first, second) = (families.meter("a".to_owned()), families.meter("b".to_owned()));
        let load = EngineLoad { running: 3, steps_total: 9, ..EngineLoad::default() };
        first.show(&load, (0, 0));
        first.show(&load, (0, 0));
        second.show(&EngineLoad::default(), (0, 0));
        let times = Duration::from_millis(3);
        let report = StepReport { rows: 1, draws: 1, executor: times, engine: times };
        first.step_observer()(report);
        let text = metrics.encode();
        for line in [
            "phalanx_worker_running{worker=\"a\"} 3",
            "phalanx_worker_running{worker=\"b\"} 0",
            "phalanx_worker_steps_total{worker=\"a\"} 9",
            "phalanx_worker_preemptions_total{worker=\"a\"} 0",
            "phalanx_worker_step_seconds_count{worker=\"a\"} 1",
            "phalanx_worker_step_seconds_bucket{le=\"0.008\",worker=\"a\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(first);
        let text = metrics.encode();
        assert!(!text.contains("worker=\"a\"") && text.contains("worker=\"b\""), "{text}");
    }
}
