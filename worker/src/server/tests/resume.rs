//! Requests that another worker began.

use phalanx_proto::generate::ChoiceProgress;

use super::*;
use crate::text::ChoiceText;

fn told(token_ids: &[u32]) -> ChoiceProgress {
    ChoiceProgress { token_ids: token_ids.to_vec(), is_finished: false }
}

fn finished(token_ids: &[u32]) -> ChoiceProgress {
    ChoiceProgress { token_ids: token_ids.to_vec(), is_finished: true }
}

/// The ids of a text that this vocabulary writes with a token per byte, at least here and there.
fn split(scene: &Scene, text: &str, at: usize) -> (Vec<u32>, Vec<u32>) {
    let ids = scene.ids(text);
    assert!(ids.len() > at, "{text} is {ids:?}");
    (ids[..at].to_vec(), ids[at..].to_vec())
}

#[tokio::test]
async fn a_resumed_choice_goes_on_where_it_was_and_tells_nothing_twice() {
    let mut scene = scene().await;
    let (before, after) = split(&scene, "one two three four", 2);
    let generate = Generate { resume: vec![told(&before)], ..request("Go") };
    let stream = scene.call(generate).await;
    let sequence = scene.submitted().await;
    let prompt = scene.ids("Go");
    assert_eq!(sequence.request.prompt.as_ref(), prompt);
    assert_eq!(sequence.request.generated.as_ref(), before);
    // The whole answer's, as at the worker that began it.
    let prompt_tokens = u32::try_from(prompt.len()).unwrap();
    assert_eq!(sequence.request.max_tokens, CONTEXT - prompt_tokens);
    // More than the prompt may be cached.
    sequence.start(prompt_tokens + 1);
    for &id in &after {
        sequence.token(id, None);
    }
    sequence.token(2, Some(TokenFinish::EndToken));
    let (texts, events) = rest(stream).await;
    let passed = scene.text.decode(&before).unwrap();
    assert_eq!(format!("{passed}{}", texts[0]), "one two three four");
    let cached_tokens = prompt_tokens;
    let prompt_token_ids = Vec::new();
    assert_eq!(events[0], Event::Started { prompt_tokens, cached_tokens, prompt_token_ids });
    let completion_tokens = u32::try_from(before.len() + after.len()).unwrap() + 1;
    assert_eq!(events[2], Event::Usage(Usage { prompt_tokens, cached_tokens, completion_tokens }));
}

#[tokio::test]
async fn what_was_held_back_at_the_cut_is_not_lost() {
    let mut scene = scene().await;
    // Half a character, and half a stop string that comes to nothing, or to its end.
    for (text, stop, expected) in [
        ("naïve 你好 🦀 end", None, "naïve 你好 🦀 end"),
        ("six\nUser. more", Some("x\nUser:"), "six\nUser. more"),
        ("six\nUser: more", Some("x\nUser:"), "si"),
    ] {
        for cut in 1..scene.ids(text).len() {
            let (before, after) = split(&scene, text, cut);
            let strings: Vec<String> = stop.into_iter().map(str::to_owned).collect();
            let stopping = Stopping { strings, ..Stopping::default() };
            let mut first = ChoiceText::new(Arc::clone(&scene.text), &[], &stopping);
            let passed: Vec<_> = before.iter().map(|&id| first.push(id)).collect();
            if passed.iter().any(|pushed| pushed.stopped_by.is_some()) {
                continue; // it ended before the cut: the next test's matter
            }
            let mut whole: String = passed.into_iter().map(|pushed| pushed.text).collect();
            let resume = vec![told(&before)];
            let stream = scene.call(Generate { stopping, resume, ..request("Go") }).await;
            let sequence = scene.submitted().await;
            sequence.start(0);
            for &id in &after {
                // The choice may be over already: then nobody hears the rest.
                let _ =
                    sequence.events.send(SequenceEvent::Token { id, logprobs: None, finish: None });
            }
            let finish = Some(TokenFinish::EndToken);
            let _ = sequence.events.send(SequenceEvent::Token { id: 2, logprobs: None, finish });
            let (texts, _) = rest(stream).await;
            whole.extend(texts);
            assert_eq!(whole, expected, "cut after {cut} tokens");
        }
    }
}

