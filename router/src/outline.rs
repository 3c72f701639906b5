//! What the router needs to know of a body that it passes on untouched, found without building a tree. Pure.
//!
//! Only the top level is read, and only as far as the fields of interest need: whether the rest is what the engine
//! wants is for the engine to say.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr2;
use phalanx_proto::id::ModelName;
use phalanx_proto::prefix::{ChunkHasher, Chunks, PromptKind};

use crate::ask::MODEL_NAME_BYTES_MAX;

/// A JSON object's outline.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outline {
    pub(crate) model: ModelName,
    /// Where the model's name stands, its quotes included.
    pub(crate) model_at: Range<usize>,
    pub(crate) user: Option<String>,
    /// How much there is to read for the model: the messages or the prompt, and the tools.
    pub(crate) input_bytes: usize,
    pub(crate) max_tokens: Option<u64>,
    pub(crate) choices: u64,
    /// Whether the answer is asked for event by event.
    pub(crate) is_streamed: bool,
    /// What the input may have in common with others', by its bytes as they stand there.
    pub(crate) chunks: Chunks,
}

/// Reads JSON values one after the other.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

// === impl Outline ===

impl Outline {
    /// The outline of `bytes`; none if it is no JSON object, as far as that is looked at, or names no model.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut scanner = Scanner { bytes, at: 0 };
        let mut model = None;
        let mut hasher = ChunkHasher::new(PromptKind::Text, "");
        let (mut user, mut input_bytes, mut choices) = (None, 0, 1);
        let mut is_streamed = false;
        let (mut max_tokens, mut max_completion_tokens) = (None, None);
        scanner.take(b'{')?;
        if !scanner.take_if(b'}') {
            loop {
                let key = scanner.value().filter(|key| bytes[key.start] == b'"')?;
                let key = text(&bytes[key])?;
                scanner.take(b':')?;
                let at = scanner.value()?;
                let value = &bytes[at.clone()];
                match &*key {
                    "model" => model = Some((text(value)?, at)),
                    "user" => user = text(value).map(Cow::into_owned),
                    "messages" | "prompt" | "input" | "tools" | "query" | "documents" => {
                        input_bytes += value.len();
                        hasher.bytes(value);
                    }
                    "stream" => is_streamed = value == b"true",
                    "n" => choices = number(value).unwrap_or(1),
                    "max_tokens" => max_tokens = number(value),
                    "max_completion_tokens" => max_completion_tokens = number(value),
                    _ => {}
                }
                if !scanner.take_if(b',') {
                    break;
                }
            }
            scanner.take(b'}')?;
        }
        scanner.is_at_end().then_some(())?;
        let (model, model_at) = model?;
        if model.is_empty() || model.len() > MODEL_NAME_BYTES_MAX {
            return None;
        }
        let max_tokens = max_completion_tokens.or(max_tokens);
        Some(Self {
            model: ModelName::from(&*model),
            model_at,
            user,
            input_bytes,
            max_tokens,
            choices,
            is_streamed,
            chunks: hasher.finish(),
        })
    }
}

/// The value of `key` where `bytes` has it last, as it stands there. Inside a string its quotes would be escaped.
pub(crate) fn last_value<'a>(bytes: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let quoted = format!("\"{key}\"");
    let found = memchr::memmem::rfind(bytes, quoted.as_bytes())?;
    let mut scanner = Scanner { bytes, at: found + quoted.len() };
    scanner.take(b':')?;
    scanner.value().map(|at| &bytes[at])
}

