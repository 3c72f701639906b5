//! One generation request and the events that answer it, as the code sees them.
//!
//! Ranges are OpenAI's (and vLLM's for its extensions). [`Generate::validate`] is run by whoever builds
//! one: the router on the client's JSON, the worker again on what arrived.

use serde_json::{Map, Value};

use crate::fault::Fault;
use crate::id::{ModelName, RequestId};

/// Most choices one request may ask for.
pub const CHOICES_MAX: u32 = 128;
/// Most stop strings one request may carry.
pub const STOP_STRINGS_MAX: usize = 16;
/// Longest stop string, in bytes: the detokeniser holds back this much text at most.
pub const STOP_STRING_BYTES_MAX: usize = 1024;
/// Most stop token ids one request may carry.
pub const STOP_TOKENS_MAX: usize = 256;
/// Most alternatives reported beside a chosen token.
pub const TOP_LOGPROBS_MAX: u32 = 20;
/// Most logit biases one request may carry.
pub const LOGIT_BIAS_MAX: usize = 1024;

/// Least repetition penalty: dividing a logit by less could leave the numbers that can be sampled.
pub const REPETITION_PENALTY_MIN: f32 = 0.01;

/// A request to generate text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// Names the request in logs and events.
    pub request_id: RequestId,
    /// The served model's name (aliases are already resolved).
    pub model: ModelName,
    /// What to continue.
    pub input: Input,
    /// How the next token is drawn.
    pub sampling: Sampling,
    /// When to stop.
    pub stopping: Stopping,
    /// How many independent answers, at least 1.
    pub choices: u32,
    /// `Some(k)`: report each chosen token's log probability and the `k` best alternatives.
    pub top_logprobs: Option<u32>,
    /// Report the prompt's token ids in [`Event::Started`].
    pub return_token_ids: bool,
    /// Separates prefix caches of tenants; empty shares.
    pub cache_salt: String,
    /// How far each choice had come at another worker of the same revision; empty: it is a new request. These
    /// tokens count for every limit, penalty, seed and stop, and for the usage, but are not told again.
    pub resume: Vec<ChoiceProgress>,
}

/// The part of one choice that is generated already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChoiceProgress {
    /// Its tokens, in order.
    pub token_ids: Vec<u32>,
    /// Whether its end was told: then only its tokens still count, for the usage.
    pub is_finished: bool,
}

/// What a request continues.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A conversation, laid out by the model's chat template.
    Chat(Chat),
    /// Plain text.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// A conversation and what its template may see.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// The turns, oldest first; never empty.
    pub messages: Vec<Message>,
    /// OpenAI tool definitions.
    pub tools: Vec<Value>,
    /// Whether the template opens the assistant's turn.
    pub add_generation_prompt: bool,
    /// Whether the last message is continued instead of closed.
    pub continue_final_message: bool,
    /// Extra template variables.
    pub template_kwargs: Map<String, Value>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "OpenAI's role names")]
pub enum SpeakerRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

impl SpeakerRole {
    /// The role's name in the API and in templates.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// The role of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::System, Self::Developer, Self::User, Self::Assistant, Self::Tool]
            .into_iter()
            .find(|role| role.as_str() == name)
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: SpeakerRole,
    /// The text; text parts are joined by the router.
    pub content: String,
    /// The speaker's name, if given.
    pub name: Option<String>,
    /// Which call a tool's message answers.
    pub tool_call_id: Option<String>,
    /// The calls an assistant's message made.
    pub tool_calls: Vec<Value>,
}

/// How a token is drawn from the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0: greedy; up to 2.
    pub temperature: f32,
    /// Nucleus mass, above 0 to 1.
    pub top_p: f32,
    /// Keep the k likeliest; 0: off.
    pub top_k: u32,
    /// Drop tokens below this share of the likeliest, 0 to 1.
    pub min_p: f32,
    /// -2 to 2, subtracted once from tokens already generated.
    pub presence_penalty: f32,
    /// -2 to 2, subtracted per occurrence among generated tokens.
    pub frequency_penalty: f32,
    /// 0.01 to 2, divides the logits of tokens seen in prompt or output; 1: off.
    pub repetition_penalty: f32,
    /// Added to single tokens' logits, each -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// With the position, decides every random choice: same seed, same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// When an answer ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopping {
    /// Most tokens to generate; none: as many as the context holds.
    pub max_tokens: Option<u32>,
    /// End tokens are not drawn before this many tokens.
    pub min_tokens: u32,
    /// Texts that end the answer and are not part of it.
    pub strings: Vec<String>,
    /// Tokens that end the answer, beside the model's own end tokens.
    pub token_ids: Vec<u32>,
    /// Go on past the model's own end tokens.
    pub ignore_eos: bool,
}

/// What a worker tells of a request, in order: `Started`, then per choice `Delta`s and one `Finished`, then `Usage`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt was accepted and its first step ran.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Of these, how many came from the prefix cache.
        cached_tokens: u32,
        /// The prompt, when asked for.
        prompt_token_ids: Vec<u32>,
    },
    /// More of one choice. Text may lag behind tokens (a character or a possible stop string in the making).
    Delta(Delta),
    /// One choice ended.
    Finished {
        /// Which.
        choice: u32,
        /// Why.
        reason: FinishReason,
        /// What stopped it, beyond the model's own end token.
        stopped_by: Option<StoppedBy>,
    },
    /// All choices ended; the stream is complete.
    Usage(Usage),
}

