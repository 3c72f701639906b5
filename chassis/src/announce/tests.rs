//! Against a scripted control node on loopback.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use phalanx_proto::pb;
use phalanx_proto::view::{Capacity, MemberRole};
use phalanx_proto::wire::to_status;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::drain;

/// What a process asked of control.
#[derive(Clone, Debug, PartialEq)]
enum Asked {
    Register(String),
    Heartbeat(u64),
    Submit(pb::Command),
}

/// What control will answer to heartbeats, and `READY` once that is used up.
type Heartbeats = Arc<Mutex<VecDeque<Result<pb::MemberState, FaultCode>>>>;

/// A control node that answers as it was told, and tells what it was asked.
#[derive(Clone, Debug)]
struct ScriptedControl {
    asked: mpsc::UnboundedSender<Asked>,
    registrations: Arc<Mutex<VecDeque<Result<u64, FaultCode>>>>,
    heartbeats: Heartbeats,
}

const READY: Result<pb::MemberState, FaultCode> = Ok(pb::MemberState::Ready);

fn refused(code: FaultCode) -> Status {
    to_status(&Fault::new(code, "as scripted"))
}

#[tonic::async_trait]
impl pb::control_server::Control for ScriptedControl {
    type WatchStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::WatchEvent, Status>> + Send>>;

    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        self.asked.send(Asked::Register(request.into_inner().instance)).unwrap();
        let epoch = self.registrations.lock().unwrap().pop_front().unwrap_or(Ok(99));
        let epoch = epoch.map_err(refused)?;
        Ok(Response::new(pb::RegisterResponse {
            member_id: 7,
            epoch,
            heartbeat_every_ms: 10,
            ttl_ms: 100,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        self.asked.send(Asked::Heartbeat(request.into_inner().epoch)).unwrap();
        let scripted = self.heartbeats.lock().unwrap().pop_front();
        let state = scripted.unwrap_or(READY).map_err(refused)?.into();
        Ok(Response::new(pb::HeartbeatResponse { state }))
    }

    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        self.asked.send(Asked::Submit(request.into_inner().command.unwrap())).unwrap();
        Ok(Response::new(pb::SubmitResponse { index: 1 }))
    }

    async fn watch(
        &self,
        _request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }

    async fn read_view(
        &self,
        _request: Request<pb::ReadViewRequest>,
    ) -> Result<Response<pb::ReadViewResponse>, Status> {
        Ok(Response::new(pb::ReadViewResponse::default()))
    }

    async fn status(
        &self,
        _request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        Ok(Response::new(pb::StatusResponse::default()))
    }

    async fn change_group(
        &self,
        _request: Request<pb::ChangeGroupRequest>,
    ) -> Result<Response<pb::ChangeGroupResponse>, Status> {
        Ok(Response::new(pb::ChangeGroupResponse::default()))
    }

    type BackupStream = tokio_stream::Empty<Result<pb::BackupPart, Status>>;

    async fn backup(
        &self,
        _request: Request<pb::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn restore(
        &self,
        _request: Request<tonic::Streaming<pb::BackupPart>>,
    ) -> Result<Response<pb::RestoreResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
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
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(pb::control_server::ControlServer::new(control))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let (trigger, drain) = drain::channel();
    let registration = Registration {
        instance: "one".to_owned(),
        role: MemberRole::Worker,
        address: "http://127.0.0.1:1".to_owned(),
        zone: String::new(),
        models: Vec::new(),
        capacity: Capacity::default(),
    };
    let control = ControlClient::new(&[url]).unwrap();
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
            if let Asked::Submit(command) = self.asked().await {
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
        if matches!(last, Some(Asked::Submit(_))) {
            break;
        }
    }
    let goodbye = pb::Deregister { member_id: 7, epoch: 5 };
    let command = Some(pb::command::Command::Deregister(goodbye));
    assert_eq!(last, Some(Asked::Submit(pb::Command { command })));
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
