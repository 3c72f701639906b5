//! What must hold of a run. Everything is judged against the committed log, applied anew to an empty state.

mod groups;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phalanx_proto::change::{Change, WatchEvent};
use phalanx_proto::id::{Epoch, Lineage, MemberId, ModelName, ViewIndex};
use phalanx_proto::view::ClusterView;

use super::history::{Asked, Call, Era, Ms, Records, Seen, Told, lineage_of};
use super::linear::{Op, is_linearizable};
use super::scenario::{CALM_FROM_MS, END_MS};
use crate::command::Command;
use crate::liveness::Timings;
use crate::state::State;
use crate::store::record::EntryContent;

/// After the last fault, a leader is there and writes succeed within this time.
const RECOVERY_MS: Ms = 10_000;

/// A leader's clock may be this much too fast, and times are known to a few ticks.
const CLOCK_SHARE: (Ms, Ms) = (98, 100);

/// The committed log of one era, and what it led to.
struct Reference<'a> {
    era: &'a Era,
    /// By index.
    steps: BTreeMap<u64, Step>,
}

struct Step {
    digest: blake3::Hash,
    view: Arc<ClusterView>,
    /// Whether watchers hear of it.
    changes: bool,
}

/// What was violated; nothing for a good run.
pub(super) fn check(records: &Records) -> Vec<String> {
    let mut found = records.violations.clone();
    let eras: Vec<Reference<'_>> =
        records.earlier.iter().chain([&records.era]).map(Reference::new).collect();
    for reference in &eras {
        found.extend(reference.looks());
        found.extend(reference.answers());
        found.extend(reference.fences());
        found.extend(reference.epochs());
        found.extend(reference.aliases());
        found.extend(reference.groups());
    }
    found.extend(watches(records, &eras));
    if found.is_empty() {
        found.extend(liveness(&records.era));
        let last = eras.last().and_then(|era| era.steps.last_key_value());
        found.extend(last.into_iter().flat_map(|(_index, step)| groups::unplaced(&step.view)));
    }
    found
}

// === impl Reference ===

impl<'a> Reference<'a> {
    fn new(era: &'a Era) -> Self {
        let mut state = State::default();
        let mut steps = BTreeMap::new();
        for (at, (index, entry)) in era.committed.iter().enumerate() {
            if u64::try_from(at).ok() != Some(*index) {
                // No node that was looked at had it any more.
                break;
            }
            let place = ViewIndex(*index);
            let changes = match &entry.content {
                EntryContent::Command(command) => !state.apply(place, command).ops.is_empty(),
                EntryContent::Blank | EntryContent::Membership(_) => {
                    state.skip(place);
                    false
                }
            };
            let view = Arc::new(state.view().clone());
            steps.insert(*index, Step { digest: super::digest(&state), view, changes });
        }
        Self { era, steps }
    }

    fn command(&self, index: u64) -> Option<&Command> {
        match &self.era.committed.get(&index)?.content {
            EntryContent::Command(command) => Some(command),
            EntryContent::Blank | EntryContent::Membership(_) => None,
        }
    }

    /// Whether the log is known up to there: what was applied last may have been seen by no look.
    fn reaches(&self, index: ViewIndex) -> bool {
        self.steps.last_key_value().is_some_and(|(last, _step)| *last >= index.0)
    }

    /// Every node has the state that the log leads to.
    fn looks(&self) -> Vec<String> {
        let wrong = self.era.looks.iter().filter(|look| {
            self.steps.get(&look.index.0).is_some_and(|step| step.digest != look.digest)
        });
        wrong.map(|look| format!("state of node {} differs: {look:?}", look.node)).take(1).collect()
    }

