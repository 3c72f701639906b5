//! The driver: one stream over as many workers as it takes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use phalanx_chassis::backoff::Backoff;
use phalanx_proto::generate::{ChoiceProgress, Event};
use phalanx_proto::id::MemberId;
use tokio::time::{Sleep, sleep};

use super::Restart;
use super::ledger::{Ledger, Rest};
use crate::ask::{Call, Resume};
use crate::dispatch::{Dispatch, LOOK_AROUND_EVERY};
use crate::engine::hearing::Condition;
use crate::error::RouterError;
use crate::metrics::RouterMetrics;
use crate::reply::{Placement, Reply};
use crate::stream::Leg;

/// Workers that one stream may leave behind. A rolling restart moves a long stream once or twice; a request that
/// breaks each worker it comes to must not go through a whole fleet.
const MIGRATIONS_MAX: u32 = 8;
/// How long a stream without a worker goes on asking where all others are full, or fail too: its client rather waits
/// for the rest of the answer than starts over.
const ASKING_MAX: Duration = Duration::from_secs(10);
/// How often it asks.
const ASKED_AGAIN_FIRST: Duration = Duration::from_millis(100);
const ASKED_AGAIN_MAX: Duration = Duration::from_secs(1);

/// A stream that outlives its worker.
pub(crate) struct Lasting {
    part: Part,
    search: Search,
    ledger: Ledger,
    /// Who began it, and how long a context that has.
    began: Placement,
    context_tokens_max: u32,
    call: Call,
    means: Means,
    /// Workers left behind.
    migrations: u32,
    /// The latest event before the migration whose first event is not here yet.
    quiet_since: Option<Instant>,
    again: Backoff,
}

/// What it takes to go on elsewhere.
pub(super) struct Means {
    pub(super) restart: Restart,
    pub(super) dispatch: Dispatch,
    pub(super) metrics: RouterMetrics,
}

/// Who gives the stream's events.
enum Part {
    /// This leg; `failing` resolves when its worker is not well.
    Live { leg: Box<Leg>, failing: BoxFuture<'static, Condition> },
    /// Nobody, for this reason.
    Broken(RouterError),
}

/// What is done to go on elsewhere.
enum Search {
    None,
    /// Another worker was asked; it answers with its first event.
    Attempt(BoxFuture<'static, Result<Reply, RouterError>>),
    /// No other could take it just now.
    Pause(Pin<Box<Sleep>>),
}

type Told = Result<Event, RouterError>;

// === impl Lasting ===

impl Lasting {
    /// The stream that `leg` begins, asked for by `call`.
    pub(super) fn new(leg: Leg, call: Call, means: Means) -> Self {
        let choices = call.ask.native.as_ref().map_or(0, |generate| generate.choices);
        let began = leg.placement.clone();
        Self {
            context_tokens_max: leg.engine().context_tokens_max(&began.model),
            began,
            part: Part::live(leg),
            search: Search::None,
            ledger: Ledger::new(choices),
            again: Backoff::new(ASKED_AGAIN_FIRST, ASKED_AGAIN_MAX, call.draw),
            call,
            means,
            migrations: 0,
            quiet_since: None,
        }
    }

    /// The stream's next event; nothing follows an error.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Told> {
        loop {
            if let Part::Live { leg, .. } = &mut self.part
                && let Poll::Ready(event) = leg.poll(cx)
            {
                match self.heard(event) {
                    Some(told) => return Poll::Ready(told),
                    None => continue,
                }
            }
            let told = match &mut self.search {
                Search::None => {
                    let Part::Live { failing, .. } = &mut self.part else { return Poll::Pending };
                    let condition = ready!(failing.as_mut().poll(cx));
                    self.suspect(condition)
                }
                Search::Attempt(attempt) => match ready!(attempt.as_mut().poll(cx)) {
                    Ok(Reply::Tokens(stream)) => self.moved(stream.into_leg()),
                    // No foreign engine goes on with a native answer.
                    Ok(Reply::Passed(_)) => {
                        let model = self.began.model.clone();
                        self.not_moved(&RouterError::NoWorker { model }).map(Err)
                    }
                    Err(error) => self.not_moved(&error).map(Err),
                },
                Search::Pause(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.search()
                }
            };
            if let Some(told) = told {
                return Poll::Ready(told);
            }
        }
    }

