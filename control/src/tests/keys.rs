//! Keys, from an operator's call to a router's view.

use std::collections::BTreeSet;

use phalanx_proto::api_key::{ApiKeyText, PEPPER_BYTES_MIN, Pepper, RANDOM_BYTES};
use phalanx_proto::view::{ApiKey, CachePolicy, KeyLimits, KeySecret, Scope, Tenant, TenantLimits};

use super::*;

#[tokio::test]
async fn a_key_reaches_routers_as_something_that_only_verifies_and_nobody_else() {
    let folder = folder();
    let node = Node::start(folder.path(), any_port(), LONG).await;
    let client = node.client();
    let watched = ViewWatch::start(node.client().as_router(), None);
    let mut view = watched.view();
    let others = ViewWatch::start(node.client(), None);
    let mut others_view = others.view();
    let pepper = Pepper::new(1, vec![7; PEPPER_BYTES_MIN]).unwrap();
    let text = ApiKeyText::generate("test", &[9; RANDOM_BYTES]).unwrap();

    let (limits, cache) = (TenantLimits::default(), CachePolicy::Off);
    let tenant = Tenant { name: "t".into(), limits, priority: 0, cache };
    once_led(|| client.submit("c", 1, Change::PutTenant(tenant.clone()))).await.unwrap();
    let secret = KeySecret {
        hmac: text.hmac(&pepper),
        pepper_version: pepper.version,
        not_before_ms: 0,
        expires_ms: None,
    };
    let key = ApiKey {
        id: text.id(),
        tenant: "t".into(),
        scopes: BTreeSet::from([Scope::Inference("*".to_owned())]),
        limits: KeyLimits::default(),
        secrets: vec![secret],
        expires_ms: None,
        revoked: false,
    };
    client.submit("c", 2, Change::PutKey(key)).await.unwrap();
    let shown = seen(&mut view, |view| view.keys.contains_key(&text.id())).await;
    let sent = ApiKeyText::parse(text.reveal()).unwrap();
    let verifies =
        shown.keys[&sent.id()].live_secrets(1).any(|kept| sent.verify(&pepper, &kept.hmac));
    assert!(verifies);

    let fault = client.submit("c", 3, Change::RemoveTenant("t".into())).await.unwrap_err();
    assert_eq!(fault.code, FaultCode::InvalidRequest, "{fault}");
    client.submit("c", 4, Change::RevokeKey(text.id())).await.unwrap();
    let revoked = seen(&mut view, |view| view.keys[&text.id()].revoked).await;
    assert_eq!(revoked.keys[&text.id()].live_secrets(1).count(), 0);

    // Whoever does not say that it is a router hears of what comes after, and of nobody's keys.
    let after = Model { name: "after".into(), revision: "r".into() };
    client.submit("c", 5, Change::PutModel(after.clone())).await.unwrap();
    let late = ViewWatch::start(node.client(), None);
    for view in [&mut others_view, &mut late.view()] {
        let shown = seen(view, |view| view.models.contains(&after)).await;
        assert!(shown.keys.is_empty() && shown.tenants.is_empty());
    }
    node.stop().await;
}
