//! Who calls the control plane: workers that stay registered, a router that follows the view, operators that
//! change aliases and fence members. They use the clients that the real ones use.

use std::time::Duration;

use phalanx_chassis::control_client::{ControlClient, Registered};
use phalanx_chassis::watch::ViewWatch;
use phalanx_proto::change::{Change, Registration, WatchEvent};
use phalanx_proto::fault::{Fault, FaultCode};
use phalanx_proto::id::{Lineage, ViewIndex};
use phalanx_proto::view::{Alias, AliasTarget, Capacity, MemberRole, ServedModel};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{sleep, timeout};

use super::history::{Asked, History, Seen, Told};
use super::network::{HostId, Network};
use super::ranks;
use super::scenario::DEPLOYMENTS_UNTIL_MS;
use crate::peers::Line;

/// What workers serve.
const MODEL: &str = "m";

/// Names that operators fight over.
const ALIASES: [&str; 3] = ["a0", "a1", "a2"];

/// What is to be placed, over at most this many devices, of which each worker has some.
const DEPLOYMENTS: [&str; 2] = ["d0", "d1"];
const TP_MAX: u32 = 3;
const DEVICES: u32 = 2;

/// How often an operator repeats a command before it gives it up.
const ATTEMPTS_MAX: usize = 6;

/// Silence after which a watcher looks for another node, as a router's.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// One process outside the control plane.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// Where control nodes may be.
    pub(super) control: Vec<HostId>,
    pub(super) host: HostId,
    pub(super) incarnation: u64,
    pub(super) seed: u64,
    pub(super) network: Network,
    pub(super) history: History,
}

impl Client {
    pub(super) fn control(&self, rng: &mut SmallRng) -> ControlClient {
        let mut hosts = self.control.clone();
        let first = rng.random_range(0..hosts.len());
        hosts.rotate_left(first);
        let urls: Vec<String> = hosts.into_iter().map(Network::url).collect();
        let connect = |endpoint: &_| self.network.channel(self.host, endpoint, Line::Service);
        ControlClient::with_connect(&urls, connect).unwrap().with_jitter(rng.random())
    }

    pub(super) fn rng(&self) -> SmallRng {
        SmallRng::seed_from_u64(self.seed ^ (self.host << 32) ^ (self.incarnation << 48))
    }

    /// Submits a command until it is answered for good or given up.
    pub(super) async fn submit(
        &self,
        control: &ControlClient,
        rng: &mut SmallRng,
        (name, sequence): (&str, u64),
        change: Change,
    ) {
        let asked = Asked::Submit { client: name.to_owned(), sequence, change: change.clone() };
        let call = self.history.began(asked);
        for _attempt in 0..ATTEMPTS_MAX {
            match control.submit(name, sequence, change.clone()).await {
                Ok(index) => return self.history.ended(call, Told::Applied { index }),
                Err(fault) if is_final(&fault) => {
                    return self.history.ended(call, Told::Refused);
                }
                Err(_lost) => sleep(Duration::from_millis(rng.random_range(20..500))).await,
            }
        }
    }
}

/// Registers, sends heartbeats, and registers again when it was fenced.
pub(super) async fn worker(client: Client) {
    let mut rng = client.rng();
    let control = client.control(&mut rng);
    let address = format!("http://w{}:9000", client.host);
    let instance = format!("w{} {}", client.host, client.incarnation);
    let registration = Registration {
        instance: instance.clone(),
        role: MemberRole::Worker,
        address: address.clone(),
        zone: String::new(),
        models: vec![ServedModel {
            name: MODEL.into(),
            revision: "r".into(),
            context_tokens_max: 2048,
            kv_tokens_max: 4096,
        }],
        capacity: Capacity { devices: DEVICES, memory_bytes: 1 << 30 },
    };
    let watch = ViewWatch::start(client.control(&mut rng), None);
    loop {
        let asked = Asked::Register { address: address.clone(), instance: instance.clone() };
        let call = client.history.began(asked);
        let Ok(registered) = control.register(registration.clone()).await else {
            sleep(Duration::from_millis(rng.random_range(100..1000))).await;
            continue;
        };
        let Registered { member_id, epoch, .. } = registered;
        client.history.ended(call, Told::Registered { member_id, epoch });
        tokio::select! {
            biased;
            () = heartbeats(&client, &control, &registered) => {}
            () = ranks::serve(&client, &control, watch.view(), &registered, &mut rng) => {}
        }
    }
}