    /// Takes what the leg gave; what the client is told of it, if anything.
    fn heard(&mut self, event: Told) -> Option<Told> {
        let Part::Live { leg, .. } = &self.part else { return None };
        let is_sought = matches!(self.search, Search::Attempt(_));
        if is_sought && event.is_ok() {
            // The worker was suspected and gets on after all; the other one goes on from less than is told now.
            self.search = Search::None;
            self.quiet_since = None;
        }
        let passed = event.and_then(|event| self.ledger.pass(event).map_err(|f| leg.failed(f)));
        match passed {
            Ok(None) => None,
            Ok(Some(event)) => {
                if let Some(since) = self.quiet_since.take() {
                    self.means.metrics.migration_gap.observe(since.elapsed().as_secs_f64());
                }
                Some(Ok(event))
            }
            Err(error) if error.lost_worker().is_some() => {
                self.quiet_since.get_or_insert(leg.latest());
                // Its credit and its connection are given back here.
                self.part = Part::Broken(error);
                if is_sought { None } else { self.search() }
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// The leg is silent because its worker is not well: asks another one, and keeps listening.
    fn suspect(&mut self, condition: Condition) -> Option<Told> {
        let Part::Live { leg, failing } = &mut self.part else { return None };
        let worker = leg.placement.worker.id;
        *failing = Box::pin(again_failing(leg, LOOK_AROUND_EVERY));
        let suspected_at = leg.latest();
        match self.ledger.rest() {
            Rest::Usage(usage) => {
                self.means.metrics.count_tokens(&usage);
                return Some(Ok(Event::Usage(usage)));
            }
            Rest::Forgotten => {}
            Rest::Choices(progress) if self.migrations < MIGRATIONS_MAX => {
                let call = self.resumed(progress, worker);
                if self.means.dispatch.has_other(&call, &call.excluded) {
                    tracing::info!(%worker, ?condition, "moving a stream off a worker");
                    self.quiet_since.get_or_insert(suspected_at);
                    self.search = Search::Attempt((self.means.restart)(call));
                }
            }
            Rest::Choices(_) => {}
        }
        None
    }

    /// Asks another worker to go on for the one that was lost; how the stream ends, if it does.
    fn search(&mut self) -> Option<Told> {
        let Part::Broken(error) = &self.part else { return None };
        let give_up = Some(Err(error.clone()));
        let Some(worker) = error.lost_worker() else { return give_up };
        match self.ledger.rest() {
            Rest::Usage(usage) => {
                self.means.metrics.count_tokens(&usage);
                Some(Ok(Event::Usage(usage)))
            }
            Rest::Choices(progress) if self.migrations < MIGRATIONS_MAX => {
                tracing::info!(%worker, %error, "moving a stream off a lost worker");
                let call = self.resumed(progress, worker);
                self.search = Search::Attempt((self.means.restart)(call));
                None
            }
            Rest::Choices(_) | Rest::Forgotten => give_up,
        }
    }

    /// The call for whoever goes on from `progress`, which is not to be `lost`. Workers lost before may be well
    /// again by now.
    fn resumed(&self, progress: Vec<ChoiceProgress>, lost: MemberId) -> Call {
        let resume = Resume {
            model: self.began.model.clone(),
            revision: self.began.revision.clone(),
            progress,
            tokens_max: self.context_tokens_max.saturating_sub(self.ledger.prompt_tokens()),
        };
        let resume = Some(Arc::new(resume));
        Call { resume, excluded: vec![lost], ..self.call.clone() }
    }

    /// Another worker has begun to go on.
    fn moved(&mut self, leg: Option<Leg>) -> Option<Told> {
        self.search = Search::None;
        // What a restart gives is of one engine.
        let leg = leg?.resumed(self.ledger.has_tokens());
        self.migrations += 1;
        self.means.metrics.migrations.inc();
        self.again.reset();
        let (worker, tokens) = (&leg.placement.worker, self.ledger.tokens());
        tracing::debug!(%worker, tokens, "moved a stream");
        self.part = Part::live(leg);
        None
    }

    /// Nobody else takes it now; how the stream ends, if it does.
    fn not_moved(&mut self, error: &RouterError) -> Option<RouterError> {
        self.search = Search::None;
        let pause = self.again.delay();
        match &mut self.part {
            Part::Live { leg, failing } => {
                *failing = Box::pin(again_failing(leg, pause));
                None
            }
            Part::Broken(lost) => {
                let in_time = self.quiet_since.is_none_or(|since| since.elapsed() < ASKING_MAX);
                if error.failed_worker().is_some() && in_time {
                    self.search = Search::Pause(Box::pin(sleep(pause)));
                    return None;
                }
                tracing::info!(%error, "a stream could not be moved");
                Some(lost.clone())
            }
        }
    }
}

impl fmt::Debug for Lasting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ledger, migrations) = (&self.ledger, &self.migrations);
        f.debug_struct("Lasting")
            .field("ledger", ledger)
            .field("migrations", migrations)
            .finish_non_exhaustive()
    }
}

// === impl Part ===

impl Part {
    fn live(leg: Leg) -> Self {
        let failing = leg.engine().failing();
        Self::Live { leg: Box::new(leg), failing }
    }
}

/// Resolves when the worker of `leg` is not well after `pause`.
fn again_failing(leg: &Leg, pause: Duration) -> impl Future<Output = Condition> + Send + use<> {
    let failing = leg.engine().failing();
    async move {
        sleep(pause).await;
        failing.await
    }
}
