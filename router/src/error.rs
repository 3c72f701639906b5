//! Everything that can stop a request, and the only map from there to HTTP and OpenAI's error envelope.

use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, StatusCode, header};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{MemberId, ModelName, RequestId};

use crate::api::openai::json;
use crate::engine::Identity;

/// When to come back if nobody knows better: workers reconnect within two seconds.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);
/// Tells OpenAI's clients whether their built-in retry makes sense.
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// How far a worker got with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// No event came: another worker may start afresh.
    NotStarted,
    /// Part of the answer may be with the client.
    Started,
}

/// Why a request was not served.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RouterError {
    /// The request itself is wrong.
    #[error(transparent)]
    Refused(#[from] Fault),
    #[error("request body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("request body did not arrive in full")]
    BodyIncomplete,
    #[error("request body did not arrive within {} ms", timeout.as_millis())]
    BodyTimeout { timeout: Duration },
    #[error("no route for {method} {path}")]
    RouteUnknown { method: String, path: String },
    #[error("method {method} is not allowed for {path}")]
    MethodNotAllowed { method: String, path: String },
    #[error("the model `{model}` does not exist")]
    ModelUnknown { model: String },
    #[error(
        "nothing is known of request `{request_id}`: it was not sent to an engine, or not lately"
    )]
    DecisionUnknown { request_id: RequestId },
    #[error("no ready worker serves model `{model}`")]
    NoWorker { model: ModelName },
    #[error("worker {worker}: {fault}")]
    Worker { worker: Identity, progress: Progress, fault: Fault },
    /// A foreign engine has no room for it.
    #[error("engine {} answered with status {}", .0.worker, .0.status)]
    Busy(Arc<Refusal>),
    #[error("request did not finish within {} ms", timeout.as_millis())]
    DeadlineExceeded { timeout: Duration },
    #[error(
        "no engine is likely to answer in time: {} ms are left, about {} ms are needed",
        left.as_millis(),
        predicted.as_millis()
    )]
    DeadlineUnreachable { predicted: Duration, left: Duration },
    /// Every engine of the model is full. The queue takes this for its sign; no client is told.
    #[error("every engine of model `{model}` is full")]
    Saturated { model: ModelName },
    #[error("every engine is full, and {waiting_max} requests wait for the model already")]
    QueueFull { waiting_max: usize, retry_after: Duration },
    #[error("server is shutting down")]
    Draining,
    #[error("too many requests in progress, at most {limit} are served at once")]
    Overloaded { limit: usize },
}

/// The answer of a foreign engine that has no room: the client's, if no other engine has.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) worker: Identity,
    /// 429 or 503.
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) retry_after: Option<HeaderValue>,
    pub(crate) body: Bytes,
}

/// What HTTP and the envelope say of an error.
struct Verdict<'a> {
    status: StatusCode,
    code: Option<&'static str>,
    param: Option<&'a str>,
    retry: RetryHint,
}

enum RetryHint {
    /// Sending it again as it is may work, after this time.
    After(Duration),
    /// Sending it again cannot help.
    Never,
}

// === impl RouterError ===

impl RouterError {
    /// The worker that failed before its first event, if another might serve the request.
    pub(crate) fn failed_worker(&self) -> Option<MemberId> {
        match self {
            Self::Worker { worker, progress: Progress::NotStarted, fault }
                if fault.code.is_retryable_elsewhere() =>
            {
                Some(worker.id)
            }
            Self::Busy(refusal) => Some(refusal.worker.id),
            _ => None,
        }
    }

    /// The worker that broke off its answer, if another one might go on with it.
    pub(crate) fn lost_worker(&self) -> Option<MemberId> {
        match self {
            Self::Worker { worker, progress: Progress::Started, fault }
                if fault.code.is_retryable_elsewhere() =>
            {
                Some(worker.id)
            }
            _ => None,
        }
    }

