//! Against renders made by Jinja on Python (`fixtures/templates/make_cases.py`).

use std::path::{Path, PathBuf};

use phalanx_proto::fault::FaultCode;
use phalanx_proto::generate::SpeakerRole;
use serde::Deserialize;

use super::*;

/// One row of `cases.json`.
#[derive(Debug, Deserialize)]
struct Case {
    template: String,
    chat: RawChat,
    text: Option<String>,
    raises: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawChat {
    messages: Vec<RawMessage>,
    #[serde(default)]
    tools: Vec<Json>,
    #[serde(default)]
    add_generation_prompt: bool,
    #[serde(default)]
    kwargs: Map<String, Json>,
}

#[derive(Debug, Deserialize)]
struct RawMessage {
    role: String,
    content: String,
    tool_call_id: Option<String>,
    #[serde(default)]
    tool_calls: Vec<Json>,
}

impl From<RawChat> for Chat {
    fn from(raw: RawChat) -> Self {
        let message = |raw: RawMessage| Message {
            role: SpeakerRole::parse(&raw.role).expect("a known role"),
            content: raw.content,
            name: None,
            tool_call_id: raw.tool_call_id,
            tool_calls: raw.tool_calls,
        };
        Self {
            messages: raw.messages.into_iter().map(message).collect(),
            tools: raw.tools,
            add_generation_prompt: raw.add_generation_prompt,
            continue_final_message: false,
            template_kwargs: raw.kwargs,
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/templates")
}

fn compile(text: &str) -> Result<ChatTemplate, TextError> {
    let source =
        TemplateSource { file: PathBuf::from("chat_template.jinja"), text: text.to_owned() };
    let sources = TemplateSources { default: Some(source), tool_use: None };
    let special = json!({ "bos_token": "<s>", "eos_token": "</s>" });
    let compiled =
        ChatTemplate::compile(sources, special.as_object().cloned().unwrap_or_default())?;
    Ok(compiled.expect("there is a template"))
}

fn fixture(name: &str) -> ChatTemplate {
    let text = std::fs::read_to_string(folder().join(format!("{name}.jinja"))).unwrap();
    compile(&text).unwrap()
}

fn chat(messages: &[(SpeakerRole, &str)]) -> Chat {
    let message = |&(role, content): &(SpeakerRole, &str)| Message {
        role,
        content: content.to_owned(),
        name: None,
        tool_call_id: None,
        tool_calls: Vec::new(),
    };
    Chat {
        messages: messages.iter().map(message).collect(),
        tools: Vec::new(),
        add_generation_prompt: false,
        continue_final_message: false,
        template_kwargs: Map::new(),
    }
}

#[test]
fn templates_render_as_jinja_on_python_renders_them() {
    let cases = std::fs::read(folder().join("cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
    assert!(cases.len() > 30);
    for (row, case) in cases.into_iter().enumerate() {
        let rendered = fixture(&case.template).render(&case.chat.into());
        match (case.text, case.raises) {
            (Some(text), None) => {
                assert_eq!(rendered.unwrap(), text, "row {row}: {}", case.template);
            }
            (None, Some(raised)) => {
                let fault = rendered.expect_err("the template raises");
                assert_eq!(fault.code, FaultCode::InvalidRequest, "row {row}");
                assert_eq!(fault.param.as_deref(), Some("messages"), "row {row}");
                assert!(fault.message.ends_with(&raised), "row {row}: {fault}");
            }
            other => panic!("row {row} must have a text or an exception: {other:?}"),
        }
    }
}

#[test]
fn arguments_given_as_json_text_reach_the_template_as_an_object() {
    let mut chat = chat(&[(SpeakerRole::User, "hi"), (SpeakerRole::Assistant, "")]);
    let arguments = r#"{"city":"Zürich","days":2}"#;
    chat.messages[1].tool_calls =
        vec![json!({ "function": { "name": "f", "arguments": arguments } })];
    let rendered = fixture("qwen").render(&chat).unwrap();
    assert!(rendered.contains(r#""arguments": {"city": "Zürich", "days": 2}}"#), "{rendered}");
}

#[test]
fn a_final_message_is_continued_where_it_ends() {
    let mut chat = chat(&[(SpeakerRole::User, "hi"), (SpeakerRole::Assistant, "Once upon ")]);
    chat.continue_final_message = true;
    let chatml = fixture("chatml").render(&chat).unwrap();
    assert!(chatml.ends_with("<|im_start|>assistant\nOnce upon "), "{chatml:?}");
    // This one strips messages, so the continuation starts at the last word.
    let gemma = fixture("gemma").render(&chat).unwrap();
    assert!(gemma.ends_with("<start_of_turn>model\nOnce upon"), "{gemma:?}");

    chat.add_generation_prompt = true;
    let fault = fixture("chatml").render(&chat).unwrap_err();
    assert_eq!(fault.param.as_deref(), Some("continue_final_message"));
    chat.add_generation_prompt = false;
    let fault = compile("nothing").unwrap().render(&chat).unwrap_err();
    assert_eq!(fault.param.as_deref(), Some("continue_final_message"));
}

#[test]
fn a_syntax_error_names_file_and_line() {
    let error = compile("line one\n{% if x %}\n{{ y | }}\n{% endif %}").unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("chat_template.jinja: chat template line 3: "), "{message}");
}

#[test]
fn a_template_cannot_run_for_ever_and_its_faults_are_the_requests() {
    let chat = chat(&[(SpeakerRole::User, "hi")]);
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    for (template, expected) in [
        (endless, "fuel"),
        ("{{ messages[0].nothing.at.all }}", "line 1"),
        ("\n{{ strftime_now('%!') }}", "strftime_now does not understand"),
    ] {
        let fault = compile(template).unwrap().render(&chat).unwrap_err();
        assert_eq!(fault.code, FaultCode::InvalidRequest);
        assert!(fault.message.contains(expected), "{fault}");
    }
}

#[test]
fn the_tool_template_is_used_when_there_are_tools() {
    let source = |text: &str| {
        Some(TemplateSource { file: PathBuf::from("tokenizer_config.json"), text: text.to_owned() })
    };
    let sources = TemplateSources { default: source("plain"), tool_use: source("tools") };
    let template = ChatTemplate::compile(sources, Map::new()).unwrap().expect("two templates");
    let mut chat = chat(&[(SpeakerRole::User, "hi")]);
    assert_eq!(template.render(&chat).unwrap(), "plain");
    chat.tools = vec![json!({})];
    assert_eq!(template.render(&chat).unwrap(), "tools");
}
