//! Who is next: a bounded queue that is fair to flows and honours priorities. Pure.
//!
//! ```text
//! pop ──► class with the least virtual start ──► its flow with the least virtual start ──► that flow's oldest item
//! ```
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996) on two levels: classes share by their weights, and so do the
//! flows within a class. A flow is who pays: served items move its start on by their cost over its weight, so that
//! over any time in which two flows wait they are served in the ratio of their weights, whatever they sent. A class
//! that is not high still gets its share: nobody starves.
//!
//! When it is full, the newest item of the flow with the longest backlog gives way, in the lowest class that waits:
//! who floods the queue cannot keep others out of it.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// Virtual time per unit of cost at weight 1: fine enough for shares, coarse enough never to overflow.
const TICKS_PER_COST: u64 = 1 << 10;
/// Flows that were served ahead of their share and wait for nothing; they are remembered so that to come back at
/// once gains them nothing. Beyond this many they are forgotten, all at once so that each costs little.
const IDLE_FLOWS_MAX: usize = 1_024;

/// How urgent an item is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

/// Who pays for an item, and which share is theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) key: u64,
    pub(crate) weight: u32,
}

/// Where an item waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    priority: Priority,
    flow: u64,
    number: u64,
}

/// What became of a push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed<T> {
    Waits(Place),
    /// It waits in the place of another item, which is handed back.
    InPlaceOf(Place, T),
    /// The queue is full of items with as good a right; the item is handed back.
    Full(T),
}

/// Items that wait.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    classes: [Class<T>; 3],
    capacity: usize,
    len: usize,
    numbers: u64,
    now: u64,
}

/// The flows of one priority.
#[derive(Debug)]
struct Class<T> {
    flows: HashMap<u64, Backlog<T>>,
    /// Flows with items, by their start.
    order: BTreeSet<(u64, u64)>,
    len: usize,
    now: u64,
    start: u64,
}

#[derive(Debug)]
struct Backlog<T> {
    items: VecDeque<Item<T>>,
    weight: u64,
    /// When, in virtual time, the next item may start.
    start: u64,
}

#[derive(Debug)]
struct Item<T> {
    number: u64,
    cost: u64,
    value: T,
}

// === impl Priority ===

impl Priority {
    pub(crate) const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::High => 0,
            Self::Normal => 1,
            Self::Low => 2,
        }
    }

    /// Of what the engines do while all classes wait, each gets this share.
    const fn weight(self) -> u64 {
        match self {
            Self::High => 64,
            Self::Normal => 8,
            Self::Low => 1,
        }
    }
}

// === impl FairQueue ===

impl<T> FairQueue<T> {
    /// A queue for `capacity` items.
    pub(crate) fn new(capacity: usize) -> Self {
        let classes = Priority::ALL.map(|_| Class::default());
        Self { classes, capacity, len: 0, numbers: 0, now: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts an item of `cost` to the end of its flow.
    pub(crate) fn push(
        &mut self,
        priority: Priority,
        flow: Flow,
        cost: u64,
        value: T,
    ) -> Pushed<T> {
        let displaced = if self.len < self.capacity {
            None
        } else {
            match self.give_way(priority, flow) {
                None => return Pushed::Full(value),
                displaced => displaced,
            }
        };
        self.numbers += 1;
        let item = Item { number: self.numbers, cost: cost.max(1), value };
        let class = &mut self.classes[priority.index()];
        if class.len == 0 {
            class.start = class.start.max(self.now);
        }
        class.push(flow, item);
        self.len += 1;
        let place = Place { priority, flow: flow.key, number: self.numbers };
        match displaced {
            None => Pushed::Waits(place),
            Some(displaced) => Pushed::InPlaceOf(place, displaced),
        }
    }

    /// The item whose turn it is.
    pub(crate) fn peek(&self) -> Option<&T> {
        self.next_class().and_then(|priority| self.classes[priority.index()].peek())
    }

    /// Takes out the item whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let priority = self.next_class()?;
        let class = &mut self.classes[priority.index()];
        self.now = class.start;
        let item = class.pop()?;
        class.start += item.cost.saturating_mul(TICKS_PER_COST) / priority.weight();
        self.len -= 1;
        self.begin_anew_when_empty();
        Some(item.value)
    }

    /// Takes out an item that will not wait for its turn.
    pub(crate) fn remove(&mut self, place: Place) -> Option<T> {
        let removed = self.classes[place.priority.index()].remove(place.flow, place.number)?;
        self.len -= 1;
        self.begin_anew_when_empty();
        Some(removed)
    }

    /// How many items would be served before the next one of that flow, about: its own, as many of every other
    /// flow of its class, and the classes above.
    pub(crate) fn ahead(&self, priority: Priority, flow: Flow) -> usize {
        let class = &self.classes[priority.index()];
        let own = class.flows.get(&flow.key).map_or(0, |backlog| backlog.items.len());
        let above: usize = self.classes[..priority.index()].iter().map(|class| class.len).sum();
        let others = class.order.len().saturating_sub(usize::from(own > 0));
        above + class.len.min(own + (own + 1) * others)
    }

    fn next_class(&self) -> Option<Priority> {
        let waiting = Priority::ALL.into_iter().filter(|p| self.classes[p.index()].len > 0);
        waiting.min_by_key(|priority| self.classes[priority.index()].start)
    }

    /// Makes room for an item of that flow, if another one has less right to its place.
    fn give_way(&mut self, priority: Priority, flow: Flow) -> Option<T> {
        let lowest = Priority::ALL.into_iter().rfind(|p| self.classes[p.index()].len > 0)?;
        let class = &mut self.classes[lowest.index()];
        let share = |items: usize, weight: u64| items as u64 * TICKS_PER_COST / weight;
        let (longest, backlog) =
            class.flows.iter().max_by_key(|(key, b)| (share(b.items.len(), b.weight), **key))?;
        let longest_share = share(backlog.items.len(), backlog.weight);
        let newest = backlog.items.back()?.number;
        let longest = *longest;
        let has_less_right = match lowest.cmp(&priority) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => {
                let own = class.flows.get(&flow.key).map_or(0, |backlog| backlog.items.len());
                longest != flow.key && longest_share > share(own + 1, weight_of(flow))
            }
        };
        if !has_less_right {
            return None;
        }
        let displaced = class.remove(longest, newest)?;
        self.len -= 1;
        Some(displaced)
    }

