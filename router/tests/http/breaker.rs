//! Which engines are sent requests when some of them fail or lag.

use std::time::Duration;

use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::wire::to_status;
use phalanx_router::{RawBreaker, RawRouter};

use crate::cluster::{Cluster, eventually};
use crate::worker::{FakeWorker, delta, started};

/// Opens after three failures, for a quarter of a second.
fn quick() -> RawRouter {
    let breaker = RawBreaker {
        breaker_failures_in_a_row: Some(3),
        breaker_open_ms: Some(250),
        breaker_open_ms_max: Some(250),
        breaker_probes: Some(1),
        ..RawBreaker::default()
    };
    RawRouter { breaker, ..RawRouter::default() }
}

async fn state(cluster: &Cluster, worker: u64) -> Option<u8> {
    let line = format!("phalanx_breaker_state{{worker=\"{worker}\"}} ");
    let text = cluster.get("/metrics").await.text;
    text.lines().find_map(|text| text.strip_prefix(&line)?.parse().ok())
}

/// Sends requests until `worker` has failed three of them, each time before its first event.
async fn fail_three(cluster: &Cluster, worker: &mut FakeWorker, other: &mut FakeWorker) {
    let gone = to_status(&Fault::new(FaultCode::Unavailable, "gone"));
    let mut failures = 0;
    while failures < 3 {
        let (answer, failed) = tokio::join!(cluster.chat(""), async {
            tokio::select! {
                call = worker.call() => {
                    call.refuse(gone.clone());
                    other.call().await.answer(&["x"]).await;
                    1
                }
                call = other.call() => {
                    call.answer(&["x"]).await;
                    0
                }
            }
        });
        assert_eq!(answer.status, 200, "{}", answer.text);
        failures += failed;
    }
}

#[tokio::test]
async fn a_failing_worker_is_avoided_and_taken_back_by_a_probe() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start_with(quick(), &[&workers[0], &workers[1]]).await;
    let [ill, well] = &mut workers;
    assert_eq!(state(&cluster, 1).await, Some(0));
    fail_three(&cluster, ill, well).await;
    eventually(async || state(&cluster, 1).await == Some(1)).await;
    // One probe, and while it is out nothing else.
    let probed = async {
        loop {
            let (_, probe) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
                tokio::select! {
                    call = ill.call() => {
                        let probe = call.accept();
                        probe.send(started()).await;
                        Some(probe)
                    }
                    call = well.call() => {
                        call.answer(&["x"]).await;
                        None
                    }
                }
            });
            if let Some(probe) = probe {
                return probe;
            }
        }
    };
    // The client of the probe leaves, so it gives no verdict, and another one is due.
    probed.await.cancelled().await;
    assert_eq!(state(&cluster, 1).await, Some(1));
    let answer_at = async |worker: &mut FakeWorker| worker.call().await.answer(&["y"]).await;
    eventually(async || {
        let answer = tokio::join!(cluster.chat(""), async {
            tokio::select! { () = answer_at(ill) => {}, () = answer_at(well) => {} }
        });
        assert_eq!(answer.0.status, 200, "{}", answer.0.text);
        state(&cluster, 1).await == Some(0)
    })
    .await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn streams_that_die_half_way_are_failures() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let raw = RawRouter {
        breaker: RawBreaker { breaker_failures_in_a_row: Some(2), ..RawBreaker::default() },
        ..RawRouter::default()
    };
    let cluster = Cluster::start_with(raw, &[&workers[0], &workers[1]]).await;
    let [ill, well] = &mut workers;
    let dies = async |call: crate::worker::Call| {
        let answering = call.accept();
        answering.send(started()).await;
        answering.send(delta(0, "a", 1)).await;
        answering.fail(to_status(&Fault::new(FaultCode::Internal, "out of memory"))).await;
    };
    eventually(async || {
        let _ = tokio::join!(cluster.chat(""), async {
            tokio::select! {
                call = ill.call() => {
                    dies(call).await;
                    // Its client is answered all the same.
                    well.call().await.answer(&["x"]).await;
                }
                call = well.call() => call.answer(&["x"]).await,
            }
        });
        state(&cluster, 1).await == Some(2)
    })
    .await;
    assert_eq!(state(&cluster, 2).await, Some(0));
    let workers = cluster.get("/admin/workers").await.json()["workers"].clone();
    let shown = |at: usize| format!("{} {}", workers[at]["name"], workers[at]["breaker"]);
    assert_eq!((shown(0).as_str(), shown(1).as_str()), (r#""1" "open""#, r#""2" "closed""#));
    assert_eq!((&workers[1]["up"], &workers[1]["has_room"]), (&true.into(), &true.into()));
    assert_eq!(workers[1]["requests"], 0);
    for _ in 0..4 {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            well.call().await.answer(&["x"]).await;
        });
        assert_eq!(answer.header("x-phalanx-worker"), Some("2"));
    }
    assert!(!ill.has_call());
}