    /// What clients were told is in the log, once, where they were told it is.
    fn answers(&self) -> Vec<String> {
        let mut first: BTreeMap<(&str, u64), u64> = BTreeMap::new();
        for index in self.steps.keys().rev() {
            if let Some(Command::Submit { client, sequence, .. }) = self.command(*index) {
                first.insert((client, *sequence), *index);
            }
        }
        let mut found = Vec::new();
        let mut newest: BTreeMap<&str, (Ms, &str, Epoch)> = BTreeMap::new();
        for call in self.era.calls.values() {
            let Some((ended, told)) = call.answer else { continue };
            match (&call.asked, told) {
                (Asked::Submit { client, sequence, change }, Told::Applied { index }) => {
                    let known = first.get(&(client.as_str(), *sequence)).copied();
                    if self.reaches(index) && known != Some(index.0) {
                        found.push(format!("{call:?} is first in the log at {known:?}"));
                    }
                    if !self.took_effect(change, index) {
                        found.push(format!("{call:?} had no effect"));
                    }
                }
                (Asked::Register { address, instance }, Told::Registered { epoch, .. }) => {
                    let made = self.command(epoch.0).is_some_and(|command| {
                        matches!(command, Command::Register(made) if made.instance == *instance)
                    });
                    if self.reaches(ViewIndex(epoch.0)) && !made {
                        found.push(format!("{call:?} has an epoch that was not made for it"));
                    }
                    let (before, other, last) =
                        newest.get(address.as_str()).copied().unwrap_or_default();
                    if before < call.began && other != instance && last >= epoch {
                        found.push(format!("{call:?} has an epoch that is not above {last}"));
                    }
                    newest.insert(address, (ended, instance, epoch));
                }
                _ => {}
            }
        }
        found
    }

    /// No lease ends before its time.
    fn fences(&self) -> Vec<String> {
        let ttl = u64::try_from(Timings::default().ttl.as_millis()).unwrap_or(u64::MAX);
        let ttl = ttl * CLOCK_SHARE.0 / CLOCK_SHARE.1;
        let mut found = Vec::new();
        for (index, entry) in &self.era.committed {
            let Some(Command::Internal(Change::Fence { member_id, epoch })) = self.command(*index)
            else {
                continue;
            };
            let Some(proposed) = self.era.proposed.get(&entry.at) else { continue };
            let beats = self.era.calls.values().filter(|call| {
                let Some((ended, told)) = call.answer else { return false };
                let (id, of) = match (&call.asked, told) {
                    (Asked::Heartbeat { member_id, epoch }, Told::Alive) => (*member_id, *epoch),
                    (_, Told::Registered { member_id, epoch }) => (member_id, epoch),
                    _ => return false,
                };
                // One that was answered later may have come after the leader gave the member up.
                id == *member_id && of == *epoch && ended <= *proposed
            });
            let last = beats.map(|call| call.began).max();
            if last.is_some_and(|last| *proposed < last + ttl) {
                found.push(format!(
                    "member {member_id} was fenced at {proposed} ms, and was last heard at {last:?}"
                ));
            }
        }
        found
    }

    /// Each registration is a register that was born, was alive and died: heartbeats read it.
    fn epochs(&self) -> Vec<String> {
        let mut found = Vec::new();
        for index in self.steps.keys() {
            let Some(Command::Register(made)) = self.command(*index) else { continue };
            let member = self.steps[index].view.members.values();
            let Some(member) = member.into_iter().find(|member| member.epoch.0 == *index) else {
                continue;
            };
            let ops = self.life(member.id, member.epoch, &made.instance);
            if !is_linearizable(&ops, Life::Unborn, Life::after) {
                found.push(format!("calls of epoch {index} are not linearizable: {ops:?}"));
            }
        }
        found
    }

