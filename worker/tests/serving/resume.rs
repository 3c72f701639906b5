//! An answer that one worker began and another ended is the answer that either would have given alone, wherever
//! it was cut: the same tokens, texts, log probabilities, ends and usage, in the same pieces.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt as _};
use phalanx_proto::generate::{
    ChoiceProgress, Event, FinishReason, Generate, Input, Sampling, Stopping, Usage,
};
use serde_json::Value;

use crate::worker::{Running, chat, demo_folder, events, greedy, start};

/// Resumed requests in progress at once: enough to fill a batch.
const AT_ONCE: usize = 16;

/// Two workers that never saw each other's requests.
struct Pair {
    first: Running,
    second: Running,
}

/// How far the client of a stream was that broke after `passed`.
fn progress(passed: &[Event], choices: u32) -> Vec<ChoiceProgress> {
    let mut progress = vec![ChoiceProgress::default(); choices as usize];
    for event in passed {
        match event {
            Event::Delta(delta) => {
                progress[delta.choice as usize].token_ids.extend(&delta.token_ids);
            }
            Event::Finished { choice, .. } => progress[*choice as usize].is_finished = true,
            Event::Started { .. } | Event::Usage(_) => {}
        }
    }
    progress
}

/// What a client sees of each choice: how choices take turns is left to chance.
fn by_choice<'a>(events: impl Iterator<Item = &'a Event>) -> BTreeMap<u32, Vec<&'a Event>> {
    let mut choices: BTreeMap<u32, Vec<&Event>> = BTreeMap::new();
    for event in events {
        let choice = match event {
            Event::Delta(delta) => delta.choice,
            Event::Finished { choice, .. } => *choice,
            Event::Started { .. } | Event::Usage(_) => continue,
        };
        choices.entry(choice).or_default().push(event);
    }
    choices
}

fn usage(events: &[Event]) -> Usage {
    let Some(Event::Usage(usage)) = events.last() else { panic!("no usage: {events:?}") };
    // What is cached differs from worker to worker.
    Usage { cached_tokens: 0, ..*usage }
}

impl Pair {
    async fn start() -> Self {
        Self { first: start().await, second: start().await }
    }

    /// Asks the first worker, cuts its answer where `cuts` says, and has the second go on with each part.
    async fn check(&self, generate: &Generate, cuts: impl Fn(usize) -> Vec<usize>) -> Vec<Event> {
        let whole = events(self.first.client.clone(), generate.clone()).await;
        let expected = by_choice(whole.iter());
        let resumed = cuts(whole.len()).into_iter().filter_map(|cut| {
            let resume = progress(&whole[..cut], generate.choices);
            let is_over = resume.iter().all(|choice| choice.is_finished);
            (!is_over).then(|| (cut, Generate { resume, ..generate.clone() }))
        });
        let resumed = resumed
            .map(async |(cut, generate)| (cut, events(self.second.client.clone(), generate).await));
        let mut resumed = stream::iter(resumed).buffer_unordered(AT_ONCE);
        let mut checked = 0;
        while let Some((cut, rest)) = resumed.next().await {
            assert!(matches!(rest[0], Event::Started { .. }));
            assert_eq!(usage(&rest), usage(&whole), "cut after {cut} events");
            let joined = by_choice(whole[..cut].iter().chain(&rest));
            assert_eq!(joined, expected, "cut after {cut} events");
            checked += 1;
        }
        assert!(checked > 0);
        drop(resumed);
        whole
    }
}

fn everywhere(events: usize) -> Vec<usize> {
    (1..events).collect()
}

fn prompt() -> Generate {
    greedy(Input::Text("The router sends each request".to_owned()), 32)
}

fn seeded(temperature: f32) -> Sampling {
    Sampling { temperature, seed: 0x5eed, ..Sampling::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_answers_are_the_same_wherever_they_are_cut() {
    let pair = Pair::start().await;
    let golden = std::fs::read(demo_folder().join("golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let chats = golden["chats"].as_array().unwrap().iter();
    let chats = chats.map(|case| greedy(chat(&case["messages"]), 220));
    let completions = golden["completions"].as_array().unwrap().iter();
    let completions = completions
        .map(|case| greedy(Input::Text(case["prompt"].as_str().unwrap().to_owned()), 64));
    for (index, generate) in chats.chain(completions).enumerate() {
        // Somewhere else in each.
        let somewhere = |events: usize| vec![1 + index * 7 % (events - 2), events - 2];
        pair.check(&generate, somewhere).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeded_choices_with_log_probabilities_are_the_same_wherever_they_are_cut() {
    let pair = Pair::start().await;
    let generate =
        Generate { sampling: seeded(0.9), choices: 3, top_logprobs: Some(3), ..prompt() };
    let whole = pair.check(&generate, everywhere).await;
    let choices = by_choice(whole.iter());
    assert_eq!(choices.len(), 3);
    assert_ne!(choices[&0], choices[&1], "each choice has a seed of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn penalties_and_limits_count_what_another_worker_generated() {
    let pair = Pair::start().await;
    let sampling = Sampling {
        presence_penalty: 0.6,
        frequency_penalty: 0.4,
        repetition_penalty: 1.3,
        ..seeded(0.7)
    };
    let stopping = Stopping { max_tokens: Some(40), min_tokens: 30, ..Stopping::default() };
    let generate = Generate { sampling, stopping, ..prompt() };
    let whole = pair.check(&generate, everywhere).await;
    assert!(usage(&whole).completion_tokens >= 30);
    // So many end tokens that a wrong count of the first thirty would show at once.
    let stopping = Stopping { token_ids: (300..556).collect(), ..generate.stopping };
    pair.check(&Generate { sampling: seeded(2.0), stopping, ..prompt() }, everywhere).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn characters_and_stop_strings_in_the_making_survive_the_cut() {
    let pair = Pair::start().await;
    // Hot enough to draw lone bytes, halves of characters among them.
    let stopping = Stopping { max_tokens: Some(64), ignore_eos: true, ..Stopping::default() };
    let generate = Generate { sampling: seeded(2.0), stopping, ..prompt() };
    let whole = pair.check(&generate, everywhere).await;
    let is_held = |event: &&Event| matches!(event, Event::Delta(delta) if delta.text.is_empty());
    assert!(whole.iter().filter(is_held).count() > 0, "no token was held back: {whole:?}");

    // A stop string that begins in one token and ends in another.
    let texts: Vec<String> = (events(pair.first.client.clone(), prompt()).await.into_iter())
        .filter_map(|event| match event {
            Event::Delta(delta) => Some(delta.text),
            _ => None,
        })
        .collect();
    let tail = |text: &str| text.chars().last().map(String::from).unwrap_or_default();
    let stop = format!("{}{}{}", tail(&texts[18]), texts[19], texts[20]);
    let strings = vec![stop, "never met".to_owned()];
    let stopping = Stopping { max_tokens: Some(32), strings, ..Stopping::default() };
    let whole = pair.check(&Generate { stopping, ..prompt() }, everywhere).await;
    let is_stop = |event: &Event| {
        matches!(event, Event::Finished { reason: FinishReason::Stop, stopped_by: Some(_), .. })
    };
    assert!(whole.iter().any(is_stop), "{whole:?}");
}
