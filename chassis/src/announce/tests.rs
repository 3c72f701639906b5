//! Against a scripted control node on loopback.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use phalanx_proto::pb;
use phalanx_proto::view::{Capacity, MemberRole};
use phalanx_proto::wire::to_status;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::*;
use crate::drain;
use crate::mock_control::{Script, serve};

/// What a process asked of control.
#[derive(Clone, Debug, PartialEq)]
enum Asked {
    Register(String),
    Heartbeat(u64),
    Submit(u64, pb::Command),
}

/// What control will answer to heartbeats, and what it was told once that is used up.
type Heartbeats = Arc<Mutex<VecDeque<Result<pb::MemberState, FaultCode>>>>;

/// A control node that answers as it was told, and tells what it was asked.
#[derive(Clone, Debug)]
struct ScriptedControl {
    asked: mpsc::UnboundedSender<Asked>,
    registrations: Arc<Mutex<VecDeque<Result<u64, FaultCode>>>>,
    heartbeats: Heartbeats,
    /// Whether it was told that the process drains.
    drains: Arc<AtomicBool>,
}

const READY: Result<pb::MemberState, FaultCode> = Ok(pb::MemberState::Ready);
const DRAINING: Result<pb::MemberState, FaultCode> = Ok(pb::MemberState::Draining);

fn refused(code: FaultCode) -> Status {
    to_status(&Fault::new(code, "as scripted"))
}

impl Script for ScriptedControl {
    fn register(&self, request: pb::RegisterRequest) -> Result<pb::RegisterResponse, Status> {
        self.asked.send(Asked::Register(request.instance)).unwrap();
        let epoch = self.registrations.lock().unwrap().pop_front().unwrap_or(Ok(99));
        let epoch = epoch.map_err(refused)?;
        Ok(pb::RegisterResponse { member_id: 7, epoch, heartbeat_every_ms: 10, ttl_ms: 100 })
    }

    fn heartbeat(&self, request: pb::HeartbeatRequest) -> Result<pb::HeartbeatResponse, Status> {
        self.asked.send(Asked::Heartbeat(request.epoch)).unwrap();
        let scripted = self.heartbeats.lock().unwrap().pop_front();
        let known = if self.drains.load(Ordering::Relaxed) { DRAINING } else { READY };
        let state = scripted.unwrap_or(known).map_err(refused)?.into();
        Ok(pb::HeartbeatResponse { state })
    }

    fn submit(&self, request: pb::SubmitRequest) -> Result<pb::SubmitResponse, Status> {
        let command = request.command.unwrap();
        let is_drain = matches!(command.command, Some(pb::command::Command::Drain(_)));
        self.drains.fetch_or(is_drain, Ordering::Relaxed);
        self.asked.send(Asked::Submit(request.sequence, command)).unwrap();
        Ok(pb::SubmitResponse { index: 1 })
    }
}

struct Scene {
    asked: mpsc::UnboundedReceiver<Asked>,
    heartbeats: Heartbeats,
    standing: watch::Receiver<Standing>,
    drain: drain::DrainTrigger,
    /// Ends the work of the process.
    done: oneshot::Sender<&'static str>,
    announcer: tokio::task::JoinHandle<&'static str>,
}

async fn announce(
    registrations: &[Result<u64, FaultCode>],
    heartbeats: &[Result<pb::MemberState, FaultCode>],
) -> Scene {
    let (asked, asked_seen) = mpsc::unbounded_channel();
    let heartbeats: Heartbeats = Arc::new(Mutex::new(heartbeats.iter().copied().collect()));
    let control = ScriptedControl {
        asked,
        registrations: Arc::new(Mutex::new(registrations.iter().copied().collect())),
        heartbeats: Arc::clone(&heartbeats),
        drains: Arc::default(),
    };
    let (trigger, drain) = drain::channel();
    let registration = Registration {
        instance: "one".to_owned(),
        role: MemberRole::Worker,
        address: "http://127.0.0.1:1".to_owned(),
        zone: String::new(),
        models: Vec::new(),
        capacity: Capacity::default(),
    };
    let control = ControlClient::new(&[serve(control).await]).unwrap();
    let announcer = Announcer::new(control, registration, drain);
    let standing = announcer.standing();
    let (done, work) = oneshot::channel();
    let work = async { work.await.unwrap() };
    let announcer = tokio::spawn(announcer.during(work));
    Scene { asked: asked_seen, heartbeats, standing, drain: trigger, done, announcer }
}

impl Scene {
    async fn asked(&mut self) -> Asked {
        self.asked.recv().await.expect("control is still asked")
    }

    async fn stands(&mut self, epoch: u64, state: MemberState) {
        let expected = Standing { epoch: Epoch(epoch), state };
        self.standing.wait_for(|now| *now == expected).await.unwrap();
    }

