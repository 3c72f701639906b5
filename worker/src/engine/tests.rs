//! The loop, over an executor that draws a token's successor.

use std::sync::Arc;

use phalanx_kernels::sample::Sampled;
use phalanx_proto::generate::Sampling;

use super::*;
use crate::engine::plan::StepPlan;
use crate::executor::ExecutorError;

/// Draws the last token plus one, and waits for a permit before each step.
struct Successor {
    permits: Receiver<()>,
}

impl Executor for Successor {
    fn run(&mut self, plan: &StepPlan) -> Result<Vec<Sampled>, ExecutorError> {
        self.permits.recv_timeout(Duration::from_secs(20)).expect("the test forgot a permit");
        let last = plan.draw_rows.iter().map(|row| plan.batch.tokens[*row]);
        Ok(last.map(|token| Sampled::Token { id: token + 1, logprobs: None }).collect())
    }
}

struct Fixture {
    engine: EngineHandle,
    permits: std::sync::mpsc::Sender<()>,
}

impl Fixture {
    fn new() -> Self {
        let (permits, receiver) = std::sync::mpsc::channel();
        let config = EngineConfig::try_from(RawEngine::default()).unwrap();
        let executor = Successor { permits: receiver };
        let engine = spawn(&config, 64, executor, Box::new(|_| {})).unwrap();
        Self { engine, permits }
    }

    fn allow(&self, steps: usize) {
        for _ in 0..steps {
            self.permits.send(()).unwrap();
        }
    }

    fn submit(&self, max_tokens: u32) -> SequenceStream {
        let request = SequenceRequest {
            prompt: Arc::from([1, 2, 3]),
            generated: Arc::from([]),
            sampling: Sampling::default(),
            max_tokens,
            min_tokens: 0,
            end_tokens: Arc::from([100]),
            top_logprobs: None,
            cache_salt: Arc::from(""),
            chunks: Arc::default(),
        };
        self.engine.submit(request).unwrap()
    }

    async fn until_idle(&self) {
        let idle = |load: &EngineLoad| {
            load.running == 0 && load.waiting == 0 && load.kv_blocks_free == load.kv_blocks_total
        };
        let mut load = self.engine.load();
        tokio::time::timeout(Duration::from_secs(20), load.wait_for(idle)).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_stream_tells_its_start_its_tokens_and_its_end() {
    let fixture = Fixture::new();
    fixture.allow(2);
    let mut stream = fixture.submit(2);
    assert_eq!(stream.next().await, Some(SequenceEvent::Started { cached_tokens: 0 }));
    let token = |id, finish| Some(SequenceEvent::Token { id, logprobs: None, finish });
    assert_eq!(stream.next().await, token(4, None));
    assert_eq!(stream.next().await, token(5, Some(TokenFinish::Length)));
    assert_eq!(stream.next().await, None);
    fixture.until_idle().await;
}

#[tokio::test]
async fn a_dropped_stream_frees_its_blocks_within_a_step() {
    let fixture = Fixture::new();
    fixture.allow(1);
    let mut stream = fixture.submit(50);
    while !matches!(stream.next().await, Some(SequenceEvent::Token { .. })) {}
    drop(stream);
    fixture.allow(1); // the step that may already have been planned
    fixture.until_idle().await;
    assert!(fixture.engine.load().borrow().steps_total <= 2);
}

#[tokio::test]
async fn a_stopped_engine_fails_what_is_left_and_refuses_more() {
    let fixture = Fixture::new();
    fixture.allow(1);
    let mut stream = fixture.submit(50);
    while !matches!(stream.next().await, Some(SequenceEvent::Token { .. })) {}
    fixture.engine.stop();
    fixture.allow(1); // the step that may already have been planned
    let mut last = None;
    while let Some(event) = stream.next().await {
        last = Some(event);
    }
    assert!(
        matches!(last, Some(SequenceEvent::Failed(fault)) if fault.code == FaultCode::Draining)
    );
}