    /// What the envelope calls it.
    pub(crate) fn code(&self) -> Option<&'static str> {
        self.verdict().code
    }

    /// The worker that failed, if one did.
    pub(crate) fn worker(&self) -> Option<&Identity> {
        match self {
            Self::Worker { worker, .. } => Some(worker),
            Self::Busy(refusal) => Some(&refusal.worker),
            _ => None,
        }
    }

    /// The HTTP status, also of an error inside a stream whose status is long sent.
    pub(crate) fn status(&self) -> StatusCode {
        self.verdict().status
    }

    fn verdict(&self) -> Verdict<'_> {
        use RetryHint::{After, Never};
        let verdict = |status, code, retry| Verdict { status, code, param: None, retry };
        let soon = || After(RETRY_AFTER_DEFAULT);
        match self {
            Self::Refused(fault) => fault_verdict(fault, Progress::NotStarted),
            Self::Worker { fault, progress, .. } => fault_verdict(fault, *progress),
            Self::BodyTooLarge { .. } => {
                verdict(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), Never)
            }
            Self::BodyIncomplete => verdict(StatusCode::BAD_REQUEST, None, Never),
            Self::BodyTimeout { .. } => {
                verdict(StatusCode::REQUEST_TIMEOUT, Some("body_timeout"), Never)
            }
            Self::RouteUnknown { .. } => verdict(StatusCode::NOT_FOUND, Some("unknown_url"), Never),
            Self::MethodNotAllowed { .. } => {
                verdict(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_supported"), Never)
            }
            Self::ModelUnknown { .. } => Verdict {
                param: Some("model"),
                ..verdict(StatusCode::NOT_FOUND, Some("model_not_found"), Never)
            },
            Self::DecisionUnknown { .. } => {
                verdict(StatusCode::NOT_FOUND, Some("decision_not_found"), Never)
            }
            Self::Busy(refusal) => verdict(refusal.status, Some("overloaded"), soon()),
            Self::NoWorker { .. } => {
                verdict(StatusCode::SERVICE_UNAVAILABLE, Some("no_worker"), soon())
            }
            Self::DeadlineExceeded { .. } => {
                verdict(StatusCode::REQUEST_TIMEOUT, Some("deadline_exceeded"), Never)
            }
            Self::DeadlineUnreachable { .. } => {
                verdict(StatusCode::SERVICE_UNAVAILABLE, Some("deadline_unreachable"), soon())
            }
            Self::Draining => verdict(StatusCode::SERVICE_UNAVAILABLE, Some("draining"), soon()),
            Self::Saturated { .. } => {
                verdict(StatusCode::SERVICE_UNAVAILABLE, Some("overloaded"), soon())
            }
            Self::QueueFull { retry_after, .. } => {
                verdict(StatusCode::SERVICE_UNAVAILABLE, Some("overloaded"), After(*retry_after))
            }
            Self::Overloaded { .. } => {
                verdict(StatusCode::SERVICE_UNAVAILABLE, Some("overloaded"), soon())
            }
        }
    }

    /// Appends `{"error":{...}}`.
    pub(crate) fn write_envelope(&self, out: &mut BytesMut) {
        let verdict = self.verdict();
        let message = match self {
            // The client's own mistake: which worker found it does not matter.
            Self::Worker { fault, .. } if verdict.status.is_client_error() => fault.to_string(),
            _ => self.to_string(),
        };
        out.extend_from_slice(b"{\"error\":{\"message\":");
        json::string(out, &message);
        out.extend_from_slice(b",\"type\":");
        json::string(out, error_type(verdict.status));
        out.extend_from_slice(b",\"param\":");
        json::optional_string(out, verdict.param);
        out.extend_from_slice(b",\"code\":");
        json::optional_string(out, verdict.code);
        out.extend_from_slice(b"}}");
    }
}

fn fault_verdict(fault: &Fault, progress: Progress) -> Verdict<'_> {
    use RetryHint::{After, Never};
    let after = || After(fault.retry_after.unwrap_or(RETRY_AFTER_DEFAULT));
    let code = Some(fault.code.as_str());
    let (status, code, retry) = match fault.code {
        FaultCode::InvalidRequest => (StatusCode::BAD_REQUEST, None, Never),
        FaultCode::ContextLengthExceeded => (StatusCode::BAD_REQUEST, code, Never),
        FaultCode::ModelNotFound => (StatusCode::NOT_FOUND, code, Never),
        FaultCode::StaleEpoch | FaultCode::Overloaded | FaultCode::Draining => {
            (StatusCode::SERVICE_UNAVAILABLE, code, after())
        }
        FaultCode::DeadlineExceeded => (StatusCode::REQUEST_TIMEOUT, code, Never),
        // Before the first event, nobody who could serve it was reachable; later, the engine failed.
        FaultCode::Unavailable | FaultCode::Cancelled => match progress {
            Progress::NotStarted => (StatusCode::SERVICE_UNAVAILABLE, Some("unavailable"), after()),
            Progress::Started => (StatusCode::BAD_GATEWAY, Some("worker_failed"), after()),
        },
        FaultCode::Numerical => (StatusCode::BAD_GATEWAY, code, Never),
        FaultCode::Internal => (StatusCode::BAD_GATEWAY, code, after()),
    };
    Verdict { status, code, param: fault.param.as_deref(), retry }
}

