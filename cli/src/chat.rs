//! `phalanx chat`: a conversation in the terminal, streamed.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use http_body_util::BodyExt;
use phalanx_chassis::config::Resolved;
use serde_json::{Value, json};

use crate::event_stream::EventStream;
use crate::failure::{Failure, chain};
use crate::http_client::{HttpClient, HttpError};
use crate::{say, settings};

/// How long the router may think before it answers or streams: its own longest request.
const ANSWER_MAX: Duration = Duration::from_secs(3600);
/// How long a question about models or the body of an error may take.
const ASK_MAX: Duration = Duration::from_secs(30);

/// One conversation with one model.
#[derive(Debug)]
struct Conversation {
    client: HttpClient,
    model: String,
    messages: Vec<Value>,
    max_tokens: Option<u64>,
}

/// Answers `prompt`, or, without one, every line typed until the input ends.
///
/// # Errors
/// `Unreachable` when nobody serves at the URL; `Failed` when the one prompt was refused.
pub(crate) async fn run(resolved: &Resolved, prompt: Option<String>) -> Result<(), Failure> {
    let mut conversation = Conversation::open(resolved).await?;
    if let Some(prompt) = prompt {
        return conversation.turn(prompt).await;
    }
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        say(&format!("Talking to {}. An empty line or Ctrl-D ends.\n", conversation.model));
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if is_terminal {
            say("\n> ");
        }
        let line = match lines.next() {
            Some(Ok(line)) if !line.trim().is_empty() => line,
            Some(Ok(_)) | None => return Ok(()),
            Some(Err(error)) => return Err(Failure::Failed(format!("cannot read input: {error}"))),
        };
        // A refused turn is no reason to lose the conversation.
        match conversation.turn(line).await {
            Err(Failure::Failed(reason)) if is_terminal => {
                let _ = writeln!(std::io::stderr(), "{reason}");
            }
            other => other?,
        }
    }
}

// === impl Conversation ===

impl Conversation {
    async fn open(resolved: &Resolved) -> Result<Self, Failure> {
        let url = resolved.text(&settings::CHAT_URL).unwrap_or_default();
        let client = HttpClient::new(url);
        let model = match resolved.text(&settings::CHAT_MODEL_NAME) {
            Some(name) => name.to_owned(),
            None => first_model(&client).await?,
        };
        let system = resolved.text(&settings::CHAT_SYSTEM);
        let messages = system.map(|text| json!({"role": "system", "content": text}));
        let max_tokens = resolved.integer(&settings::CHAT_MAX_TOKENS);
        Ok(Self { client, model, messages: messages.into_iter().collect(), max_tokens })
    }

    /// Says `text`, prints the answer as it comes, and remembers both; a refused turn is forgotten.
    async fn turn(&mut self, text: String) -> Result<(), Failure> {
        self.messages.push(json!({"role": "user", "content": text}));
        match self.answer().await {
            Ok(answer) => {
                self.messages.push(json!({"role": "assistant", "content": answer}));
                Ok(())
            }
            Err(failure) => {
                self.messages.pop();
                Err(failure)
            }
        }
    }

    async fn answer(&self) -> Result<String, Failure> {
        let mut body = json!({"model": self.model, "messages": self.messages, "stream": true});
        if let Some(max_tokens) = self.max_tokens {
            body["max_tokens"] = json!(max_tokens);
        }
        let path = "/v1/chat/completions";
        let response =
            self.client.post(path, &body, ANSWER_MAX).await.map_err(|error| unanswered(&error))?;
        if !response.status().is_success() {
            let status = response.status();
            let body =
                self.client.read(response, ASK_MAX).await.map_err(|error| unanswered(&error))?;
            return Err(Failure::Failed(refusal(status.as_u16(), &body)));
        }
        let mut events = EventStream::default();
        let mut answer = String::new();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| Failure::Failed(format!("the answer broke off: {error}")))?;
            let Ok(bytes) = frame.into_data() else { continue };
            for data in events.push(&bytes) {
                if data == "[DONE]" {
                    say("\n");
                    return Ok(answer);
                }
                let piece = piece_of_answer(&data)?;
                say(&piece);
                answer.push_str(&piece);
            }
        }
        Err(Failure::Failed("the answer broke off before its end".to_owned()))
    }
}

/// The first model that is served.
///
/// # Errors
/// When there is none, or nobody says.
pub(crate) async fn first_model(client: &HttpClient) -> Result<String, Failure> {
    let answer = client.get("/v1/models", ASK_MAX).await.map_err(|error| unanswered(&error))?;
    let status = answer.status();
    let body = client.read(answer, ASK_MAX).await.map_err(|error| unanswered(&error))?;
    if !status.is_success() {
        return Err(Failure::Failed(refusal(status.as_u16(), &body)));
    }
    let models: Value = serde_json::from_slice(&body).unwrap_or_default();
    models["data"][0]["id"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::Failed("no model is served".to_owned()))
}

/// The text of one event; an event that carries an error ends the answer.
fn piece_of_answer(data: &str) -> Result<String, Failure> {
    let event: Value = serde_json::from_str(data)
        .map_err(|error| Failure::Failed(format!("an event is not JSON: {error}")))?;
    if let Some(message) = event["error"]["message"].as_str() {
        return Err(Failure::Failed(message.to_owned()));
    }
    Ok(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned())
}

fn refusal(status: u16, body: &[u8]) -> String {
    let error: Value = serde_json::from_slice(body).unwrap_or_default();
    match error["error"]["message"].as_str() {
        Some(message) => format!("{message} (status {status})"),
        None => format!("refused with status {status}"),
    }
}

fn unanswered(error: &HttpError) -> Failure {
    match error {
        HttpError::Connect { .. } => Failure::Unreachable(chain(error)),
        HttpError::Broken { .. } | HttpError::Late { .. } => Failure::Failed(chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_within_the_stream_ends_the_answer_with_its_message() {
        let error = piece_of_answer(r#"{"error":{"message":"the worker died"}}"#).unwrap_err();
        assert_eq!(error, Failure::Failed("the worker died".to_owned()));
        let piece = piece_of_answer(r#"{"choices":[{"delta":{"content":"Hi"}}]}"#);
        assert_eq!(piece.unwrap(), "Hi");
        assert_eq!(piece_of_answer(r#"{"choices":[]}"#).unwrap(), "");
    }

    #[test]
    fn a_refusal_shows_what_the_router_said() {
        let body = br#"{"error":{"message":"the model x does not exist"}}"#;
        assert_eq!(refusal(404, body), "the model x does not exist (status 404)");
        assert_eq!(refusal(502, b"<html>"), "refused with status 502");
    }
}
