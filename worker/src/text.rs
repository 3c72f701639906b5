//! Text on one side, tokens on the other: the model folder's tokenizer, chat template and end tokens.
//!
//! ```text
//! Input ─ template ─► text ─ vocabulary ─► prompt tokens ~~ engine ~~► tokens ─ ChoiceText ─► text, stops
//! ```
//!
//! Follows Hugging Face's behaviour to the token. That includes special tokens spelt out in a message: a user
//! who writes `<|im_end|>` sends that very token, as with transformers and vLLM.

mod detokenizer;
mod folder;
mod marks;
mod python;
mod stop;
mod template;
mod vocabulary;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::generate::{Chat, Generate, Input};
use phalanx_proto::prefix::{ChunkHash, Chunks};

pub use self::detokenizer::{ChoiceText, Pushed};
use self::folder::TokenizerConfig;
use self::template::ChatTemplate;
use self::vocabulary::Vocabulary;

/// Everything a model folder says about text. Immutable; shared by all requests.
#[derive(Debug)]
pub struct Text {
    vocabulary: Vocabulary,
    template: Option<ChatTemplate>,
    end_tokens: Arc<[u32]>,
}

/// A prompt in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The chunks of its bytes, and how many tokens there are up to the end of each.
    pub chunks: Vec<(ChunkHash, u32)>,
}

