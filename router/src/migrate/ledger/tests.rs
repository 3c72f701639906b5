//! Streams that break anywhere, any number of times, against the same streams that do not.

use phalanx_proto::generate::{Delta, FinishReason};
use proptest::prelude::*;

use super::*;

const PROMPT_TOKENS: u32 = 7;

fn started(cached_tokens: u32) -> Event {
    let prompt_token_ids = Vec::new();
    Event::Started { prompt_tokens: PROMPT_TOKENS, cached_tokens, prompt_token_ids }
}

fn delta(choice: u32, token_ids: Vec<u32>) -> Event {
    let text = format!("{token_ids:?}");
    Event::Delta(Delta { choice, text, token_ids, logprobs: Vec::new() })
}

fn finished(choice: u32) -> Event {
    Event::Finished { choice, reason: FinishReason::Length, stopped_by: None }
}

/// A worker whose choices each generate the tokens of `answers`: all events of a request that goes on from `resume`,
/// its choices taking turns as `turns` says.
fn worker(
    answers: &[Vec<u32>],
    resume: &[ChoiceProgress],
    cached_tokens: u32,
    turns: &[usize],
) -> Vec<Event> {
    let mut events = vec![started(cached_tokens)];
    let mut open: Vec<(usize, usize)> = Vec::new();
    for (choice, told) in resume.iter().enumerate() {
        assert!(answers[choice].starts_with(&told.token_ids), "it goes on from another answer");
        if !told.is_finished {
            open.push((choice, told.token_ids.len()));
        }
    }
    assert!(!open.is_empty(), "nothing is left to do");
    let mut turns = turns.iter().cycle();
    while !open.is_empty() {
        let turn = turns.next().expect("it is a cycle") % open.len();
        let (choice, at) = &mut open[turn];
        let number = u32::try_from(*choice).unwrap();
        match answers[*choice].get(*at) {
            Some(token) => {
                events.push(delta(number, vec![*token]));
                *at += 1;
            }
            None => {
                events.push(finished(number));
                open.swap_remove(turn);
            }
        }
    }
    let completion_tokens = u32::try_from(answers.iter().map(Vec::len).sum::<usize>()).unwrap();
    let usage = Usage { prompt_tokens: PROMPT_TOKENS, cached_tokens, completion_tokens };
    events.push(Event::Usage(usage));
    events
}

/// The events of one choice, in order.
fn of_choice(events: &[Event], wanted: u32) -> Vec<&Event> {
    let is_of = |event: &&Event| match event {
        Event::Delta(delta) => delta.choice == wanted,
        Event::Finished { choice, .. } => *choice == wanted,
        Event::Started { .. } | Event::Usage(_) => false,
    };
    events.iter().filter(is_of).collect()
}

proptest! {
    #[test]
    fn a_client_hears_one_stream_however_often_it_breaks(
        answers in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..12), 1..5),
        turns in prop::collection::vec(any::<usize>(), 1..20),
        cuts in prop::collection::vec(0usize..30, 0..6),
    ) {
        let choices = u32::try_from(answers.len()).unwrap();
        let mut ledger = Ledger::new(choices);
        let mut heard = Vec::new();
        let whole = worker(&answers, &vec![ChoiceProgress::default(); answers.len()], 3, &turns);
        let mut resume = vec![ChoiceProgress::default(); answers.len()];
        let mut usage = None;
        for (leg, cut) in cuts.into_iter().map(Some).chain([None]).enumerate() {
            // Each worker has cached something else, and takes its choices in another order.
            let cached = 3 + u32::try_from(leg).unwrap();
            let events = worker(&answers, &resume, cached, &turns[leg % turns.len()..]);
            let passed = events.len().min(cut.unwrap_or(usize::MAX));
            for event in events.into_iter().take(passed) {
                heard.extend(ledger.pass(event).unwrap());
            }
            if matches!(heard.last(), Some(Event::Usage(_))) {
                break;
            }
            match ledger.rest() {
                Rest::Choices(progress) => resume = progress,
                Rest::Usage(rest) => {
                    usage = Some(rest);
                    break;
                }
                Rest::Forgotten => unreachable!("so few tokens are kept"),
            }
        }
        heard.extend(usage.map(Event::Usage));
        let starts = heard.iter().filter(|event| matches!(event, Event::Started { .. })).count();
        prop_assert_eq!(starts, 1);
        for choice in 0..choices {
            prop_assert_eq!(of_choice(&heard, choice), of_choice(&whole, choice));
        }
        let Some(Event::Usage(usage)) = heard.last() else { panic!("usage is last: {heard:?}") };
        let Some(Event::Started { cached_tokens, .. }) = heard.first() else { panic!("no start") };
        prop_assert_eq!(usage.cached_tokens, *cached_tokens, "what was said first holds");
        prop_assert_eq!(usage.prompt_tokens, PROMPT_TOKENS);
        prop_assert_eq!(usage.completion_tokens as usize, answers.iter().map(Vec::len).sum::<usize>());
    }
}

#[test]
fn a_worker_that_read_another_prompt_is_refused() {
    let mut ledger = Ledger::new(1);
    assert_eq!(ledger.pass(started(0)), Ok(Some(started(0))));
    assert_eq!(ledger.pass(started(5)), Ok(None));
    let other = Event::Started {
        prompt_tokens: PROMPT_TOKENS + 1,
        cached_tokens: 0,
        prompt_token_ids: Vec::new(),
    };
    assert_eq!(ledger.pass(other).unwrap_err().code, FaultCode::Internal);
}

#[test]
fn tokens_are_kept_up_to_the_bound_and_counted_beyond() {
    let mut ledger = Ledger::new(2);
    ledger.pass(started(0)).unwrap();
    ledger.pass(delta(0, vec![1; TOKENS_KEPT_MAX])).unwrap();
    assert!(matches!(ledger.rest(), Rest::Choices(_)));
    ledger.pass(delta(1, vec![1])).unwrap();
    assert_eq!(ledger.rest(), Rest::Forgotten);
    for choice in 0..2 {
        ledger.pass(finished(choice)).unwrap();
    }
    let Rest::Usage(usage) = ledger.rest() else { panic!("everything was told") };
    assert_eq!(usage.completion_tokens as usize, TOKENS_KEPT_MAX + 1);
}
