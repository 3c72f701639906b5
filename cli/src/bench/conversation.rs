//! A conversation as the body of its next request.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::Value;

use super::trace::Session;

/// What every request of a load says beside its messages.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) seed: u64,
}

/// The turns so far, as JSON.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    messages: String,
}

// === impl Conversation ===

impl Conversation {
    /// A conversation that has only its system prompt, if it has one.
    pub(super) fn new(session: &Session) -> Self {
        let mut conversation = Self::default();
        if let Some(system) = &session.system {
            conversation.say("system", system);
        }
        conversation
    }

    /// Adds a turn.
    pub(super) fn say(&mut self, role: &str, content: &str) {
        let comma = if self.messages.is_empty() { "" } else { "," };
        let content = Value::from(content);
        let _ = write!(self.messages, r#"{comma}{{"role":"{role}","content":{content}}}"#);
    }

    /// The request for the next answer.
    pub(super) fn body(&self, terms: &Terms, max_tokens: u32) -> Bytes {
        let Terms { model, stream, seed } = terms;
        let model = Value::from(model.as_str());
        let usage = if *stream { r#","stream_options":{"include_usage":true}"# } else { "" };
        Bytes::from(format!(
            r#"{{"model":{model},"messages":[{}],"max_tokens":{max_tokens},"seed":{seed},"stream":{stream}{usage}}}"#,
            self.messages
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_body_is_json_whatever_was_said() {
        let session = Session {
            arrives_at: Duration::ZERO,
            system: Some("be \"brief\"".into()),
            turns: Vec::new(),
        };
        let mut conversation = Conversation::new(&session);
        conversation.say("user", "a\nb");
        let terms = Terms { model: "m".to_owned(), stream: true, seed: 5 };
        let body: Value = serde_json::from_slice(&conversation.body(&terms, 3)).unwrap();
        let expected = json!({
            "model": "m", "max_tokens": 3, "seed": 5, "stream": true,
            "stream_options": {"include_usage": true},
            "messages": [
                {"role": "system", "content": "be \"brief\""}, {"role": "user", "content": "a\nb"}
            ]
        });
        assert_eq!(body, expected);
    }
}
