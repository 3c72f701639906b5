//! The demo model's golden answers: what a reference implementation computed for the same weights.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::Client;
use crate::process::repository;

/// One prompt and its greedy answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Golden {
    /// The conversation; none for a plain continuation.
    #[serde(default)]
    pub messages: Option<Value>,
    /// The text to continue; none for a conversation.
    #[serde(default)]
    pub prompt: Option<String>,
    /// The prompt as tokens.
    pub prompt_token_ids: Vec<u32>,
    /// The answer as tokens, its end token included.
    pub output_token_ids: Vec<u32>,
    /// Why it ended; the plain continuations all ran into their limit.
    #[serde(default = "length")]
    pub finish_reason: String,
    /// The answer.
    pub text: String,
    /// The ten best tokens of the first step.
    #[serde(default)]
    pub first_step_top10: Vec<Score>,
}

/// A token and its logit.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Score {
    /// The token.
    pub id: u32,
    /// Its logit.
    pub logit: f64,
}

#[derive(Debug, Deserialize)]
struct GoldenFile {
    chats: Vec<Golden>,
    completions: Vec<Golden>,
}

fn length() -> String {
    "length".to_owned()
}

/// What a request answered, in the terms of [`Golden`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    prompt_token_ids: Vec<u32>,
    output_token_ids: Vec<u32>,
    finish_reason: String,
    text: String,
}

/// All golden answers of the demo model.
///
/// # Errors
/// When the file cannot be read.
pub fn all() -> Result<Vec<Golden>> {
    let path = repository().join("models/demo-llm/golden.json");
    let file: GoldenFile = serde_json::from_slice(&std::fs::read(path)?)?;
    ensure!(file.chats.len() >= 40 && !file.completions.is_empty(), "golden.json lost answers");
    Ok(file.chats.into_iter().chain(file.completions).collect())
}

// === impl Golden ===

impl Golden {
    /// Most tokens of the answer, as golden.json was made with.
    pub const fn max_tokens(&self) -> u32 {
        if self.messages.is_some() { 220 } else { 64 }
    }

    /// Where the request goes.
    pub const fn path(&self) -> &'static str {
        if self.messages.is_some() { "/v1/chat/completions" } else { "/v1/completions" }
    }

    /// The request that must give the golden answer.
    pub fn request(&self) -> Value {
        let mut body = json!({
            "model": "demo-llm",
            "temperature": 0,
            "max_tokens": self.max_tokens(),
            "return_token_ids": true,
        });
        match &self.messages {
            Some(messages) => body["messages"] = messages.clone(),
            None => body["prompt"] = json!(self.prompt),
        }
        body
    }

    /// Asks, and compares everything.
    ///
    /// # Errors
    /// When the request fails, or the answer is another.
    pub async fn check(&self, client: &Client) -> Result<()> {
        let answer = client.post(self.path(), &self.request()).await?.good()?;
        let given = Given::from_answer(&answer)?;
        ensure!(given == self.expected(), "got {given:?}\nexpected {:?}", self.expected());
        let usage = (self.prompt_token_ids.len(), self.output_token_ids.len());
        let counted = (&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]);
        ensure!(
            counted == (&json!(usage.0), &json!(usage.1)),
            "usage {counted:?} is not {usage:?}"
        );
        Ok(())
    }

    /// Asks for a stream, and compares the text that its pieces make.
    ///
    /// # Errors
    /// When the request fails, or the answer is another.
    pub async fn check_streamed(&self, client: &Client) -> Result<()> {
        let mut request = self.request();
        request["stream"] = json!(true);
        let events = client.stream(self.path(), &request).await?.rest().await?;
        let mut text = String::new();
        let mut finish = None;
        for choice in events.iter().map(|event| &event["choices"][0]) {
            let piece = choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str());
            text.push_str(piece.unwrap_or_default());
            finish = choice["finish_reason"].as_str().or(finish);
        }
        ensure!(text == self.text, "streamed {text:?}, expected {:?}", self.text);
        ensure!(finish == Some(&self.finish_reason), "ended with {finish:?}");
        Ok(())
    }

    fn expected(&self) -> Given {
        Given {
            prompt_token_ids: self.prompt_token_ids.clone(),
            output_token_ids: self.output_token_ids.clone(),
            finish_reason: self.finish_reason.clone(),
            text: self.text.clone(),
        }
    }
}

// === impl Given ===

impl Given {
    fn from_answer(answer: &Value) -> Result<Self> {
        let choice = &answer["choices"][0];
        // As in vLLM: on the answer for chats, on the choice for completions.
        let prompt = answer.get("prompt_token_ids").or_else(|| choice.get("prompt_token_ids"));
        let ids = |value: &Value| serde_json::from_value::<Vec<u32>>(value.clone());
        let text = choice["message"]["content"].as_str().or_else(|| choice["text"].as_str());
        Ok(Self {
            prompt_token_ids: ids(prompt.context("no prompt_token_ids")?)?,
            output_token_ids: ids(&choice["token_ids"])?,
            finish_reason: choice["finish_reason"].as_str().unwrap_or_default().to_owned(),
            text: text.unwrap_or_default().to_owned(),
        })
    }
}
