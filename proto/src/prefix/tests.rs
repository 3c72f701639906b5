use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;
use crate::generate::{Sampling, SpeakerRole, Stopping};
use crate::id::RequestId;

fn message(role: SpeakerRole, content: &str) -> Message {
    let (name, tool_call_id, tool_calls) = (None, None, Vec::new());
    Message { role, content: content.to_owned(), name, tool_call_id, tool_calls }
}

fn chat(messages: Vec<Message>) -> Input {
    Input::Chat(Chat {
        messages,
        tools: Vec::new(),
        add_generation_prompt: true,
        continue_final_message: false,
        template_kwargs: Map::new(),
    })
}

fn chunks(input: Input, cache_salt: &str) -> Chunks {
    Chunks::of(&Generate {
        request_id: RequestId::from(String::from("r")),
        model: ModelName::from("demo"),
        input,
        sampling: Sampling::default(),
        stopping: Stopping::default(),
        choices: 1,
        top_logprobs: None,
        return_token_ids: false,
        cache_salt: cache_salt.to_owned(),
        resume: Vec::new(),
    })
}

fn common(left: &Chunks, right: &Chunks) -> usize {
    left.hashes.iter().zip(&right.hashes).take_while(|(left, right)| left == right).count()
}

/// What the hasher must amount to: the whole string, cut and chained.
fn chained(kind: PromptKind, salt: &str, bytes: &[u8]) -> Vec<ChunkHash> {
    let mut chain = xxh3_64_with_seed(salt.as_bytes(), kind as u64);
    let whole = bytes.chunks_exact(CHUNK_BYTES);
    whole
        .map(|chunk| {
            chain = xxh3_64_with_seed(chunk, chain);
            ChunkHash(chain)
        })
        .collect()
}

#[test]
fn a_field_that_is_borrowed_from_json_hashes_as_the_request_does() {
    let content = "x".repeat(2000);
    let mut chat_of_two =
        chat(vec![message(SpeakerRole::System, &content), message(SpeakerRole::User, "and now?")]);
    let Input::Chat(conversation) = &mut chat_of_two else { unreachable!() };
    conversation.tools = vec![json!({"type": "function", "function": {"name": "f"}})];
    let mut hasher = ChunkHasher::new(PromptKind::Chat, "salt");
    hasher.json(Field::Tools, &json!([{"type": "function", "function": {"name": "f"}}]));
    hasher.text(Field::Role, "system");
    hasher.text(Field::Content, &content);
    hasher.text(Field::Role, "user");
    hasher.text(Field::Content, "and now?");
    let from_pieces = hasher.finish();
    assert_eq!(from_pieces.hashes.len(), 4);
    assert_eq!(from_pieces, chunks(chat_of_two, "salt"));
}

#[test]
fn salts_models_and_kinds_of_prompt_share_nothing() {
    let text = || Input::Text("a".repeat(4 * CHUNK_BYTES));
    let plain = chunks(text(), "");
    assert_eq!(plain.hashes.len(), 4);
    assert_eq!(common(&plain, &chunks(text(), "tenant")), 0);
    let tokens = vec![u32::from_le_bytes(*b"aaaa"); CHUNK_BYTES];
    assert_eq!(common(&plain, &chunks(Input::Tokens(tokens), "")), 0);
    let [demo, other] = ["demo", "other"].map(|name| ModelKey::new(&ModelName::from(name)));
    assert_ne!(plain.hashes[0].under(demo), plain.hashes[0].under(other));
    assert_eq!(plain.hashes[0].under(demo), plain.hashes[0].under(demo));
}

#[test]
fn what_only_ends_differently_begins_alike() {
    let document = "d".repeat(10 * CHUNK_BYTES);
    let [one, two] = ["Summarise.", "Translate this into French."].map(|question| {
        let content = format!("{document}{question}");
        chunks(chat(vec![message(SpeakerRole::User, &content)]), "")
    });
    assert_eq!(common(&one, &two), 10);
}

#[test]
fn text_that_looks_like_another_message_is_not_one() {
    let filler = "f".repeat(CHUNK_BYTES);
    let two = vec![message(SpeakerRole::User, "hello"), message(SpeakerRole::Assistant, &filler)];
    let forged = format!("hello\u{ff}\u{3}assistant\u{ff}\u{6}{filler}");
    let one = vec![message(SpeakerRole::User, &forged)];
    assert_eq!(common(&chunks(chat(two), ""), &chunks(chat(one), "")), 0);
}

proptest! {
    #[test]
    fn pieces_hash_as_the_whole_does(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1500), 0..8)) {
        let mut hasher = ChunkHasher::new(PromptKind::Text, "s");
        for piece in &pieces {
            hasher.bytes(piece);
        }
        let whole = pieces.concat();
        let found = hasher.finish();
        prop_assert_eq!(found.bytes, whole.len() as u64);
        prop_assert_eq!(found.hashes, chained(PromptKind::Text, "s", &whole));
    }

    #[test]
    fn conversations_share_chunks_for_as_long_as_they_are_the_same(
        shared in prop::collection::vec("[a-zäß ]{0,700}", 0..6),
        left in prop::collection::vec("[a-z]{1,700}", 0..3),
        right in prop::collection::vec("[A-Z]{1,700}", 0..3),
    ) {
        let conversation = |rest: &[String]| {
            let turns = shared.iter().chain(rest);
            chunks(chat(turns.map(|text| message(SpeakerRole::User, text)).collect()), "")
        };
        let (shared, left, right) = (conversation(&[]), conversation(&left), conversation(&right));
        prop_assert_eq!(common(&shared, &left), shared.hashes.len());
        prop_assert_eq!(common(&shared, &right), shared.hashes.len());
        let alike = common(&left, &right);
        // Beyond what is shared they may agree on the mark and role of the next message, and on nothing after.
        prop_assert!(alike as u64 * CHUNK_BYTES as u64 <= shared.bytes + 8 || left == right, "{alike}");
    }
}