    /// The calls that concern one registration.
    fn life(&self, id: MemberId, at: Epoch, instance: &str) -> Vec<Op<Event>> {
        let mut ops = Vec::new();
        for call in self.era.calls.values() {
            let ended = call.answer.map(|(ended, _told)| ended);
            let told = call.answer.map(|(_ended, told)| told);
            let event = match (&call.asked, told) {
                (Asked::Register { instance: other, .. }, None) if other == instance => {
                    Event::Birth
                }
                (Asked::Register { .. }, Some(Told::Registered { epoch, .. })) if epoch == at => {
                    Event::Birth
                }
                (Asked::Heartbeat { member_id, epoch }, Some(told))
                    if *member_id == id && *epoch == at =>
                {
                    if told == Told::Alive {
                        Event::Alive
                    } else {
                        Event::NotAlive
                    }
                }
                (Asked::Submit { change: Change::Fence { member_id, epoch }, .. }, told)
                    if *member_id == id && *epoch == at =>
                {
                    match told {
                        Some(Told::Refused) => Event::NotAlive,
                        _ => Event::Death,
                    }
                }
                _ => continue,
            };
            ops.push(Op { began: call.began, ended, call: event });
        }
        // The leader's own fence, and a registration that took the address over, have no caller to be told.
        let steps = self.steps.iter().filter(|(index, _step)| **index > at.0);
        let mut after = steps.filter(|(_index, step)| {
            step.view.members.get(&id).is_none_or(|member| member.epoch != at)
        });
        if let Some((index, _step)) = after.next()
            && !matches!(self.command(*index), Some(Command::Submit { .. }))
            && let Some(began) = self.era.proposed.get(&self.era.committed[index].at)
        {
            ops.push(Op { began: *began, ended: None, call: Event::Death });
        }
        ops
    }

    /// Each alias is a register that is set and removed, at indexes that only grow.
    fn aliases(&self) -> Vec<String> {
        let mut by_name: BTreeMap<&ModelName, Vec<Op<Naming>>> = BTreeMap::new();
        for Call { began, asked, answer } in self.era.calls.values() {
            let (name, sets) = match asked {
                Asked::Submit { change: Change::SetAlias(alias), .. } => (&alias.name, true),
                Asked::Submit { change: Change::RemoveAlias(name), .. } => (name, false),
                _ => continue,
            };
            let (ended, told) = answer.unzip();
            by_name.entry(name).or_default().push(Op { began: *began, ended, call: (sets, told) });
        }
        let wrong = by_name.iter().filter(|(_name, ops)| {
            !is_linearizable(ops, (false, ViewIndex(0)), |(is_set, last), (sets, told)| {
                match told {
                    Some(Told::Applied { index }) => {
                        (index > last && (*sets || *is_set)).then_some((*sets, *index))
                    }
                    // No worker had told of the model yet.
                    Some(_refused) if *sets => Some((*is_set, *last)),
                    Some(_refused) => (!is_set).then_some((false, *last)),
                    None => Some((*sets, *last)),
                }
            })
        });
        wrong
            .map(|(name, ops)| format!("calls of alias {name} are not linearizable: {ops:?}"))
            .collect()
    }
}

/// Whether an alias was set, else removed, and what the caller was told.
type Naming = (bool, Option<Told>);

/// What can be said of one registration.
#[derive(Clone, Copy, Debug)]
enum Event {
    Birth,
    Alive,
    NotAlive,
    Death,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Unborn,
    Alive,
    Dead,
}

impl Life {
    fn after(&self, event: &Event) -> Option<Self> {
        match (self, event) {
            // A registration repeated while it holds is answered as before.
            (Self::Unborn | Self::Alive, Event::Birth) | (Self::Alive, Event::Alive) => {
                Some(Self::Alive)
            }
            (Self::Alive, Event::Death) => Some(Self::Dead),
            (Self::Unborn | Self::Dead, Event::NotAlive) => Some(*self),
            _ => None,
        }
    }
}

