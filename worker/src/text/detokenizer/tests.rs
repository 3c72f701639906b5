//! Pieces against the whole: for any tokens, cut anywhere.

use proptest::prelude::*;
use tokenizers::Tokenizer;

use super::super::tests::demo;
use super::*;

thread_local! {
    static DEMO: Arc<Text> = Arc::new(demo());
}

/// All pieces of a choice that ends with `tokens`.
fn pieces(text: &Arc<Text>, tokens: &[u32]) -> Vec<String> {
    let mut choice = ChoiceText::new(Arc::clone(text), &[], &Stopping::default());
    let mut pieces: Vec<String> = tokens.iter().map(|&token| choice.push(token).text).collect();
    pieces.push(choice.finish());
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn pieces_join_to_the_text_that_was_encoded(
        text in "([a-z ]|[你好世界]|[😀👩🏽\u{200d}🚀]|e\u{301}|\u{fffd}|\\PC){0,24}"
    ) {
        DEMO.with(|demo| {
            let tokens = demo.encode(&text, false).unwrap();
            let pieces = pieces(demo, &tokens);
            prop_assert_eq!(pieces.concat(), text);
            Ok(())
        })?;
    }

    #[test]
    fn pieces_join_to_the_full_decode_of_any_tokens(tokens in prop::collection::vec(0u32..400, 0..40)) {
        // Low ids are single bytes and special tokens: mostly text that is not UTF-8.
        DEMO.with(|demo| {
            prop_assert_eq!(pieces(demo, &tokens).concat(), demo.decode(&tokens).unwrap());
            Ok(())
        })?;
    }
}

#[test]
fn a_split_character_is_held_back_and_a_true_replacement_character_is_not() {
    let text = Arc::new(demo());
    let emoji = text.encode("😀", false).unwrap();
    assert!(emoji.len() > 1, "the demo tokenizer splits it: {emoji:?}");
    let mut expected = vec![String::new(); emoji.len() - 1];
    expected.extend(["😀".to_owned(), String::new()]);
    assert_eq!(pieces(&text, &emoji), expected);
    // Cut short: shown as a replacement character at the end, and not before.
    let cut = pieces(&text, &emoji[..emoji.len() - 1]);
    assert_eq!(cut.last().map(String::as_str), Some("\u{fffd}"));
    let real = text.encode("\u{fffd}", false).unwrap();
    assert_eq!(pieces(&text, &real).concat(), "\u{fffd}");
    assert_eq!(pieces(&text, &real).last().map(String::as_str), Some(""));
}

#[test]
fn stop_strings_end_the_text_and_min_tokens_shields_its_beginning() {
    let text = Arc::new(demo());
    let tokens = text.encode("one stop two stop three", false).unwrap();
    let run = |min_tokens: u32| {
        let stopping =
            Stopping { strings: vec!["stop".to_owned()], min_tokens, ..Stopping::default() };
        let mut choice = ChoiceText::new(Arc::clone(&text), &[], &stopping);
        let mut out = String::new();
        for &token in &tokens {
            let pushed = choice.push(token);
            out.push_str(&pushed.text);
            if pushed.stopped_by.is_some() {
                return (out, pushed.stopped_by);
            }
        }
        (out + &choice.finish(), None)
    };
    assert_eq!(run(0), ("one ".to_owned(), Some("stop".to_owned())));
    let first_stop = text.encode("one stop", false).unwrap().len();
    let min_tokens = u32::try_from(first_stop).unwrap();
    assert_eq!(run(min_tokens), ("one stop two ".to_owned(), Some("stop".to_owned())));
    assert_eq!(run(1000), ("one stop two stop three".to_owned(), None));
}

/// A SentencePiece-like tokenizer: byte fallback, and the text's leading space stripped.
fn sentencepiece() -> Vocabulary {
    let mut vocabulary =
        serde_json::json!({ "<unk>": 0, "\u{2581}Hello": 1, "\u{2581}world": 2, "!": 3 });
    for byte in 0..=255u32 {
        vocabulary[format!("<0x{byte:02X}>")] = (4 + byte).into();
    }
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>",
            "byte_fallback": true },
    });
    Vocabulary::new(Tokenizer::from_bytes(tokenizer.to_string().as_bytes()).unwrap())
}

fn window_pieces(prompt: &[u32], tokens: &[u32]) -> Vec<String> {
    let vocabulary = sentencepiece();
    let mut detokenizer = Detokenizer::new(&vocabulary, prompt);
    let mut pieces: Vec<String> =
        tokens.iter().map(|&token| detokenizer.push(&vocabulary, token)).collect();
    pieces.push(detokenizer.finish(&vocabulary));
    pieces
}

#[test]
fn a_window_keeps_spaces_and_whole_characters() {
    assert_eq!(window_pieces(&[], &[1, 2, 3]), ["Hello", " world", "!", ""]);
    // After a prompt, the first word's space is part of the answer.
    assert_eq!(window_pieces(&[1], &[2]), [" world", ""]);
    let emoji: Vec<u32> = "😀".bytes().map(|byte| 4 + u32::from(byte)).collect();
    assert_eq!(window_pieces(&[1], &emoji), ["", "", "", "😀", ""]);
    let replacement: Vec<u32> = "\u{fffd}".bytes().map(|byte| 4 + u32::from(byte)).collect();
    assert_eq!(window_pieces(&[1], &[&replacement[..], &[2]].concat()).concat(), "\u{fffd} world");
}

#[test]
fn a_window_never_stalls_on_bytes_that_are_no_text() {
    let invalid = vec![4 + 0xFF; 40];
    let pieces = window_pieces(&[1], &invalid);
    let first = pieces.iter().position(|piece| !piece.is_empty()).expect("text comes");
    assert!(first <= CHARACTER_TOKENS_MAX, "{pieces:?}");
}