/// More of one choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Which choice, from 0.
    pub choice: u32,
    /// Text to append.
    pub text: String,
    /// The tokens drawn.
    pub token_ids: Vec<u32>,
    /// Their log probabilities, one per token, when asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// One token's probability and its rivals'.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token drawn.
    pub chosen: TokenScore,
    /// The likeliest tokens, best first.
    pub top: Vec<TokenScore>,
}

/// A token and its natural-log probability under the model, before temperature and penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The id.
    pub token_id: u32,
    /// Its bytes, perhaps not UTF-8 alone.
    pub token: Vec<u8>,
    /// At most 0.
    pub logprob: f32,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the context.
    Length,
}

/// What the client asked to stop at, and was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoppedBy {
    /// One of [`Stopping::strings`].
    Text(String),
    /// One of [`Stopping::token_ids`].
    Token(u32),
}

/// Tokens of a whole request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt, once, whatever the number of choices.
    pub prompt_tokens: u32,
    /// Of the prompt, served from the prefix cache.
    pub cached_tokens: u32,
    /// Of all choices.
    pub completion_tokens: u32,
}

impl Generate {
    /// Checks every range.
    ///
    /// # Errors
    /// The first field out of range, named as the OpenAI API names it.
    pub fn validate(&self) -> Result<(), Fault> {
        match &self.input {
            Input::Chat(chat) if chat.messages.is_empty() => {
                return Err(Fault::invalid("messages", "messages must hold at least one message"));
            }
            Input::Tokens(ids) if ids.is_empty() => {
                return Err(Fault::invalid("prompt", "prompt must hold at least one token"));
            }
            Input::Chat(_) | Input::Text(_) | Input::Tokens(_) => {}
        }
        check("n", self.choices, 1, CHOICES_MAX)?;
        check("top_logprobs", self.top_logprobs.unwrap_or(0), 0, TOP_LOGPROBS_MAX)?;
        self.sampling.validate()?;
        self.stopping.validate()?;
        self.validate_resume()
    }

    fn validate_resume(&self) -> Result<(), Fault> {
        if self.resume.is_empty() {
            return Ok(());
        }
        if self.resume.len() != self.choices as usize {
            let message = format!(
                "resume must tell of {} choices, one by one, got {}",
                self.choices,
                self.resume.len()
            );
            return Err(Fault::invalid("resume", message));
        }
        if self.resume.iter().all(|choice| choice.is_finished) {
            return Err(Fault::invalid("resume", "resume must leave a choice to go on with"));
        }
        let tokens = self.resume.iter().map(|choice| choice.token_ids.len()).max().unwrap_or(0);
        let tokens_max = self.stopping.max_tokens.map_or(usize::MAX, |max| max as usize);
        if tokens > tokens_max {
            let message =
                format!("resume must hold at most max_tokens ({tokens_max}) tokens, got {tokens}");
            return Err(Fault::invalid("resume", message));
        }
        Ok(())
    }
}

impl Sampling {
    /// Checks every range.
    ///
    /// # Errors
    /// The first field out of range.
    pub fn validate(&self) -> Result<(), Fault> {
        check("temperature", self.temperature, 0.0, 2.0)?;
        check_above_zero("top_p", self.top_p, 1.0)?;
        check("min_p", self.min_p, 0.0, 1.0)?;
        check("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        check("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        check("repetition_penalty", self.repetition_penalty, REPETITION_PENALTY_MIN, 2.0)?;
        check("logit_bias", self.logit_bias.len(), 0, LOGIT_BIAS_MAX)?;
        for (_, bias) in &self.logit_bias {
            check("logit_bias", *bias, -100.0, 100.0)?;
        }
        Ok(())
    }
}

impl Stopping {
    /// Checks every range.
    ///
    /// # Errors
    /// The first field out of range.
    pub fn validate(&self) -> Result<(), Fault> {
        if let Some(max_tokens) = self.max_tokens {
            check("max_tokens", max_tokens, 1, u32::MAX)?;
            if self.min_tokens > max_tokens {
                let message = format!(
                    "min_tokens ({}) must be at most max_tokens ({max_tokens})",
                    self.min_tokens
                );
                return Err(Fault::invalid("min_tokens", message));
            }
        }
        if self.strings.len() > STOP_STRINGS_MAX {
            let message = format!(
                "stop must hold at most {STOP_STRINGS_MAX} strings, got {}",
                self.strings.len()
            );
            return Err(Fault::invalid("stop", message));
        }
        for text in &self.strings {
            if text.is_empty() || text.len() > STOP_STRING_BYTES_MAX {
                let message = format!(
                    "a stop string must be 1 to {STOP_STRING_BYTES_MAX} bytes, got {}",
                    text.len()
                );
                return Err(Fault::invalid("stop", message));
            }
        }
        check("stop_token_ids", self.token_ids.len(), 0, STOP_TOKENS_MAX)
    }
}

fn check<T>(param: &str, value: T, min: T, max: T) -> Result<(), Fault>
where
    T: Copy + PartialOrd + std::fmt::Display,
{
    if value >= min && value <= max {
        return Ok(());
    }
    Err(Fault::invalid(param, format!("{param} must be between {min} and {max}, got {value}")))
}

fn check_above_zero(param: &str, value: f32, max: f32) -> Result<(), Fault> {
    if value > 0.0 && value <= max {
        return Ok(());
    }
    Err(Fault::invalid(param, format!("{param} must be above 0 and at most {max}, got {value}")))
}
