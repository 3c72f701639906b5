//! What a worker does for the groups that it is placed in: rank 0 says where to meet, every rank says that it is ready,
//! and at times one gives its group up.

use std::sync::Arc;
use std::time::Duration;

use phalanx_chassis::control_client::{ControlClient, Registered};
use phalanx_proto::change::Change;
use phalanx_proto::view::{ClusterView, GroupState, Rendezvous};
use rand::RngExt as _;
use rand::rngs::SmallRng;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::clients::Client;
use super::scenario::CALM_FROM_MS;

/// A report whose effect is not seen is made again after this time.
const REPORT_EVERY: Duration = Duration::from_millis(700);

/// Of so many looks at a group that serves, one ends with giving it up.
const LOOKS_PER_LOSS: u32 = 40;

/// Serves as a rank for as long as the registration holds.
pub(super) async fn serve(
    client: &Client,
    control: &ControlClient,
    mut view: watch::Receiver<Arc<ClusterView>>,
    registered: &Registered,
    rng: &mut SmallRng,
) {
    let name = format!("ranks {} {} {}", client.host, client.incarnation, registered.epoch);
    for sequence in 1.. {
        let change = loop {
            let now = Arc::clone(&view.borrow_and_update());
            if let Some(change) = next(client, &now, registered, rng) {
                break change;
            }
            if view.changed().await.is_err() {
                return;
            }
        };
        // Loading, or what else takes its time.
        sleep(Duration::from_millis(rng.random_range(5..300))).await;
        client.submit(control, rng, (&name, sequence), change).await;
        // Nothing more is known until the view shows it; if it does not, it is said again.
        let _ = timeout(REPORT_EVERY, view.changed()).await;
    }
}

/// What is to be said next, if anything.
fn next(
    client: &Client,
    view: &ClusterView,
    registered: &Registered,
    rng: &mut SmallRng,
) -> Option<Change> {
    let is_here = |rank: &_| *rank == (registered.member_id, registered.epoch);
    let is_calm = client.history.now() >= CALM_FROM_MS;
    for group in view.groups.values() {
        let reference = group.reference();
        let here = group.ranks.iter().map(|rank| (rank.member_id, rank.member_epoch));
        for (rank, _here) in (0..).zip(here).filter(|(_rank, member)| is_here(member)) {
            match (group.state, &group.rendezvous) {
                // Drawn anew each time: what was said before may have been heard, and must then hold.
                (GroupState::Forming, None) if rank == 0 => {
                    let drawn: u64 = rng.random();
                    let rendezvous = Rendezvous::try_from(drawn.to_be_bytes().to_vec());
                    let rendezvous = rendezvous.expect("eight bytes are few enough");
                    return Some(Change::PublishRendezvous { group: reference, rendezvous });
                }
                (GroupState::Forming, Some(rendezvous)) if !group.ready.contains(&rank) => {
                    client.history.met(view.lineage, reference, rendezvous);
                    return Some(Change::RankReady { group: reference, rank });
                }
                (GroupState::Ready, _) if !is_calm && rng.random_ratio(1, LOOKS_PER_LOSS) => {
                    return Some(Change::BreakGroup(reference));
                }
                _ => {}
            }
        }
    }
    None
}
