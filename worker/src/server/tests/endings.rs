//! How requests end before they are done: the client goes, the deadline comes, the engine fails.

use super::*;

#[tokio::test]
async fn a_client_that_goes_away_cancels_every_choice() {
    let mut scene = scene().await;
    let mut stream = scene.call(Generate { choices: 2, ..request("Go") }).await;
    let first = scene.submitted().await;
    first.start(0);
    first.token(scene.ids("a")[0], None);
    next(&mut stream).await;
    next(&mut stream).await;
    let second = scene.submitted().await;
    drop(stream);
    first.events.closed().await;
    second.events.closed().await;
}

#[tokio::test]
async fn a_deadline_ends_the_request_and_cancels_its_sequence() {
    let mut scene = scene().await;
    let mut request = Request::new(request("Go").into_wire(Epoch(EPOCH)));
    request.metadata_mut().insert("grpc-timeout", "60m".parse().unwrap());
    let mut stream = scene.client.generate(request).await.unwrap().into_inner();
    let sequence = scene.submitted().await;
    let fault = from_status(&stream.message().await.unwrap_err());
    assert_eq!(fault.code, FaultCode::DeadlineExceeded);
    sequence.events.closed().await;
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_outlive_its_deadline() {
    use phalanx_proto::pb::worker_server::Worker as _;
    let (parts, mut submitted, _handles) = parts();
    let service = WorkerService::new(parts);
    let mut request = Request::new(request("Go").into_wire(Epoch(EPOCH)));
    request.metadata_mut().insert("grpc-timeout", "60m".parse().unwrap());
    let unread = service.generate(request).await.unwrap().into_inner();
    let sequence = submitted.recv().await.unwrap();
    sequence.start(0);
    for _ in 0..500 {
        sequence.token(300, None);
    }
    sequence.events.closed().await;
    let heard: Vec<_> = unread.collect().await;
    let Some((Err(status), events)) = heard.split_last() else { panic!("a fault is last") };
    assert_eq!(from_status(status).code, FaultCode::DeadlineExceeded);
    assert!(events.iter().all(Result::is_ok));
}

#[tokio::test]
async fn what_the_engine_refuses_reaches_the_client_as_it_is() {
    let mut scene = scene().await;
    let fault = Fault::new(FaultCode::Overloaded, "1024 sequences wait, the limit")
        .with_retry_after(Duration::from_secs(2));
    for is_told in [true, false] {
        let mut stream = scene.call(request("Go")).await;
        let sequence = scene.submitted().await;
        if is_told {
            sequence.events.send(SequenceEvent::Failed(fault.clone())).unwrap();
        }
        drop(sequence);
        let heard = from_status(&stream.message().await.unwrap_err());
        let gone = Fault::new(FaultCode::Unavailable, "the engine has stopped");
        assert_eq!(heard, if is_told { fault.clone() } else { gone });
    }
}
