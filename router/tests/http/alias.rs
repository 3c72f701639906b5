//! One name for several models: by weight, by session, and with a shadow.

use http::Method;
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::view::{Alias, AliasTarget, ViewOp};
use phalanx_proto::wire::to_status;

use crate::cluster::{Answer, Cluster, chat_body, eventually};
use crate::worker::{FakeWorker, finished, started, usage};

const CHAT: &str = "/v1/chat/completions";
/// Copies that may be in progress at once.
const SHADOWS_MAX: usize = 64;

fn target(revision: &str, weight: u32) -> AliasTarget {
    AliasTarget { model: "demo".into(), revision: Some(revision.into()), weight }
}

/// Workers 1 and 2, at revisions `one` and `two`, behind the alias `best`.
async fn scene(
    targets: Vec<AliasTarget>,
    shadow: Option<AliasTarget>,
) -> (Cluster, [FakeWorker; 2]) {
    let workers = [FakeWorker::start(7), FakeWorker::start(8)];
    let cluster = Cluster::start(&[]).await;
    cluster.put_at_revision(1, &workers[0], "one");
    cluster.put_at_revision(2, &workers[1], "two");
    cluster.change(ViewOp::PutAlias(Alias {
        name: "best".into(),
        targets,
        shadow,
        previous: None,
    }));
    cluster.until_up(2).await;
    (cluster, workers)
}

async fn ask(cluster: &Cluster, headers: &[(&str, &str)], extra: &str) -> Answer {
    let body = chat_body(extra).replace("demo", "best");
    cluster.send(Method::POST, CHAT, headers, body).await
}

/// Asks once, and answers at whichever worker is asked: the answer, and who gave it.
async fn ask_either(
    cluster: &Cluster,
    workers: &mut [FakeWorker; 2],
    headers: &[(&str, &str)],
    extra: &str,
) -> (Answer, usize) {
    let [first, second] = workers;
    tokio::join!(ask(cluster, headers, extra), async {
        let (call, who) =
            tokio::select! { call = first.call() => (call, 1), call = second.call() => (call, 2) };
        call.answer(&["x"]).await;
        who
    })
}

async fn counts(cluster: &Cluster, result: &str, count: usize) {
    let line = format!("phalanx_shadow_requests_total{{result=\"{result}\"}} {count}\n");
    eventually(async || cluster.get("/metrics").await.text.contains(&line)).await;
}

#[tokio::test]
async fn a_session_stays_at_one_target_and_the_answer_says_which() {
    let (cluster, mut workers) = scene(vec![target("one", 1), target("two", 1)], None).await;
    let mut seen = [0; 3];
    for session in 0..16 {
        let name = format!("session-{session}");
        let headers = [("x-session-id", name.as_str())];
        let (answer, who) = ask_either(&cluster, &mut workers, &headers, "").await;
        let served = ["", "demo@one", "demo@two"][who];
        assert_eq!(answer.header("x-phalanx-model"), Some(served));
        assert_eq!(answer.json()["model"], "best");
        // A user without a session is one session; its name is the same key.
        let user = format!(r#""user":"{name}""#);
        let (_, again) = ask_either(&cluster, &mut workers, &[], &user).await;
        assert_eq!(again, who, "{name} was moved");
        seen[who] += 1;
    }
    assert!(seen[1] > 0 && seen[2] > 0, "16 sessions went to {seen:?}");
    workers[0].kill();
    cluster.until_up(1).await;
    for session in 0..16 {
        let name = format!("session-{session}");
        let call = workers[1].call();
        let headers = [("x-session-id", name.as_str())];
        let answer = ask(&cluster, &headers, "");
        let (answer, ()) = tokio::join!(answer, async { call.await.answer(&["x"]).await });
        assert_eq!(answer.header("x-phalanx-model"), Some("demo@two"));
    }
    cluster.assert_idle().await;
}

#[tokio::test]
async fn a_shadow_gets_a_copy_that_outlives_the_client_and_fails_nothing() {
    let (cluster, [mut main, mut shadow]) =
        scene(vec![target("one", 1)], Some(target("two", 1))).await;
    // The client has its whole answer before the shadow has begun.
    let (answer, request) = tokio::join!(ask(&cluster, &[], ""), async {
        let call = main.call().await;
        let request = call.request.clone();
        call.answer(&["x"]).await;
        request
    });
    assert_eq!(answer.header("x-phalanx-model"), Some("demo@one"));
    let copy = shadow.call().await;
    assert_eq!((&copy.request.input, &copy.request.sampling), (&request.input, &request.sampling));
    assert_eq!((copy.request.model.as_str(), copy.request.worker_epoch), ("demo", 8));
    let copying = copy.accept();
    copying.send(started()).await;
    copying.send(finished(0)).await;
    copying.send(usage(1)).await;
    counts(&cluster, "answered", 1).await;

    let fault = Fault::new(FaultCode::Internal, "out of memory");
    let (answer, ()) = tokio::join!(ask(&cluster, &[], ""), async {
        main.call().await.answer(&["x"]).await;
        shadow.call().await.refuse(to_status(&fault));
    });
    assert_eq!(answer.status, 200);
    counts(&cluster, "failed", 1).await;

    let (answer, ()) =
        tokio::join!(ask(&cluster, &[("x-request-timeout-ms", "1500")], ""), async {
            main.call().await.answer(&["x"]).await;
        });
    assert_eq!(answer.status, 200);
    shadow.call().await.accept().cancelled().await;
    counts(&cluster, "deadline_exceeded", 1).await;

    shadow.kill();
    cluster.until_up(1).await;
    let (answer, ()) = tokio::join!(ask(&cluster, &[], ""), async {
        main.call().await.answer(&["x"]).await;
    });
    assert_eq!(answer.status, 200);
    counts(&cluster, "no_worker", 1).await;
    cluster.assert_idle().await;
}

#[tokio::test]
async fn copies_beyond_the_bound_are_dropped() {
    let (cluster, [mut main, mut shadow]) =
        scene(vec![target("one", 1)], Some(target("two", 1))).await;
    let mut held = Vec::new();
    for _ in 0..SHADOWS_MAX {
        let (answer, ()) = tokio::join!(ask(&cluster, &[], ""), async {
            main.call().await.answer(&["x"]).await;
        });
        assert_eq!(answer.status, 200);
        held.push(shadow.call().await.accept());
    }
    let (answer, ()) = tokio::join!(ask(&cluster, &[], ""), async {
        main.call().await.answer(&["x"]).await;
    });
    assert_eq!(answer.status, 200);
    counts(&cluster, "dropped", 1).await;
    assert!(!shadow.has_call());
    drop(held);
    counts(&cluster, "failed", SHADOWS_MAX).await;
    cluster.assert_idle().await;
}