/// Watchers get each change once, in order, and hold the view that the log leads to.
fn watches(records: &Records, eras: &[Reference<'_>]) -> Vec<String> {
    let by_lineage: BTreeMap<Lineage, &Reference<'_>> =
        eras.iter().map(|reference| (lineage_of(reference.era), reference)).collect();
    let mut streams: BTreeMap<&str, Vec<&(Ms, Seen)>> = BTreeMap::new();
    for era in records.earlier.iter().chain([&records.era]) {
        for (watcher, seen) in &era.watches {
            streams.entry(watcher).or_default().extend(seen);
        }
    }
    let mut found = Vec::new();
    for (watcher, seen) in streams {
        let mut view = ClusterView::default();
        for (at, seen) in seen {
            if let Err(wrong) = follow(&mut view, seen, &by_lineage) {
                found.push(format!("{watcher} at {at} ms: {wrong}"));
                break;
            }
        }
    }
    found
}

/// Folds one event into what the watcher holds.
fn follow(
    held: &mut ClusterView,
    seen: &Seen,
    references: &BTreeMap<Lineage, &Reference<'_>>,
) -> Result<(), String> {
    let before = (held.lineage, held.index);
    match seen {
        Seen::View(view) => *held = ClusterView::clone(view),
        Seen::Event(event) => match &**event {
            WatchEvent::Snapshot(view) => *held = view.clone(),
            WatchEvent::Delta(delta) => {
                delta.ops.iter().for_each(|op| held.apply_op(op.clone()));
                held.index = delta.index;
                if delta.index <= before.1 {
                    return Err(format!("delta {} after {}", delta.index, before.1));
                }
            }
            WatchEvent::Bookmark(index) => held.index = *index,
        },
    }
    if (held.lineage, held.index) < before {
        return Err(format!("{:?} after {before:?}", (held.lineage, held.index)));
    }
    let Some(reference) = references.get(&held.lineage) else { return Ok(()) };
    let Some(step) = reference.steps.get(&held.index.0) else { return Ok(()) };
    let is_delta = matches!(seen, Seen::Event(event) if matches!(**event, WatchEvent::Delta(_)));
    if is_delta && !step.changes {
        return Err(format!("a delta at {} where nothing changed", held.index));
    }
    if *held != *step.view {
        return Err(format!("holds {held:?} where the log leads to {:?}", step.view));
    }
    Ok(())
}

/// How long after the last fault a write was answered: what a group takes to come back, if it was gone.
pub(super) fn recovered_ms(era: &Era) -> Option<Ms> {
    let writes = era.calls.values().filter(|call| matches!(call.asked, Asked::Submit { .. }));
    let ends = writes.filter_map(|call| call.answer).map(|(ended, _told)| ended);
    ends.filter(|ended| *ended >= CALM_FROM_MS).min().map(|ended| ended - CALM_FROM_MS)
}

/// Once nothing goes wrong any more, everything works again.
fn liveness(era: &Era) -> Vec<String> {
    let recovered = CALM_FROM_MS + RECOVERY_MS;
    let mut found = Vec::new();
    let answered = |call: &&Call| call.began >= recovered && call.answer.is_some();
    let is_write = |call: &&Call| matches!(call.asked, Asked::Submit { .. });
    if era.calls.values().filter(is_write).filter(answered).count() == 0 {
        found.push(format!("no write succeeded after {recovered} ms"));
    }
    let is_beat = |call: &&Call| matches!(call.asked, Asked::Heartbeat { .. });
    if era.calls.values().filter(is_beat).filter(answered).count() == 0 {
        found.push(format!("no heartbeat was answered after {recovered} ms"));
    }
    let last = era.looks.iter().filter(|look| look.at >= END_MS - 1000);
    let nodes: BTreeSet<u64> = last.map(|look| look.node).collect();
    let members = members(era);
    let reached = era.ends.iter().filter(|(node, _index)| members.contains(node));
    let reached = reached.map(|(_node, index)| index.0);
    let lag = reached.clone().max().unwrap_or(0) - reached.min().unwrap_or(0);
    if !members.is_subset(&nodes) || lag > 20 {
        let ends = &era.ends;
        found.push(format!("{members:?} did not come together: {ends:?} by {nodes:?}"));
    }
    found
}

/// The nodes of the group as it was at last.
fn members(era: &Era) -> BTreeSet<u64> {
    let memberships = era.committed.values().rev().filter_map(|entry| match &entry.content {
        EntryContent::Membership(membership) => Some(membership.urls.keys().copied().collect()),
        EntryContent::Command(_) | EntryContent::Blank => None,
    });
    memberships.into_iter().next().unwrap_or_default()
}