#[tokio::test]
async fn a_choice_that_lacks_only_its_end_is_ended_without_the_engine() {
    let mut scene = scene().await;
    let ids = scene.ids("six\nUser:");
    let stop = "x\nUser:".to_owned();
    let strings = Stopping { strings: vec![stop.clone()], ..Stopping::default() };
    let length = u32::try_from(ids.len()).unwrap();
    let length = Stopping { max_tokens: Some(length), ..Stopping::default() };
    let end_token = [&ids[..], &[2]].concat();
    let stop_token = Stopping { token_ids: vec![2], ..Stopping::default() };
    let by_token = Some(StoppedBy::Token(2));
    for (tokens, stopping, reason, stopped_by) in [
        (&ids, strings, FinishReason::Stop, Some(StoppedBy::Text(stop))),
        (&ids, length, FinishReason::Length, None),
        (&end_token, Stopping::default(), FinishReason::Stop, None),
        (&end_token, stop_token, FinishReason::Stop, by_token),
    ] {
        let resume = vec![told(tokens)];
        let stream = scene.call(Generate { stopping, resume, ..request("Go") }).await;
        let (texts, events) = rest(stream).await;
        assert!(texts.is_empty(), "the client has it all");
        assert!(matches!(events[0], Event::Started { cached_tokens: 0, .. }));
        assert_eq!(events[1], Event::Finished { choice: 0, reason, stopped_by });
        let Event::Usage(usage) = events[2] else { panic!("usage is last: {events:?}") };
        assert_eq!(usage.completion_tokens as usize, tokens.len());
    }
    assert!(scene.submitted.try_recv().is_err(), "nothing was drawn");
}

#[tokio::test]
async fn of_several_choices_only_the_open_ones_run() {
    let mut scene = scene().await;
    let ids = scene.ids("a b c");
    let ended = [&ids[..], &[2]].concat();
    let resume = vec![finished(&ids), told(&ended), told(&ids[..1]), told(&[])];
    let sampling = Sampling { seed: 42, ..Sampling::default() };
    let stream = scene.call(Generate { choices: 4, sampling, resume, ..request("Go") }).await;
    let answer = tokio::spawn(rest(stream));
    let third = scene.submitted().await;
    assert_eq!(third.request.generated.as_ref(), &ids[..1]);
    third.start(0);
    third.token(ids[1], Some(TokenFinish::Length));
    let fourth = scene.submitted().await;
    assert!(fourth.request.generated.is_empty());
    assert_ne!(fourth.request.sampling.seed, third.request.sampling.seed);
    fourth.start(0);
    fourth.token(ids[0], Some(TokenFinish::Length));
    let (_, events) = answer.await.unwrap();
    let ends: Vec<u32> = events
        .iter()
        .filter_map(|event| match event {
            Event::Finished { choice, .. } => Some(*choice),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [1, 2, 3], "the first was finished before");
    let Some(Event::Usage(usage)) = events.last() else { panic!("usage is last: {events:?}") };
    let before = ids.len() + ended.len() + 1;
    assert_eq!(usage.completion_tokens as usize, before + 2);
    // Places were taken for the open ones alone.
    let many = Generate {
        choices: PLACES + 1,
        resume: [vec![finished(&[]); 1], vec![told(&[]); PLACES as usize]].concat(),
        ..request("Go")
    };
    let _stream = scene.call(many).await;
    scene.submitted().await;
}

#[tokio::test]
async fn a_resume_that_cannot_be_is_refused() {
    let mut scene = scene().await;
    let ids = scene.ids("a b c");
    let ended = [&[2], &ids[..]].concat();
    let (invalid, too_long) = (FaultCode::InvalidRequest, FaultCode::ContextLengthExceeded);
    for (resume, code) in [
        (vec![told(&ids), told(&ids)], invalid),
        (vec![finished(&ids)], invalid),
        (vec![told(&[9999])], invalid),
        (vec![told(&ended)], invalid),
        (vec![told(&[ids[0]; CONTEXT as usize])], too_long),
    ] {
        let case = Generate { resume, ..request("Go") };
        let fault = scene.refusal(case.into_wire(Epoch(EPOCH))).await;
        assert_eq!((fault.code, fault.param.as_deref()), (code, Some("resume")), "{fault}");
    }
}