    /// Nobody waits, so nobody is ahead of anybody.
    fn begin_anew_when_empty(&mut self) {
        if self.len == 0 {
            self.now = 0;
            self.classes = Priority::ALL.map(|_| Class::default());
        }
    }
}

// === impl Class ===

impl<T> Default for Class<T> {
    fn default() -> Self {
        Self { flows: HashMap::new(), order: BTreeSet::new(), len: 0, now: 0, start: 0 }
    }
}

impl<T> Class<T> {
    fn push(&mut self, flow: Flow, item: Item<T>) {
        let now = self.now;
        let backlog = self.flows.entry(flow.key).or_insert_with(|| Backlog {
            items: VecDeque::new(),
            weight: 1,
            start: now,
        });
        backlog.weight = weight_of(flow);
        if backlog.items.is_empty() {
            backlog.start = backlog.start.max(now);
            self.order.insert((backlog.start, flow.key));
        }
        backlog.items.push_back(item);
        self.len += 1;
    }

    fn peek(&self) -> Option<&T> {
        let (_, key) = self.order.first()?;
        self.flows.get(key)?.items.front().map(|item| &item.value)
    }

    fn pop(&mut self) -> Option<Item<T>> {
        let (start, key) = self.order.pop_first()?;
        self.now = start;
        let backlog = self.flows.get_mut(&key)?;
        let item = backlog.items.pop_front()?;
        backlog.start = start + item.cost.saturating_mul(TICKS_PER_COST) / backlog.weight;
        self.len -= 1;
        if backlog.items.is_empty() {
            self.forget_idle();
        } else {
            self.order.insert((backlog.start, key));
        }
        Some(item)
    }

    fn remove(&mut self, key: u64, number: u64) -> Option<T> {
        let backlog = self.flows.get_mut(&key)?;
        let at = backlog.items.binary_search_by_key(&number, |item| item.number).ok()?;
        let item = backlog.items.remove(at)?;
        self.len -= 1;
        if backlog.items.is_empty() {
            self.order.remove(&(backlog.start, key));
            self.forget_idle();
        }
        Some(item.value)
    }

    /// Forgets flows that wait for nothing and are ahead of nobody, or are too many to remember.
    fn forget_idle(&mut self) {
        let idle = self.flows.len() - self.order.len();
        // Now and then, so that it costs each item little.
        if idle < 64 || !idle.is_power_of_two() && idle <= IDLE_FLOWS_MAX {
            return;
        }
        let now = self.now;
        self.flows.retain(|_, backlog| !backlog.items.is_empty() || backlog.start > now);
        if self.flows.len() - self.order.len() > IDLE_FLOWS_MAX {
            self.flows.retain(|_, backlog| !backlog.items.is_empty());
        }
    }
}

fn weight_of(flow: Flow) -> u64 {
    u64::from(flow.weight.max(1))
}

#[cfg(test)]
mod tests;
