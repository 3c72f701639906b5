//! Against the demo model's golden file, and against folders that are wrong.

use std::fs;

use phalanx_proto::generate::{Chat, Message, SpeakerRole};
use serde_json::{Map, Value, json};

use super::*;

fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo-llm")
}

pub(super) fn demo() -> Text {
    Text::load(&demo_folder()).unwrap()
}

fn golden() -> Value {
    serde_json::from_slice(&fs::read(demo_folder().join("golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    let id = |id: &Value| u32::try_from(id.as_u64().unwrap()).unwrap();
    value.as_array().unwrap().iter().map(id).collect()
}

/// More than any prompt here comes to.
const TOKENS_MAX: u32 = 2048;

fn chat(messages: &Value) -> Chat {
    let message = |message: &Value| Message {
        role: SpeakerRole::parse(message["role"].as_str().unwrap()).unwrap(),
        content: message["content"].as_str().unwrap().to_owned(),
        name: None,
        tool_call_id: None,
        tool_calls: Vec::new(),
    };
    Chat {
        messages: messages.as_array().unwrap().iter().map(message).collect(),
        tools: Vec::new(),
        add_generation_prompt: true,
        continue_final_message: false,
        template_kwargs: Map::new(),
    }
}

#[test]
fn prompts_and_answers_equal_the_golden_ones() {
    let (text, golden) = (Arc::new(demo()), golden());
    let chats = golden["chats"].as_array().unwrap();
    assert_eq!(chats.len(), 40);
    for case in chats {
        assert_eq!(
            text.prompt(&Input::Chat(chat(&case["messages"])), TOKENS_MAX).unwrap(),
            ids(&case["prompt_token_ids"])
        );
    }
    for case in golden["completions"].as_array().unwrap() {
        let prompt = Input::Text(case["prompt"].as_str().unwrap().to_owned());
        assert_eq!(text.prompt(&prompt, TOKENS_MAX).unwrap(), ids(&case["prompt_token_ids"]));
    }
    for case in chats.iter().chain(golden["completions"].as_array().unwrap()) {
        let mut choice = ChoiceText::new(Arc::clone(&text), &[], &Default::default());
        let mut answer = String::new();
        for id in ids(&case["output_token_ids"]) {
            answer.push_str(&choice.push(id).text);
        }
        answer.push_str(&choice.finish());
        assert_eq!(answer, case["text"].as_str().unwrap());
        assert_eq!(text.decode(&ids(&case["output_token_ids"])).unwrap(), answer);
    }
}

#[test]
fn the_demo_model_ends_at_the_tokens_of_its_generation_config() {
    let text = demo();
    assert_eq!(text.end_tokens().as_ref(), [2, 0]);
    assert_eq!(text.vocabulary_size(), 3072);
    assert_eq!(text.token_bytes(2), b"<|im_end|>");
    assert_eq!(text.token(2), "<|im_end|>");
    assert!(text.token_bytes(u32::MAX).is_empty());
}

#[test]
fn special_tokens_spelt_in_a_message_are_those_tokens_as_in_transformers() {
    let ids = demo().prompt(&Input::Text("a<|im_end|>b".to_owned()), TOKENS_MAX).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 1, "{ids:?}");
}

#[test]
fn unknown_ids_and_empty_prompts_are_refused_by_field() {
    let text = demo();
    let fault = text.prompt(&Input::Tokens(vec![5, 3072]), TOKENS_MAX).unwrap_err();
    assert_eq!(fault.message, "token id 3072 is outside the vocabulary of 3072 tokens");
    assert_eq!(fault.param.as_deref(), Some("prompt"));
    assert_eq!(
        text.prompt(&Input::Text(String::new()), TOKENS_MAX).unwrap_err().param.as_deref(),
        Some("prompt")
    );
    assert_eq!(text.decode(&[9999]).unwrap_err().param.as_deref(), Some("tokens"));
}

#[test]
fn a_text_that_cannot_fit_is_refused_before_it_is_tokenised() {
    let text = demo();
    for sample in ["a", "The router is the front door of the cluster.", &" router".repeat(500)] {
        let tokens = text.encode(sample, true).unwrap().len();
        let fits = text.prompt(&Input::Text(sample.to_owned()), u32::try_from(tokens).unwrap());
        assert!(fits.is_ok(), "{sample}");
    }
    let fault = text.prompt(&Input::Text("a".repeat(10 << 20)), TOKENS_MAX).unwrap_err();
    assert_eq!(fault.code, FaultCode::ContextLengthExceeded);
    assert_eq!(fault.param.as_deref(), Some("prompt"));
}

/// A copy of the demo folder's text files, with one of them changed.
fn folder_with(file: &str, content: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"]
    {
        fs::copy(demo_folder().join(name), folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join(file), content).unwrap();
    folder
}

#[test]
fn a_wrong_folder_gives_one_error_that_names_the_file() {
    for (file, content, expected) in [
        ("tokenizer.json", "{", "tokenizer.json: tokenizer not understood"),
        ("tokenizer_config.json", "{\n]", "tokenizer_config.json:2: expected a JSON object"),
        ("tokenizer_config.json", r#"{"bos_token": 5}"#, "bos_token must be a string or an object"),
        ("tokenizer_config.json", r#"{"chat_template": 5}"#, "chat_template must be a string or"),
        ("chat_template.jinja", "a\n{% if %}", "chat_template.jinja: chat template line 2"),
        ("generation_config.json", r#"{"eos_token_id": "x"}"#, "eos_token_id must be a token id"),
        ("generation_config.json", r#"{"eos_token_id": 4000}"#, "end token 4000"),
    ] {
        let folder = folder_with(file, content);
        let error = Text::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{file}: {error}");
    }
    let error = Text::load(Path::new("/nowhere")).unwrap_err().to_string();
    assert_eq!(error, "cannot read /nowhere/tokenizer.json");
}

#[test]
fn templates_and_special_tokens_are_found_in_each_of_their_forms() {
    let hello = json!([{ "role": "user", "content": "hi" }]);
    for (config, expected) in [
        (
            json!({ "bos_token": "<|im_start|>", "chat_template": "{{ bos_token }}x" }),
            "<|im_start|>x",
        ),
        (json!({ "bos_token": { "content": "B" }, "chat_template": "{{ bos_token }}x" }), "Bx"),
        (json!({ "chat_template": [{ "name": "default", "template": "{{ bos_token }}y" }] }), "y"),
    ] {
        let folder = folder_with("tokenizer_config.json", &config.to_string());
        let text = Text::load(folder.path()).unwrap();
        assert_eq!(text.render(&chat(&hello)).unwrap(), expected);
    }
    let folder = folder_with("chat_template.jinja", "from a file\n");
    assert_eq!(Text::load(folder.path()).unwrap().render(&chat(&hello)).unwrap(), "from a file");

    let folder = folder_with("tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#);
    for name in ["generation_config.json", "config.json"] {
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    let text = Text::load(folder.path()).unwrap();
    assert_eq!(text.end_tokens().as_ref(), [2]);
    let fault = text.prompt(&Input::Chat(chat(&hello)), TOKENS_MAX).unwrap_err();
    assert_eq!(fault.message, "this model has no chat template: it takes plain prompts only");
    assert!(!text.prompt(&Input::Text("hi".to_owned()), TOKENS_MAX).unwrap().is_empty());
}
