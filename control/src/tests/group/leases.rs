//! Members' leases across a change of leader, and without one.

use std::time::Duration;

use phalanx_chassis::control_client::Registered;
use phalanx_proto::fault::FaultCode;
use phalanx_proto::view::MemberState;
use tokio::time::interval;

use super::{Group, others};
use crate::tests::{once_led, registration};

#[tokio::test]
async fn members_that_beat_through_a_follower_outlive_a_change_of_leader() {
    let mut group = Group::start(Duration::from_secs(2)).await;
    let leader = group.leader(1, 0).await;
    let [follower, _other] = others(leader);
    let client = group.client(follower);
    let member = once_led(|| client.register(registration("i"))).await.unwrap();
    let Registered { member_id, epoch, heartbeat_every, .. } = member;

    group.kill(leader);
    let mut beat = interval(heartbeat_every);
    let mut answered = 0;
    // Leases in which the member is heard by a leader, after whatever the election took.
    for _beat in 0..20 {
        beat.tick().await;
        match client.heartbeat(member_id, epoch).await {
            Ok(state) => {
                assert_eq!(state, MemberState::Ready);
                answered += 1;
            }
            Err(fault) => {
                assert_eq!(fault.code, FaultCode::Unavailable, "{fault}");
            }
        }
    }
    assert!(answered >= 8, "only {answered} of 20 heartbeats were taken");
    let status = group.client(follower).status().await.unwrap();
    assert_ne!(status.leader, leader);
}

#[tokio::test]
async fn a_leader_without_a_quorum_takes_no_heartbeats_and_fences_nobody_for_it() {
    let mut group = Group::start(Duration::from_secs(3)).await;
    let leader = group.leader(1, 0).await;
    let client = group.client(leader);
    let member = once_led(|| client.register(registration("i"))).await.unwrap();
    let Registered { member_id, epoch, .. } = member;
    for id in others(leader) {
        group.kill(id);
    }

    let mut beat = interval(Duration::from_millis(500));
    let mut refused = 0;
    // Longer than a lease, after what it takes to notice.
    for _beat in 0..16 {
        beat.tick().await;
        match client.heartbeat(member_id, epoch).await {
            Ok(_state) => assert_eq!(refused, 0, "taken again without a quorum"),
            Err(fault) => {
                assert_eq!(fault.code, FaultCode::Unavailable, "{fault}");
                refused += 1;
            }
        }
    }
    assert!(refused >= 8, "it noticed too late, or never: {refused} of 16 were refused");
    assert_eq!(client.status().await.unwrap().leader, 0, "nobody leads without a quorum");
    for id in others(leader) {
        group.start_node(id).await;
    }
    let back = once_led(|| client.heartbeat(member_id, epoch)).await;
    assert_eq!(back, Ok(MemberState::Ready));
    for _beat in 0..8 {
        beat.tick().await;
        let again = once_led(|| client.heartbeat(member_id, epoch)).await;
        assert_eq!(again, Ok(MemberState::Ready));
    }
}
