//! Which requests are not taken.

use super::*;

#[tokio::test]
async fn calls_routed_by_another_registration_are_refused() {
    let mut scene = scene().await;
    let fault = scene.refusal(request("Go").into_wire(Epoch(EPOCH - 1))).await;
    assert_eq!(fault.code, FaultCode::StaleEpoch);
    assert_eq!(fault.message, "the call was routed by epoch 4, the worker is at 5");
    scene.standing.send_replace(Standing::default());
    let fault = scene.refusal(request("Go").into_wire(Epoch(0))).await;
    assert_eq!(fault.code, FaultCode::Unavailable);
    assert!(fault.retry_after.is_some());
}

#[tokio::test]
async fn requests_that_cannot_be_served_are_refused_by_field() {
    let mut scene = scene().await;
    let long = scene.ids(&"a b ".repeat(40));
    let tokens = |count: usize| Input::Tokens(long[..count].to_vec());
    let max_tokens = |max: u32| Stopping { max_tokens: Some(max), ..Stopping::default() };
    let biased = Sampling { logit_bias: vec![(3072, 1.0)], ..Sampling::default() };
    let stop_ids = Stopping { token_ids: vec![9999], ..Stopping::default() };
    let too_long = FaultCode::ContextLengthExceeded;
    let invalid = FaultCode::InvalidRequest;
    let base = request("Go");
    for (case, code, param) in [
        (Generate { input: tokens(64), ..base.clone() }, too_long, "prompt"),
        (Generate { input: Input::Text("a b ".repeat(90)), ..base.clone() }, too_long, "prompt"),
        (Generate { input: Input::Text("a".repeat(1 << 20)), ..base.clone() }, too_long, "prompt"),
        (
            Generate { input: tokens(60), stopping: max_tokens(5), ..base.clone() },
            too_long,
            "max_tokens",
        ),
        (Generate { input: Input::Tokens(vec![9999]), ..base.clone() }, invalid, "prompt"),
        (Generate { input: Input::Text(String::new()), ..base.clone() }, invalid, "prompt"),
        (Generate { choices: 0, ..base.clone() }, invalid, "n"),
        (Generate { sampling: biased, ..base.clone() }, invalid, "logit_bias"),
        (Generate { stopping: stop_ids, ..base.clone() }, invalid, "stop_token_ids"),
        (
            Generate { model: ModelName::from("other"), ..base.clone() },
            FaultCode::ModelNotFound,
            "model",
        ),
    ] {
        let fault = scene.refusal(case.into_wire(Epoch(EPOCH))).await;
        assert_eq!((fault.code, fault.param.as_deref()), (code, Some(param)), "{fault}");
    }
    let fits = Generate { input: tokens(60), stopping: max_tokens(4), ..base };
    let _stream = scene.call(fits).await;
    assert_eq!(scene.submitted().await.request.max_tokens, 4);
}

#[tokio::test]
async fn open_requests_are_bounded() {
    use phalanx_proto::pb::worker_server::Worker as _;
    let (parts, _submitted, _handles) = parts();
    let service = WorkerService::new(parts);
    let wire = request("Go").into_wire(Epoch(EPOCH));
    let all_but_one = service.parts.seat.open.acquire_many(OPEN_REQUESTS_MAX - 1).await.unwrap();
    let last = service.generate(Request::new(wire.clone())).await.unwrap();
    let Err(status) = service.generate(Request::new(wire.clone())).await else {
        panic!("one more than the bound was taken")
    };
    let fault = from_status(&status);
    assert_eq!(fault.code, FaultCode::Overloaded);
    assert_eq!(fault.retry_after, Some(RETRY_AFTER));
    drop(last);
    // Its place is free once its task has seen that nobody listens.
    drop(service.parts.seat.open.acquire().await.unwrap());
    assert!(service.generate(Request::new(wire)).await.is_ok());
    drop(all_but_one);
}

#[tokio::test]
async fn a_request_gets_places_for_all_its_choices_or_is_refused_before_it_begins() {
    let mut scene = scene().await;
    let stream = scene.call(Generate { choices: PLACES - 1, ..request("Go") }).await;
    let first = scene.submitted().await;
    let two = Generate { choices: 2, ..request("Go") };
    let fault = scene.refusal(two.clone().into_wire(Epoch(EPOCH))).await;
    assert_eq!(fault.code, FaultCode::Overloaded);
    let fault = scene
        .refusal(Generate { choices: PLACES + 1, ..request("Go") }.into_wire(Epoch(EPOCH)))
        .await;
    assert_eq!((fault.code, fault.param.as_deref()), (FaultCode::InvalidRequest, Some("n")));
    drop(stream);
    first.events.closed().await;
    let _stream = scene.call(two).await;
    scene.submitted().await;
}
