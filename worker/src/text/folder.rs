//! What a Hugging Face model folder says about text: templates, special tokens, end tokens.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::TextError;

/// The tokens that `tokenizer_config.json` names; each is visible to templates under its key.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A template's text and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TemplateSource {
    pub(super) file: PathBuf,
    pub(super) text: String,
}

/// The templates of a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TemplateSources {
    pub(super) default: Option<TemplateSource>,
    /// Used instead when a request brings tools.
    pub(super) tool_use: Option<TemplateSource>,
}

/// `tokenizer_config.json`, or nothing.
#[derive(Debug)]
pub(super) struct TokenizerConfig {
    file: PathBuf,
    fields: Map<String, Value>,
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>, TextError> {
    fs::read(file).map_err(|source| TextError::Read { file: file.to_owned(), source })
}

/// A JSON object; `None` when there is no such file.
pub(super) fn read_object(file: &Path) -> Result<Option<Map<String, Value>>, TextError> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(TextError::Read { file: file.to_owned(), source }),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| TextError::Json {
        file: file.to_owned(),
        line: error.line(),
        source: error,
    })
}

/// The end tokens: of generation_config.json, else of config.json; an id or a list of ids.
pub(super) fn end_token_ids(folder: &Path) -> Result<Option<Vec<u32>>, TextError> {
    for name in ["generation_config.json", "config.json"] {
        let file = folder.join(name);
        let Some(fields) = read_object(&file)? else { continue };
        let ids = match fields.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids.iter().map(token_id).collect(),
            Some(id) => token_id(id).map(|id| vec![id]),
        };
        return ids.map(Some).ok_or(TextError::Field {
            file,
            field: "eos_token_id",
            expected: "a token id or a list of token ids",
        });
    }
    Ok(None)
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

// === impl TokenizerConfig ===

impl TokenizerConfig {
    pub(super) fn load(folder: &Path) -> Result<Self, TextError> {
        let file = folder.join("tokenizer_config.json");
        let fields = read_object(&file)?.unwrap_or_default();
        Ok(Self { file, fields })
    }

    /// The special tokens that are set, by key; each stands there as a string or as an object with `content`.
    pub(super) fn special_tokens(&self) -> Result<Map<String, Value>, TextError> {
        let mut tokens = Map::new();
        for key in SPECIAL_TOKENS {
            let content = match self.fields.get(key) {
                None | Some(Value::Null) => continue,
                Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
                Some(token) => token.as_str(),
            };
            let Some(content) = content else {
                return Err(TextError::Field {
                    file: self.file.clone(),
                    field: key,
                    expected: "a string or an object with content",
                });
            };
            tokens.insert(key.to_owned(), Value::from(content));
        }
        Ok(tokens)
    }

    /// `chat_template.jinja` wins; then `chat_template`, one template or a list of named ones.
    pub(super) fn templates(&self, folder: &Path) -> Result<TemplateSources, TextError> {
        let file = folder.join("chat_template.jinja");
        match fs::read_to_string(&file) {
            Ok(text) => {
                let default = Some(TemplateSource { file, text });
                return Ok(TemplateSources { default, tool_use: None });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(TextError::Read { file, source }),
        }
        let source = |text: &str| TemplateSource { file: self.file.clone(), text: text.to_owned() };
        match self.fields.get("chat_template") {
            None | Some(Value::Null) => Ok(TemplateSources::default()),
            Some(Value::String(text)) => {
                Ok(TemplateSources { default: Some(source(text)), tool_use: None })
            }
            Some(Value::Array(named)) => {
                let template = |name: &str| {
                    let entry = named.iter().find(|entry| entry["name"] == name)?;
                    entry["template"].as_str().map(source)
                };
                Ok(TemplateSources { default: template("default"), tool_use: template("tool_use") })
            }
            Some(_) => Err(TextError::Field {
                file: self.file.clone(),
                field: "chat_template",
                expected: "a string or a list of named templates",
            }),
        }
    }
}