    /// The next command, past all heartbeats.
    async fn submitted(&mut self) -> pb::command::Command {
        loop {
            if let Asked::Submit(_sequence, command) = self.asked().await {
                return command.command.unwrap();
            }
        }
    }

    /// Ends the work, and waits for the announcer to end with it.
    async fn finish(self) -> mpsc::UnboundedReceiver<Asked> {
        self.done.send("done").unwrap();
        assert_eq!(self.announcer.await.unwrap(), "done");
        self.asked
    }
}

fn registered() -> Asked {
    Asked::Register("one".to_owned())
}

#[tokio::test]
async fn a_process_registers_however_long_control_is_away() {
    let away = Err(FaultCode::Unavailable);
    let mut scene = announce(&[away, away, Ok(5)], &[]).await;
    for _ in 0..3 {
        assert_eq!(scene.asked().await, registered());
    }
    scene.stands(5, MemberState::Ready).await;
    assert_eq!(scene.asked().await, Asked::Heartbeat(5));
}

#[tokio::test]
async fn a_fenced_process_registers_again_and_publishes_its_new_epoch() {
    let lost = Err(FaultCode::Unavailable);
    let mut scene = announce(&[Ok(5), Ok(9)], &[READY, lost, Err(FaultCode::StaleEpoch)]).await;
    assert_eq!(scene.asked().await, registered());
    scene.stands(5, MemberState::Ready).await;
    for _ in 0..3 {
        // A lost heartbeat changes nothing: the epoch stays good.
        assert_eq!(scene.asked().await, Asked::Heartbeat(5));
    }
    assert_eq!(scene.asked().await, registered());
    scene.stands(9, MemberState::Ready).await;
    assert_eq!(scene.asked().await, Asked::Heartbeat(9));
}

#[tokio::test]
async fn a_process_learns_from_its_heartbeats_that_it_drains_and_stays_a_member() {
    let mut scene = announce(&[Ok(5)], &[READY, Ok(pb::MemberState::Draining)]).await;
    scene.stands(5, MemberState::Ready).await;
    scene.stands(5, MemberState::Draining).await;
    while scene.asked().await != Asked::Heartbeat(5) {}
}

#[tokio::test]
async fn a_draining_process_says_so_stays_until_its_work_is_over_and_deregisters() {
    let mut scene = announce(&[Ok(5)], &[]).await;
    scene.stands(5, MemberState::Ready).await;
    scene.drain.advance(Phase::Draining);
    let drain = pb::Drain { member_id: 7, epoch: 5 };
    assert_eq!(scene.submitted().await, pb::command::Command::Drain(drain));
    for _ in 0..3 {
        assert_eq!(scene.asked().await, Asked::Heartbeat(5));
    }
    let mut asked = scene.finish().await;
    let mut last = None;
    while let Some(next) = asked.recv().await {
        last = Some(next);
        if matches!(last, Some(Asked::Submit(..))) {
            break;
        }
    }
    let goodbye = pb::Deregister { member_id: 7, epoch: 5 };
    let command = Some(pb::command::Command::Deregister(goodbye));
    assert_eq!(last, Some(Asked::Submit(2, pb::Command { command })));
}

#[tokio::test]
async fn a_process_on_its_way_out_says_so_again_when_control_has_it_take_work() {
    let mut scene = announce(&[Ok(5)], &[]).await;
    scene.stands(5, MemberState::Ready).await;
    scene.drain.advance(Phase::Draining);
    let drain = pb::command::Command::Drain(pb::Drain { member_id: 7, epoch: 5 });
    assert_eq!(scene.submitted().await, drain);
    scene.stands(5, MemberState::Draining).await;
    scene.heartbeats.lock().unwrap().push_back(READY);
    assert_eq!(scene.submitted().await, drain);
    scene.stands(5, MemberState::Draining).await;
}

#[tokio::test]
async fn a_process_that_was_fenced_on_its_way_out_does_not_come_back() {
    let mut scene = announce(&[Ok(5)], &[]).await;
    scene.stands(5, MemberState::Ready).await;
    scene.drain.advance(Phase::Draining);
    scene.submitted().await;
    scene.heartbeats.lock().unwrap().push_back(Err(FaultCode::StaleEpoch));
    while !scene.heartbeats.lock().unwrap().is_empty() {
        assert_eq!(scene.asked().await, Asked::Heartbeat(5));
    }
    let mut asked = scene.finish().await;
    while let Ok(next) = asked.try_recv() {
        assert_ne!(next, registered());
    }
}

#[tokio::test]
async fn a_process_that_never_registered_leaves_without_a_word() {
    let mut scene = announce(&[Err(FaultCode::Unavailable); 50], &[]).await;
    assert_eq!(scene.asked().await, registered());
    scene.drain.advance(Phase::Draining);
    let standing = scene.standing.clone();
    scene.finish().await;
    assert!(!standing.borrow().is_registered());
}
