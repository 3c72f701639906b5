//! Who this node is among its peers, and who may call it: every call between nodes names the cluster and
//! both ends, so that a wrong address or a reused port can never mix two clusters.
//!
//! A pristine node learns its cluster from the first of its configured peers that calls it; the id is on
//! disk before that call is answered.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use phalanx_proto::id::NodeId;
use tonic::Request;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::host::{Host, off_the_runtime};
use crate::store::StoreError;
use crate::store::identity::IdentityFile;

const CLUSTER: &str = "x-phalanx-cluster";
const FROM: &str = "x-phalanx-from";
const TO: &str = "x-phalanx-to";

/// The longest cluster id taken from a peer; ours have 36 bytes.
const CLUSTER_ID_BYTES_MAX: usize = 64;

/// The identity of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Identity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: NodeId,
    /// The peers that may tell a pristine node its cluster.
    configured: BTreeSet<NodeId>,
    file: IdentityFile,
    host: Arc<dyn Host>,
    cluster_id: RwLock<Option<Arc<str>>>,
    /// Held while the id is learnt, so that it is learnt once.
    learning: tokio::sync::Mutex<()>,
    /// The refusal logged last: a peer that is set up wrongly calls for ever.
    logged: Mutex<String>,
}

/// Why a call between nodes was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("the call does not say {header}")]
    Unnamed { header: &'static str },
    #[error("the call from node {from} is meant for node {to}, this is node {node}")]
    OtherNode { from: NodeId, to: NodeId, node: NodeId },
    #[error("node {from} is of cluster {theirs}, this node is of cluster {ours}")]
    OtherCluster { from: NodeId, theirs: String, ours: String },
    #[error("node {from} is not among the configured peers of this node, which has no cluster yet")]
    Stranger { from: NodeId },
    #[error("cannot keep the cluster id")]
    Store(#[from] StoreError),
}

// === impl Identity ===

impl Identity {
    /// Reads what the data directory says.
    pub(crate) fn open(
        file: IdentityFile,
        node: NodeId,
        configured: BTreeSet<NodeId>,
        host: Arc<dyn Host>,
    ) -> Result<Self, StoreError> {
        let cluster_id = RwLock::new(file.read()?.map(Arc::from));
        let (learning, logged) = (tokio::sync::Mutex::default(), Mutex::default());
        let shared = Shared { node, configured, file, host, cluster_id, learning, logged };
        Ok(Self(Arc::new(shared)))
    }

    pub(crate) fn node(&self) -> NodeId {
        self.0.node
    }

    /// The cluster, or `candidate` from now on.
    pub(crate) async fn cluster_id_or(&self, candidate: &str) -> Result<Arc<str>, StoreError> {
        if let Some(known) = self.cluster_id() {
            return Ok(known);
        }
        let _learning = self.0.learning.lock().await;
        if let Some(known) = self.cluster_id() {
            return Ok(known);
        }
        let (file, id) = (self.0.file.clone(), Arc::<str>::from(candidate));
        let kept = Arc::clone(&id);
        off_the_runtime(&*self.0.host, move || file.write(&kept)).await?;
        *self.0.cluster_id.write() = Some(Arc::clone(&id));
        Ok(id)
    }

    /// The cluster, or a new one from now on.
    pub(crate) async fn cluster_id_or_new(&self) -> Result<Arc<str>, StoreError> {
        self.cluster_id_or(&self.0.host.unique_name()).await
    }

    /// A call to `to`; none as long as this node has no cluster to speak for.
    pub(crate) fn stamp<T>(&self, to: NodeId, message: T) -> Option<Request<T>> {
        let cluster_id = self.cluster_id()?;
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER, cluster_id.parse().ok()?);
        metadata.insert(FROM, MetadataValue::from(self.0.node.0));
        metadata.insert(TO, MetadataValue::from(to.0));
        Some(request)
    }

    /// Whether the call says that it comes from another node.
    pub(crate) fn is_stamped(metadata: &MetadataMap) -> bool {
        metadata.contains_key(FROM)
    }

    /// Takes a call that is meant for this node of this cluster, and says which node sent it.
    pub(crate) async fn check(&self, metadata: &MetadataMap) -> Result<NodeId, IdentityError> {
        let checked = self.do_check(metadata).await;
        if let Err(error) = &checked {
            let text = error.to_string();
            let mut logged = self.0.logged.lock();
            if *logged != text {
                tracing::warn!(error = %text, "refused the call of a control node");
                *logged = text;
            }
        }
        checked
    }

    async fn do_check(&self, metadata: &MetadataMap) -> Result<NodeId, IdentityError> {
        let (from, to) = (number(metadata, FROM)?, number(metadata, TO)?);
        let theirs = text(metadata, CLUSTER)?;
        let node = self.0.node;
        if to != node {
            return Err(IdentityError::OtherNode { from, to, node });
        }
        let ours = match self.cluster_id() {
            Some(ours) => ours,
            None if !self.0.configured.contains(&from) => {
                return Err(IdentityError::Stranger { from });
            }
            None => self.cluster_id_or(theirs).await?,
        };
        if *ours != *theirs {
            let (theirs, ours) = (theirs.to_owned(), ours.to_string());
            return Err(IdentityError::OtherCluster { from, theirs, ours });
        }
        Ok(from)
    }

    /// The cluster, if this node belongs to one.
    pub(crate) fn cluster_id(&self) -> Option<Arc<str>> {
        self.0.cluster_id.read().clone()
    }
}

