//! An answer as one JSON object: collected to the end, then written.

use bytes::BytesMut;
use futures::StreamExt;

use super::answers::{Answer, Answers};
use super::openai::answer::{Choice, Format, Head, TokenIds, write_usage};
use super::openai::json;
use crate::error::RouterError;

/// What the object shows.
#[derive(Clone, Debug)]
pub(crate) struct Style {
    pub(crate) head: Head,
    pub(crate) ids: TokenIds,
    pub(crate) has_logprobs: bool,
}

/// Waits for all of `answers` and writes the object.
pub(crate) async fn collect<F: Format>(
    mut answers: Answers,
    mut format: F,
    style: &Style,
) -> Result<BytesMut, RouterError> {
    let empty = Choice { logprobs: style.has_logprobs.then(Vec::new), ..Choice::default() };
    let mut choices = vec![empty; answers.choices() as usize];
    let mut prompts = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer? {
            Answer::Started { first_choice, prompt_token_ids } => {
                prompts.push((first_choice, prompt_token_ids));
            }
            // Choices are numbered within their count, as `Answers` checks.
            Answer::Delta(delta) => {
                let choice = &mut choices[delta.choice as usize];
                choice.text.push_str(&delta.text);
                choice.token_ids.extend(delta.token_ids);
                if let Some(logprobs) = &mut choice.logprobs {
                    logprobs.extend(delta.logprobs);
                }
            }
            Answer::Finished { choice, finish } => {
                choices[choice as usize].finish = Some(finish);
            }
        }
    }
    let mut out = BytesMut::with_capacity(1024);
    style.head.write(&mut out, F::OBJECT);
    out.extend_from_slice(b",\"choices\":");
    json::array(&mut out, choices.iter().zip(0..), |out, (choice, index)| {
        format.write_choice(out, index, choice, style.ids);
    });
    out.extend_from_slice(b",\"usage\":");
    write_usage(&mut out, &answers.usage());
    if style.ids == TokenIds::Shown {
        write_prompts(&mut out, prompts);
    }
    out.extend_from_slice(b"}");
    Ok(out)
}

/// One prompt's ids as an array, several prompts' as an array of arrays.
fn write_prompts(out: &mut BytesMut, mut prompts: Vec<(u32, Vec<u32>)>) {
    prompts.sort_by_key(|(first_choice, _)| *first_choice);
    out.extend_from_slice(b",\"prompt_token_ids\":");
    match prompts.as_slice() {
        [(_, ids)] => json::token_ids(out, ids),
        several => json::array(out, several, |out, (_, ids)| json::token_ids(out, ids)),
    }
}
