//! Requests as OpenAI's API spells them, as far as a simulated model cares.

use std::borrow::Cow;

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::prefix::PromptKind;
use serde::Deserialize;
use serde_json::Value;

use crate::prompt::{Canonical, Prompt};

/// What is asked for beside the prompt.
#[derive(Debug, Deserialize)]
pub(crate) struct Options<'a> {
    #[serde(borrow, default)]
    pub(crate) model: Cow<'a, str>,
    #[serde(default)]
    pub(crate) stream: bool,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    n: Option<u32>,
    seed: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// What there is to continue.
#[derive(Debug, Deserialize)]
struct Content {
    #[serde(default)]
    messages: Vec<Turn>,
    prompt: Option<Text>,
    #[serde(default)]
    cache_salt: String,
}

#[derive(Debug, Deserialize)]
struct Turn {
    role: String,
    #[serde(default)]
    content: Value,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Text {
    Text(String),
    Tokens(Vec<u32>),
}

// === impl Options ===

impl<'a> Options<'a> {
    /// Reads a body.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, Fault> {
        let options: Self = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
        match options.n {
            None | Some(1) => {}
            Some(n) => {
                let message = format!("a simulated engine gives one answer, n must be 1, got {n}");
                return Err(Fault::invalid("n", message));
            }
        }
        if options.max_tokens() == Some(0) {
            return Err(Fault::invalid("max_tokens", "max_tokens must be at least 1"));
        }
        Ok(options)
    }

    pub(crate) fn max_tokens(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    pub(crate) fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage)
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed.unwrap_or_default().cast_unsigned()
    }
}

/// The prompt of a body.
pub(crate) fn prompt(body: &[u8]) -> Result<Prompt, Fault> {
    let content: Content = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
    let begin = |kind| Canonical::new(kind, &content.cache_salt);
    let canonical = match &content.prompt {
        Some(Text::Text(text)) => {
            let mut canonical = begin(PromptKind::Text);
            canonical.text(text);
            canonical
        }
        Some(Text::Tokens(ids)) => {
            let mut canonical = begin(PromptKind::Tokens);
            canonical.tokens(ids);
            canonical
        }
        None if content.messages.is_empty() => {
            return Err(Fault::invalid("messages", "messages or a prompt is required"));
        }
        None => {
            let mut canonical = begin(PromptKind::Chat);
            for turn in &content.messages {
                canonical.message(&turn.role, &text_of(&turn.content));
            }
            canonical
        }
    };
    Ok(canonical.prompt())
}

/// The text of a message: itself, or its text parts.
fn text_of(content: &Value) -> Cow<'_, str> {
    match content {
        Value::String(text) => Cow::Borrowed(text),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part.get("text")?.as_str()).collect::<String>().into()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Cow::Borrowed(""),
    }
}

fn malformed(error: &serde_json::Error) -> Fault {
    Fault::new(FaultCode::InvalidRequest, format!("the body is not what is expected: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_the_same_however_it_is_spelt() {
        let plain = br#"{"model":"sim","messages":[{"role":"user","content":"one two"}]}"#;
        let parts = br#"{"messages":[{"content":[{"type":"text","text":"one "},
            {"type":"text","text":"two"}],"role":"user"}],"stream":true}"#;
        assert_eq!(prompt(plain).unwrap(), prompt(parts).unwrap());
    }

    #[test]
    fn a_salt_sets_the_cache_apart_and_not_the_answer() {
        let body = |salt: &str| {
            let content = "x".repeat(1000);
            let json = serde_json::json!({"cache_salt": salt, "prompt": content});
            prompt(json.to_string().as_bytes()).unwrap()
        };
        assert_ne!(body("one").chunks, body("two").chunks);
        assert_eq!(body("one").digest, body("two").digest);
    }

    #[test]
    fn refusals_name_the_field() {
        let n = Options::parse(br#"{"model":"sim","n":2}"#).unwrap_err();
        assert_eq!(n.param.as_deref(), Some("n"));
        let empty = prompt(br#"{"model":"sim"}"#).unwrap_err();
        assert_eq!(empty.param.as_deref(), Some("messages"));
        assert!(Options::parse(b"{").is_err());
    }
}
