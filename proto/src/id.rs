//! Ids as newtypes, so that one cannot be passed for another.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<T> From<T> for $name
        where
            T: Into<Arc<str>>,
        {
            fn from(text: T) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// A control node. Never reused.
    NodeId
}
number_id! {
    /// A worker or router known to the control plane: the log index of its first registration. Never reused.
    MemberId
}
number_id! {
    /// The fencing token of one registration, or of one forming of a group: the log index that made it.
    /// Strictly increasing.
    Epoch
}
number_id! {
    /// A group of members that serve one model together: the log index that formed it first. Never reused.
    GroupId
}
number_id! {
    /// A position in the control plane's log, as far as a [`crate::view::ClusterView`] is concerned.
    ViewIndex
}
number_id! {
    /// Which history a view belongs to; a restore from backup starts a new, larger one.
    Lineage
}
text_id! {
    /// One client request, across router and worker, in logs and in `x-request-id`.
    RequestId
}
text_id! {
    /// A model's public name, or an alias.
    ModelName
}
text_id! {
    /// The digest of a served model folder.
    Revision
}
text_id! {
    /// Who pays for requests.
    TenantName
}
text_id! {
    /// The public part of an API key.
    KeyId
}
