//! The roles of one process, and how they leave: the router first, then the workers, then control.
//!
//! ```text
//! signal | a role ended ──► Departure::apply (pure) ──► which roles are told what ──► their drain triggers
//! ```

use std::future::Future;
use std::time::Duration;

use phalanx_chassis::drain::{self, Drain, DrainTrigger, Phase};
use phalanx_chassis::signals::Signals;
use tokio::task::{JoinError, JoinSet};

use crate::failure::Failure;

/// How long roles may take to end once they were told to stop: they only drop what they hold.
const STOP_MAX: Duration = Duration::from_secs(5);

/// A role, in the order of leaving: who is left later is needed by who leaves earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Serves clients.
    Router,
    /// Serves models.
    Worker,
    /// Knows the cluster.
    Control,
}

/// How a role's task ended.
type Ended = Result<(Role, Result<(), String>), JoinError>;

/// Everything that runs in this process.
#[derive(Debug)]
pub(crate) struct Roles {
    signals: Signals,
    tasks: JoinSet<(Role, Result<(), String>)>,
    triggers: Vec<(Role, DrainTrigger)>,
    running: Vec<Role>,
}

/// What happens to a process with roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Signal(Phase),
    RoleEnded(Role),
}

/// Who is still there, and how far everybody is on the way out. Pure.
#[derive(Debug, Default)]
struct Departure {
    running: Vec<Role>,
    is_draining: bool,
    is_stopping: bool,
}

// === impl Role ===

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Worker => "worker",
            Self::Control => "control node",
        }
    }
}

// === impl Roles ===

impl Roles {
    /// No roles yet; takes over the process' signals.
    ///
    /// # Errors
    /// When the signals cannot be had.
    pub(crate) fn new() -> Result<Self, Failure> {
        let signals = Signals::install()
            .map_err(|error| Failure::Failed(format!("cannot handle signals: {error}")))?;
        Ok(Self { signals, tasks: JoinSet::new(), triggers: Vec::new(), running: Vec::new() })
    }

    /// A drain that moves with `role`: for one that is about to be bound, or for what accompanies it.
    pub(crate) fn drain(&mut self, role: Role) -> Drain {
        let (trigger, drain) = drain::channel();
        self.triggers.push((role, trigger));
        drain
    }

    /// Runs a bound role. It ends when it was drained or stopped, or fails.
    pub(crate) fn start<F>(&mut self, role: Role, run: F)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.running.push(role);
        self.tasks.spawn(async move { (role, run.await) });
    }

    /// Waits for a part of the start-up; `None` when a signal or the end of a role came first.
    ///
    /// # Errors
    /// What `step` failed with, or the end of a role that was already running.
    pub(crate) async fn during<F, T>(&mut self, step: F) -> Result<Option<T>, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        tokio::select! {
            biased;
            _phase = self.signals.next() => Ok(None),
            Some(ended) = self.tasks.join_next() => Err(unexpected_end(ended)),
            done = step => done.map(Some),
        }
    }

    /// Runs all roles to their end.
    ///
    /// # Errors
    /// When a role ends before anybody asked for it, or fails to leave.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let mut departure =
            Departure { running: std::mem::take(&mut self.running), ..Departure::default() };
        let mut failures = Vec::new();
        while !departure.running.is_empty() {
            let event = tokio::select! {
                phase = self.signals.next() => Event::Signal(phase),
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok((role, outcome)) if departure.is_draining => {
                        if let Err(error) = outcome {
                            failures.push(format!("the {} failed to leave: {error}", role.name()));
                        }
                        Event::RoleEnded(role)
                    }
                    unasked => return Err(self.stop_all(unexpected_end(unasked)).await),
                },
                () = tokio::time::sleep(STOP_MAX), if departure.is_stopping => {
                    failures.push(format!("gave up on {} roles that did not stop", departure.running.len()));
                    break;
                }
            };
            let told = departure.apply(event);
            self.tell(&told);
        }
        if failures.is_empty() { Ok(()) } else { Err(Failure::Failed(failures.join("; "))) }
    }

    /// Lets the roles that are left drop their work, so that children and files are released.
    async fn stop_all(&mut self, failure: Failure) -> Failure {
        for (_, trigger) in &self.triggers {
            trigger.advance(Phase::Stopping);
        }
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        // What does not stop in time is ended with the process.
        let _ = tokio::time::timeout(STOP_MAX, rest).await;
        failure
    }

    fn tell(&self, told: &[(Role, Phase)]) {
        for (role, phase) in told {
            for (_, trigger) in self.triggers.iter().filter(|(of, _)| of == role) {
                trigger.advance(*phase);
            }
        }
    }
}

fn unexpected_end(ended: Ended) -> Failure {
    Failure::Failed(match ended {
        Ok((role, Ok(()))) => format!("the {} ended by itself", role.name()),
        Ok((role, Err(error))) => format!("the {} failed: {error}", role.name()),
        Err(error) => format!("a role failed: {error}"),
    })
}

// === impl Departure ===

impl Departure {
    /// Takes in what happened, and says who is told what.
    fn apply(&mut self, event: Event) -> Vec<(Role, Phase)> {
        match event {
            Event::Signal(Phase::Stopping) => {
                self.is_draining = true;
                self.is_stopping = true;
                self.running.iter().map(|role| (*role, Phase::Stopping)).collect()
            }
            Event::Signal(Phase::Draining) => {
                self.is_draining = true;
                self.next_to_leave()
            }
            Event::Signal(Phase::Serving) => Vec::new(),
            Event::RoleEnded(ended) => {
                if let Some(at) = self.running.iter().position(|role| *role == ended) {
                    self.running.swap_remove(at);
                }
                if self.is_draining && !self.running.contains(&ended) {
                    return self.next_to_leave();
                }
                Vec::new()
            }
        }
    }

    fn next_to_leave(&self) -> Vec<(Role, Phase)> {
        self.running.iter().min().map(|role| (*role, Phase::Draining)).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serving() -> Departure {
        let running = vec![Role::Control, Role::Worker, Role::Worker, Role::Router];
        Departure { running, ..Departure::default() }
    }

    #[track_caller]
    fn check(steps: &[(Event, &[(Role, Phase)])]) {
        let mut departure = serving();
        for (event, told) in steps {
            assert_eq!(departure.apply(*event), *told);
        }
        assert!(departure.running.is_empty());
    }

    #[test]
    fn the_router_leaves_first_then_all_workers_then_control() {
        check(&[
            (Event::Signal(Phase::Draining), &[(Role::Router, Phase::Draining)]),
            (Event::RoleEnded(Role::Router), &[(Role::Worker, Phase::Draining)]),
            (Event::RoleEnded(Role::Worker), &[]),
            (Event::RoleEnded(Role::Worker), &[(Role::Control, Phase::Draining)]),
            (Event::RoleEnded(Role::Control), &[]),
        ]);
    }

    #[test]
    fn a_second_signal_stops_everybody_who_is_left() {
        let all = [
            (Role::Control, Phase::Stopping),
            (Role::Worker, Phase::Stopping),
            (Role::Worker, Phase::Stopping),
            (Role::Router, Phase::Stopping),
        ];
        let mut departure = serving();
        departure.apply(Event::Signal(Phase::Draining));
        assert_eq!(departure.apply(Event::Signal(Phase::Stopping)), all);
        for role in [Role::Router, Role::Worker, Role::Control, Role::Worker] {
            departure.apply(Event::RoleEnded(role));
        }
        assert!(departure.running.is_empty());
    }
}
