//! Messages that describe tenants, keys and settings.

use super::{WireError, required};
use crate::id::{KeyId, TenantName, ViewIndex};
use crate::pb;
use crate::view::{
    ApiKey, CachePolicy, KeyLimits, KeySecret, Scope, Setting, Tenant, TenantLimits,
};

// === impl Tenant ===

impl From<CachePolicy> for pb::CachePolicy {
    fn from(cache: CachePolicy) -> Self {
        match cache {
            CachePolicy::Off => Self::Off,
            CachePolicy::Exact => Self::Exact,
            CachePolicy::Semantic => Self::Semantic,
        }
    }
}

impl TryFrom<pb::CachePolicy> for CachePolicy {
    type Error = WireError;

    fn try_from(wire: pb::CachePolicy) -> Result<Self, WireError> {
        match wire {
            pb::CachePolicy::Off => Ok(Self::Off),
            pb::CachePolicy::Exact => Ok(Self::Exact),
            pb::CachePolicy::Semantic => Ok(Self::Semantic),
            pb::CachePolicy::Unspecified => Err(WireError { field: "cache" }),
        }
    }
}

impl From<Tenant> for pb::Tenant {
    fn from(tenant: Tenant) -> Self {
        Self {
            name: tenant.name.to_string(),
            requests_per_minute: tenant.limits.requests_per_minute,
            tokens_per_minute: tenant.limits.tokens_per_minute,
            concurrency: tenant.limits.concurrency,
            budget_tokens_per_day: tenant.limits.budget_tokens_per_day,
            priority: tenant.priority,
            cache: pb::CachePolicy::from(tenant.cache).into(),
        }
    }
}

impl TryFrom<pb::Tenant> for Tenant {
    type Error = WireError;

    fn try_from(wire: pb::Tenant) -> Result<Self, WireError> {
        Ok(Self {
            cache: wire.cache().try_into()?,
            name: TenantName::from(wire.name),
            limits: TenantLimits {
                requests_per_minute: wire.requests_per_minute,
                tokens_per_minute: wire.tokens_per_minute,
                concurrency: wire.concurrency,
                budget_tokens_per_day: wire.budget_tokens_per_day,
            },
            priority: wire.priority,
        })
    }
}

// === impl ApiKey ===

impl From<KeySecret> for pb::KeySecret {
    fn from(secret: KeySecret) -> Self {
        Self {
            hmac: secret.hmac.as_bytes().to_vec(),
            pepper_version: secret.pepper_version,
            not_before_ms: secret.not_before_ms,
            expires_ms: secret.expires_ms,
        }
    }
}

impl TryFrom<pb::KeySecret> for KeySecret {
    type Error = WireError;

    fn try_from(wire: pb::KeySecret) -> Result<Self, WireError> {
        let hmac = wire.hmac.as_slice().try_into();
        Ok(Self {
            hmac: hmac.map_err(|_size| WireError { field: "hmac" })?,
            pepper_version: wire.pepper_version,
            not_before_ms: wire.not_before_ms,
            expires_ms: wire.expires_ms,
        })
    }
}

impl From<ApiKey> for pb::ApiKey {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id.to_string(),
            tenant: key.tenant.to_string(),
            scopes: key.scopes.into_iter().map(Into::into).collect(),
            requests_per_minute: key.limits.requests_per_minute,
            tokens_per_minute: key.limits.tokens_per_minute,
            secrets: key.secrets.into_iter().map(Into::into).collect(),
            expires_ms: key.expires_ms,
            revoked: key.revoked,
        }
    }
}

impl TryFrom<pb::ApiKey> for ApiKey {
    type Error = WireError;

    fn try_from(wire: pb::ApiKey) -> Result<Self, WireError> {
        let scope = |text: String| Scope::try_from(text).ok();
        let scopes = wire.scopes.into_iter().map(scope).collect::<Option<_>>();
        Ok(Self {
            id: KeyId::from(wire.id),
            tenant: TenantName::from(wire.tenant),
            scopes: required("scopes", scopes)?,
            limits: KeyLimits {
                requests_per_minute: wire.requests_per_minute,
                tokens_per_minute: wire.tokens_per_minute,
            },
            secrets: wire.secrets.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            expires_ms: wire.expires_ms,
            revoked: wire.revoked,
        })
    }
}

// === impl Setting ===

impl From<Setting> for pb::Setting {
    fn from(setting: Setting) -> Self {
        Self { key: setting.key, value: setting.value, version: setting.version.0 }
    }
}

impl From<pb::Setting> for Setting {
    fn from(wire: pb::Setting) -> Self {
        Self { key: wire.key, value: wire.value, version: ViewIndex(wire.version) }
    }
}
