//! What the worker says of itself, and how it leaves.

use super::*;

#[tokio::test]
async fn a_draining_worker_finishes_what_it_has_refuses_the_rest_and_ends() {
    let mut scene = scene().await;
    let mut stream = scene.call(request("Go")).await;
    let sequence = scene.submitted().await;
    let mut feed = scene.client.events(pb::EventsRequest {}).await.unwrap().into_inner();
    feed.message().await.unwrap().expect("the load now");
    sequence.start(0);
    next(&mut stream).await;
    scene.drain.advance(Phase::Draining);
    let fault = scene.refusal(request("Go").into_wire(Epoch(EPOCH))).await;
    assert_eq!(fault.code, FaultCode::Draining);
    let report = feed.message().await.unwrap().expect("the feed says so");
    let Some(pb::worker_event::Event::Load(load)) = report.event else { panic!("no load") };
    assert!(load.draining);
    sequence.token(2, Some(TokenFinish::EndToken));
    let (_, events) = rest(stream).await;
    assert!(matches!(events.last(), Some(Event::Usage(_))), "{events:?}");
    while feed.message().await.unwrap().is_some() {}
    scene.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn load_reports_are_numbered_within_an_epoch_and_come_without_news_too() {
    let (parts, _submitted, (_text, load, standing, _drain)) = parts();
    tokio::time::pause();
    let closed = watch::Sender::new(false);
    let feed = LoadFeed {
        load: parts.seat.load(),
        chunks: parts.seat.chunks(),
        standing: parts.standing.clone(),
        drain: parts.drain.clone(),
        closed: closed.subscribe(),
    };
    let mut reports = Box::pin(feed.into_events());
    let started = Instant::now();
    let mut seen = Vec::new();
    for step in 1..=4u32 {
        let report = reports.next().await.unwrap();
        let Some(pb::worker_event::Event::Load(shown)) = report.event else { panic!("no load") };
        let elapsed = (started.elapsed().as_millis() / 50) * 50;
        seen.push((report.worker_epoch, report.sequence, shown.running, elapsed));
        match step {
            1 => {
                // Many changes, one report.
                for running in 1..=3 {
                    load.send_replace(EngineLoad { running, ..EngineLoad::default() });
                }
            }
            2 => {}
            _ => {
                standing.send_modify(|standing| standing.epoch = Epoch(9));
            }
        }
    }
    // At once; the change after the gap; no news for 100 ms; the new epoch, numbered from 1.
    assert_eq!(seen, [(5, 1, 0, 0), (5, 2, 3, 50), (5, 3, 3, 150), (9, 1, 3, 200)]);
    closed.send_replace(true);
    assert!(reports.next().await.is_none());
}

#[tokio::test]
async fn a_worker_that_was_told_to_drain_says_so_and_takes_nothing_until_it_is_registered_anew() {
    let mut scene = scene().await;
    let mut feed = scene.client.events(pb::EventsRequest {}).await.unwrap().into_inner();
    let draining = async |feed: &mut Streaming<pb::WorkerEvent>| {
        let report = feed.message().await.unwrap().expect("the feed goes on");
        let Some(pb::worker_event::Event::Load(load)) = report.event else { panic!("no load") };
        load.draining
    };
    assert!(!draining(&mut feed).await);
    let state = MemberState::Draining;
    scene.standing.send_replace(Standing { epoch: Epoch(EPOCH), state });
    while !draining(&mut feed).await {}
    let fault = scene.refusal(request("Go").into_wire(Epoch(EPOCH))).await;
    assert_eq!(fault.code, FaultCode::Draining);
    let epoch = Epoch(EPOCH + 1);
    scene.standing.send_replace(Standing { epoch, state: MemberState::Ready });
    while draining(&mut feed).await {}
    scene.client.generate(request("Go").into_wire(epoch)).await.unwrap();
    scene.submitted().await;
}

#[tokio::test]
async fn a_model_that_leaves_finishes_its_requests_and_takes_no_more() {
    let mut scene = scene().await;
    let mut stream = scene.call(request("Go")).await;
    let sequence = scene.submitted().await;
    sequence.start(0);
    next(&mut stream).await;
    scene.seat.close();
    let fault = scene.refusal(request("Go").into_wire(Epoch(EPOCH))).await;
    assert_eq!(fault.code, FaultCode::Unavailable);
    assert_eq!(fault.message, "this worker serves no model now");
    let seat = scene.seat.clone();
    let idle = tokio::spawn(async move { seat.idle().await });
    sequence.token(2, Some(TokenFinish::EndToken));
    let (_, events) = rest(stream).await;
    assert!(matches!(events.last(), Some(Event::Usage(_))), "{events:?}");
    idle.await.unwrap();
    // With its last request the model is gone, and its engine with it.
    assert!(scene.submitted.recv().await.is_none());
}
