//! Who asked for what last, so that a repeated command is answered, not applied again.

use std::collections::BTreeMap;

use phalanx_proto::id::ViewIndex;
use serde::{Deserialize, Serialize};

use super::{Refusal, Reply};

/// How many clients' last answers are kept, by log order. A client that was silent while this many others
/// wrote is not one that still repeats a request.
pub(super) const CLIENTS_MAX: usize = 1024;

/// The last answer given to each client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Clients(BTreeMap<String, Answer>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    sequence: u64,
    reply: Reply,
    /// When the client was last heard, in log order.
    heard: ViewIndex,
}

// === impl Clients ===

impl Clients {
    /// The answer to a command that the client sent before, or that a later one of its superseded.
    pub(super) fn answer(
        &mut self,
        index: ViewIndex,
        client: &str,
        sequence: u64,
    ) -> Option<Reply> {
        let answer = self.0.get_mut(client).filter(|answer| answer.sequence >= sequence)?;
        answer.heard = index;
        if answer.sequence == sequence {
            return Some(answer.reply.clone());
        }
        let (client, last) = (client.to_owned(), answer.sequence);
        Some(Reply::Refused(Refusal::Superseded { client, sequence, last }))
    }

    /// Remembers an answer, and forgets the client that was silent for longest when there are too many.
    pub(super) fn remember(&mut self, index: ViewIndex, client: &str, sequence: u64, reply: Reply) {
        self.0.insert(client.to_owned(), Answer { sequence, reply, heard: index });
        while self.0.len() > CLIENTS_MAX {
            let oldest = self.0.iter().min_by_key(|(_client, answer)| answer.heard);
            let Some(oldest) = oldest.map(|(client, _answer)| client.clone()) else { return };
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_clients_heard_last_are_remembered() {
        let mut clients = Clients::default();
        let count = u64::try_from(CLIENTS_MAX).unwrap();
        let applied = |index| Reply::Applied { index: ViewIndex(index) };
        for index in 1..=count {
            clients.remember(ViewIndex(index), &format!("c{index}"), 1, applied(index));
        }
        let (next, last) = (ViewIndex(count + 1), ViewIndex(count + 2));
        assert_eq!(clients.answer(next, "c1", 1), Some(applied(1)));
        clients.remember(last, "new", 1, applied(last.0));
        assert_eq!(clients.0.len(), CLIENTS_MAX);
        assert_eq!(clients.answer(last, "c1", 1), Some(applied(1)));
        assert_eq!(clients.answer(last, "c2", 1), None);
    }
}
