//! Plain HTTP to a router: one request, its status, and its body as it comes.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long a router may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Answers that are read whole are lists and errors; larger ones are not a router's.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A client for one router.
#[derive(Clone, Debug)]
pub(crate) struct HttpClient {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// Nobody is there.
    #[error("{url} cannot be reached")]
    Connect {
        /// Where.
        url: String,
        /// Why.
        source: hyper_util::client::legacy::Error,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("{url} did not answer to the end")]
    Broken {
        /// Where.
        url: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer did not come in time.
    #[error("{url} did not answer within {after:?}")]
    Late {
        /// Where.
        url: String,
        /// The limit.
        after: Duration,
    },
}

// === impl HttpClient ===

impl HttpClient {
    /// A client for the router at `base`.
    pub(crate) fn new(base: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_MAX));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { base: base.trim_end_matches('/').to_owned(), client }
    }

    /// Sends a GET and waits at most `within` for the head of the answer.
    ///
    /// # Errors
    /// When no answer comes.
    pub(crate) async fn get(
        &self,
        path: &str,
        within: Duration,
    ) -> Result<Response<Incoming>, HttpError> {
        self.send(Request::get(self.url(path)), Bytes::new(), within).await
    }

    /// Posts JSON and waits at most `within` for the head of the answer.
    ///
    /// # Errors
    /// When no answer comes.
    pub(crate) async fn post(
        &self,
        path: &str,
        body: &serde_json::Value,
        within: Duration,
    ) -> Result<Response<Incoming>, HttpError> {
        let request =
            Request::post(self.url(path)).header(header::CONTENT_TYPE, "application/json");
        self.send(request, Bytes::from(body.to_string()), within).await
    }

    /// Reads an answer whole.
    ///
    /// # Errors
    /// When it breaks off, takes longer than `within` or is too large.
    pub(crate) async fn read(
        &self,
        answer: Response<Incoming>,
        within: Duration,
    ) -> Result<Bytes, HttpError> {
        let whole = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect();
        match tokio::time::timeout(within, whole).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(source)) => Err(HttpError::Broken { url: self.base.clone(), source }),
            Err(_elapsed) => Err(HttpError::Late { url: self.base.clone(), after: within }),
        }
    }

    async fn send(
        &self,
        request: http::request::Builder,
        body: Bytes,
        within: Duration,
    ) -> Result<Response<Incoming>, HttpError> {
        let url = || self.base.clone();
        let request = request
            .body(Full::new(body))
            .map_err(|error| HttpError::Broken { url: url(), source: error.into() })?;
        match tokio::time::timeout(within, self.client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) if source.is_connect() => {
                Err(HttpError::Connect { url: url(), source })
            }
            Ok(Err(source)) => Err(HttpError::Broken { url: url(), source: source.into() }),
            Err(_elapsed) => Err(HttpError::Late { url: url(), after: within }),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}
