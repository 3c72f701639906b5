//! Where in a prompt's tokens the chunks of its bytes end. Pure.
//!
//! ```text
//! canonical bytes   |--tools--|role|==content==|role|=content=|      chunks end every 512 bytes
//! rendered text     <|im_start|>system ==content==<|im_end|> =content= ..   contents are found in order
//! tokens            prefix sums of what bytes they stand for
//! ```
//! Inside contents that is exact; what lies between them is divided in proportion.

use memchr::memmem;
use phalanx_proto::generate::Chat;
use phalanx_proto::prefix::{CHUNK_BYTES, Chunks};

/// A place that is the same in two texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Anchor {
    canonical: usize,
    rendered: usize,
}

/// How many tokens of a conversation there are up to the end of each chunk. `contents` is where the contents of its
/// messages begin in canonical bytes, `token_bytes` how many bytes of `rendered` each token stands for.
pub(super) fn of_chat(
    chat: &Chat,
    (chunks, contents): (&Chunks, &[u64]),
    rendered: &str,
    token_bytes: impl Iterator<Item = usize>,
) -> Vec<u32> {
    let mut anchors = vec![Anchor { canonical: 0, rendered: 0 }];
    let mut cursor = 0;
    for (message, begin) in chat.messages.iter().zip(contents) {
        // Templates commonly trim what they render.
        let content = message.content.trim();
        if content.is_empty() {
            continue;
        }
        let Some(found) = memmem::find(&rendered.as_bytes()[cursor..], content.as_bytes()) else {
            continue;
        };
        let trimmed = message.content.len() - message.content.trim_start().len();
        let begin = Anchor { canonical: index(*begin) + trimmed, rendered: cursor + found };
        cursor = begin.rendered + content.len();
        anchors.push(begin);
        anchors.push(Anchor { canonical: begin.canonical + content.len(), rendered: cursor });
    }
    anchors.push(Anchor { canonical: index(chunks.bytes), rendered: rendered.len() });
    tokens_at(positions(chunks, &anchors), rendered.len(), token_bytes)
}

/// The same for plain text, whose canonical bytes are its own.
pub(super) fn of_text(
    chunks: &Chunks,
    text: &str,
    token_bytes: impl Iterator<Item = usize>,
) -> Vec<u32> {
    let ends = (1..=chunks.hashes.len()).map(|chunk| chunk * CHUNK_BYTES);
    tokens_at(ends, text.len(), token_bytes)
}

/// The same for token ids, whose canonical bytes are four of each.
pub(super) fn of_tokens(chunks: &Chunks) -> Vec<u32> {
    let ends = (1..=chunks.hashes.len()).map(|chunk| chunk * CHUNK_BYTES / 4);
    ends.map(|end| u32::try_from(end).unwrap_or(u32::MAX)).collect()
}

/// Where each chunk ends in the rendered text.
fn positions(chunks: &Chunks, anchors: &[Anchor]) -> impl Iterator<Item = usize> {
    let mut after = 1;
    (1..=chunks.hashes.len()).map(move |chunk| {
        let end = chunk * CHUNK_BYTES;
        while after + 1 < anchors.len() && anchors[after].canonical < end {
            after += 1;
        }
        let (from, to) = (anchors[after - 1], anchors[after]);
        let (width, room) =
            (to.canonical.saturating_sub(from.canonical), to.rendered - from.rendered);
        from.rendered + (room * (end - from.canonical).min(width)).checked_div(width).unwrap_or(0)
    })
}

/// How many tokens it takes to cover each of `ends`, byte offsets in a text of `text_bytes` in order.
fn tokens_at(
    ends: impl Iterator<Item = usize>,
    text_bytes: usize,
    token_bytes: impl Iterator<Item = usize>,
) -> Vec<u32> {
    let mut covered = 0;
    let sums: Vec<usize> = token_bytes
        .map(|bytes| {
            covered += bytes;
            covered
        })
        .collect();
    ends.map(|end| {
        // Tokens may stand for more than the text (a start token) or less (a normaliser).
        let end = if covered == text_bytes { end } else { end * covered / text_bytes.max(1) };
        let tokens = sums.partition_point(|sum| *sum < end) + 1;
        u32::try_from(tokens.min(sums.len()).max(1)).unwrap_or(u32::MAX)
    })
    .collect()
}

