//! The server under load: connections that are kept, one request on each at a time, and what came back when.
//!
//! hyper's HTTP/1 directly, so that the load costs little beside the router on the same machine.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::report::{Outcome, Sample};
use crate::event_stream::EventStream;

/// Where conversations go.
const PATH: &str = "/v1/chat/completions";
/// Answers that are read whole: no answer of a benchmark comes near it.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A server, and connections to it that wait for their next request; as many as were ever busy at once.
#[derive(Debug)]
pub(super) struct Target {
    authority: String,
    idle: Mutex<Vec<Connection>>,
    /// A request that takes longer is given up.
    request_max: Duration,
}

type Connection = SendRequest<Full<Bytes>>;

/// What came back, apart from when.
#[derive(Debug, Default)]
struct Said {
    text: String,
    /// When tokens came.
    times: Vec<Instant>,
    usage: Option<Usage>,
    is_complete: bool,
}

/// One event of a stream, or a whole answer.
#[derive(Debug, Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Message<'a>>,
    #[serde(borrow)]
    message: Option<Message<'a>>,
}

#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Usage {
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

// === impl Target ===

impl Target {
    /// The server at `url`, which has been checked to be one.
    pub(super) fn new(url: &str, request_max: Duration) -> Self {
        let uri: Uri = url.parse().unwrap_or_default();
        let host = uri.host().unwrap_or_default();
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        Self { authority, idle: Mutex::new(Vec::new()), request_max }
    }

    /// Opens a connection, to see whether somebody is there.
    ///
    /// # Errors
    /// When nobody is.
    pub(super) async fn reach(&self) -> std::io::Result<()> {
        TcpStream::connect(&self.authority).await.map(|_stream| ())
    }

    /// Sends one request that was meant to be sent at `due`; the answer's text, if it came whole.
    pub(super) async fn ask(&self, body: Bytes, due: Instant) -> (Sample, Option<String>) {
        let asked = timeout(self.request_max, self.exchange(body)).await;
        let outcome = match asked {
            Ok(Ok(said)) if said.is_complete => return said.judge(due),
            Ok(Ok(_)) => Outcome::Broken("broken"),
            Ok(Err(outcome)) => outcome,
            Err(_elapsed) => Outcome::Broken("timeout"),
        };
        (Sample::failed(outcome, due.elapsed()), None)
    }

    async fn exchange(&self, body: Bytes) -> Result<Said, Outcome> {
        let (connection, answer) = self.send(body).await?;
        let status = answer.status();
        let is_stream = answer
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let said = if is_stream {
            Said::stream(answer.into_body()).await?
        } else {
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|_error| Outcome::Broken("broken"))?.to_bytes();
            if status.is_success() { Said::whole(&body)? } else { Said::default() }
        };
        if !connection.is_closed() {
            self.idle.lock().push(connection);
        }
        if status.is_success() {
            Ok(said)
        } else {
            Err(Outcome::Refused(status.as_str().to_owned()))
        }
    }

    /// On a connection that is there, or else on a new one. What a closing connection did not take is sent again.
    async fn send(&self, body: Bytes) -> Result<(Connection, Response<Incoming>), Outcome> {
        loop {
            let kept = self.idle.lock().pop();
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            if connection.ready().await.is_err() && is_kept {
                continue;
            }
            match connection.send_request(self.request(body.clone())?).await {
                Ok(answer) => return Ok((connection, answer)),
                Err(error) if is_kept && error.is_canceled() => {}
                Err(_error) => return Err(Outcome::Broken("broken")),
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Outcome> {
        let refused = |_error| Outcome::Broken("connect");
        let stream = TcpStream::connect(&self.authority).await.map_err(refused)?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|_error| Outcome::Broken("connect"))?;
        // Its errors are told by the requests on it.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, Outcome> {
        Request::post(PATH)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|_error| Outcome::Broken("request"))
    }
}

// === impl Said ===

impl Said {
    async fn stream(mut body: Incoming) -> Result<Self, Outcome> {
        let mut said = Self::default();
        let mut events = EventStream::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_error| Outcome::Broken("broken"))?;
            let Ok(bytes) = frame.into_data() else { continue };
            let now = Instant::now();
            for data in events.push(&bytes) {
                said.hear(&data, now)?;
            }
        }
        Ok(said)
    }

    fn hear(&mut self, data: &str, now: Instant) -> Result<(), Outcome> {
        if data == "[DONE]" {
            self.is_complete = true;
            return Ok(());
        }
        let event = parse(data.as_bytes())?;
        self.usage = event.usage.or(self.usage);
        let delta = event.choices.into_iter().next().and_then(|choice| choice.delta?.content);
        if let Some(text) = delta.filter(|text| !text.is_empty()) {
            self.text.push_str(&text);
            self.times.push(now);
        }
        Ok(())
    }

    fn whole(body: &[u8]) -> Result<Self, Outcome> {
        let answer = parse(body)?;
        let text = answer.choices.into_iter().next().and_then(|choice| choice.message?.content);
        Ok(Self {
            text: text.unwrap_or_default().into_owned(),
            times: Vec::new(),
            usage: answer.usage,
            is_complete: true,
        })
    }

    fn judge(self, due: Instant) -> (Sample, Option<String>) {
        let gaps = self.times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let ttft = self.times.first().map(|first| first.saturating_duration_since(due));
        let usage = self.usage;
        let details = usage.and_then(|usage| usage.prompt_tokens_details?.cached_tokens);
        let sample = Sample {
            outcome: Outcome::Good,
            ttft,
            gaps,
            whole: due.elapsed(),
            prompt_tokens: usage.map_or(0, |usage| usage.prompt_tokens),
            cached_tokens: details.unwrap_or(0),
            tokens: usage.map_or(self.times.len() as u64, |usage| usage.completion_tokens),
        };
        (sample, Some(self.text))
    }
}

fn parse(json: &[u8]) -> Result<Event<'_>, Outcome> {
    let event: Event<'_> =
        serde_json::from_slice(json).map_err(|_error| Outcome::Broken("malformed"))?;
    match event.error {
        None => Ok(event),
        Some(error) => {
            let code = error["code"].as_str().or(error["type"].as_str()).unwrap_or("unknown");
            Err(Outcome::Refused(format!("stream:{code}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_usage_and_errors_are_read_from_events() {
        let mut said = Said::default();
        let now = Instant::now();
        for event in [
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"content":"one \"two\""}}],"usage":null}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,
                "prompt_tokens_details":{"cached_tokens":8}}}"#,
            "[DONE]",
        ] {
            said.hear(event, now).unwrap();
        }
        assert!(said.is_complete);
        let (sample, text) = said.judge(now);
        assert_eq!(text.unwrap(), "one \"two\"");
        assert_eq!((sample.prompt_tokens, sample.cached_tokens, sample.tokens), (9, 8, 4));
        assert!(sample.ttft.is_some() && sample.gaps.is_empty());

        let error = r#"{"error":{"message":"gone","type":"server_error","code":"unavailable"}}"#;
        let outcome = Said::default().hear(error, now).unwrap_err();
        assert_eq!(outcome, Outcome::Refused("stream:unavailable".to_owned()));
    }
}
