//! Which engines there are and what each name means: folded from the cluster view. No clock, no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use phalanx_proto::id::{MemberId, ModelName, Revision};
use phalanx_proto::view::{AliasTarget, ClusterView, MemberRole, MemberState};

use crate::engine::Engine;
use crate::error::RouterError;

/// A snapshot of the routable cluster; a new view makes a new one.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    view: Arc<ClusterView>,
    engines: BTreeMap<MemberId, Arc<Engine>>,
    /// Engines of members in state ready, by the models they serve.
    ready: HashMap<ModelName, Vec<Arc<Engine>>>,
}

/// What the driver must do to follow a new fleet.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// To connect.
    pub(crate) opened: Vec<Arc<Engine>>,
    /// To disconnect.
    pub(crate) closed: Vec<Arc<Engine>>,
}

/// Where a request for one name goes: a model, and the engines that serve it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route<'a> {
    pub(crate) model: &'a ModelName,
    revision: Option<&'a Revision>,
    engines: &'a [Arc<Engine>],
}

/// A model or alias as clients list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) name: ModelName,
    /// Longest context any engine offers; none while no engine serves it.
    pub(crate) context_tokens_max: Option<u32>,
}

// === impl Fleet ===

impl Fleet {
    /// The fleet that `view` describes; engines whose registration did not change are kept.
    pub(crate) fn next(&self, view: Arc<ClusterView>) -> (Self, Changes) {
        let mut fleet = Self { view, ..Self::default() };
        let mut changes = Changes::default();
        let workers = fleet.view.members.values().filter(|m| m.role == MemberRole::Worker);
        for member in workers {
            let kept = self.engines.get(&member.id).filter(|engine| engine.is_of(member));
            let engine = kept.map_or_else(
                || {
                    let engine = Arc::new(Engine::new(member));
                    changes.opened.push(Arc::clone(&engine));
                    engine
                },
                Arc::clone,
            );
            if member.state == MemberState::Ready {
                for served in &member.models {
                    fleet.ready.entry(served.name.clone()).or_default().push(Arc::clone(&engine));
                }
            }
            fleet.engines.insert(member.id, engine);
        }
        changes.closed = self
            .engines
            .values()
            .filter(|old| fleet.engines.get(&old.id).is_none_or(|engine| !Arc::ptr_eq(engine, old)))
            .cloned()
            .collect();
        (fleet, changes)
    }

    /// Where `name` leads; `draw` picks among an alias' targets by weight. None: the name is unknown.
    pub(crate) fn route<'a>(&'a self, name: &'a ModelName, draw: u64) -> Option<Route<'a>> {
        if let Some(alias) = self.view.aliases.get(name) {
            return self.weighted(&alias.targets, draw);
        }
        let (name, engines) = self
            .ready
            .get_key_value(name)
            .map(|(name, engines)| (name, engines.as_slice()))
            .or_else(|| self.is_known(name).then_some((name, &[][..])))?;
        Some(Route { model: name, revision: None, engines })
    }

    /// A target by weight among those that an engine can serve now, or among all when none can.
    fn weighted<'a>(&'a self, targets: &'a [AliasTarget], draw: u64) -> Option<Route<'a>> {
        let route = |target: &'a AliasTarget| Route {
            model: &target.model,
            revision: target.revision.as_ref(),
            engines: self.ready.get(&target.model).map_or(&[][..], Vec::as_slice),
        };
        let alive = |target: &&AliasTarget| {
            target.weight > 0 && route_has_engine(self.ready.get(&target.model), target)
        };
        let total: u64 = targets.iter().filter(alive).map(|target| u64::from(target.weight)).sum();
        if total == 0 {
            return targets.first().map(route);
        }
        let mut ticket = draw % total;
        for target in targets.iter().filter(alive) {
            let weight = u64::from(target.weight);
            if ticket < weight {
                return Some(route(target));
            }
            ticket -= weight;
        }
        None
    }

    /// Whether clients may name it, served now or not.
    pub(crate) fn is_known(&self, name: &ModelName) -> bool {
        self.view.aliases.contains_key(name)
            || self.view.models.iter().any(|model| model.name == *name)
            || self.engines.values().any(|engine| engine.revision(name).is_some())
    }

    /// Why `name` cannot be served: nobody knows it, or there is nobody yet who could. A view without any
    /// model is one of control that is new, lost its state or was not heard yet: workers are about to
    /// register, and a client that is told "no such model" would not come back.
    pub(crate) fn unknown(&self, name: &ModelName) -> RouterError {
        let is_known_nothing = self.view.models.is_empty()
            && self.view.aliases.is_empty()
            && self.engines.values().all(|engine| engine.models.is_empty());
        if is_known_nothing {
            RouterError::NoWorker { model: name.clone() }
        } else {
            RouterError::ModelUnknown { model: name.to_string() }
        }
    }

    /// Every name clients may use, in order.
    pub(crate) fn listings(&self) -> Vec<Listing> {
        let served = self.engines.values().flat_map(|engine| &engine.models);
        let names: BTreeSet<&ModelName> = (self.view.models.iter().map(|model| &model.name))
            .chain(served.map(|model| &model.name))
            .chain(self.view.aliases.keys())
            .collect();
        names.into_iter().map(|name| self.listing(name)).collect()
    }

    /// One name, if clients may use it.
    pub(crate) fn find(&self, name: &ModelName) -> Option<Listing> {
        self.is_known(name).then(|| self.listing(name))
    }

    fn listing(&self, name: &ModelName) -> Listing {
        let targets: Vec<&ModelName> = match self.view.aliases.get(name) {
            Some(alias) => alias.targets.iter().map(|target| &target.model).collect(),
            None => vec![name],
        };
        let context_tokens_max = (self.engines.values().flat_map(|engine| &engine.models))
            .filter(|served| targets.contains(&&served.name))
            .map(|served| served.context_tokens_max)
            .max();
        Listing { name: name.clone(), context_tokens_max }
    }

    /// Every engine, draining ones too.
    pub(crate) fn engines(&self) -> impl Iterator<Item = &Arc<Engine>> {
        self.engines.values()
    }

    /// Whether any model can be served now.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.values().flatten().any(|engine| engine.is_up())
    }
}

fn route_has_engine(engines: Option<&Vec<Arc<Engine>>>, target: &AliasTarget) -> bool {
    engines.is_some_and(|engines| {
        engines
            .iter()
            .any(|engine| engine.is_up() && serves(engine, target.revision.as_ref(), &target.model))
    })
}

fn serves(engine: &Engine, revision: Option<&Revision>, model: &ModelName) -> bool {
    revision.is_none_or(|revision| engine.revision(model) == Some(revision))
}

// === impl Route ===

impl<'a> Route<'a> {
    /// Engines that can take the request now, but for those in `excluded`.
    pub(crate) fn candidates(
        self,
        excluded: &'a [MemberId],
    ) -> impl Iterator<Item = &'a Arc<Engine>> + 'a {
        self.engines.iter().filter(move |engine| {
            engine.is_up()
                && !excluded.contains(&engine.id)
                && serves(engine, self.revision, self.model)
        })
    }
}

#[cfg(test)]
mod tests;
