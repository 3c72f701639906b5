//! Messages between router and worker.

use serde_json::{Map, Value};

use super::{WireError, required};
use crate::generate::{
    Chat, ChoiceProgress, Delta, Event, FinishReason, Generate, Input, Message, Sampling,
    SpeakerRole, StoppedBy, Stopping, TokenLogprob, TokenScore, Usage,
};
use crate::id::{Epoch, ModelName, RequestId};
use crate::pb;

// === impl Generate ===

impl Generate {
    /// The message for a worker registered at `epoch`.
    pub fn into_wire(self, epoch: Epoch) -> pb::GenerateRequest {
        use pb::generate_request::Input as Wire;
        pb::GenerateRequest {
            request_id: self.request_id.to_string(),
            worker_epoch: epoch.0,
            model: self.model.to_string(),
            input: Some(match self.input {
                Input::Chat(chat) => Wire::Chat(chat.into()),
                Input::Text(text) => Wire::Text(text),
                Input::Tokens(ids) => Wire::Tokens(pb::TokenIds { ids }),
            }),
            sampling: Some(self.sampling.into()),
            stopping: Some(self.stopping.into()),
            choices: self.choices,
            top_logprobs: self.top_logprobs,
            return_token_ids: self.return_token_ids,
            cache_salt: self.cache_salt,
            resume: self.resume.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::GenerateRequest> for Generate {
    type Error = WireError;

    fn try_from(wire: pb::GenerateRequest) -> Result<Self, WireError> {
        use pb::generate_request::Input as Wire;
        Ok(Self {
            request_id: RequestId::from(wire.request_id),
            model: ModelName::from(wire.model),
            input: match required("input", wire.input)? {
                Wire::Chat(chat) => Input::Chat(chat.try_into()?),
                Wire::Text(text) => Input::Text(text),
                Wire::Tokens(tokens) => Input::Tokens(tokens.ids),
            },
            sampling: required("sampling", wire.sampling)?.into(),
            stopping: required("stopping", wire.stopping)?.into(),
            choices: wire.choices,
            top_logprobs: wire.top_logprobs,
            return_token_ids: wire.return_token_ids,
            cache_salt: wire.cache_salt,
            resume: wire.resume.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<ChoiceProgress> for pb::ChoiceProgress {
    fn from(choice: ChoiceProgress) -> Self {
        Self { token_ids: choice.token_ids, finished: choice.is_finished }
    }
}

impl From<pb::ChoiceProgress> for ChoiceProgress {
    fn from(wire: pb::ChoiceProgress) -> Self {
        Self { token_ids: wire.token_ids, is_finished: wire.finished }
    }
}

// === impl Chat ===

impl From<Chat> for pb::ChatInput {
    fn from(chat: Chat) -> Self {
        Self {
            messages: chat.messages.into_iter().map(Into::into).collect(),
            tools_json: json_array(chat.tools),
            add_generation_prompt: chat.add_generation_prompt,
            continue_final_message: chat.continue_final_message,
            template_kwargs_json: if chat.template_kwargs.is_empty() {
                String::new()
            } else {
                Value::Object(chat.template_kwargs).to_string()
            },
        }
    }
}

impl TryFrom<pb::ChatInput> for Chat {
    type Error = WireError;

    fn try_from(wire: pb::ChatInput) -> Result<Self, WireError> {
        Ok(Self {
            messages: wire.messages.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            tools: parse_array("tools_json", &wire.tools_json)?,
            add_generation_prompt: wire.add_generation_prompt,
            continue_final_message: wire.continue_final_message,
            template_kwargs: parse_object("template_kwargs_json", &wire.template_kwargs_json)?,
        })
    }
}

impl From<Message> for pb::ChatMessage {
    fn from(message: Message) -> Self {
        Self {
            role: message.role.as_str().to_owned(),
            content: message.content,
            name: message.name.unwrap_or_default(),
            tool_call_id: message.tool_call_id.unwrap_or_default(),
            tool_calls_json: json_array(message.tool_calls),
        }
    }
}

impl TryFrom<pb::ChatMessage> for Message {
    type Error = WireError;

    fn try_from(wire: pb::ChatMessage) -> Result<Self, WireError> {
        Ok(Self {
            role: required("role", SpeakerRole::parse(&wire.role))?,
            content: wire.content,
            name: (!wire.name.is_empty()).then_some(wire.name),
            tool_call_id: (!wire.tool_call_id.is_empty()).then_some(wire.tool_call_id),
            tool_calls: parse_array("tool_calls_json", &wire.tool_calls_json)?,
        })
    }
}

fn json_array(values: Vec<Value>) -> String {
    if values.is_empty() { String::new() } else { Value::Array(values).to_string() }
}

fn parse_array(field: &'static str, text: &str) -> Result<Vec<Value>, WireError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(text).map_err(|_| WireError { field })
}

fn parse_object(field: &'static str, text: &str) -> Result<Map<String, Value>, WireError> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text).map_err(|_| WireError { field })
}

// === impl Sampling, Stopping ===

impl From<Sampling> for pb::Sampling {
    fn from(sampling: Sampling) -> Self {
        Self {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            repetition_penalty: sampling.repetition_penalty,
            logit_bias: sampling
                .logit_bias
                .into_iter()
                .map(|(token_id, bias)| pb::LogitBias { token_id, bias })
                .collect(),
            seed: sampling.seed,
        }
    }
}

impl From<pb::Sampling> for Sampling {
    fn from(wire: pb::Sampling) -> Self {
        Self {
            temperature: wire.temperature,
            top_p: wire.top_p,
            top_k: wire.top_k,
            min_p: wire.min_p,
            presence_penalty: wire.presence_penalty,
            frequency_penalty: wire.frequency_penalty,
            repetition_penalty: wire.repetition_penalty,
            logit_bias: wire.logit_bias.into_iter().map(|b| (b.token_id, b.bias)).collect(),
            seed: wire.seed,
        }
    }
}

impl From<Stopping> for pb::Stopping {
    fn from(stopping: Stopping) -> Self {
        Self {
            max_tokens: stopping.max_tokens,
            min_tokens: stopping.min_tokens,
            strings: stopping.strings,
            token_ids: stopping.token_ids,
            ignore_eos: stopping.ignore_eos,
        }
    }
}

impl From<pb::Stopping> for Stopping {
    fn from(wire: pb::Stopping) -> Self {
        Self {
            max_tokens: wire.max_tokens,
            min_tokens: wire.min_tokens,
            strings: wire.strings,
            token_ids: wire.token_ids,
            ignore_eos: wire.ignore_eos,
        }
    }
}

// === impl Event ===

impl From<Event> for pb::GenerateEvent {
    fn from(event: Event) -> Self {
        use pb::generate_event::Event as Wire;
        let wire = match event {
            Event::Started { prompt_tokens, cached_tokens, prompt_token_ids } => {
                Wire::Started(pb::Started { prompt_tokens, cached_tokens, prompt_token_ids })
            }
            Event::Delta(delta) => Wire::Delta(delta.into()),
            Event::Finished { choice, reason, stopped_by } => Wire::Finished(pb::Finished {
                choice,
                reason: match reason {
                    FinishReason::Stop => pb::FinishReason::Stop.into(),
                    FinishReason::Length => pb::FinishReason::Length.into(),
                },
                stopped_by: stopped_by.map(|by| match by {
                    StoppedBy::Text(text) => pb::finished::StoppedBy::StopString(text),
                    StoppedBy::Token(id) => pb::finished::StoppedBy::StopTokenId(id),
                }),
            }),
            Event::Usage(usage) => Wire::Usage(pb::Usage {
                prompt_tokens: usage.prompt_tokens,
                cached_tokens: usage.cached_tokens,
                completion_tokens: usage.completion_tokens,
            }),
        };
        Self { event: Some(wire) }
    }
}

impl TryFrom<pb::GenerateEvent> for Event {
    type Error = WireError;

    fn try_from(wire: pb::GenerateEvent) -> Result<Self, WireError> {
        use pb::generate_event::Event as Wire;
        Ok(match required("event", wire.event)? {
            Wire::Started(started) => Self::Started {
                prompt_tokens: started.prompt_tokens,
                cached_tokens: started.cached_tokens,
                prompt_token_ids: started.prompt_token_ids,
            },
            Wire::Delta(delta) => Self::Delta(delta.try_into()?),
            Wire::Finished(finished) => Self::Finished {
                choice: finished.choice,
                reason: match finished.reason() {
                    pb::FinishReason::Stop => FinishReason::Stop,
                    pb::FinishReason::Length => FinishReason::Length,
                    pb::FinishReason::Unspecified => return Err(WireError { field: "reason" }),
                },
                stopped_by: finished.stopped_by.map(|by| match by {
                    pb::finished::StoppedBy::StopString(text) => StoppedBy::Text(text),
                    pb::finished::StoppedBy::StopTokenId(id) => StoppedBy::Token(id),
                }),
            },
            Wire::Usage(usage) => Self::Usage(Usage {
                prompt_tokens: usage.prompt_tokens,
                cached_tokens: usage.cached_tokens,
                completion_tokens: usage.completion_tokens,
            }),
        })
    }
}

impl From<Delta> for pb::Delta {
    fn from(delta: Delta) -> Self {
        Self {
            choice: delta.choice,
            text: delta.text,
            token_ids: delta.token_ids,
            logprobs: delta
                .logprobs
                .into_iter()
                .map(|logprob| pb::TokenLogprob {
                    chosen: Some(logprob.chosen.into()),
                    top: logprob.top.into_iter().map(Into::into).collect(),
                })
                .collect(),
        }
    }
}

impl TryFrom<pb::Delta> for Delta {
    type Error = WireError;

    fn try_from(wire: pb::Delta) -> Result<Self, WireError> {
        Ok(Self {
            choice: wire.choice,
            text: wire.text,
            token_ids: wire.token_ids,
            logprobs: wire
                .logprobs
                .into_iter()
                .map(|logprob| {
                    Ok(TokenLogprob {
                        chosen: required("chosen", logprob.chosen)?.into(),
                        top: logprob.top.into_iter().map(Into::into).collect(),
                    })
                })
                .collect::<Result<_, WireError>>()?,
        })
    }
}

impl From<TokenScore> for pb::TokenScore {
    fn from(score: TokenScore) -> Self {
        Self { token_id: score.token_id, token: score.token, logprob: score.logprob }
    }
}

impl From<pb::TokenScore> for TokenScore {
    fn from(wire: pb::TokenScore) -> Self {
        Self { token_id: wire.token_id, token: wire.token, logprob: wire.logprob }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Generate {
        let choice =
            |ids: &[u32], is_finished| ChoiceProgress { token_ids: ids.into(), is_finished };
        Generate {
            request_id: "r".into(),
            model: "m".into(),
            input: Input::Tokens(vec![1, 2]),
            sampling: Sampling { seed: 7, logit_bias: vec![(3, 0.5)], ..Sampling::default() },
            stopping: Stopping {
                max_tokens: Some(2),
                min_tokens: 1,
                strings: vec!["x".to_owned()],
                token_ids: vec![4],
                ignore_eos: true,
            },
            choices: 3,
            top_logprobs: Some(5),
            return_token_ids: true,
            cache_salt: "s".to_owned(),
            resume: vec![choice(&[8, 9], true), choice(&[6], false), choice(&[], false)],
        }
    }

    #[test]
    fn a_request_survives_the_wire() {
        let wire = request().into_wire(Epoch(5));
        assert_eq!(wire.worker_epoch, 5);
        assert_eq!(Generate::try_from(wire).unwrap(), request());
    }

    #[test]
    fn a_resumed_request_tells_of_each_choice_and_leaves_one_to_go_on_with() {
        request().validate().unwrap();
        let with = |change: fn(&mut Generate)| {
            let mut generate = request();
            change(&mut generate);
            generate.validate().unwrap_err()
        };
        for fault in [
            with(|generate| generate.choices = 2),
            with(|generate| generate.resume.truncate(1)),
            with(|generate| {
                for choice in &mut generate.resume {
                    choice.is_finished = true;
                }
            }),
            with(|generate| generate.resume[1].token_ids = vec![6; 3]),
        ] {
            assert_eq!(fault.param.as_deref(), Some("resume"), "{fault}");
        }
    }
}