/// A prompt is in memory, so its size fits.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use phalanx_proto::generate::{Generate, Input, Message, SpeakerRole};
    use proptest::prelude::*;

    use super::*;

    fn chat(contents: &[String]) -> Chat {
        let message = |content: &String| Message {
            role: SpeakerRole::User,
            content: content.clone(),
            name: None,
            tool_call_id: None,
            tool_calls: Vec::new(),
        };
        Chat {
            messages: contents.iter().map(message).collect(),
            tools: Vec::new(),
            add_generation_prompt: true,
            continue_final_message: false,
            template_kwargs: serde_json::Map::new(),
        }
    }

    fn generate(input: Input) -> Generate {
        Generate {
            request_id: "r".to_owned().into(),
            model: "demo".into(),
            input,
            sampling: phalanx_proto::generate::Sampling::default(),
            stopping: phalanx_proto::generate::Stopping::default(),
            choices: 1,
            top_logprobs: None,
            return_token_ids: false,
            cache_salt: String::new(),
            resume: Vec::new(),
        }
    }

    fn render(contents: &[String]) -> String {
        contents
            .iter()
            .map(|content| format!("<|im_start|>user\n{}<|im_end|>\n", content.trim()))
            .collect()
    }

    #[test]
    fn plain_text_and_tokens_are_exact() {
        let text = "x".repeat(1100);
        let chunks = Chunks::of(&generate(Input::Text(text.clone())));
        // Tokens of four bytes, and of three.
        assert_eq!(of_text(&chunks, &text, std::iter::repeat_n(4, 275)), [128, 256]);
        assert_eq!(
            of_text(&chunks, &text, std::iter::repeat_n(3, 367).take(366).chain([2])),
            [171, 342]
        );
        let chunks = Chunks::of(&generate(Input::Tokens(vec![5; 300])));
        assert_eq!(of_tokens(&chunks), [128, 256]);
    }

    #[test]
    fn a_chunk_that_ends_inside_a_content_ends_at_that_byte_of_the_rendered_text() {
        let contents = ["  a".to_owned() + &"b".repeat(700) + " ", "c".repeat(900)];
        let chat = chat(&contents);
        let (chunks, begins) = Chunks::with_contents(&generate(Input::Chat(chat.clone())));
        let rendered = render(&contents);
        // One token a byte, so that tokens are offsets.
        let ends =
            of_chat(&chat, (&chunks, &begins), &rendered, std::iter::repeat_n(1, rendered.len()));
        // Canonical: mark and role (6), mark (2), content (704), and so on.
        let first = rendered.find("ab").unwrap() + 512 - 8 - 2;
        let second = rendered.find("cc").unwrap() + 1024 - 704 - 16;
        let third = rendered.find("cc").unwrap() + 1536 - 704 - 16;
        assert_eq!(ends, [first, second, third].map(|end| u32::try_from(end).unwrap()));
    }

    proptest! {
        #[test]
        fn ends_are_in_order_and_within_the_prompt_whatever_the_template_does(
            contents in prop::collection::vec("[a-zé ]{0,1500}", 1..6),
            kept in prop::collection::vec(any::<bool>(), 6),
            token in 1_usize..9,
        ) {
            let chat = chat(&contents);
            let (chunks, begins) = Chunks::with_contents(&generate(Input::Chat(chat.clone())));
            prop_assert_eq!(begins.len(), contents.len());
            let shown: Vec<String> = contents.iter().zip(kept).filter(|(_, kept)| *kept)
                .map(|(content, _)| content.clone()).collect();
            let rendered = render(&shown);
            let tokens = rendered.len().div_ceil(token).max(1);
            let ends = of_chat(&chat, (&chunks, &begins), &rendered, std::iter::repeat_n(token, tokens));
            prop_assert_eq!(ends.len(), chunks.hashes.len());
            prop_assert!(ends.is_sorted());
            prop_assert!(ends.iter().all(|end| (1..=tokens).contains(&(*end as usize))));
        }
    }
}