/// The text that `value` is, if it is a string.
fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if inner.contains(&b'\\') {
        return serde_json::from_slice(value).ok().map(Cow::Owned);
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

// === impl Scanner ===

impl Scanner<'_> {
    fn skip_space(&mut self) {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let space = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t'));
        self.at += space.count();
    }

    fn take_if(&mut self, byte: u8) -> bool {
        self.skip_space();
        let is_there = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.take_if(byte).then_some(())
    }

    fn is_at_end(&mut self) -> bool {
        self.skip_space();
        self.at == self.bytes.len()
    }

    /// Where the next value stands.
    fn value(&mut self) -> Option<Range<usize>> {
        self.skip_space();
        let start = self.at;
        match self.bytes.get(start)? {
            b'"' => self.string()?,
            b'{' | b'[' => self.nested()?,
            _ => {
                let rest = &self.bytes[start..];
                let end = rest.iter().position(|byte| b",}] \n\r\t:\"{[".contains(byte));
                self.at += end.unwrap_or(rest.len());
            }
        }
        (self.at > start).then_some(start..self.at)
    }

    /// Skips a string, from its opening quote.
    fn string(&mut self) -> Option<()> {
        let mut at = self.at + 1;
        loop {
            at += memchr2(b'"', b'\\', self.bytes.get(at..)?)?;
            if self.bytes[at] == b'"' {
                self.at = at + 1;
                return Some(());
            }
            at += 2; // whatever is escaped
        }
    }

    /// Skips an object or an array, from its opening bracket.
    fn nested(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.bytes.get(self.at)? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_fields_of_interest_are_found_wherever_they_stand() {
        let body =
            br#" {"messages":[{"role":"user","content":"a \" ] }"}], "model" : "m\u00e9","n":2,
            "max_tokens":7,"x":{"model":"no"},"max_completion_tokens":9,"user":"u","tools":[] } "#;
        let outline = Outline::read(body).unwrap();
        assert_eq!(outline.model.as_str(), "mé");
        assert_eq!(&body[outline.model_at.clone()], br#""m\u00e9""#);
        assert_eq!((outline.choices, outline.max_tokens), (2, Some(9)));
        assert_eq!(outline.user.as_deref(), Some("u"));
        assert_eq!(outline.input_bytes, r#"[{"role":"user","content":"a \" ] }"}][]"#.len());
    }

    #[test]
    fn what_is_no_object_or_names_no_model_has_no_outline() {
        for body in [
            "",
            "{",
            "{}",
            "[]",
            r#""model""#,
            r#"{"model":1}"#,
            r#"{"model":""}"#,
            r#"{"model":"m"} x"#,
            r#"{"model":"m","#,
            r#"{"model":"m" "n":1}"#,
            r#"{"model":"m"#,
            r#"{"model":"m\"#,
            r#"{model:"m"}"#,
            r#"{"model":"m","messages":[}"#,
            "{]",
        ] {
            assert_eq!(Outline::read(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn the_last_value_of_a_key_is_found_past_text_that_looks_like_it() {
        let body = br#"{"usage":1,"text":"\"usage\":2","usage" : {"a":[3]},"b":4}"#;
        assert_eq!(last_value(body, "usage"), Some(&br#"{"a":[3]}"#[..]));
        assert_eq!(last_value(body, "absent"), None);
        assert_eq!(last_value(br#"{"usage":"#, "usage"), None);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_object_gives_up_its_model(
            before in any_json(),
            model in "\\PC{1,40}",
            after in any_json(),
            is_pretty in any::<bool>(),
        ) {
            let body = json!({"messages": before, "model": model, "other": after});
            let bytes = match is_pretty {
                true => serde_json::to_vec_pretty(&body).unwrap(),
                false => serde_json::to_vec(&body).unwrap(),
            };
            let outline = Outline::read(&bytes).unwrap();
            prop_assert_eq!(outline.model.as_str(), &model);
            let value: Value = serde_json::from_slice(&bytes[outline.model_at]).unwrap();
            prop_assert_eq!(value, Value::from(model));
        }

        #[test]
        fn no_bytes_make_it_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Outline::read(&bytes);
            let _ = last_value(&bytes, "usage");
        }

        #[test]
        fn no_cut_of_a_body_has_an_outline(cut in 1usize..60) {
            let body = br#"{"model":"m","messages":[{"role":"user","content":"hi \"you\""}]}"#;
            prop_assert_eq!(Outline::read(&body[..body.len() - cut]), None);
        }
    }
}
