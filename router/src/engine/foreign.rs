//! An engine of another kind: any server that speaks OpenAI's API over HTTP.
//!
//! ```text
//! probe ── GET /v1/models, /metrics ──► up | down, models, load
//! Call ── exchange: the client's own bytes ──► pool ──► engine ──► passed: the answer, piece by piece
//! ```
//! `report` and `events` read what engines say; both are pure.

mod events;
pub(crate) mod exchange;
pub(crate) mod passed;
mod pool;
pub(crate) mod probe;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use phalanx_proto::id::MemberId;
use tokio::sync::Notify;

use self::pool::Pool;
use super::{Books, Identity, Served, Surroundings};
use crate::config::foreign::{ForeignConfig, Price};
use crate::dispatch::prefix_index::holding::Holding;

/// Ids of foreign engines have this bit, which no log index reaches: they are never taken for members'.
const FOREIGN_ID: u64 = 1 << 63;

/// One foreign engine, whatever it serves.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub(crate) identity: Identity,
    pub(crate) books: Arc<Books>,
    pub(crate) price: Price,
    config: ForeignConfig,
    pool: Pool,
    is_up: AtomicBool,
    /// None until it told what it serves.
    models: ArcSwapOption<Vec<Served>>,
    /// Wakes the probe before its time.
    suspected: Notify,
}

// === impl Foreign ===

impl Foreign {
    /// The engine with this place in the configuration; down until it was reached.
    pub(crate) fn new(index: u64, config: ForeignConfig, around: &Surroundings) -> Self {
        let id = MemberId(FOREIGN_ID | index);
        let pinned = |model: &String| {
            Arc::new(vec![Served {
                name: model.as_str().into(),
                revision: None,
                context_tokens_max: None,
            }])
        };
        Self {
            identity: Identity { id, name: config.name.as_str().into() },
            books: Arc::new(Books::new(around, Holding::guessed(&around.index))),
            price: config.price,
            pool: Pool::new(config.host.clone(), config.port),
            is_up: AtomicBool::new(false),
            models: ArcSwapOption::new(config.model.as_ref().map(pinned)),
            suspected: Notify::new(),
            config,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// What it serves, if it told yet.
    pub(crate) fn models(&self) -> Option<Arc<Vec<Served>>> {
        self.models.load_full()
    }

    /// Takes it out of service until a probe reaches it: its port is closed.
    fn suspect(&self) {
        self.is_up.store(false, Ordering::Relaxed);
        self.suspected.notify_one();
    }

    /// A request for `path`, with what every request to this engine carries.
    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // The root was a path when the settings were read, and so are the API's.
        *request.uri_mut() = format!("{}{path}", self.config.root).parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.reserve(8);
        headers.insert(header::HOST, self.config.authority.clone());
        if let Some(key) = &self.config.key {
            headers.insert(header::AUTHORIZATION, key.0.clone());
        }
        request
    }
}
