//! The events of one request, with everything that must be given back when it ends.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::Stream;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::Event;

use crate::deadline::Cutoff;
use crate::engine::Identity;
use crate::engine::native::EventSource;
use crate::error::{Progress, RouterError};
use crate::meter::Meter;
use crate::reply::Placement;

/// Events in order; after `Usage` or an error there is nothing more. Dropping it cancels the work.
#[derive(Debug)]
pub(crate) struct TokenStream {
    placement: Placement,
    state: State,
}

#[derive(Debug)]
enum State {
    Open(Box<Open>),
    /// Credit, connection and timers are released.
    Ended,
}

#[derive(Debug)]
struct Open {
    first: Option<Event>,
    source: EventSource,
    meter: Meter,
    cutoff: Option<Cutoff>,
}

// === impl TokenStream ===

impl TokenStream {
    /// A stream whose first event is already here.
    pub(crate) fn new(
        first: Event,
        source: EventSource,
        placement: Placement,
        mut meter: Meter,
    ) -> Self {
        meter.observe(&first, Instant::now());
        let open = Open { first: Some(first), source, meter, cutoff: None };
        Self { placement, state: State::Open(Box::new(open)) }
    }

    /// The same stream, ended with an error once `cutoff` resolves.
    pub(crate) fn until(mut self, cutoff: Cutoff) -> Self {
        if let State::Open(open) = &mut self.state {
            open.cutoff = Some(cutoff);
        }
        self
    }

    pub(crate) const fn placement(&self) -> &Placement {
        &self.placement
    }
}

impl Open {
    fn poll(
        &mut self,
        worker: &Identity,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Event, RouterError>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Ok(first));
        }
        if let Poll::Ready(item) = self.source.poll_event(cx) {
            let ended = || Err(Fault::new(FaultCode::Unavailable, "closed the stream early"));
            let event = item.unwrap_or_else(ended);
            match &event {
                Ok(event) => self.meter.observe(event, Instant::now()),
                Err(fault) => self.meter.failed(fault),
            }
            let event = event.map_err(|fault| RouterError::Worker {
                worker: worker.clone(),
                progress: Progress::Started,
                fault,
            });
            return Poll::Ready(event.map_err(|error| match &self.cutoff {
                Some(cutoff) => cutoff.reword(error),
                None => error,
            }));
        }
        match &mut self.cutoff {
            Some(cutoff) => Pin::new(cutoff).poll(cx).map(Err),
            None => Poll::Pending,
        }
    }
}

impl Stream for TokenStream {
    type Item = Result<Event, RouterError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let State::Open(open) = &mut this.state else { return Poll::Ready(None) };
        let event = std::task::ready!(open.poll(&this.placement.worker, cx));
        if matches!(event, Ok(Event::Usage(_)) | Err(_)) {
            this.state = State::Ended;
        }
        Poll::Ready(Some(event))
    }
}