#[tokio::test]
async fn what_clients_cause_ejects_nobody() {
    let mut worker = FakeWorker::start(7);
    let cluster = Cluster::start_with(quick(), &[&worker]).await;
    let causes = [
        FaultCode::InvalidRequest,
        FaultCode::ContextLengthExceeded,
        FaultCode::ModelNotFound,
        FaultCode::Overloaded,
        FaultCode::Draining,
        FaultCode::StaleEpoch,
    ];
    for code in causes.iter().cycle().take(60) {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            let fault = Fault::new(*code, "no").with_retry_after(Duration::from_millis(1));
            worker.call().await.refuse(to_status(&fault));
        });
        assert!(answer.status.as_u16() >= 400);
    }
    // Clients that leave, and such as give no time.
    for _ in 0..10 {
        let (live, answering) = tokio::join!(cluster.open_chat(r#""stream":true"#), async {
            let answering = worker.call().await.accept();
            answering.send(started()).await;
            answering
        });
        drop(live);
        answering.cancelled().await;
        let timeout = [("x-request-timeout-ms", "20")];
        let body = crate::cluster::chat_body("");
        let (answer, ()) = tokio::join!(
            cluster.send(http::Method::POST, "/v1/chat/completions", &timeout, body),
            async { worker.call().await.accept().cancelled().await }
        );
        answer.assert_error(408, "deadline_exceeded");
    }
    assert_eq!(state(&cluster, 1).await, Some(0));
    cluster.assert_idle().await;
}

#[tokio::test]
async fn when_all_fail_all_are_tried() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start_with(quick(), &[&workers[0], &workers[1]]).await;
    let [first, second] = &mut workers;
    let gone = to_status(&Fault::new(FaultCode::Unavailable, "gone"));
    for _ in 0..6 {
        let (answer, ()) = tokio::join!(cluster.chat(""), async {
            let refuse = async |worker: &mut FakeWorker| worker.call().await.refuse(gone.clone());
            tokio::join!(refuse(first), refuse(second));
        });
        answer.assert_error(503, "unavailable");
    }
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_worker_that_lags_far_behind_its_peers_is_ejected() {
    let mut workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let [slow, fast] = &mut workers;
    let serve = async |worker: &mut FakeWorker, lag: Duration| {
        loop {
            let call = worker.call().await;
            // What a slow engine is.
            tokio::time::sleep(lag).await;
            call.answer(&["x"]).await;
        }
    };
    let clients = async {
        let until_out = async || {
            while state(&cluster, 1).await != Some(2) {
                assert_eq!(cluster.chat("").await.status, 200);
            }
        };
        tokio::join!(until_out(), until_out(), until_out(), until_out());
    };
    tokio::select! {
        () = clients => {}
        () = serve(slow, Duration::from_millis(200)) => {}
        () = serve(fast, Duration::from_millis(1)) => {}
    }
    assert_eq!(state(&cluster, 2).await, Some(0));
}
