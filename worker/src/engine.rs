//! The engine: one thread, one loop. It takes mail, plans a step, runs it, and tells each sequence's stream.
//!
//! ```text
//! loop { select() -> Event;  apply(event) }        Step: scheduler.step() -> executor.run() -> scheduler.commit()
//! ```
//!
//! Reading order: [`handle`] (the outside), this file (the loop), [`scheduler`] (who runs), [`block_pool`]
//! (who holds which KV block), [`phalanx_chassis::chunk_feed`] (what routers hear of that), [`sequence`],
//! [`plan`], [`sampling`], [`config`].

pub mod block_pool;
pub mod config;
pub mod handle;
pub mod plan;
pub mod sampling;
pub mod scheduler;
pub mod sequence;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use phalanx_chassis::chunk_feed::ChunkFeed;
use phalanx_proto::fault::{Fault, FaultCode};
use tokio::sync::{mpsc, watch};

pub use self::config::{EngineConfig, EngineConfigError, KvSize, PrefixCaching, RawEngine};
use self::handle::Mail;
pub use self::handle::{
    EngineHandle, EngineLoad, Places, SequenceEvent, SequenceRequest, SequenceStream, TokenFinish,
};
use self::scheduler::{Progress, Scheduler};
use self::sequence::SequenceId;
use crate::executor::Executor;

/// Mail that may lie unread while a step runs. A step takes milliseconds; this many submissions in one step
/// are more than the queue behind it would accept anyway.
const MAIL_MAX: usize = 4096;

/// What the loop does next. Closed: this is everything that ever happens to an engine.
#[derive(Debug)]
enum Event {
    Mail(Mail),
    Step,
    /// Every handle is gone.
    Abandoned,
}

/// What a step did and where its time went, for metrics and benchmarks.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepReport {
    /// Tokens computed.
    pub rows: usize,
    /// Tokens drawn.
    pub draws: usize,
    /// Inside the executor: kernels, and nothing that the engine itself decides.
    pub executor: Duration,
    /// Everything else between two steps: planning, committing, telling the streams.
    pub engine: Duration,
}

/// Runs after each step, in the engine's thread.
pub type StepObserver = Box<dyn FnMut(StepReport) + Send>;

struct Engine<E> {
    mail: Receiver<Mail>,
    scheduler: Scheduler,
    executor: E,
    streams: HashMap<SequenceId, mpsc::UnboundedSender<SequenceEvent>>,
    next_id: u64,
    load: watch::Sender<EngineLoad>,
    chunks: Arc<ChunkFeed>,
    observer: StepObserver,
    /// Set when the executor failed: no later step can be right.
    broken: bool,
}

/// Starts an engine thread over `blocks` KV blocks.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn<E>(
    config: &EngineConfig,
    blocks: u32,
    executor: E,
    observer: StepObserver,
) -> std::io::Result<EngineHandle>
where
    E: Executor,
{
    let (sender, mail) = sync_channel(MAIL_MAX);
    let scheduler = Scheduler::new(config, blocks);
    let (load, load_seen) = watch::channel(scheduler.load());
    let chunks = Arc::<ChunkFeed>::default();
    let engine = Engine {
        mail,
        scheduler,
        executor,
        streams: HashMap::new(),
        next_id: 0,
        load,
        chunks: Arc::clone(&chunks),
        observer,
        broken: false,
    };
    std::thread::Builder::new().name("engine".to_owned()).spawn(move || engine.run())?;
    Ok(EngineHandle::new(sender, load_seen, chunks, config.sequences_max()))
}

// === impl Engine ===

