//! Against a scripted control node on loopback.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use futures::stream::{self, BoxStream};
use phalanx_chassis::drain;
use phalanx_proto::pb;
use phalanx_proto::view::{Capacity, MemberRole};
use phalanx_proto::wire::to_status;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;

/// What a worker asked of control.
#[derive(Clone, Debug, PartialEq)]
enum Asked {
    Register(String),
    Heartbeat(u64),
    Submit(pb::Command),
}

/// A control node that answers as it was told, and tells what it was asked.
#[derive(Clone, Debug)]
struct ScriptedControl {
    asked: mpsc::UnboundedSender<Asked>,
    registrations: Arc<Mutex<VecDeque<Result<u64, FaultCode>>>>,
    heartbeats: Arc<Mutex<VecDeque<Result<(), FaultCode>>>>,
}

fn refused(code: FaultCode) -> Status {
    to_status(&Fault::new(code, "as scripted"))
}

#[tonic::async_trait]
impl pb::control_server::Control for ScriptedControl {
    type WatchStream = BoxStream<'static, Result<pb::WatchEvent, Status>>;

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
        self.heartbeats.lock().unwrap().pop_front().unwrap_or(Ok(())).map_err(refused)?;
        let state = pb::MemberState::Ready.into();
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
        Ok(Response::new(Box::pin(stream::empty())))
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

    type BackupStream = BoxStream<'static, Result<pb::BackupPart, Status>>;

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
    epoch: watch::Receiver<Epoch>,
    drain: drain::DrainTrigger,
    announcer: tokio::task::JoinHandle<()>,
}

async fn announce(
    registrations: &[Result<u64, FaultCode>],
    heartbeats: &[Result<(), FaultCode>],
) -> Scene {
    let (asked, asked_seen) = mpsc::unbounded_channel();
    let control = ScriptedControl {
        asked,
        registrations: Arc::new(Mutex::new(registrations.iter().copied().collect())),
        heartbeats: Arc::new(Mutex::new(heartbeats.iter().copied().collect())),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(pb::control_server::ControlServer::new(control))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let (trigger, drain) = drain::channel();
    let epoch = watch::Sender::new(Epoch::default());
    let epoch_seen = epoch.subscribe();
    let registration = Registration {
        instance: "one".to_owned(),
        role: MemberRole::Worker,
        address: "http://127.0.0.1:1".to_owned(),
        zone: String::new(),
        models: Vec::new(),
        capacity: Capacity::default(),
    };
    let control = ControlClient::new(&[url]).unwrap();
    let announcer = Announcer { control, registration, epoch, drain };
    Scene {
        asked: asked_seen,
        epoch: epoch_seen,
        drain: trigger,
        announcer: tokio::spawn(announcer.run()),
    }
}

impl Scene {
    async fn asked(&mut self) -> Asked {
        self.asked.recv().await.expect("control is still asked")
    }

    async fn reaches_epoch(&mut self, epoch: u64) {
        self.epoch.wait_for(|now| *now == Epoch(epoch)).await.unwrap();
    }
}

fn registered() -> Asked {
    Asked::Register("one".to_owned())
}

#[tokio::test]
async fn a_worker_registers_however_long_control_is_away() {
    let away = Err(FaultCode::Unavailable);
    let mut scene = announce(&[away, away, Ok(5)], &[]).await;
    for _ in 0..3 {
        assert_eq!(scene.asked().await, registered());
    }
    scene.reaches_epoch(5).await;
    assert_eq!(scene.asked().await, Asked::Heartbeat(5));
}

#[tokio::test]
async fn a_fenced_worker_registers_again_and_publishes_its_new_epoch() {
    let lost = Err(FaultCode::Unavailable);
    let mut scene = announce(&[Ok(5), Ok(9)], &[Ok(()), lost, Err(FaultCode::StaleEpoch)]).await;
    assert_eq!(scene.asked().await, registered());
    scene.reaches_epoch(5).await;
    for _ in 0..3 {
        // A lost heartbeat changes nothing: the epoch stays good.
        assert_eq!(scene.asked().await, Asked::Heartbeat(5));
    }
    assert_eq!(scene.asked().await, registered());
    scene.reaches_epoch(9).await;
    assert_eq!(scene.asked().await, Asked::Heartbeat(9));
}

#[tokio::test]
async fn a_draining_worker_deregisters_and_is_done() {
    let mut scene = announce(&[Ok(5)], &[]).await;
    scene.reaches_epoch(5).await;
    scene.drain.advance(Phase::Draining);
    scene.announcer.await.unwrap();
    let mut last = None;
    while let Ok(asked) = scene.asked.try_recv() {
        last = Some(asked);
    }
    let goodbye = pb::Deregister { member_id: 7, epoch: 5 };
    let command = Some(pb::command::Command::Deregister(goodbye));
    assert_eq!(last, Some(Asked::Submit(pb::Command { command })));
}

#[tokio::test]
async fn a_worker_that_never_registered_leaves_without_a_word() {
    let mut scene = announce(&[Err(FaultCode::Unavailable); 50], &[]).await;
    assert_eq!(scene.asked().await, registered());
    scene.drain.advance(Phase::Draining);
    scene.announcer.await.unwrap();
    assert_eq!(*scene.epoch.borrow(), Epoch::default());
}
