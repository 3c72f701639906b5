//! The state machine as the library sees it: applies committed entries to the [`State`], tells the feed, and
//! keeps snapshots.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use phalanx_proto::id::{Lineage, ViewIndex};

use super::{Entry, LogId, Membership, SnapshotMeta, Types, convert};
use crate::checkpoint::{Checkpoints, DriftError};
use crate::command::Command;
use crate::feed::{Feed, Position};
use crate::host::{Host, off_the_runtime};
use crate::planted::{Bug, planted};
use crate::state::{Reply, State};
use crate::store::StoreError;
use crate::store::record::{STATE, decode, encode};
use crate::store::snapshot::{Snapshot, SnapshotFolder, SnapshotHeader};

type LibrarySnapshot = openraft::type_config::alias::SnapshotOf<Types, Vec<u8>>;

/// The library's state machine.
#[derive(Debug)]
pub(super) struct Machine {
    state: State,
    applied: Option<LogId>,
    membership: Membership,
    folder: SnapshotFolder,
    feed: Feed,
    checkpoints: Arc<Mutex<Checkpoints>>,
    host: Arc<dyn Host>,
}

/// The machine as it was when a snapshot was asked for.
#[derive(Debug)]
pub(super) struct SnapshotBuilder {
    state: State,
    applied: Option<LogId>,
    membership: Membership,
    folder: SnapshotFolder,
    host: Arc<dyn Host>,
}

// === impl Machine ===

impl Machine {
    /// An empty machine; the library installs the latest snapshot and replays the log.
    pub(super) fn new(folder: SnapshotFolder, feed: Feed, host: Arc<dyn Host>) -> Self {
        let (state, applied, membership) = (State::default(), None, Membership::default());
        let checkpoints = Arc::default();
        Self { state, applied, membership, folder, feed, checkpoints, host }
    }

    /// How this replica compares with the others; shared with whoever reports it.
    pub(super) fn checkpoints(&self) -> Arc<Mutex<Checkpoints>> {
        Arc::clone(&self.checkpoints)
    }

    /// Gives this replica a state that no log led to.
    #[cfg(test)]
    pub(super) fn drift(&mut self) {
        self.state.drift();
    }

    pub(super) const fn state(&self) -> &State {
        &self.state
    }

    /// The machine as it is now.
    pub(super) fn copy(&self) -> SnapshotBuilder {
        SnapshotBuilder {
            state: self.state.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
            folder: self.folder.clone(),
            host: Arc::clone(&self.host),
        }
    }

    fn apply_entry(&mut self, entry: Entry) -> Result<Reply, DriftError> {
        let index = ViewIndex(entry.log_id.index);
        if let EntryPayload::Normal(Command::Checkpoint { index, schema, hash }) = &entry.payload {
            self.checkpoints.lock().compare(*index, *schema, *hash)?;
        }
        let (reply, ops) = match entry.payload {
            EntryPayload::Normal(command) => {
                let command = match command {
                    Command::Submit { change, .. } if planted(Bug::DedupSkipped) => {
                        Command::Internal(change)
                    }
                    command => command,
                };
                let outcome = self.state.apply(index, &command);
                (outcome.reply, outcome.ops)
            }
            EntryPayload::Blank => {
                self.state.skip(index);
                (Reply::Applied { index }, Vec::new())
            }
            EntryPayload::Membership(membership) => {
                self.membership = Membership::new(Some(entry.log_id), membership);
                self.state.skip(index);
                (Reply::Applied { index }, Vec::new())
            }
        };
        self.applied = Some(entry.log_id);
        self.checkpoints.lock().applied(&self.state);
        self.feed.publish(Position { lineage: self.state.view().lineage, index }, ops);
        Ok(reply)
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            // An error here stops the node for good: Raft takes it for a broken disk.
            let reply = self.apply_entry(entry).map_err(io::Error::other)?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.copy()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        body: Vec<u8>,
    ) -> Result<(), io::Error> {
        let state: State = decode(STATE, &body)?;
        let snapshot = snapshot_of(&state, meta, body);
        write(&*self.host, self.folder.clone(), snapshot).await?;
        if !planted(Bug::SnapshotUnannounced) {
            self.feed.reset(state.view().clone());
        }
        self.state = state;
        self.checkpoints.lock().restored();
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<LibrarySnapshot>, io::Error> {
        let folder = self.folder.clone();
        let latest = off_the_runtime(&*self.host, move || folder.latest()).await?;
        Ok(latest.map(library_snapshot))
    }
}

// === impl SnapshotBuilder ===

impl SnapshotBuilder {
    pub(super) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        Ok(snapshot_of(&self.state, &self.meta(), encode(STATE, &self.state)?))
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<LibrarySnapshot, io::Error> {
        let snapshot = self.snapshot()?;
        let body = snapshot.body.clone();
        write(&*self.host, self.folder.clone(), snapshot).await?;
        Ok(LibrarySnapshot { meta: self.meta(), snapshot: body })
    }
}

fn snapshot_of(state: &State, meta: &SnapshotMeta, body: Vec<u8>) -> Snapshot {
    let Lineage(lineage) = state.view().lineage;
    let header = SnapshotHeader {
        cluster_id: state.cluster_id().unwrap_or_default().to_owned(),
        lineage,
        last: meta.last_log_id.as_ref().map(convert::position),
        membership: convert::membership_record(meta.last_membership.membership()),
        membership_at: meta.last_membership.log_id().as_ref().map(convert::position),
    };
    Snapshot { header, body }
}

/// A snapshot as the library carries it.
pub(super) fn library_snapshot(Snapshot { header, body }: Snapshot) -> LibrarySnapshot {
    let last_membership = convert::stored_membership(header.membership_at, header.membership);
    let last_log_id = header.last.map(convert::log_id);
    LibrarySnapshot { meta: SnapshotMeta { last_log_id, last_membership }, snapshot: body }
}

async fn write(host: &dyn Host, folder: SnapshotFolder, snapshot: Snapshot) -> io::Result<()> {
    Ok(off_the_runtime(host, move || folder.write(&snapshot)).await?)
}
