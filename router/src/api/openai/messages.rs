//! A conversation: roles, their contents, tools.

use phalanx_proto::fault::Fault;
use phalanx_proto::generate::{Chat, Message, SpeakerRole};
use serde_json::Value;

use super::fields::{Fields, mismatch};

/// Most turns of one conversation: the body's limit allows no sensible one to be longer.
const MESSAGES_MAX: usize = 65_536;
/// OpenAI's own limit.
const TOOLS_MAX: usize = 128;
/// Between text parts, as vLLM joins them.
const PART_SEPARATOR: &str = "\n";

/// Reads `messages`, `tools` and what steers the template.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Chat, Fault> {
    let items = fields.array("messages")?.ok_or_else(|| fields.missing("messages"))?;
    if items.is_empty() || items.len() > MESSAGES_MAX {
        let length = items.len();
        let message = format!("messages must hold 1 to {MESSAGES_MAX} messages, got {length}");
        return Err(fields.refuse("messages", message));
    }
    let at = |(index, item)| message(&Fields::of(item, format!("messages.[{index}]"))?);
    let messages = items.iter().enumerate().map(at).collect::<Result<Vec<_>, Fault>>()?;
    let continue_final_message = fields.boolean("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = fields.boolean("add_generation_prompt")?;
    if continue_final_message && add_generation_prompt == Some(true) {
        let message = "continue_final_message and add_generation_prompt cannot both be true";
        return Err(fields.refuse("continue_final_message", message));
    }
    let kwargs = fields.object("chat_template_kwargs")?;
    Ok(Chat {
        messages,
        tools: tools(fields)?,
        add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        template_kwargs: kwargs.map(|kwargs| kwargs.map().clone()).unwrap_or_default(),
    })
}

fn message(fields: &Fields<'_>) -> Result<Message, Fault> {
    let name = fields.string("role")?.ok_or_else(|| fields.missing("role"))?;
    let role = SpeakerRole::parse(name).ok_or_else(|| {
        let known = "system, developer, user, assistant or tool";
        fields.refuse("role", format!("{} must be {known}, got {name:?}", fields.path("role")))
    })?;
    let tool_calls = match role {
        SpeakerRole::Assistant => tool_calls(fields)?,
        _ => Vec::new(),
    };
    let tool_call_id = fields.string("tool_call_id")?.filter(|id| !id.is_empty());
    if role == SpeakerRole::Tool && tool_call_id.is_none() {
        return Err(fields.missing("tool_call_id"));
    }
    let content = match content(fields, role)? {
        Some(content) => content,
        None if !tool_calls.is_empty() => String::new(),
        None if role == SpeakerRole::Assistant => {
            let refusal = fields.string("refusal")?;
            refusal.ok_or_else(|| fields.missing("content"))?.to_owned()
        }
        None => return Err(fields.missing("content")),
    };
    Ok(Message {
        role,
        content,
        name: fields.string("name")?.filter(|name| !name.is_empty()).map(str::to_owned),
        tool_call_id: tool_call_id.map(str::to_owned),
        tool_calls,
    })
}

fn content(fields: &Fields<'_>, role: SpeakerRole) -> Result<Option<String>, Fault> {
    let path = fields.path("content");
    let parts = match fields.get("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(mismatch(&path, "a string or an array of parts", other)),
    };
    if parts.is_empty() {
        return Err(Fault::invalid(&path, format!("{path} must hold at least one part")));
    }
    let mut joined = String::new();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            joined.push_str(PART_SEPARATOR);
        }
        joined.push_str(text_part(&Fields::of(part, format!("{path}.[{index}]"))?, role)?);
    }
    Ok(Some(joined))
}

fn text_part<'a>(part: &Fields<'a>, role: SpeakerRole) -> Result<&'a str, Fault> {
    let kind = part.string("type")?.ok_or_else(|| part.missing("type"))?;
    let field = match kind {
        "text" => "text",
        "refusal" if role == SpeakerRole::Assistant => "refusal",
        _ => {
            let path = part.path("type");
            let message =
                format!("{path} must be \"text\": this model takes text only, got {kind:?}");
            return Err(Fault::invalid(&path, message));
        }
    };
    part.string(field)?.ok_or_else(|| part.missing(field))
}

fn tool_calls(fields: &Fields<'_>) -> Result<Vec<Value>, Fault> {
    let calls = fields.array("tool_calls")?.unwrap_or_default();
    for (index, call) in calls.iter().enumerate() {
        let call = Fields::of(call, format!("{}.[{index}]", fields.path("tool_calls")))?;
        call.string("id")?.ok_or_else(|| call.missing("id"))?;
        let function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
        function.string("name")?.ok_or_else(|| function.missing("name"))?;
        function.string("arguments")?.ok_or_else(|| function.missing("arguments"))?;
    }
    Ok(calls.to_vec())
}

fn tools(fields: &Fields<'_>) -> Result<Vec<Value>, Fault> {
    for deprecated in ["functions", "function_call"] {
        if fields.get(deprecated).is_some() {
            let message = format!("{deprecated} is deprecated and not supported, use tools");
            return Err(fields.refuse(deprecated, message));
        }
    }
    let tools = fields.array("tools")?.unwrap_or_default();
    if tools.len() > TOOLS_MAX {
        let message = format!("tools must hold at most {TOOLS_MAX} tools, got {}", tools.len());
        return Err(fields.refuse("tools", message));
    }
    for (index, tool) in tools.iter().enumerate() {
        let tool = Fields::of(tool, format!("tools.[{index}]"))?;
        let kind = tool.string("type")?.ok_or_else(|| tool.missing("type"))?;
        if kind != "function" {
            let path = tool.path("type");
            return Err(Fault::invalid(
                &path,
                format!("{path} must be \"function\", got {kind:?}"),
            ));
        }
        let function = tool.object("function")?.ok_or_else(|| tool.missing("function"))?;
        function.string("name")?.ok_or_else(|| function.missing("name"))?;
        function.object("parameters")?;
    }
    // With `none` the model must not call a tool, so it is not told of any.
    Ok(match tool_choice(fields, tools.is_empty())? {
        ToolChoice::Free => tools.to_vec(),
        ToolChoice::Forbidden => Vec::new(),
    })
}

enum ToolChoice {
    Free,
    Forbidden,
}

fn tool_choice(fields: &Fields<'_>, no_tools: bool) -> Result<ToolChoice, Fault> {
    let Some(choice) = fields.get("tool_choice") else { return Ok(ToolChoice::Free) };
    if no_tools {
        let message = "tool_choice is only allowed when tools are given";
        return Err(fields.refuse("tool_choice", message));
    }
    match choice {
        Value::String(choice) if choice == "auto" => Ok(ToolChoice::Free),
        Value::String(choice) if choice == "none" => Ok(ToolChoice::Forbidden),
        Value::String(choice) if choice == "required" => Err(forced(fields, "\"required\"")),
        Value::Object(_) => Err(forced(fields, "a named function")),
        other => {
            Err(mismatch("tool_choice", "\"none\", \"auto\", \"required\" or an object", other))
        }
    }
}

fn forced(fields: &Fields<'_>, choice: &str) -> Fault {
    let message = format!(
        "tool_choice {choice} is not available: it needs structured output, which is not supported; use \"auto\" or \"none\""
    );
    fields.refuse("tool_choice", message)
}
