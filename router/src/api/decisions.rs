//! `GET /admin/decisions/{request_id}`: where a recent request was sent, why, and what came of it.

use std::time::{Duration, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::response::Response;
use bytes::BytesMut;
use phalanx_proto::id::{MemberId, RequestId};
use serde_json::{Value, json};

use super::{Gateway, json_response};
use crate::dispatch::decisions::{Candidate, Decision};
use crate::dispatch::fleet::Fleet;
use crate::engine::Identity;
use crate::error::RouterError;

/// Every engine that the request was sent to, in the order of time.
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
) -> Result<Response, RouterError> {
    let request_id = RequestId::from(id);
    let decisions = gateway.dispatch.decisions().of(&request_id);
    if decisions.is_empty() {
        return Err(RouterError::DecisionUnknown { request_id });
    }
    let fleet = gateway.dispatch.fleet();
    let attempts: Vec<_> = decisions.iter().map(|decision| attempt(decision, &fleet)).collect();
    let shown = json!({ "request_id": request_id, "attempts": attempts });
    Ok(json_response(BytesMut::from(shown.to_string().as_bytes())))
}

fn attempt(decision: &Decision, fleet: &Fleet) -> Value {
    let (actual, considered) = (decision.actual(), &decision.considered);
    let candidates = considered.candidates.iter().map(|one| candidate(one, fleet));
    // A clock before 1970 is broken; 0 says so.
    let at = decision.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "at": at.as_secs_f64(),
        "model": decision.model,
        "worker": decision.engine.name,
        "candidates_total": considered.count,
        "candidates": candidates.collect::<Vec<_>>(),
        "predicted": {
            "ttft_seconds": decision.expected.terms.first_token(),
            "cached_tokens": decision.expected.cached_tokens,
        },
        "actual": {
            "ttft_seconds": actual.first_token.as_ref().map(Duration::as_secs_f64),
            "cached_tokens": actual.cached_tokens,
        },
        "outcome": actual.outcome.as_str(),
        "fault": actual.outcome.fault().map(|code| code.as_str()),
    })
}

fn candidate(candidate: &Candidate, fleet: &Fleet) -> Value {
    let terms = candidate.terms;
    json!({
        "worker": name(candidate.engine, fleet),
        "cost_seconds": terms.seconds(),
        "wait_seconds": terms.wait,
        "prefill_seconds": terms.prefill,
        "decode_seconds": terms.decode,
        "risk_seconds": terms.risk,
        "error_seconds": terms.error,
        "uncached_tokens": terms.uncached_tokens,
        "sequences": terms.sequences,
        "cached_tokens": candidate.cached_tokens,
        "confidence": candidate.confidence,
        "money": candidate.money,
    })
}

/// What people call it. Members that left went by their numbers; foreign engines never leave.
fn name(id: MemberId, fleet: &Fleet) -> String {
    let engine = fleet.engines().find(|engine| engine.id() == id);
    let identity = engine.map_or_else(|| Identity::of_member(id), |engine| engine.identity.clone());
    identity.to_string()
}
