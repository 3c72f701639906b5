//! Who is a member, who drains and who was fenced: control knows it, and every role keeps to it.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_chassis::control_client::ControlClient;
use phalanx_cluster_tests::check::{chat, eventually, serves};
use phalanx_cluster_tests::cluster::Cluster;
use phalanx_proto::change::Change;
use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::{Epoch, MemberId};
use phalanx_proto::pb;
use phalanx_proto::pb::worker_client::WorkerClient;
use phalanx_proto::view::{ClusterView, Member, MemberRole, MemberState};
use phalanx_proto::wire::from_status;
use serde_json::json;

/// How soon everybody must know of a change: a heartbeat and a commit, with room for a busy machine.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// Draining takes as long as the longest stream, and little more.
const EXIT_MAX: Duration = Duration::from_secs(60);

/// Speaks to the control node of a cluster.
struct Operator(ControlClient);

// === impl Operator ===

impl Operator {
    fn of(cluster: &Cluster) -> Result<Self> {
        Ok(Self(ControlClient::new(&[&cluster.control.url])?))
    }

    async fn view(&self) -> Result<ClusterView> {
        Ok(self.0.read_view_stale().await?.view)
    }

    /// The member at an address.
    async fn member(&self, url: &str) -> Result<Option<Member>> {
        let members = self.view().await?.members;
        Ok(members.into_values().find(|member| member.address == url))
    }

    async fn registered(&self, url: &str) -> Result<Member> {
        self.member(url).await?.with_context(|| format!("nobody is registered at {url}"))
    }

    async fn is_gone(&self, url: &str) -> Result<()> {
        eventually("the member is gone", KNOWN_WITHIN, async || {
            Ok(self.member(url).await?.is_none())
        })
        .await
    }
}

/// Who answered a short request.
async fn ask(cluster: &Cluster) -> Result<MemberId> {
    let request = chat("Hello", json!({"max_tokens": 2}));
    let answer = cluster.client.post("/v1/chat/completions", &request).await?;
    answer.good()?;
    Ok(MemberId(answer.header("x-phalanx-worker").context("no x-phalanx-worker")?.parse()?))
}

/// How a worker refuses a call that was routed by `epoch`.
async fn refusal(url: &str, epoch: Epoch) -> Result<FaultCode> {
    let mut worker = WorkerClient::connect(url.to_owned()).await?;
    let request = pb::GenerateRequest { worker_epoch: epoch.0, ..pb::GenerateRequest::default() };
    let status = worker.generate(request).await.err().context("the call was taken")?;
    Ok(from_status(&status).code)
}

#[tokio::test]
async fn a_router_is_a_member_for_as_long_as_it_serves() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let operator = Operator::of(&cluster)?;
    let url = cluster.client.base().to_owned();
    eventually("the router is registered", KNOWN_WITHIN, async || {
        let member = operator.registered(&url).await?;
        Ok(member.role == MemberRole::Router && member.models.is_empty())
    })
    .await?;
    cluster.router.ask_to_end()?;
    ensure!(cluster.router.exit(EXIT_MAX).await?.success(), "the router failed to leave");
    operator.is_gone(&url).await
}

#[tokio::test]
async fn a_draining_worker_is_shown_as_such_until_its_last_stream_is_over() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let operator = Operator::of(&cluster)?;
    let url = cluster.worker.url.clone();
    let fields = json!({"stream": true, "ignore_eos": true, "max_tokens": 600});
    let request = chat("Hello", fields);
    let mut stream = cluster.client.stream("/v1/chat/completions", &request).await?;
    stream.next().await?.context("no first event")?;
    cluster.worker.process.ask_to_end()?;
    eventually("the worker is shown as draining", KNOWN_WITHIN, async || {
        Ok(operator.registered(&url).await?.state == MemberState::Draining)
    })
    .await?;
    stream.rest().await.context("the stream was cut")?;
    ensure!(cluster.worker.process.exit(EXIT_MAX).await?.success(), "the worker failed to leave");
    operator.is_gone(&url).await
}

#[tokio::test]
async fn a_worker_that_an_operator_drains_gets_nothing_new_and_a_fenced_one_comes_back()
-> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let operator = Operator::of(&cluster)?;
    let second = cluster.add_worker("worker-2").await?;
    let url = &cluster.worker.url;
    let Member { id: member_id, epoch, .. } = operator.registered(url).await?;

    // Drained: the router goes by the view, and the worker itself refuses whoever does not know yet.
    operator.0.submit("operator", 1, Change::Drain { member_id, epoch }).await?;
    cluster.until_workers_up(1.0).await?;
    for _ in 0..8 {
        ensure!(ask(&cluster).await? != member_id, "the draining worker was sent a request");
    }
    eventually("the worker knows that it drains", KNOWN_WITHIN, async || {
        Ok(refusal(url, epoch).await? == FaultCode::Draining)
    })
    .await?;

    // Fenced: its next heartbeat is refused, so it registers again, under a higher epoch.
    operator.0.submit("operator", 2, Change::Fence { member_id, epoch }).await?;
    eventually("the worker is registered anew", KNOWN_WITHIN, async || {
        let member = operator.registered(url).await?;
        Ok(member.epoch > epoch && member.state == MemberState::Ready)
    })
    .await?;
    eventually("calls by the old epoch are refused", KNOWN_WITHIN, async || {
        Ok(refusal(url, epoch).await? == FaultCode::StaleEpoch)
    })
    .await?;
    cluster.until_workers_up(2.0).await?;
    let anew = operator.registered(url).await?.id;
    eventually("the worker is used again", KNOWN_WITHIN, async || Ok(ask(&cluster).await? == anew))
        .await?;
    drop(second);
    serves(&cluster.client).await
}
