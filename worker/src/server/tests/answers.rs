//! What a request is answered with.

use super::*;

#[tokio::test]
async fn a_request_is_answered_in_order_and_the_end_token_has_no_text() {
    let mut scene = scene().await;
    let ids = scene.ids("Hello there");
    let mut stream = scene
        .call(Generate { return_token_ids: true, top_logprobs: Some(1), ..request("Say hello") })
        .await;
    let sequence = scene.submitted().await;
    let prompt = scene.ids("Say hello");
    assert_eq!(sequence.request.prompt.as_ref(), prompt);
    assert_eq!(sequence.request.end_tokens.as_ref(), [2, 0]);
    let prompt_tokens = u32::try_from(prompt.len()).unwrap();
    assert_eq!(sequence.request.max_tokens, CONTEXT - prompt_tokens);
    sequence.start(1);
    let started = Event::Started { prompt_tokens, cached_tokens: 1, prompt_token_ids: prompt };
    assert_eq!(next(&mut stream).await, started);
    let mut text = String::new();
    for &id in &ids {
        let logprobs = Some(Logprobs { chosen: -0.5, top: vec![(2, -0.25)] });
        sequence.events.send(SequenceEvent::Token { id, logprobs, finish: None }).unwrap();
        let Event::Delta(delta) = next(&mut stream).await else { panic!("a token is a delta") };
        assert_eq!(delta.token_ids, [id]);
        assert_eq!(delta.logprobs[0].chosen.token, scene.text.token_bytes(id));
        assert_eq!(delta.logprobs[0].top[0].token, b"<|im_end|>");
        text.push_str(&delta.text);
    }
    assert_eq!(text, "Hello there");
    sequence.token(2, Some(TokenFinish::EndToken));
    let Event::Delta(last) = next(&mut stream).await else { panic!("the end token is a delta") };
    assert_eq!((last.text.as_str(), last.token_ids), ("", vec![2]));
    let finished = Event::Finished { choice: 0, reason: FinishReason::Stop, stopped_by: None };
    assert_eq!(next(&mut stream).await, finished);
    let completion_tokens = u32::try_from(ids.len()).unwrap() + 1;
    let usage = Usage { prompt_tokens, cached_tokens: 1, completion_tokens };
    assert_eq!(next(&mut stream).await, Event::Usage(usage));
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_stop_string_across_tokens_ends_the_choice_and_cancels_its_sequence() {
    let mut scene = scene().await;
    let stopping = Stopping { strings: vec!["x\nUser:".to_owned()], ..Stopping::default() };
    let stream = scene.call(Generate { stopping, ..request("Go") }).await;
    let sequence = scene.submitted().await;
    sequence.start(0);
    let ids = scene.ids("six\nUser: more");
    let answer = tokio::spawn(rest(stream));
    for &id in &ids {
        // The choice may be over already: then nobody hears the rest.
        let _ = sequence.events.send(SequenceEvent::Token { id, logprobs: None, finish: None });
    }
    sequence.events.closed().await;
    let (texts, events) = answer.await.unwrap();
    assert_eq!(texts, ["si"]);
    let stopped_by = Some(StoppedBy::Text("x\nUser:".to_owned()));
    assert_eq!(events[1], Event::Finished { choice: 0, reason: FinishReason::Stop, stopped_by });
    let Event::Usage(usage) = events[2] else { panic!("usage is last: {events:?}") };
    let until_stop = u32::try_from(scene.ids("six\nUser:").len()).unwrap();
    assert_eq!(usage.completion_tokens, until_stop);
}

#[tokio::test]
async fn a_stop_token_of_the_client_is_named_and_the_length_is_a_reason() {
    let mut scene = scene().await;
    let id = scene.ids(" there")[0];
    for (finish, reason, stopped_by) in [
        (TokenFinish::EndToken, FinishReason::Stop, Some(StoppedBy::Token(id))),
        (TokenFinish::Length, FinishReason::Length, None),
    ] {
        let stopping = Stopping { token_ids: vec![id], ignore_eos: true, ..Stopping::default() };
        let stream = scene.call(Generate { stopping, ..request("Go") }).await;
        let sequence = scene.submitted().await;
        assert_eq!(sequence.request.end_tokens.as_ref(), [id]);
        sequence.start(0);
        sequence.token(id, Some(finish));
        let (_, events) = rest(stream).await;
        assert_eq!(events[1], Event::Finished { choice: 0, reason, stopped_by });
    }
}

#[tokio::test]
async fn further_choices_wait_for_the_first_token_and_have_seeds_of_their_own() {
    let mut scene = scene().await;
    let sampling = Sampling { seed: 42, ..Sampling::default() };
    let stream = scene.call(Generate { choices: 3, sampling, ..request("Go") }).await;
    let answer = tokio::spawn(rest(stream));
    let first = scene.submitted().await;
    first.start(0);
    assert!(scene.submitted.try_recv().is_err(), "the prefix is not computed yet");
    let id = scene.ids("a")[0];
    first.token(id, None);
    let (second, third) = (scene.submitted().await, scene.submitted().await);
    let mut seeds: Vec<u64> =
        [&first, &second, &third].map(|sequence| sequence.request.sampling.seed).to_vec();
    assert_eq!(seeds[0], 42);
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 3);
    for sequence in [&third, &second] {
        sequence.start(9);
        sequence.token(id, Some(TokenFinish::Length));
    }
    first.token(id, Some(TokenFinish::Length));
    let (texts, events) = answer.await.unwrap();
    assert_eq!(texts, ["aa", "a", "a"]);
    let started = events.iter().filter(|event| matches!(event, Event::Started { .. })).count();
    assert_eq!(started, 1);
    let Some(Event::Usage(usage)) = events.last() else { panic!("usage is last: {events:?}") };
    assert_eq!((usage.cached_tokens, usage.completion_tokens), (0, 4));
}
