//! `GET /admin/workers`: what this router makes of each engine.

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use bytes::BytesMut;

use super::openai::json;
use super::{Gateway, json_response};
use crate::engine::Engine;

/// Every engine, in the order of their ids.
pub(crate) async fn workers(State(gateway): State<Gateway>) -> Response {
    let fleet = gateway.dispatch.fleet();
    let (engines, now): (Vec<_>, _) = (fleet.engines().collect(), Instant::now());
    let mut out = BytesMut::with_capacity(256 * (engines.len() + 1));
    out.extend_from_slice(b"{\"workers\":");
    json::array(&mut out, &engines, |out, engine| write(out, engine, now));
    out.extend_from_slice(b"}");
    json_response(out)
}

fn write(out: &mut BytesMut, engine: &Engine, now: Instant) {
    let outstanding = engine.offer().outstanding;
    out.extend_from_slice(b"{\"id\":");
    // Ids of foreign engines are beyond what JSON's readers take for whole numbers.
    json::string(out, &engine.id().0.to_string());
    out.extend_from_slice(b",\"name\":");
    json::string(out, &engine.identity.name);
    out.extend_from_slice(b",\"models\":");
    json::array(out, engine.models.iter(), |out, served| json::string(out, served.name.as_str()));
    let flags =
        [("up", engine.is_up()), ("heard", engine.is_heard()), ("has_room", engine.has_room(now))];
    for (name, value) in flags {
        out.extend_from_slice(format!(",\"{name}\":{value}").as_bytes());
    }
    out.extend_from_slice(b",\"breaker\":");
    json::string(out, engine.health.state(now).as_str());
    let chunks = engine.holding().chunks_reported().map(|chunks| ("prefix_chunks", chunks));
    let numbers = [
        ("requests", engine.requests()),
        ("prefill_tokens_outstanding", outstanding.prefill_tokens),
        ("decode_tokens_outstanding", outstanding.decode_tokens),
    ];
    for (name, value) in numbers.into_iter().chain(chunks) {
        out.extend_from_slice(format!(",\"{name}\":{value}").as_bytes());
    }
    out.extend_from_slice(b"}");
}
