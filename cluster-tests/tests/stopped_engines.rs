//! Three of ten engines stop under load, their connections open: no request outlives its deadline, nearly all are
//! answered, and nothing is left behind.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use http::Method;
use phalanx_cluster_tests::check::{eventually, measured};
use phalanx_cluster_tests::client::Client;
use phalanx_cluster_tests::control_group::ControlGroup;
use phalanx_cluster_tests::engines::{Engines, chat};
use tokio::sync::watch;

/// How long engines may take to be reached and to notice, on a busy machine.
const NOTICED_MAX: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(4);
const OUTLIVED_MAX: Duration = Duration::from_secs(1);
const CLIENTS: usize = 20;
const REQUESTS_EACH: usize = 30;
/// When the engines stop, in requests of the first client.
const STOP_AFTER: usize = 8;

/// Some tenths of a second of decoding, so that every engine has streams when it stops.
const PACE: [&str; 4] = ["--decode-base-ms", "10", "--prefill-rate", "100000"];

async fn native(control: &ControlGroup, name: &str, engines: &str) -> Result<Engines> {
    let urls = control.urls().join(",");
    let options = ["--native", "--control", &urls, "--engines", engines];
    Engines::start(control.folder(), name, &[&PACE[..], &options].concat()).await
}

/// The status of a request, and how long it took.
async fn ask(client: &Client, text: &str) -> Result<(u16, Duration)> {
    let timeout = DEADLINE.as_millis().to_string();
    let headers = [("content-type", "application/json"), ("x-request-timeout-ms", &timeout)];
    let body = Bytes::from(chat(text, 20).to_string());
    let sent = Instant::now();
    let answer = client.send(Method::POST, "/v1/chat/completions", &headers, body).await?;
    Ok((answer.status, sent.elapsed()))
}

#[tokio::test]
async fn no_request_outlives_its_deadline_when_three_of_ten_engines_stop() -> Result<()> {
    let control = ControlGroup::start(1).await?;
    let staying = native(&control, "staying", "7").await?;
    let stopping = native(&control, "stopping", "3").await?;
    let (_router, url) = control.start_role(None, "router", &["router"]).await?;
    let router = Client::new(&url);
    eventually("the router reaches all engines", NOTICED_MAX, async || {
        Ok(router.metrics().await?.sum("phalanx_workers_up")? == 10.0)
    })
    .await?;

    let progress = watch::Sender::new(0);
    let load = try_join_all((0..CLIENTS).map(|client| {
        let (router, progress) = (&router, &progress);
        async move {
            let mut answers = Vec::new();
            for request in 0..REQUESTS_EACH {
                answers.push(ask(router, &format!("{client} asks {request}")).await?);
                if client == 0 {
                    progress.send_replace(request);
                }
            }
            anyhow::Ok(answers)
        }
    }));
    let stop = async {
        progress.subscribe().wait_for(|done| *done >= STOP_AFTER).await?;
        stopping.process.pause()
    };
    let (answers, stopped) = tokio::join!(load, stop);
    stopped?;
    let answers = answers?.concat();

    let longest = answers.iter().map(|(_, took)| *took).max().context("no answers")?;
    let good = answers.iter().filter(|(status, _)| *status == 200).count();
    measured("longest request when 3 of 10 engines stop", longest);
    measured("requests answered", format!("{good} of {}", answers.len()));
    ensure!(longest <= DEADLINE + OUTLIVED_MAX, "a request took {longest:?}");
    ensure!(good * 100 >= answers.len() * 99, "{good} of {} were answered", answers.len());
    for gauge in ["phalanx_inflight_requests", "phalanx_dispatched_requests", "phalanx_queue_depth"]
    {
        eventually(gauge, NOTICED_MAX, async || Ok(router.metrics().await?.sum(gauge)? == 0.0))
            .await?;
    }
    stopping.process.go_on()?;
    for engines in [&staying, &stopping] {
        for engine in 0..engines.urls.len() {
            eventually("the engine has nothing left", NOTICED_MAX, async || {
                engines.is_idle(engine).await?;
                Ok(true)
            })
            .await?;
        }
    }
    Ok(())
}
