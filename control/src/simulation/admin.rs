//! An operator that changes the control group while things go wrong: nodes join, get a vote, lead and leave. What was
//! begun is brought to an end, as its outcome may have been lost.

use std::time::Duration;

use phalanx_chassis::control_client::ControlClient;
use phalanx_proto::change::GroupChange;
use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::NodeId;
use phalanx_proto::pb;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use tokio::time::sleep;

use super::clients::Client;
use super::network::Network;
use super::roster::Roster;
use super::scenario::CALM_FROM_MS;

/// A group of this many outlives one loss: it is not made smaller.
const VOTERS_MIN: usize = 3;

/// What became of a change.
enum Ended {
    Done(NodeId),
    Refused(String),
}

pub(super) async fn admin(client: Client, roster: Roster) {
    let mut rng = client.rng();
    let control = client.control(&mut rng);
    while client.history.now() < CALM_FROM_MS {
        sleep(Duration::from_millis(rng.random_range(300..3000))).await;
        let Ok(status) = control.status().await else {
            control.rotate();
            continue;
        };
        let Some(change) = choose(&status, &roster, &mut rng) else { continue };
        client.history.trace(&change);
        let ended = carry_out(&control, &change, &mut rng).await;
        match (&change, ended) {
            (GroupChange::Add { url }, Ended::Done(node)) => {
                let vacant = roster.vacant();
                if let Some(host) = vacant.into_iter().find(|host| Network::url(*host) == *url) {
                    roster.seat(host, Some(node));
                }
            }
            (GroupChange::Remove(node), Ended::Done(_)) => leave(&roster, *node),
            (GroupChange::Remove(node), Ended::Refused(reason))
                if reason.ends_with("is not in the group") =>
            {
                leave(&roster, *node);
            }
            (_, Ended::Done(node)) => client.history.trace(&("done", node)),
            (_, Ended::Refused(reason)) => client.history.trace(&reason),
        }
    }
    std::future::pending::<()>().await;
}

/// The node is out of the group for good, and its host may take another up.
fn leave(roster: &Roster, node: NodeId) {
    if let Some(host) = roster.host(node) {
        roster.seat(host, None);
    }
}

async fn carry_out(control: &ControlClient, change: &GroupChange, rng: &mut SmallRng) -> Ended {
    loop {
        match control.change_group(change.clone()).await {
            Ok(node) => return Ended::Done(node),
            Err(fault) if fault.code == FaultCode::InvalidRequest => {
                return Ended::Refused(fault.message);
            }
            Err(_unknown) => sleep(Duration::from_millis(rng.random_range(100..1000))).await,
        }
    }
}

fn choose(status: &pb::StatusResponse, roster: &Roster, rng: &mut SmallRng) -> Option<GroupChange> {
    let (voters, learners): (Vec<_>, Vec<_>) =
        status.members.iter().partition(|member| member.role == "voter");
    let mut any = |members: &[&pb::RaftMember]| {
        let at = (!members.is_empty()).then(|| rng.random_range(0..members.len()))?;
        Some(NodeId(members[at].id))
    };
    let (voter, learner) = (any(&voters), any(&learners));
    match rng.random_range(0..8) {
        0..=2 if learner.is_some() => learner.map(GroupChange::Promote),
        3 if learner.is_some() => learner.map(GroupChange::Remove),
        4 => voter.map(GroupChange::Transfer),
        5..=7 if voters.len() > VOTERS_MIN => voter.map(GroupChange::Remove),
        _ => {
            let vacant = roster.vacant();
            let host = vacant.first()?;
            Some(GroupChange::Add { url: Network::url(*host) })
        }
    }
}
