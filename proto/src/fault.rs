//! The one typed reason why a request was not served, as it crosses processes.
//!
//! A worker answers with a [`Fault`]; the router alone maps it to an HTTP status. On the wire it is a
//! gRPC status whose details carry the code, the parameter and the retry hint (see [`crate::wire`]).

use std::time::Duration;

/// What kind of failure it is. The name on the wire is [`FaultCode::as_str`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultCode {
    /// The request itself is wrong; sending it again cannot help.
    InvalidRequest,
    /// Prompt and output together do not fit the model's context.
    ContextLengthExceeded,
    /// No such model, here.
    ModelNotFound,
    /// The call was routed by a registration that no longer holds; refresh the view and route again.
    StaleEpoch,
    /// A bounded queue is full; try again later or elsewhere.
    Overloaded,
    /// The process is shutting down; try elsewhere.
    Draining,
    /// The request's own deadline passed.
    DeadlineExceeded,
    /// The caller went away or cancelled.
    Cancelled,
    /// The process or its peer cannot be reached, or died.
    Unavailable,
    /// The model produced numbers that cannot be sampled (NaN or no finite logit).
    Numerical,
    /// A fault of ours.
    Internal,
}

impl FaultCode {
    /// Every code, for tables and tests.
    pub const ALL: [Self; 11] = [
        Self::InvalidRequest,
        Self::ContextLengthExceeded,
        Self::ModelNotFound,
        Self::StaleEpoch,
        Self::Overloaded,
        Self::Draining,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::Unavailable,
        Self::Numerical,
        Self::Internal,
    ];

    /// The stable name on the wire and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::ContextLengthExceeded => "context_length_exceeded",
            Self::ModelNotFound => "model_not_found",
            Self::StaleEpoch => "stale_epoch",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Unavailable => "unavailable",
            Self::Numerical => "numerical",
            Self::Internal => "internal",
        }
    }

    /// Whether another worker might serve the same request.
    pub const fn is_retryable_elsewhere(self) -> bool {
        matches!(
            self,
            Self::StaleEpoch
                | Self::Overloaded
                | Self::Draining
                | Self::Unavailable
                | Self::Internal
        )
    }
}

/// Why a request was not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The kind.
    pub code: FaultCode,
    /// For the client's eyes: lowercase, with the value and the limit.
    pub message: String,
    /// The request field at fault, as the client spelt it.
    pub param: Option<String>,
    /// When trying again may help.
    pub retry_after: Option<Duration>,
}

impl Fault {
    /// A fault of `code` with a message and nothing else.
    pub fn new(code: FaultCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, retry_after: None }
    }

    /// An [`FaultCode::InvalidRequest`] that names the field at fault.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::new(FaultCode::InvalidRequest, message).with_param(param)
    }

    /// The same fault, naming a field.
    #[must_use]
    pub fn with_param(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// The same fault, with a retry hint.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}
