//! Who may use the cluster, and how much of it; and the settings that hold for all of it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::api_key::SecretHmac;
use crate::id::{KeyId, TenantName, ViewIndex};

/// Who pays for requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Who.
    pub name: TenantName,
    /// How much all its keys may use together.
    pub limits: TenantLimits,
    /// Larger ones go first when there is a queue.
    pub priority: u32,
    /// Whether its answers may come from the cache.
    pub cache: CachePolicy,
}

/// What a tenant may use. What is absent is without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each name says what is counted, and over what time")]
pub struct TenantLimits {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    /// Requests in flight.
    pub concurrency: Option<u32>,
    pub budget_tokens_per_day: Option<u64>,
}

/// Which cached answers a tenant takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CachePolicy {
    /// None.
    #[default]
    Off,
    /// Those to the same request.
    Exact,
    /// Those to a request that means the same, too.
    Semantic,
}

/// A key that clients identify themselves by. Its secret is known to the client alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// The public part.
    pub id: KeyId,
    /// Whose it is.
    pub tenant: TenantName,
    /// What it allows; nothing else.
    pub scopes: BTreeSet<Scope>,
    /// Tighter than the tenant's, where present.
    pub limits: KeyLimits,
    /// One, or two while a rotation overlaps; the newest last.
    pub secrets: Vec<KeySecret>,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// Whether it was withdrawn; for good.
    pub revoked: bool,
}

/// What one key may use. What is absent is without a limit of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each name says what is counted, and over what time")]
pub struct KeyLimits {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
}

/// What one secret of a key is verified with, and when. Times are in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySecret {
    /// See [`crate::api_key`].
    pub hmac: SecretHmac,
    /// Which pepper it was made with.
    pub pepper_version: u32,
    /// When it begins to hold.
    pub not_before_ms: u64,
    /// When it no longer holds.
    pub expires_ms: Option<u64>,
}

/// Something a key allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// To use the models whose names match the glob.
    Inference(String),
    /// To purge the cache.
    CachePurge,
    /// To create, rotate and revoke keys.
    KeysWrite,
    /// To operate the cluster.
    ClusterAdmin,
    /// To read metrics.
    MetricsRead,
}

/// A scope that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "scope {0:?} is not known: it must be inference:GLOB, cache:purge, keys:write, cluster:admin or metrics:read"
)]
pub struct UnknownScopeError(pub String);

/// A setting of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub key: String,
    /// As text; what it means is up to its reader.
    pub value: String,
    /// The log index that set it.
    pub version: ViewIndex,
}

// === impl ApiKey ===

impl ApiKey {
    /// Whether the key holds at `now_ms`, milliseconds since 1970.
    pub fn is_live(&self, now_ms: u64) -> bool {
        !self.revoked && self.expires_ms.is_none_or(|expires| now_ms < expires)
    }

    /// The secrets that hold at `now_ms`, milliseconds since 1970; none when the key does not.
    pub fn live_secrets(&self, now_ms: u64) -> impl Iterator<Item = &KeySecret> {
        let holds = move |secret: &&KeySecret| {
            secret.not_before_ms <= now_ms
                && secret.expires_ms.is_none_or(|expires| now_ms < expires)
        };
        self.secrets.iter().filter(move |secret| self.is_live(now_ms) && holds(secret))
    }
}

// === impl Scope ===

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inference(glob) => write!(f, "inference:{glob}"),
            Self::CachePurge => f.write_str("cache:purge"),
            Self::KeysWrite => f.write_str("keys:write"),
            Self::ClusterAdmin => f.write_str("cluster:admin"),
            Self::MetricsRead => f.write_str("metrics:read"),
        }
    }
}

impl FromStr for Scope {
    type Err = UnknownScopeError;

    fn from_str(text: &str) -> Result<Self, UnknownScopeError> {
        match text {
            "cache:purge" => Ok(Self::CachePurge),
            "keys:write" => Ok(Self::KeysWrite),
            "cluster:admin" => Ok(Self::ClusterAdmin),
            "metrics:read" => Ok(Self::MetricsRead),
            _ => match text.strip_prefix("inference:") {
                Some(glob) if !glob.is_empty() => Ok(Self::Inference(glob.to_owned())),
                Some(_) | None => Err(UnknownScopeError(text.to_owned())),
            },
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = UnknownScopeError;

    fn try_from(text: String) -> Result<Self, UnknownScopeError> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_read_as_it_is_written_and_others_are_refused() {
        for text in
            ["inference:org/*", "cache:purge", "keys:write", "cluster:admin", "metrics:read"]
        {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for text in ["", "inference:", "inference", "cluster:read", "Cache:Purge"] {
            assert_eq!(text.parse::<Scope>(), Err(UnknownScopeError(text.to_owned())));
        }
    }

    #[test]
    fn a_secret_holds_within_its_time_and_that_of_its_key() {
        let secret = |not_before_ms, expires_ms| KeySecret {
            hmac: SecretHmac::from([0; 32]),
            pepper_version: 1,
            not_before_ms,
            expires_ms,
        };
        let mut key = ApiKey {
            id: "k".into(),
            tenant: "t".into(),
            scopes: BTreeSet::new(),
            limits: KeyLimits::default(),
            secrets: vec![secret(0, Some(20)), secret(10, None)],
            expires_ms: Some(30),
            revoked: false,
        };
        let live = |key: &ApiKey, now| key.live_secrets(now).count();
        assert_eq!([9, 10, 19, 20, 29, 30].map(|now| live(&key, now)), [1, 2, 2, 1, 1, 0]);
        key.revoked = true;
        assert_eq!(live(&key, 15), 0);
    }
}
