//! HTTP as a user's program speaks it: JSON, server-sent events, metrics. Every wait has a deadline.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

/// How long any single wait may take: far more than the demo model needs for an answer in a full batch.
pub const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    pool: Pool<HttpConnector, Full<Bytes>>,
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub bytes: Bytes,
}

/// A streamed answer. Dropping it closes the connection, as a client does that goes away.
#[derive(Debug)]
pub struct EventStream {
    /// The headers.
    pub headers: HeaderMap,
    body: Incoming,
    text: String,
}

/// Numbers from `/metrics`.
#[derive(Clone, Debug)]
pub struct Metrics(String);

// === impl Client ===

impl Client {
    /// A client of the server at `base`.
    pub fn new(base: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        // No connection is used twice: a server that was killed must not be met through an old one.
        let pool = Pool::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { base: base.to_owned(), pool }
    }

    /// The server's URL.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GETs a path.
    ///
    /// # Errors
    /// When no whole answer comes in time.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// POSTs JSON.
    ///
    /// # Errors
    /// When no whole answer comes in time.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        let json = [("content-type", "application/json")];
        self.send(Method::POST, path, &json, Bytes::from(body.to_string())).await
    }

    /// Sends anything.
    ///
    /// # Errors
    /// When no whole answer comes in time.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer> {
        let whole = async {
            let answer = self.pool.request(self.request(method, path, headers, body)?).await?;
            let (parts, body) = answer.into_parts();
            let bytes = body.collect().await?.to_bytes();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, bytes })
        };
        timeout(ANSWER_MAX, whole)
            .await
            .with_context(|| format!("{path} did not answer within {ANSWER_MAX:?}"))?
    }

    /// POSTs JSON and streams the answer.
    ///
    /// # Errors
    /// When the answer is not a stream of events, or does not begin in time.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<EventStream> {
        let json = [("content-type", "application/json")];
        let request = self.request(Method::POST, path, &json, Bytes::from(body.to_string()))?;
        let answer = timeout(ANSWER_MAX, self.pool.request(request)).await??;
        let (parts, body) = answer.into_parts();
        ensure!(parts.status == 200, "{path} answered {}", parts.status);
        Ok(EventStream { headers: parts.headers, body, text: String::new() })
    }

    /// The server's metrics.
    ///
    /// # Errors
    /// When they cannot be had.
    pub async fn metrics(&self) -> Result<Metrics> {
        let answer = self.get("/metrics").await?;
        ensure!(answer.status == 200, "/metrics answered {}", answer.status);
        Ok(Metrics(String::from_utf8(answer.bytes.to_vec())?))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(request.body(Full::new(body))?)
    }
}

// === impl Answer ===

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.bytes)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&self.bytes)))
    }

    /// The body as JSON, if the status is 200.
    ///
    /// # Errors
    /// When the request was refused.
    pub fn good(&self) -> Result<Value> {
        let text = String::from_utf8_lossy(&self.bytes);
        ensure!(self.status == 200, "refused with {}: {text}", self.status);
        self.json()
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

// === impl EventStream ===

impl EventStream {
    /// The next event; `None` after `[DONE]`.
    ///
    /// # Errors
    /// When the stream breaks off, stalls or carries an error.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let Some(data) = event.strip_prefix("data: ") else { continue };
                if data == "[DONE]" {
                    return Ok(None);
                }
                let event: Value = serde_json::from_str(data)?;
                ensure!(event.get("error").is_none(), "the stream carries an error: {event}");
                return Ok(Some(event));
            }
            match timeout(ANSWER_MAX, self.body.frame()).await.context("the stream stalls")? {
                Some(frame) => {
                    if let Ok(bytes) = frame?.into_data() {
                        self.text.push_str(std::str::from_utf8(&bytes)?);
                    }
                }
                None => bail!("the stream broke off before [DONE]"),
            }
        }
    }

    /// All remaining events.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn rest(mut self) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            events.push(event);
        }
        Ok(events)
    }
}

// === impl Metrics ===

impl Metrics {
    /// The sum of a metric over all its labels.
    ///
    /// # Errors
    /// When there is no such metric.
    pub fn sum(&self, name: &str) -> Result<f64> {
        let mut sum = None;
        for line in self.0.lines() {
            let Some(rest) = line.strip_prefix(name) else { continue };
            if !rest.starts_with([' ', '{']) {
                continue;
            }
            let value: f64 = rest.rsplit(' ').next().unwrap_or_default().parse()?;
            sum = Some(sum.unwrap_or(0.0) + value);
        }
        sum.with_context(|| format!("no metric {name} in:\n{}", self.0))
    }
}
