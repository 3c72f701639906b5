//! Against scripted control nodes on loopback.

use std::sync::Mutex as StdMutex;

use phalanx_proto::fault::FaultCode;
use phalanx_proto::id::{Lineage, ViewIndex};
use phalanx_proto::wire::to_status;
use phalanx_proto::{pb, view};
use tokio_stream::StreamExt as _;
use tonic::Status;

use super::*;
use crate::mock_control::{Events, Script, serve};

/// How long a test waits for what must happen; far longer than it ever takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A control node that shows every watcher one view and goes on saying so, or refuses to.
#[derive(Debug)]
struct Node {
    shows: Option<ClusterView>,
    /// What watchers said they have, by index.
    asked: Arc<StdMutex<Vec<u64>>>,
}

impl Script for Node {
    fn watch(&self, request: pb::WatchRequest) -> Result<Events, Status> {
        self.asked.lock().unwrap().push(request.after_index);
        let Some(view) = self.shows.clone() else {
            return Err(to_status(&Fault::new(FaultCode::Unavailable, "this node is behind")));
        };
        let event = WatchEvent::Snapshot(view);
        let first = tokio_stream::once(Ok(event.into()));
        Ok(Box::pin(first.chain(tokio_stream::pending())))
    }
}

/// Starts a node that shows `shows`: its URL, and what it is asked.
async fn node(shows: Option<ClusterView>) -> (String, Arc<StdMutex<Vec<u64>>>) {
    let asked = Arc::default();
    let node = Node { shows, asked: Arc::clone(&asked) };
    let url = serve(node).await;
    (url, asked)
}

fn view(lineage: u64, index: u64) -> ClusterView {
    let mut view = ClusterView {
        lineage: Lineage(lineage),
        index: ViewIndex(index),
        ..ClusterView::default()
    };
    let model = view::Model { name: index.to_string().as_str().into(), revision: "r".into() };
    view.apply_op(view::ViewOp::PutModel(model));
    view
}

fn follow(urls: &[&str], file: Option<PathBuf>) -> ViewWatch {
    ViewWatch::start(ControlClient::new(urls).unwrap(), file)
}

async fn reaches(watch: &ViewWatch, expected: &ClusterView) {
    let mut views = watch.view();
    let reached = views.wait_for(|view| **view == *expected);
    timeout(PATIENCE, reached).await.expect("the view does not come").unwrap();
}

#[tokio::test]
async fn a_node_that_lags_or_refuses_is_left_for_one_that_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("view.json");
    file::save(&path, &view(2, 10), (SystemTime::now(), false)).unwrap();
    let (lagging, lagging_asked) = node(Some(view(2, 9))).await;
    let (older, _) = node(Some(view(1, 99))).await;
    let (refusing, _) = node(None).await;
    let (good, good_asked) = node(Some(view(2, 11))).await;
    let watch = follow(&[&lagging, &older, &refusing, &good], Some(path));
    reaches(&watch, &view(2, 11)).await;
    // Each was asked for what comes after the view of the file.
    assert_eq!(lagging_asked.lock().unwrap().first(), Some(&10));
    assert_eq!(*good_asked.lock().unwrap(), [10]);
}

#[tokio::test]
async fn without_any_node_the_view_and_its_age_come_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("view.json");
    let (url, _) = node(Some(view(2, 10))).await;
    let watch = follow(&[&url], Some(path.clone()));
    reaches(&watch, &view(2, 10)).await;
    assert!(watch.staleness() < PATIENCE);
    let saved = async {
        while file::load(&path, false).is_none() {
            sleep(SAVE_EVERY / 10).await;
        }
    };
    timeout(PATIENCE, saved).await.expect("the view is not saved");
    drop(watch);

    // Nothing can listen on port 0.
    let nobody = "http://127.0.0.1:0";
    let restarted = follow(&[nobody], Some(path.clone()));
    assert_eq!(**restarted.view().borrow(), view(2, 10));
    let hour = Duration::from_secs(3600);
    file::save(&path, &view(2, 10), (SystemTime::now() - hour, false)).unwrap();
    let restarted = follow(&[nobody], Some(path.clone()));
    assert!(restarted.staleness() >= hour);
    // A cluster that was restored from a backup is another history, whatever its index.
    let (url, _) = node(Some(view(3, 1))).await;
    let restored = follow(&[&url], Some(path));
    reaches(&restored, &view(3, 1)).await;
    assert!(restored.staleness() >= hour, "what a node shows first vouches for nothing");
}