/// OpenAI's `type`, which groups codes by what a client should do.
fn error_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::REQUEST_TIMEOUT => "timeout_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "server_error",
    }
}

impl IntoResponse for RouterError {
    fn into_response(self) -> Response {
        if let Self::Busy(refusal) = &self {
            let mut response = refusal.response();
            response.extensions_mut().insert(self);
            return response;
        }
        let mut body = BytesMut::with_capacity(256);
        self.write_envelope(&mut body);
        let verdict = self.verdict();
        let mut response = (verdict.status, body.freeze()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match verdict.retry {
            RetryHint::After(after) => {
                let seconds = after.as_secs_f64().ceil().max(1.0);
                let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                if let Ok(value) = HeaderValue::from_str(&format!("{seconds}")) {
                    headers.insert(header::RETRY_AFTER, value);
                }
                headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
            }
            RetryHint::Never => {
                headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
            }
        }
        if matches!(
            self,
            Self::BodyTooLarge { .. }
                | Self::BodyIncomplete
                | Self::BodyTimeout { .. }
                | Self::Draining
        ) {
            // What is left of the body is not read, or the process leaves: the connection cannot be used again.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // For the request's record, which sees only the response.
        response.extensions_mut().insert(self);
        response
    }
}

// === impl Refusal ===

impl Refusal {
    /// The same, as a worker would say it. A date to come back at is not understood.
    pub(crate) fn fault(&self) -> Fault {
        let seconds = self.retry_after.as_ref().and_then(|after| after.to_str().ok());
        let after = seconds.and_then(|seconds| seconds.trim().parse().ok());
        let retry_after = after.map(Duration::from_secs);
        Fault { retry_after, ..Fault::new(FaultCode::Overloaded, "has no room") }
    }

    /// The engine's own answer.
    fn response(&self) -> Response {
        let mut response = (self.status, self.body.clone()).into_response();
        let headers =
            [(header::CONTENT_TYPE, &self.content_type), (header::RETRY_AFTER, &self.retry_after)];
        for (name, value) in headers {
            if let Some(value) = value {
                response.headers_mut().insert(name, value.clone());
            }
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: &RouterError, status: u16, envelope: &str) {
        let mut out = BytesMut::new();
        error.write_envelope(&mut out);
        assert_eq!(error.status().as_u16(), status);
        assert_eq!(std::str::from_utf8(&out).unwrap(), envelope);
    }

    #[test]
    fn a_clients_mistake_keeps_its_param_and_hides_the_worker() {
        let fault =
            Fault::new(FaultCode::ContextLengthExceeded, "prompt has 9 tokens, at most 8 fit")
                .with_param("messages");
        let worker = Identity::of_member(MemberId(7));
        check(
            &RouterError::Worker { worker, progress: Progress::NotStarted, fault },
            400,
            r#"{"error":{"message":"prompt has 9 tokens, at most 8 fit","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
        );
    }

    #[test]
    fn a_lost_worker_is_503_before_its_first_event_and_502_after() {
        let error = |progress| RouterError::Worker {
            worker: Identity::of_member(MemberId(7)),
            progress,
            fault: Fault::new(FaultCode::Unavailable, "connection reset"),
        };
        check(
            &error(Progress::NotStarted),
            503,
            r#"{"error":{"message":"worker 7: connection reset","type":"server_error","param":null,"code":"unavailable"}}"#,
        );
        check(
            &error(Progress::Started),
            502,
            r#"{"error":{"message":"worker 7: connection reset","type":"server_error","param":null,"code":"worker_failed"}}"#,
        );
    }
}
