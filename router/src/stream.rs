//! The events of one request, with everything that must be given back when it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::Stream;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::Event;

use crate::deadline::Cutoff;
use crate::engine::Engine;
use crate::engine::native::EventSource;
use crate::error::{Progress, RouterError};
use crate::meter::Meter;
use crate::migrate::Lasting;
use crate::reply::Placement;

/// Events in order; after `Usage` or an error there is nothing more. Dropping it cancels the work.
#[derive(Debug)]
pub(crate) struct TokenStream {
    /// Who began it.
    placement: Placement,
    state: State,
}

#[derive(Debug)]
enum State {
    Open {
        events: Events,
        cutoff: Option<Cutoff>,
    },
    /// Credit, connection and timers are released.
    Ended,
}

#[derive(Debug)]
enum Events {
    /// Of one engine, which they end with.
    Leg(Box<Leg>),
    /// Of one engine after another.
    Lasting(Box<Lasting>),
}

/// What one engine gives of a stream.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) placement: Placement,
    first: Option<Event>,
    source: EventSource,
    meter: Meter,
    /// When the latest event came.
    latest: Instant,
}

// === impl TokenStream ===

impl TokenStream {
    /// A stream that ends with its engine.
    pub(crate) fn new(leg: Leg) -> Self {
        let placement = leg.placement.clone();
        Self { placement, state: State::Open { events: Events::Leg(Box::new(leg)), cutoff: None } }
    }

    /// The same stream, made by `lasting` to outlive its engine.
    pub(crate) fn lasting(self, lasting: impl FnOnce(Leg) -> Lasting) -> Self {
        let Self { placement, state } = self;
        let state = match state {
            State::Open { events: Events::Leg(leg), cutoff } => {
                State::Open { events: Events::Lasting(Box::new(lasting(*leg))), cutoff }
            }
            lasts_or_ended => lasts_or_ended,
        };
        Self { placement, state }
    }

    /// What its engine gives, if it is of one engine only.
    pub(crate) fn into_leg(self) -> Option<Leg> {
        match self.state {
            State::Open { events: Events::Leg(leg), .. } => Some(*leg),
            State::Open { events: Events::Lasting(_), .. } | State::Ended => None,
        }
    }

    /// The same stream, ended with an error once `cutoff` resolves.
    pub(crate) fn until(mut self, until: Cutoff) -> Self {
        if let State::Open { cutoff, .. } = &mut self.state {
            *cutoff = Some(until);
        }
        self
    }

    pub(crate) const fn placement(&self) -> &Placement {
        &self.placement
    }
}

impl Stream for TokenStream {
    type Item = Result<Event, RouterError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let State::Open { events, cutoff } = &mut self.state else { return Poll::Ready(None) };
        let event = match (events.poll(cx), cutoff) {
            (Poll::Ready(event), cutoff) => event.map_err(|error| match cutoff {
                Some(cutoff) => cutoff.reword(error),
                None => error,
            }),
            (Poll::Pending, Some(cutoff)) => Err(std::task::ready!(Pin::new(cutoff).poll(cx))),
            (Poll::Pending, None) => return Poll::Pending,
        };
        if matches!(event, Ok(Event::Usage(_)) | Err(_)) {
            self.state = State::Ended;
        }
        Poll::Ready(Some(event))
    }
}

impl Events {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, RouterError>> {
        match self {
            Self::Leg(leg) => leg.poll(cx),
            Self::Lasting(lasting) => lasting.poll(cx),
        }
    }
}

// === impl Leg ===

impl Leg {
    /// A stream whose first event is already here.
    pub(crate) fn new(
        first: Event,
        source: EventSource,
        placement: Placement,
        mut meter: Meter,
    ) -> Self {
        let latest = Instant::now();
        meter.observe(&first, latest);
        Self { placement, first: Some(first), source, meter, latest }
    }

    /// The same, for a stream that another worker began; its client may have tokens already.
    pub(crate) fn resumed(mut self, has_tokens: bool) -> Self {
        self.meter = self.meter.resumed(has_tokens);
        self
    }

    /// When the latest event came.
    pub(crate) const fn latest(&self) -> Instant {
        self.latest
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        self.meter.engine()
    }

    /// Its next event; nothing follows an error.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, RouterError>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Ok(first));
        }
        let item = std::task::ready!(self.source.poll_event(cx));
        let ended = || Err(Fault::new(FaultCode::Unavailable, "closed the stream early"));
        let event = item.unwrap_or_else(ended);
        match &event {
            Ok(event) => {
                self.latest = Instant::now();
                self.meter.observe(event, self.latest);
            }
            Err(fault) => self.meter.failed(fault),
        }
        Poll::Ready(event.map_err(|fault| self.failed(fault)))
    }

    /// Why the stream goes no further, as its engine's failure.
    pub(crate) fn failed(&self, fault: Fault) -> RouterError {
        let worker = self.placement.worker.clone();
        RouterError::Worker { worker, progress: Progress::Started, fault }
    }
}
