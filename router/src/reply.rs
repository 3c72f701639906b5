//! What an engine answers, by the kind of engine; everything that must be given back when it ends is held inside.

use phalanx_proto::id::{ModelName, Revision};

use crate::deadline::Cutoff;
use crate::engine::Identity;
use crate::engine::foreign::passed::PassedResponse;
use crate::stream::TokenStream;

/// The answer to a [`Call`](crate::ask::Call), begun. Dropping it cancels the work.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A native worker's events, to be laid out as the client asked.
    Tokens(TokenStream),
    /// A foreign engine's answer, to be passed on.
    Passed(PassedResponse),
}

/// Where a reply comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) worker: Identity,
    /// The model that answers, which the request may have named by an alias.
    pub(crate) model: ModelName,
    pub(crate) revision: Option<Revision>,
}

// === impl Reply ===

impl Reply {
    /// The same reply, ended with an error once `cutoff` resolves.
    pub(crate) fn until(self, cutoff: Cutoff) -> Self {
        match self {
            Self::Tokens(stream) => Self::Tokens(stream.until(cutoff)),
            Self::Passed(response) => Self::Passed(response.until(cutoff)),
        }
    }
}