fn text<'a>(metadata: &'a MetadataMap, header: &'static str) -> Result<&'a str, IdentityError> {
    let value = metadata.get(header).and_then(|value| value.to_str().ok());
    let fits = |value: &&str| !value.is_empty() && value.len() <= CLUSTER_ID_BYTES_MAX;
    value.filter(fits).ok_or(IdentityError::Unnamed { header })
}

fn number(metadata: &MetadataMap, header: &'static str) -> Result<NodeId, IdentityError> {
    let id = text(metadata, header)?.parse().ok().map(NodeId);
    id.ok_or(IdentityError::Unnamed { header })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::host::ThisMachine;

    fn identity(folder: &Path, node: u64, configured: &[u64]) -> Identity {
        let configured = configured.iter().copied().map(NodeId).collect();
        let host = Arc::new(ThisMachine);
        Identity::open(
            IdentityFile::new(folder, ThisMachine.files()),
            NodeId(node),
            configured,
            host,
        )
        .unwrap()
    }

    /// Node `from` of cluster `id` calls node `to`.
    async fn call(from: u64, id: &str, to: u64) -> MetadataMap {
        let folder = tempfile::tempdir().unwrap();
        let caller = identity(folder.path(), from, &[]);
        assert!(caller.stamp(NodeId(to), ()).is_none(), "a node of no cluster calls nobody");
        caller.cluster_id_or(id).await.unwrap();
        caller.stamp(NodeId(to), ()).unwrap().metadata().clone()
    }

    async fn refusal(node: &Identity, metadata: &MetadataMap) -> String {
        node.check(metadata).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_pristine_node_learns_its_cluster_from_a_configured_peer_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let node = identity(folder.path(), 2, &[1, 2, 3]);
        assert_eq!(
            refusal(&node, &call(9, "a", 2).await).await,
            "node 9 is not among the configured peers of this node, which has no cluster yet"
        );
        assert_eq!(node.check(&call(1, "a", 2).await).await.unwrap(), NodeId(1));

        let restarted = identity(folder.path(), 2, &[]);
        assert_eq!(restarted.check(&call(9, "a", 2).await).await.unwrap(), NodeId(9));
        assert_eq!(
            refusal(&restarted, &call(1, "b", 2).await).await,
            "node 1 is of cluster b, this node is of cluster a"
        );
    }

    #[tokio::test]
    async fn a_call_for_another_node_or_without_a_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let node = identity(folder.path(), 2, &[1]);
        assert_eq!(
            refusal(&node, &call(1, "a", 3).await).await,
            "the call from node 1 is meant for node 3, this is node 2"
        );
        assert_eq!(
            refusal(&node, &MetadataMap::new()).await,
            "the call does not say x-phalanx-from"
        );
        let mut unnamed = call(1, "a", 2).await;
        unnamed.remove(CLUSTER);
        assert_eq!(refusal(&node, &unnamed).await, "the call does not say x-phalanx-cluster");
        // None of these taught it a cluster.
        assert!(node.stamp(NodeId(1), ()).is_none());
    }
}