/// Why a model folder's text side cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file is missing or unreadable.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not JSON, or not an object.
    #[error("{}:{line}: expected a JSON object", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A field holds the wrong kind of value.
    #[error("{}: {field} must be {expected}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field.
        field: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// The tokenizer is not understood.
    #[error("{}: tokenizer not understood: {reason}", file.display())]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A chat template has a syntax error.
    #[error("{}: chat template line {line}: {reason}", file.display())]
    Template {
        /// The file that holds it.
        file: PathBuf,
        /// The line within the template.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// An end token is not in the vocabulary.
    #[error("end token {id} of {} is outside the vocabulary of {vocabulary} tokens", folder.display())]
    EndToken {
        /// The model folder.
        folder: PathBuf,
        /// The id.
        id: u32,
        /// How many tokens there are.
        vocabulary: usize,
    },
    /// The template engine refuses its settings.
    #[error("the template engine cannot be set up")]
    Engine(#[source] Arc<minijinja::Error>),
}

/// Text up to this size is always tokenised to find out how long it is.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Beyond that, only as much as the context would hold of very long tokens: where the tokenizer rewrites its
/// input, nothing surer can be said of a text before the work is done.
const TOKEN_BYTES_ASSUMED: usize = 64;

impl Text {
    /// Loads what a Hugging Face model folder says about text.
    ///
    /// # Errors
    /// The first file that is missing, malformed or contradicts another.
    pub fn load(folder: &Path) -> Result<Self, TextError> {
        let vocabulary = Vocabulary::load(&folder.join("tokenizer.json"))?;
        let config = TokenizerConfig::load(folder)?;
        let special_tokens = config.special_tokens()?;
        let end_tokens = match folder::end_token_ids(folder)? {
            Some(ids) => ids,
            None => special_tokens
                .get("eos_token")
                .and_then(|token| vocabulary.id(token.as_str()?))
                .into_iter()
                .collect(),
        };
        if let Some(&id) = end_tokens.iter().find(|&&id| id as usize >= vocabulary.size()) {
            let folder = folder.to_owned();
            return Err(TextError::EndToken { folder, id, vocabulary: vocabulary.size() });
        }
        let template = ChatTemplate::compile(config.templates(folder)?, special_tokens)?;
        Ok(Self { vocabulary, template, end_tokens: end_tokens.into() })
    }

    /// The tokens of a request's prompt. A text that cannot come to as few as `tokens_max` tokens is refused
    /// before the work of finding out how many exactly; what passes may still be longer.
    ///
    /// # Errors
    /// The template refuses the messages or there is none; a token id is unknown; the prompt is empty, or
    /// certainly too long.
    pub fn prompt(&self, input: &Input, tokens_max: u32) -> Result<Vec<u32>, Fault> {
        self.laid_out(input, tokens_max).map(|(_, ids)| ids)
    }

    /// The tokens of a request's prompt as [`Self::prompt`] has them, and how many of them there are up to the end of
    /// each of its chunks.
    ///
    /// # Errors
    /// As [`Self::prompt`].
    pub fn prompt_in_chunks(&self, generate: &Generate, tokens_max: u32) -> Result<Prompt, Fault> {
        let (rendered, ids) = self.laid_out(&generate.input, tokens_max)?;
        let (chunks, contents) = Chunks::with_contents(generate);
        let token_bytes = ids.iter().map(|&id| self.vocabulary.token_bytes(id).len());
        let ends = match &generate.input {
            Input::Chat(chat) => marks::of_chat(chat, (&chunks, &contents), &rendered, token_bytes),
            Input::Text(text) => marks::of_text(&chunks, text, token_bytes),
            Input::Tokens(_) => marks::of_tokens(&chunks),
        };
        Ok(Prompt { ids, chunks: chunks.hashes.into_iter().zip(ends).collect() })
    }

    /// What the template makes of a conversation, empty for other prompts; and the prompt's tokens.
    fn laid_out(&self, input: &Input, tokens_max: u32) -> Result<(String, Vec<u32>), Fault> {
        let mut rendered = String::new();
        let ids = match input {
            // The template writes the special tokens itself.
            Input::Chat(chat) => {
                rendered = self.render(chat)?;
                self.check_length("messages", &rendered, tokens_max)?;
                self.encode(&rendered, false)?
            }
            Input::Text(text) => {
                self.check_length("prompt", text, tokens_max)?;
                self.encode(text, true)?
            }
            Input::Tokens(ids) => {
                self.check_known("prompt", ids)?;
                ids.clone()
            }
        };
        if ids.is_empty() {
            return Err(Fault::invalid(param_of(input), "the prompt must hold at least one token"));
        }
        Ok((rendered, ids))
    }

    /// The text that the chat template makes of `chat`.
    ///
    /// # Errors
    /// The template refuses the messages or there is none.
    pub fn render(&self, chat: &Chat) -> Result<String, Fault> {
        let Some(template) = &self.template else {
            let message = "this model has no chat template: it takes plain prompts only";
            return Err(Fault::invalid("messages", message));
        };
        template.render(chat)
    }

    /// The tokens of `text`, with or without those that the tokenizer adds to every text.
    ///
    /// # Errors
    /// `Internal` when the tokenizer fails.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, Fault> {
        self.vocabulary.encode(text, add_special_tokens).map_err(|error| {
            Fault::new(FaultCode::Internal, format!("the tokenizer failed: {error}"))
        })
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// An id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Fault> {
        self.check_known("tokens", ids)?;
        self.vocabulary.decode(ids).map_err(|error| {
            Fault::new(FaultCode::Internal, format!("the tokenizer failed: {error}"))
        })
    }

    /// The bytes a token stands for; a special token's are its own spelling.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.vocabulary.token_bytes(id).to_vec()
    }

    /// A token as the tokenizer's files spell it; empty when there is no such token.
    pub fn token(&self, id: u32) -> String {
        self.vocabulary.token(id).unwrap_or_default()
    }

    /// The tokens that end an answer.
    pub const fn end_tokens(&self) -> &Arc<[u32]> {
        &self.end_tokens
    }

    /// One more than the largest token id.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary.size()
    }

    const fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    fn check_length(&self, param: &str, text: &str, tokens_max: u32) -> Result<(), Fault> {
        let bytes_max = TEXT_BYTES_MAX.max(tokens_max as usize * TOKEN_BYTES_ASSUMED);
        if text.len() > bytes_max {
            let message = format!(
                "the prompt has {} bytes of text, at most {bytes_max} are taken",
                text.len()
            );
            return Err(Fault::new(FaultCode::ContextLengthExceeded, message).with_param(param));
        }
        let tokens_min = self.vocabulary.tokens_min(text.len());
        if tokens_min <= tokens_max as usize {
            return Ok(());
        }
        let message = format!(
            "this model's context is {tokens_max} tokens, but the prompt has at least {tokens_min}"
        );
        Err(Fault::new(FaultCode::ContextLengthExceeded, message).with_param(param))
    }

    fn check_known(&self, param: &str, ids: &[u32]) -> Result<(), Fault> {
        let size = self.vocabulary.size();
        match ids.iter().find(|&&id| id as usize >= size) {
            None => Ok(()),
            Some(id) => {
                let message = format!("token id {id} is outside the vocabulary of {size} tokens");
                Err(Fault::invalid(param, message))
            }
        }
    }
}

/// The request field that an input came from, as the OpenAI API names it.
pub(crate) const fn param_of(input: &Input) -> &'static str {
    match input {
        Input::Chat(_) => "messages",
        Input::Text(_) | Input::Tokens(_) => "prompt",
    }
}

#[cfg(test)]
mod tests;
