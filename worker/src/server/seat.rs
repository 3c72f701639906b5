//! Where a server keeps the model that it serves: empty, or taken by one at a time.

use std::sync::Arc;

use phalanx_proto::fault::{Fault, FaultCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::admission::Served;
use super::text_jobs::TextJobs;
use super::{OPEN_REQUESTS_MAX, RETRY_AFTER};
use crate::engine::{EngineHandle, EngineLoad};
use crate::text::Text;
use phalanx_chassis::chunk_feed::ChunkFeed;

/// A model in service.
#[derive(Debug)]
pub struct Seated {
    /// The model's text side.
    pub text: Arc<Text>,
    /// The engine; it ends when the model leaves.
    pub engine: EngineHandle,
    /// What is served.
    pub served: Served,
    /// Prompts on their way to the engine.
    pub(super) prompts: TextJobs,
    /// Text that is only tokenised, or detokenised: prompts do not wait for it.
    pub(super) conversions: TextJobs,
}

/// The place for a model. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Seat {
    seated: watch::Sender<Option<Arc<Seated>>>,
    pub(super) open: Arc<Semaphore>,
    /// The load while the seat is empty: none.
    idle: watch::Sender<EngineLoad>,
}

/// A request that was let in, and the model it is for. The model stays until it is dropped.
#[derive(Debug)]
pub(super) struct OpenRequest {
    pub(super) seated: Arc<Seated>,
    /// After the model, so that a seat without open requests is one without their models too.
    _place: OwnedSemaphorePermit,
}

// === impl Seated ===

impl Seated {
    /// A model whose engine runs.
    pub fn new(text: Arc<Text>, engine: EngineHandle, served: Served) -> Self {
        let prompts = TextJobs::new(Arc::clone(&text));
        let conversions = TextJobs::new(Arc::clone(&text));
        Self { text, engine, served, prompts, conversions }
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

// === impl Seat ===

impl Default for Seat {
    fn default() -> Self {
        Self {
            seated: watch::Sender::new(None),
            open: Arc::new(Semaphore::new(OPEN_REQUESTS_MAX as usize)),
            idle: watch::Sender::new(EngineLoad::default()),
        }
    }
}

impl Seat {
    /// Puts a model in service, in place of any other.
    pub fn take(&self, seated: Seated) {
        self.seated.send_replace(Some(Arc::new(seated)));
    }

    /// Lets no request in any more; those that are open go on.
    pub fn close(&self) {
        self.seated.send_replace(None);
    }

    /// Ends the engine of the model in service: what is still open fails.
    pub fn stop(&self) {
        if let Some(seated) = self.seated.borrow().as_ref() {
            seated.engine.stop();
        }
    }

    /// Resolves when no request is open. One that is let in meanwhile is waited for too.
    pub async fn idle(&self) {
        // All places at once: every request has given its own back. The semaphore is never closed.
        let _all = self.open.acquire_many(OPEN_REQUESTS_MAX).await;
    }

    /// The load of the model in service now, until its engine ends; with none, no load for ever.
    pub fn load(&self) -> watch::Receiver<EngineLoad> {
        let seated = self.seated.borrow();
        seated.as_ref().map_or_else(|| self.idle.subscribe(), |seated| seated.engine.load())
    }

    /// What the prefix cache of the model in service now holds; with none, nothing for ever.
    pub(super) fn chunks(&self) -> Arc<ChunkFeed> {
        let seated = self.seated.borrow();
        seated.as_ref().map_or_else(Arc::default, |seated| Arc::clone(seated.engine.chunks()))
    }

    pub(super) fn open(&self) -> Result<OpenRequest, Fault> {
        // The place first: whoever closes the seat and then waits for all places waits for this request too.
        let place = Arc::clone(&self.open).try_acquire_owned().map_err(|_full| {
            let message = format!("this worker has {OPEN_REQUESTS_MAX} requests open, its limit");
            Fault::new(FaultCode::Overloaded, message).with_retry_after(RETRY_AFTER)
        })?;
        let seated = self.seated.borrow().clone().ok_or_else(|| {
            let message = "this worker serves no model now";
            Fault::new(FaultCode::Unavailable, message).with_retry_after(RETRY_AFTER)
        })?;
        Ok(OpenRequest { seated, _place: place })
    }
}
