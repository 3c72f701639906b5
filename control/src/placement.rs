//! Which groups there should be: what operators want, against what workers offer and what is formed already. Pure.
//!
//! ```text
//! view (deployments, members, groups) ──► plan ──► changes: break, remove, form ──► log ──► view
//! ```
//!
//! A plan is what can be done now; what it waits for (a rank that loads, a request that ends) makes another view and
//! so another plan. The plan of a view in which nothing more can be done is empty. A group that serves is touched
//! only when nobody wants it, when its member leaves, or to be replaced by another revision, one at a time. It gives
//! way before its replacement serves only for a revision that some worker has served: one that nobody has may be a
//! slip of the pen, so it is tried on free devices or not at all.
//!
//! Not decided here: whether a model fits a member's memory. The worker that loads it finds out, and says so.

mod ledger;

use std::collections::BTreeSet;

use phalanx_proto::change::Change;
use phalanx_proto::id::MemberId;
use phalanx_proto::view::{ClusterView, Deployment, Group, GroupRank, GroupState};

use self::ledger::Ledger;

/// The most changes of one plan: the leader looks at its leases between two plans, and a slow disk takes tens of
/// milliseconds for each change. What is left over is in the next plan.
pub const CHANGES_MAX: usize = 32;

/// Groups that a deployment may have beyond its replicas while one revision replaces another.
const SURGE: usize = 1;

/// What to do next, in the order to do it.
pub fn plan(view: &ClusterView) -> Vec<Change> {
    if view.deployments.is_empty() && view.groups.is_empty() {
        return Vec::new();
    }
    let mut plan = Plan::new(view);
    plan.let_go();
    plan.fill();
    plan.exchange();
    plan.changes.truncate(CHANGES_MAX);
    plan.changes
}

/// A plan in the making.
struct Plan<'a> {
    view: &'a ClusterView,
    ledger: Ledger<'a>,
    wanted: Vec<Wanted<'a>>,
    changes: Vec<Change>,
}

/// One deployment, and the groups it has.
struct Wanted<'a> {
    deployment: &'a Deployment,
    /// As it should be, but not serving yet.
    forming: Vec<&'a Group>,
    /// As it should be.
    ready: Vec<&'a Group>,
    /// Serving another revision, or sharded otherwise; oldest first.
    outdated: Vec<&'a Group>,
    /// To be formed anew, before another is made.
    broken: Vec<&'a Group>,
    /// Members that could not serve it and have not registered anew since.
    failed: BTreeSet<MemberId>,
    /// Whether some worker has served its revision.
    is_known: bool,
    /// How many this plan forms.
    formed: usize,
}

// === impl Plan ===

impl<'a> Plan<'a> {
    fn new(view: &'a ClusterView) -> Self {
        let wanted = view.deployments.values().map(|deployment| Wanted {
            is_known: view.knows(&deployment.name, &deployment.revision),
            ..Wanted::new(deployment)
        });
        let wanted = wanted.collect();
        Self { view, ledger: Ledger::new(view), wanted, changes: Vec::new() }
    }

    /// Breaks what lost a member, removes what nobody wants, and sorts the rest by deployment.
    fn let_go(&mut self) {
        for group in self.view.groups.values() {
            let at =
                self.wanted.iter().position(|wanted| wanted.deployment.name == group.deployment);
            let Some(wanted) = at.map(|at| &mut self.wanted[at]) else {
                self.remove(group);
                continue;
            };
            let is_current = wanted.deployment.is_as_wanted(group);
            match group.state {
                GroupState::Forming | GroupState::Ready if self.ledger.is_lost(group) => {
                    self.ledger.release(group);
                    self.changes.push(Change::BreakGroup(group.reference()));
                }
                GroupState::Forming if is_current => wanted.forming.push(group),
                GroupState::Ready if is_current => wanted.ready.push(group),
                GroupState::Ready => wanted.outdated.push(group),
                GroupState::Broken if is_current => match self.ledger.failed_member(group) {
                    // The record of a failure, kept so that it is seen and not repeated.
                    Some(member) => _ = wanted.failed.insert(member),
                    None => wanted.broken.push(group),
                },
                GroupState::Forming | GroupState::Broken => self.remove(group),
            }
        }
        for at in 0..self.wanted.len() {
            for group in self.wanted[at].take_surplus() {
                self.remove(group);
            }
        }
    }

