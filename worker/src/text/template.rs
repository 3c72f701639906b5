//! Chat templates: Jinja as Hugging Face's tokenizers run it.

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat;
use phalanx_proto::fault::Fault;
use phalanx_proto::generate::{Chat, Message};
use serde_json::{Map, Value as Json, json};

use super::TextError;
use super::folder::{TemplateSource, TemplateSources};
use super::python;

/// Instructions one rendering may run: what a real template needs for a hundred thousand messages, and less
/// than a second of work for one that would loop for ever.
const RENDER_INSTRUCTIONS_MAX: u64 = 10_000_000;
/// Marks the end of the message to continue, as in transformers. Its trailing space shows whether the
/// template strips what it is given.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A model's compiled chat template.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    has_tool_use: bool,
    /// Variables such as `bos_token`.
    special_tokens: Map<String, Json>,
}

/// A template's own `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RaisedError(String);

impl ChatTemplate {
    /// Compiles the templates of a folder; `None` when it has none.
    pub(super) fn compile(
        sources: TemplateSources,
        special_tokens: Map<String, Json>,
    ) -> Result<Option<Self>, TextError> {
        let has_tool_use = sources.tool_use.is_some();
        let Some(default) = sources.default.or_else(|| sources.tool_use.clone()) else {
            return Ok(None);
        };
        let mut environment = environment()?;
        add(&mut environment, DEFAULT, &default)?;
        if let Some(tool_use) = &sources.tool_use {
            add(&mut environment, TOOL_USE, tool_use)?;
        }
        Ok(Some(Self { environment, has_tool_use, special_tokens }))
    }

    /// The text of `chat`.
    pub(super) fn render(&self, chat: &Chat) -> Result<String, Fault> {
        if chat.continue_final_message && chat.add_generation_prompt {
            let message =
                "continue_final_message and add_generation_prompt cannot be on at the same time";
            return Err(Fault::invalid("continue_final_message", message));
        }
        let name = if self.has_tool_use && !chat.tools.is_empty() { TOOL_USE } else { DEFAULT };
        let rendered = self
            .environment
            .get_template(name)
            .and_then(|template| template.render(Serde(self.variables(chat))))
            .map_err(|error| to_fault(&error))?;
        if chat.continue_final_message { cut_after_final_message(&rendered) } else { Ok(rendered) }
    }

    fn variables(&self, chat: &Chat) -> Json {
        let mut variables = self.special_tokens.clone();
        variables.extend(chat.template_kwargs.clone());
        let mut messages: Vec<Json> = chat.messages.iter().map(message).collect();
        if chat.continue_final_message
            && let (Some(shown), Some(last)) = (messages.last_mut(), chat.messages.last())
        {
            shown["content"] = Json::from(format!("{}{CONTINUE_TAG}", last.content));
        }
        let tools = if chat.tools.is_empty() { Json::Null } else { Json::from(chat.tools.clone()) };
        variables.insert("messages".to_owned(), Json::from(messages));
        variables.insert("tools".to_owned(), tools);
        variables.insert("documents".to_owned(), Json::Null);
        variables.insert("add_generation_prompt".to_owned(), chat.add_generation_prompt.into());
        Json::Object(variables)
    }
}

/// A message as templates see it. A call's arguments travel as JSON in a string, but templates expect the
/// object itself.
fn message(message: &Message) -> Json {
    let mut shown = json!({ "role": message.role.as_str(), "content": message.content });
    if let Some(name) = &message.name {
        shown["name"] = Json::from(name.as_str());
    }
    if let Some(id) = &message.tool_call_id {
        shown["tool_call_id"] = Json::from(id.as_str());
    }
    if !message.tool_calls.is_empty() {
        let mut calls = message.tool_calls.clone();
        for call in &mut calls {
            let arguments = call.pointer_mut("/function/arguments");
            if let Some(arguments) = arguments
                && let Some(object) = arguments.as_str().and_then(parse_object)
            {
                *arguments = object;
            }
        }
        shown["tool_calls"] = Json::from(calls);
    }
    shown
}

fn parse_object(text: &str) -> Option<Json> {
    serde_json::from_str(text).ok().filter(Json::is_object)
}

fn cut_after_final_message(rendered: &str) -> Result<String, Fault> {
    let Some(start) = rendered.rfind(CONTINUE_TAG.trim_end()) else {
        let message =
            "continue_final_message is on, but the chat template leaves the final message out";
        return Err(Fault::invalid("continue_final_message", message));
    };
    let before = &rendered[..start];
    let keeps_spaces = rendered[start..].starts_with(CONTINUE_TAG);
    Ok(if keeps_spaces { before } else { before.trim_end() }.to_owned())
}

fn to_fault(error: &Error) -> Fault {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(raised) = cause.downcast_ref::<RaisedError>() {
            let message = format!("the chat template refuses the messages: {raised}");
            return Fault::invalid("messages", message);
        }
        source = cause.source();
    }
    let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
    let reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Fault::invalid("messages", format!("the chat template fails on the messages{line}: {reason}"))
}

fn add(
    environment: &mut Environment<'static>,
    name: &'static str,
    source: &TemplateSource,
) -> Result<(), TextError> {
    environment.add_template_owned(name, without_generation_tags(&source.text)).map_err(|error| {
        TextError::Template {
            file: source.file.clone(),
            line: error.line().unwrap_or(0),
            reason: error.detail().map_or_else(|| error.kind().to_string(), str::to_owned),
        }
    })
}

/// Jinja with the settings and extensions of transformers' `apply_chat_template`.
fn environment() -> Result<Environment<'static>, TextError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| TextError::Engine(Arc::new(error)))?);
    environment.set_fuel(Some(RENDER_INSTRUCTIONS_MAX));
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.set_formatter(|out, _, value| {
        out.write_str(&python::to_string(value)).map_err(Error::from)
    });
    environment
        .add_filter("tojson", |value: Value, options: Kwargs| python::to_json(&value, &options));
    environment.add_filter("string", |value: Value| python::to_string(&value));
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        let error = Error::new(ErrorKind::InvalidOperation, message.clone());
        Err(error.with_source(RaisedError(message)))
    });
    environment.add_function("strftime_now", |format: &str| -> Result<String, Error> {
        let mut text = String::new();
        write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
            let reason = format!("strftime_now does not understand {format:?}");
            Error::new(ErrorKind::InvalidOperation, reason)
        })?;
        Ok(text)
    });
    Ok(environment)
}

/// `{% generation %}` marks what a model is trained on and renders as its content: a block that is always
/// on, white space control included.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inside = &tag[..end];
        match inside.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&inside.replace("generation", "if true")),
            "endgeneration" => out.push_str(&inside.replace("endgeneration", "endif")),
            _ => continue,
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