/// Keeps a registration until it no longer holds.
async fn heartbeats(client: &Client, control: &ControlClient, registered: &Registered) {
    let Registered { member_id, epoch, heartbeat_every, .. } = *registered;
    loop {
        sleep(heartbeat_every).await;
        let call = client.history.began(Asked::Heartbeat { member_id, epoch });
        match control.heartbeat(member_id, epoch).await {
            Ok(_state) => client.history.ended(call, Told::Alive),
            Err(fault) if fault.code == FaultCode::StaleEpoch => {
                return client.history.ended(call, Told::Refused);
            }
            Err(_lost) => {}
        }
    }
}

/// Follows the view twice: event by event, and with the follower that routers use.
pub(super) async fn router(client: Client) {
    let mut rng = client.rng();
    let control = client.control(&mut rng);
    let watch = ViewWatch::start(control, None);
    let follower = async {
        let mut view = watch.view();
        while view.changed().await.is_ok() {
            let seen = view.borrow_and_update().clone();
            client.history.saw("follower", Seen::View(seen));
        }
    };
    let mut other = client.rng();
    let control = client.control(&mut other);
    tokio::join!(follower, watcher(&client, &control, &mut rng));
}

/// Takes every event, and goes on at another node from where it was cut off.
async fn watcher(client: &Client, control: &ControlClient, rng: &mut SmallRng) {
    let (mut lineage, mut after) = (Lineage::default(), ViewIndex::default());
    loop {
        if let Ok(mut stream) = control.watch(lineage, after).await {
            // It leaves by itself at times: resuming is what goes wrong.
            let mut patience: u32 = rng.random_range(1..40);
            while let Ok(Ok(Some(event))) = timeout(SILENCE_MAX, stream.next()).await {
                match &event {
                    WatchEvent::Snapshot(view) => (lineage, after) = (view.lineage, view.index),
                    WatchEvent::Delta(delta) => after = delta.index,
                    WatchEvent::Bookmark(index) => after = *index,
                }
                client.history.saw("watcher", Seen::Event(Box::new(event)));
                patience -= 1;
                if patience == 0 {
                    break;
                }
            }
        }
        control.rotate();
        sleep(Duration::from_millis(rng.random_range(20..500))).await;
    }
}

/// Changes aliases and deployments and fences members, each command until it is answered for good or given up.
pub(super) async fn operator(client: Client) {
    let mut rng = client.rng();
    let control = client.control(&mut rng);
    let name = format!("operator {} {}", client.host, client.incarnation);
    for sequence in 1.. {
        sleep(Duration::from_millis(rng.random_range(50..600))).await;
        let change = choose(&client, &mut rng, sequence);
        client.submit(&control, &mut rng, (&name, sequence), change).await;
    }
}

fn is_final(fault: &Fault) -> bool {
    use FaultCode::{InvalidRequest, ModelNotFound, StaleEpoch};
    matches!(fault.code, StaleEpoch | InvalidRequest | ModelNotFound)
}

fn choose(client: &Client, rng: &mut SmallRng, sequence: u64) -> Change {
    let name = ALIASES[rng.random_range(0..ALIASES.len())];
    let registered = client.history.read(|records| {
        records.era.calls.values().rev().find_map(|call| match call.answer {
            Some((_at, Told::Registered { member_id, epoch })) => Some((member_id, epoch)),
            _ => None,
        })
    });
    let deployment = DEPLOYMENTS[rng.random_range(0..DEPLOYMENTS.len())];
    let is_settled = client.history.now() >= DEPLOYMENTS_UNTIL_MS;
    match (rng.random_range(0..12), registered) {
        (0, Some((member_id, epoch))) if !is_settled => Change::Fence { member_id, epoch },
        (10, _) if !is_settled => Change::SetDeployment {
            name: deployment.into(),
            revision: ["r0", "r1"][rng.random_range(0..2)].into(),
            replicas: rng.random_range(0..3),
            tp: rng.random_range(1..=TP_MAX),
        },
        (11, _) if !is_settled && rng.random_ratio(1, 4) => {
            Change::RemoveDeployment(deployment.into())
        }
        (1..=3, _) => Change::RemoveAlias(name.into()),
        _ => {
            // No two commands say the same.
            let weight = u32::try_from(client.host * 1000 + sequence).unwrap();
            let targets = vec![AliasTarget { model: MODEL.into(), revision: None, weight }];
            Change::SetAlias(Alias { name: name.into(), targets, shadow: None, previous: None })
        }
    }
}