impl<E> Engine<E>
where
    E: Executor,
{
    fn run(mut self) {
        while let Some(event) = self.select() {
            self.apply(event);
        }
        let gone = if self.broken {
            Fault::new(FaultCode::Unavailable, "the engine has stopped after a fault")
        } else {
            Fault::new(FaultCode::Draining, "the worker is shutting down")
        };
        for (_, stream) in self.streams.drain() {
            // A receiver that is gone too needs no farewell.
            let _ = stream.send(SequenceEvent::Failed(gone.clone()));
        }
    }

    /// The next event; `None` when the loop is to end. Blocks only while there is nothing to compute.
    fn select(&self) -> Option<Event> {
        if self.broken {
            return None;
        }
        let event = if self.scheduler.is_idle() {
            self.mail.recv().map_or(Event::Abandoned, Event::Mail)
        } else {
            match self.mail.try_recv() {
                Ok(mail) => Event::Mail(mail),
                Err(TryRecvError::Empty) => Event::Step,
                Err(TryRecvError::Disconnected) => Event::Abandoned,
            }
        };
        match event {
            Event::Abandoned | Event::Mail(Mail::Stop) => None,
            Event::Mail(_) | Event::Step => Some(event),
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Mail(Mail::Submit(request, stream)) => self.submit(request, stream),
            Event::Mail(Mail::Nudge) => self.forget_cancelled(),
            Event::Step => self.step(),
            Event::Mail(Mail::Stop) | Event::Abandoned => {}
        }
    }

    fn submit(&mut self, request: SequenceRequest, stream: mpsc::UnboundedSender<SequenceEvent>) {
        if self.scheduler.is_full() {
            // A place may belong to a sequence that was cancelled and not looked at since.
            self.forget_cancelled();
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        match self.scheduler.add(id, request) {
            Ok(()) => {
                self.streams.insert(id, stream);
            }
            Err(fault) => {
                let _ = stream.send(SequenceEvent::Failed(fault));
            }
        }
        self.load.send_replace(self.scheduler.load());
    }

    fn step(&mut self) {
        let begun = Instant::now();
        self.forget_cancelled();
        let plan = self.scheduler.step();
        if plan.shares.is_empty() {
            return; // the last sequence was cancelled
        }
        for (id, cached) in &plan.started {
            let cached_tokens = u32::try_from(*cached).unwrap_or(u32::MAX);
            self.tell(*id, SequenceEvent::Started { cached_tokens });
        }
        let planned = Instant::now();
        let drawn = match self.executor.run(&plan) {
            Ok(drawn) => drawn,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the engine stops");
                self.broken = true;
                return;
            }
        };
        let executed = Instant::now();
        for (id, progress) in self.scheduler.commit(&plan, drawn) {
            self.report(id, progress);
        }
        self.chunks.apply(self.scheduler.take_chunk_changes());
        self.load.send_replace(self.scheduler.load());
        let executor = executed - planned;
        (self.observer)(StepReport {
            rows: plan.batch.rows(),
            draws: plan.draw_rows.len(),
            executor,
            engine: begun.elapsed() - executor,
        });
    }

    fn report(&mut self, id: SequenceId, progress: Progress) {
        let (event, ended) = match progress {
            Progress::Drew { token, logprobs, finish } => {
                (SequenceEvent::Token { id: token, logprobs, finish }, finish.is_some())
            }
            Progress::Numerical => {
                let message =
                    "the model's logits cannot be sampled (NaN, or every token is banned)";
                (SequenceEvent::Failed(Fault::new(FaultCode::Numerical, message)), true)
            }
        };
        self.tell(id, event);
        if ended {
            self.streams.remove(&id);
        }
    }

    fn tell(&self, id: SequenceId, event: SequenceEvent) {
        if let Some(stream) = self.streams.get(&id) {
            // A closed stream is found and cancelled before the next step.
            let _ = stream.send(event);
        }
    }

    /// Cancels every sequence whose stream was dropped: its blocks are free before the next step.
    fn forget_cancelled(&mut self) {
        let scheduler = &mut self.scheduler;
        let before = self.streams.len();
        self.streams.retain(|id, stream| {
            let live = !stream.is_closed();
            if !live {
                scheduler.cancel(*id);
            }
            live
        });
        if self.streams.len() != before {
            self.load.send_replace(self.scheduler.load());
        }
    }
}

#[cfg(test)]
mod tests;
