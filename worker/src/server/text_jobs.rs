//! Text work that takes long runs on a thread that may block, one job at a time; short work runs where it is asked for.

use std::sync::Arc;

use phalanx_proto::fault::{Fault, FaultCode};
use tokio::sync::Semaphore;

use crate::text::Text;

/// Text up to this size is tokenised where the request is served, in well under a millisecond; longer text
/// goes to a thread that may block.
const INLINE_BYTES_MAX: usize = 4096;
/// Long jobs of one kind that run at once: one, as the engine wants the cores.
const JOBS_MAX: usize = 1;

/// One kind of text work. Kinds do not wait for each other.
#[derive(Debug)]
pub(super) struct TextJobs {
    text: Arc<Text>,
    turns: Arc<Semaphore>,
}

// === impl TextJobs ===

impl TextJobs {
    pub(super) fn new(text: Arc<Text>) -> Self {
        Self { text, turns: Arc::new(Semaphore::new(JOBS_MAX)) }
    }

    /// Runs `work`, which takes time in proportion to `bytes`. A caller that goes away gives up its turn if it
    /// still waits for it; a job that has begun keeps the turn to its end.
    pub(super) async fn run<T, F>(&self, bytes: usize, work: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: FnOnce(&Text) -> Result<T, Fault> + Send + 'static,
    {
        if bytes <= INLINE_BYTES_MAX {
            return work(&self.text);
        }
        let internal = |reason: &str| Fault::new(FaultCode::Internal, reason);
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|_closed| internal("the worker is closing"))?;
        let text = Arc::clone(&self.text);
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&text)
        });
        done.await.unwrap_or_else(|_panic| Err(internal("the text could not be worked on")))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn an_abandoned_job_keeps_the_others_waiting_until_it_ends() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo-llm");
        let jobs = Arc::new(TextJobs::new(Arc::new(Text::load(&folder).unwrap())));
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let jobs = Arc::clone(&jobs);
            async move {
                let wait = move |_: &Text| {
                    let _ = begun.send(());
                    let _ = may_end.recv();
                    Ok(())
                };
                jobs.run(usize::MAX, wait).await
            }
        });
        has_begun.await.unwrap();
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(jobs.turns.available_permits(), 0, "the job still runs");
        drop(end);
        jobs.run(usize::MAX, |_| Ok(())).await.unwrap();
        assert_eq!(jobs.run(1, |_| Ok(7)).await, Ok(7));
    }
}
