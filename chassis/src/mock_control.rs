//! A control node that answers as its script says, on loopback: for the tests of whatever calls one.

use std::pin::Pin;

use phalanx_proto::pb;
use phalanx_proto::pb::control_server::{Control, ControlServer};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

pub(crate) type Events = Pin<Box<dyn Stream<Item = Result<pb::WatchEvent, Status>> + Send>>;

/// What is answered. What a script leaves out, nobody is to ask.
pub(crate) trait Script: Send + Sync + 'static {
    fn register(&self, _request: pb::RegisterRequest) -> Result<pb::RegisterResponse, Status> {
        unasked()
    }

    fn heartbeat(&self, _request: pb::HeartbeatRequest) -> Result<pb::HeartbeatResponse, Status> {
        unasked()
    }

    fn submit(&self, _request: pb::SubmitRequest) -> Result<pb::SubmitResponse, Status> {
        unasked()
    }

    fn watch(&self, _request: pb::WatchRequest) -> Result<Events, Status> {
        unasked()
    }

    fn status(&self) -> Result<pb::StatusResponse, Status> {
        unasked()
    }

    fn change_group(
        &self,
        _request: pb::ChangeGroupRequest,
    ) -> Result<pb::ChangeGroupResponse, Status> {
        unasked()
    }
}

fn unasked<T>() -> Result<T, Status> {
    Err(Status::unimplemented("nobody asks"))
}

/// Starts a node that follows `script`, and gives its URL.
pub(crate) async fn serve(script: impl Script) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder().add_service(ControlServer::new(Scripted(script)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    url
}

struct Scripted<S>(S);

#[tonic::async_trait]
impl<S> Control for Scripted<S>
where
    S: Script,
{
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        self.0.register(request.into_inner()).map(Response::new)
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        self.0.heartbeat(request.into_inner()).map(Response::new)
    }

    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        self.0.submit(request.into_inner()).map(Response::new)
    }

    type WatchStream = Events;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Events>, Status> {
        self.0.watch(request.into_inner()).map(Response::new)
    }

    async fn read_view(
        &self,
        _request: Request<pb::ReadViewRequest>,
    ) -> Result<Response<pb::ReadViewResponse>, Status> {
        unasked()
    }

    async fn status(
        &self,
        _request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        self.0.status().map(Response::new)
    }

    async fn change_group(
        &self,
        request: Request<pb::ChangeGroupRequest>,
    ) -> Result<Response<pb::ChangeGroupResponse>, Status> {
        self.0.change_group(request.into_inner()).map(Response::new)
    }

    type BackupStream = tokio_stream::Empty<Result<pb::BackupPart, Status>>;

    async fn backup(
        &self,
        _request: Request<pb::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        unasked()
    }

    async fn restore(
        &self,
        _request: Request<Streaming<pb::BackupPart>>,
    ) -> Result<Response<pb::RestoreResponse>, Status> {
        unasked()
    }
}
