//! Answers on the wire, made beforehand: a token of a stream is one of [`WORDS`] frames.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::Value;

use crate::answer::{Answer, WORDS, word};

/// The end of every good stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// Which endpoint is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It has as many tokens as were asked for.
    Length,
    /// It is complete.
    Stop,
}

/// What a request cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) completion_tokens: u32,
}

/// All frames of one endpoint.
#[derive(Debug)]
pub(crate) struct Frames {
    endpoint: Endpoint,
    /// What a stream opens with.
    first: Bytes,
    tokens: Vec<Bytes>,
    length: Bytes,
    stop: Bytes,
    /// `"model":...`
    model: String,
}

// === impl Endpoint ===

impl Endpoint {
    /// The object and id of a frame, up to its choices.
    const fn head(self, stream: bool) -> &'static str {
        match (self, stream) {
            (Self::Chat, true) => {
                r#"{"id":"chatcmpl-sim","object":"chat.completion.chunk","created":0,"#
            }
            (Self::Chat, false) => {
                r#"{"id":"chatcmpl-sim","object":"chat.completion","created":0,"#
            }
            (Self::Completions, _) => r#"{"id":"cmpl-sim","object":"text_completion","created":0,"#,
        }
    }
}

// === impl Reason ===

impl Reason {
    const fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Stop => "stop",
        }
    }
}

// === impl Usage ===

impl Usage {
    fn json(self) -> String {
        let Self { prompt_tokens, cached_tokens, completion_tokens } = self;
        let total = u64::from(prompt_tokens) + u64::from(completion_tokens);
        format!(
            r#""usage":{{"prompt_tokens":{prompt_tokens},"total_tokens":{total},"completion_tokens":{completion_tokens},"prompt_tokens_details":{{"cached_tokens":{cached_tokens}}}}}"#
        )
    }
}

// === impl Frames ===

impl Frames {
    /// The frames of answers by `model`.
    pub(crate) fn new(endpoint: Endpoint, model: &str) -> Self {
        let model = format!(r#""model":{}"#, Value::from(model));
        let head = endpoint.head(true);
        let frame = |choice: String| {
            Bytes::from(format!("data: {head}{model},\"choices\":[{{\"index\":0,{choice}}}]}}\n\n"))
        };
        let delta = |text: &str, reason: &str| match endpoint {
            Endpoint::Chat => {
                frame(format!(r#""delta":{{"content":"{text}"}},"finish_reason":{reason}"#))
            }
            Endpoint::Completions => frame(format!(r#""text":"{text}","finish_reason":{reason}"#)),
        };
        let end = |reason: Reason| match endpoint {
            Endpoint::Chat => frame(format!(r#""delta":{{}},"finish_reason":"{}""#, reason.name())),
            Endpoint::Completions => delta("", &format!("\"{}\"", reason.name())),
        };
        let first = match endpoint {
            Endpoint::Chat => frame(
                r#""delta":{"role":"assistant","content":""},"finish_reason":null"#.to_owned(),
            ),
            Endpoint::Completions => Bytes::new(),
        };
        let text = |index| word(index).map(char::from).iter().collect::<String>();
        Self {
            tokens: (0..WORDS).map(|index| delta(&text(index), "null")).collect(),
            length: end(Reason::Length),
            stop: end(Reason::Stop),
            endpoint,
            first,
            model,
        }
    }

    /// What a stream opens with.
    pub(crate) const fn first(&self) -> &Bytes {
        &self.first
    }

    /// Token `index` of an answer.
    pub(crate) fn token(&self, answer: Answer, index: u32) -> &Bytes {
        &self.tokens[answer.word(index)]
    }

    /// How a stream ends, `[DONE]` included; with the usage, if it was asked for.
    pub(crate) fn end(&self, reason: Reason, usage: Option<Usage>) -> Bytes {
        let mut bytes = BytesMut::with_capacity(1024);
        bytes.put_slice(match reason {
            Reason::Length => &self.length,
            Reason::Stop => &self.stop,
        });
        if let Some(usage) = usage {
            bytes.put_slice(b"data: ");
            bytes.put_slice(self.endpoint.head(true).as_bytes());
            bytes.put_slice(self.model.as_bytes());
            bytes.put_slice(b",\"choices\":[],");
            bytes.put_slice(usage.json().as_bytes());
            bytes.put_slice(b"}\n\n");
        }
        bytes.put_slice(DONE);
        bytes.freeze()
    }

    /// An answer in one piece.
    pub(crate) fn whole(&self, answer: Answer, reason: Reason, usage: Usage) -> Bytes {
        let (open, close) = match self.endpoint {
            Endpoint::Chat => (r#""message":{"role":"assistant","content":""#, "\"}"),
            Endpoint::Completions => (r#""text":""#, "\""),
        };
        let mut text = String::with_capacity(512);
        text.push_str(self.endpoint.head(false));
        text.push_str(&self.model);
        text.push_str(r#","choices":[{"index":0,"#);
        text.push_str(open);
        text.push_str(&answer.text(0, usage.completion_tokens));
        text.push_str(close);
        text.push_str(r#","finish_reason":""#);
        text.push_str(reason.name());
        text.push_str("\"}],");
        text.push_str(&usage.json());
        text.push('}');
        Bytes::from(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(bytes: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(bytes).unwrap();
        let data = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    #[test]
    fn what_was_made_beforehand_is_json_and_says_the_answer() {
        let answer = Answer::new(1, 2);
        let usage = Usage { prompt_tokens: 9, cached_tokens: 4, completion_tokens: 3 };
        for (endpoint, delta) in [
            (Endpoint::Chat, "/choices/0/delta/content"),
            (Endpoint::Completions, "/choices/0/text"),
        ] {
            let frames = Frames::new(endpoint, "a \"quoted\" model");
            let mut bytes = frames.first().to_vec();
            for index in 0..3 {
                bytes.extend_from_slice(frames.token(answer, index));
            }
            bytes.extend_from_slice(&frames.end(Reason::Length, Some(usage)));
            let events = events(&bytes);
            let said: String =
                events.iter().filter_map(|event| event.pointer(delta)?.as_str()).collect();
            assert_eq!(said, answer.text(0, 3));
            let last = events.last().unwrap();
            assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
            assert_eq!(last["model"], "a \"quoted\" model");

            let whole: Value =
                serde_json::from_slice(&frames.whole(answer, Reason::Stop, usage)).unwrap();
            let said = match endpoint {
                Endpoint::Chat => &whole["choices"][0]["message"]["content"],
                Endpoint::Completions => &whole["choices"][0]["text"],
            };
            assert_eq!(*said, answer.text(0, 3));
            assert_eq!(whole["usage"]["total_tokens"], 12);
            assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        }
    }
}