    /// Forms what is missing, as far as there are free devices: a replica of each deployment before another of any.
    fn fill(&mut self) {
        let mut stuck = BTreeSet::new();
        while self.changes.len() < CHANGES_MAX {
            let open = self.wanted.iter().enumerate();
            let open = open.filter(|(at, wanted)| !stuck.contains(at) && wanted.may_form());
            let Some((at, _wanted)) = open.min_by_key(|(_at, wanted)| wanted.live()) else {
                return;
            };
            match self.place(at) {
                Some(ranks) => self.form(at, ranks),
                None => _ = stuck.insert(at),
            }
        }
    }

    /// Where there is no room for a surge: takes the devices of groups to be replaced for one that replaces them.
    fn exchange(&mut self) {
        for at in 0..self.wanted.len() {
            if self.changes.len() >= CHANGES_MAX || !self.wanted[at].may_exchange() {
                continue;
            }
            let outdated = self.wanted[at].outdated.clone();
            let mut released = outdated.iter().enumerate().map(|(before, group)| {
                self.ledger.release(group);
                (before + 1, self.ledger.place(&self.wanted[at]))
            });
            let found = released.find_map(|(count, ranks)| Some((count, ranks?)));
            let Some((count, ranks)) = found else {
                outdated.iter().for_each(|group| self.ledger.hold(&group.deployment, &group.ranks));
                continue;
            };
            let gone = outdated[..count].iter().map(|group| Change::RemoveGroup(group.reference()));
            self.changes.extend(gone);
            self.wanted[at].outdated.drain(..count);
            self.form(at, ranks);
        }
    }

    fn place(&self, at: usize) -> Option<Vec<GroupRank>> {
        self.ledger.place(&self.wanted[at])
    }

    fn form(&mut self, at: usize, ranks: Vec<GroupRank>) {
        let wanted = &mut self.wanted[at];
        let Deployment { name, revision, .. } = wanted.deployment;
        let former = (!wanted.broken.is_empty()).then(|| wanted.broken.remove(0));
        wanted.formed += 1;
        self.ledger.hold(name, &ranks);
        self.changes.push(Change::FormGroup {
            group: former.map(Group::reference),
            deployment: name.clone(),
            revision: revision.clone(),
            ranks,
        });
    }

    fn remove(&mut self, group: &'a Group) {
        if group.is_live() {
            self.ledger.release(group);
        }
        self.changes.push(Change::RemoveGroup(group.reference()));
    }
}

// === impl Wanted ===

impl<'a> Wanted<'a> {
    const fn new(deployment: &'a Deployment) -> Self {
        Self {
            deployment,
            forming: Vec::new(),
            ready: Vec::new(),
            outdated: Vec::new(),
            broken: Vec::new(),
            failed: BTreeSet::new(),
            is_known: false,
            formed: 0,
        }
    }

    fn replicas(&self) -> usize {
        self.deployment.replicas as usize
    }

    /// Groups that hold devices for it.
    fn live(&self) -> usize {
        self.current() + self.outdated.len()
    }

    fn current(&self) -> usize {
        self.forming.len() + self.ready.len() + self.formed
    }

    /// Takes out what is beyond the replicas: what is replaced already, what does not serve yet, and the newest.
    fn take_surplus(&mut self) -> Vec<&'a Group> {
        let replicas = self.replicas();
        let serving = self.ready.len() + self.outdated.len();
        let replaced = serving.saturating_sub(replicas).min(self.outdated.len());
        let mut surplus: Vec<&Group> = self.outdated.drain(..replaced).collect();
        for groups in [&mut self.forming, &mut self.ready, &mut self.broken] {
            groups.sort_by_key(|group| group.epoch);
        }
        let beyond = self.current().saturating_sub(replicas);
        let unready = beyond.min(self.forming.len());
        surplus.extend(self.forming.drain(self.forming.len() - unready..));
        surplus.extend(self.ready.drain(self.ready.len() - (beyond - unready)..));
        let missing = replicas.saturating_sub(self.current());
        surplus.extend(self.broken.drain(missing.min(self.broken.len())..));
        surplus
    }

    /// Whether another group is missing: while old ones serve, one at a time.
    fn may_form(&self) -> bool {
        let is_missing = self.current() < self.replicas();
        let in_turn = self.outdated.is_empty()
            || (self.ready.len() == self.current() && self.live() < self.replicas() + SURGE);
        is_missing && in_turn
    }

    /// Whether an old group may go before another serves in its place. Not for a revision that nobody has served, nor
    /// after a failure: what serves is worth more than what may not even load.
    fn may_exchange(&self) -> bool {
        !self.outdated.is_empty() && self.is_known && self.failed.is_empty() && self.may_form()
    }
}

#[cfg(test)]
mod tests;
