use proptest::prelude::*;

use super::*;

const fn flow(key: u64) -> Flow {
    Flow { key, weight: 1 }
}

fn push<T>(queue: &mut FairQueue<T>, key: u64, value: T) {
    assert!(matches!(queue.push(Priority::Normal, flow(key), 1, value), Pushed::Waits(_)));
}

fn drain<T>(queue: &mut FairQueue<T>) -> Vec<T> {
    std::iter::from_fn(|| queue.pop()).collect()
}

#[test]
fn a_flow_that_comes_late_does_not_wait_for_one_that_flooded() {
    let mut queue = FairQueue::new(100);
    for _ in 0..50 {
        push(&mut queue, 1, "flood");
    }
    push(&mut queue, 2, "quiet");
    let order = drain(&mut queue);
    assert!(order.iter().take(2).any(|item| *item == "quiet"), "{order:?}");
}

#[test]
fn to_leave_and_come_back_gains_nothing() {
    let mut queue = FairQueue::new(100);
    for _ in 0..50 {
        push(&mut queue, 1, 1);
    }
    push(&mut queue, 2, 2);
    // Flow 2 has one item at a time, and brings the next one as soon as that is served.
    let mut served = [0; 3];
    for _ in 0..40 {
        let who = queue.pop().unwrap();
        served[who] += 1;
        if who == 2 {
            push(&mut queue, 2, 2);
        }
    }
    assert!(served[1] >= 19, "{served:?}");
}

#[test]
fn weights_divide_what_is_served() {
    let mut queue = FairQueue::new(1_000);
    for _ in 0..300 {
        queue.push(Priority::Normal, Flow { key: 1, weight: 3 }, 7, 1);
        queue.push(Priority::Normal, Flow { key: 2, weight: 1 }, 7, 2);
    }
    let first = (0..100).filter_map(|_| queue.pop()).filter(|who| *who == 1).count();
    assert!((73..=77).contains(&first), "{first} of 100");
}

#[test]
fn high_goes_first_and_low_still_moves() {
    let mut queue = FairQueue::new(1_000);
    for _ in 0..200 {
        for priority in Priority::ALL {
            queue.push(priority, flow(1), 1, priority);
        }
    }
    let served: Vec<Priority> = (0..146).filter_map(|_| queue.pop()).collect();
    let count = |priority| served.iter().filter(|served| **served == priority).count();
    assert!((126..=130).contains(&count(Priority::High)), "{}", count(Priority::High));
    assert!((1..=3).contains(&count(Priority::Low)), "{}", count(Priority::Low));
}

#[test]
fn when_full_the_newest_of_the_longest_backlog_gives_way() {
    let mut queue = FairQueue::new(4);
    for n in 0..4 {
        push(&mut queue, 1, n);
    }
    assert_eq!(queue.push(Priority::Normal, flow(1), 1, 9), Pushed::Full(9));
    assert!(matches!(queue.push(Priority::Normal, flow(2), 1, 20), Pushed::InPlaceOf(_, 3)));
    assert!(matches!(queue.push(Priority::Normal, flow(2), 1, 21), Pushed::InPlaceOf(_, 2)));
    // Both have two now: nobody has more than their share.
    assert_eq!(queue.push(Priority::Normal, flow(2), 1, 22), Pushed::Full(22));
    // A class below gives way first, a class above never.
    assert!(matches!(queue.push(Priority::High, flow(3), 1, 30), Pushed::InPlaceOf(..)));
    assert_eq!(queue.push(Priority::Low, flow(4), 1, 40), Pushed::Full(40));
    assert_eq!(queue.len(), 4);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Push(usize, u64, u64),
    Pop,
    Remove(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..3, 0u64..6, 1u64..100).prop_map(|(p, flow, cost)| Step::Push(p, flow, cost)),
        2 => Just(Step::Pop),
        1 => any::<usize>().prop_map(Step::Remove),
    ]
}

proptest! {
    /// Whatever happens, items come out once, flows in their order, and the count is right.
    #[test]
    fn nothing_is_lost_or_reordered_within_a_flow(steps in prop::collection::vec(step(), 0..400)) {
        let mut queue = FairQueue::new(16);
        let mut waiting: Vec<(Place, (u64, usize, u64))> = Vec::new();
        for (number, step) in (0u64..).zip(steps) {
            match step {
                Step::Push(class, key, cost) => {
                    let value = (number, class, key);
                    match queue.push(Priority::ALL[class], flow(key), cost, value) {
                        Pushed::Waits(place) => waiting.push((place, value)),
                        Pushed::InPlaceOf(place, displaced) => {
                            waiting.retain(|(_, value)| *value != displaced);
                            waiting.push((place, value));
                        }
                        Pushed::Full(back) => prop_assert_eq!(back, value),
                    }
                }
                Step::Pop => {
                    let peeked = queue.peek().copied();
                    let popped = queue.pop();
                    prop_assert_eq!(peeked, popped);
                    if let Some(popped) = popped {
                        let first = waiting.iter().map(|(_, value)| *value)
                            .filter(|value| (value.1, value.2) == (popped.1, popped.2)).min();
                        prop_assert_eq!(first, Some(popped));
                        waiting.retain(|(_, value)| *value != popped);
                    }
                }
                Step::Remove(which) => if !waiting.is_empty() {
                    let (place, value) = waiting.swap_remove(which % waiting.len());
                    prop_assert_eq!(queue.remove(place), Some(value));
                    prop_assert_eq!(queue.remove(place), None);
                },
            }
            prop_assert_eq!(queue.len(), waiting.len());
            prop_assert!(queue.len() <= 16);
        }
        prop_assert_eq!(drain(&mut queue).len(), waiting.len());
        prop_assert!(queue.is_empty());
    }

    /// While two flows of a class both wait, neither is served more than its share by more than one item.
    #[test]
    fn a_flow_with_work_waits_for_no_more_than_its_share(
        costs in prop::collection::vec((1u64..50, 1u64..50), 20..100),
        weights in (1u32..5, 1u32..5),
    ) {
        let flows = [Flow { key: 1, weight: weights.0 }, Flow { key: 2, weight: weights.1 }];
        let mut queue = FairQueue::new(1_000);
        for (a, b) in &costs {
            queue.push(Priority::Normal, flows[0], *a, (0, *a));
            queue.push(Priority::Normal, flows[1], *b, (1, *b));
        }
        let mut left = [costs.len(); 2];
        let mut served = [0.0f64; 2];
        while let Some((who, cost)) = queue.pop() {
            left[who] -= 1;
            served[who] += f64::from(u32::try_from(cost).unwrap()) / f64::from(flows[who].weight);
            if left.contains(&0) {
                break;
            }
            // The bound of start-time fair queueing: one largest item of each.
            let bound = 50.0 / f64::from(weights.0) + 50.0 / f64::from(weights.1);
            prop_assert!((served[0] - served[1]).abs() <= bound + 1.0, "{served:?}");
        }
    }

    #[test]
    fn idle_flows_are_not_remembered_for_ever(keys in 2_000u64..6_000) {
        let mut queue = FairQueue::new(16);
        push(&mut queue, u64::MAX, 0);
        push(&mut queue, u64::MAX, 0);
        for key in 0..keys {
            queue.push(Priority::Normal, flow(key), 1_000_000, 0);
            queue.pop();
        }
        let flows: usize = queue.classes.iter().map(|class| class.flows.len()).sum();
        prop_assert!(flows <= IDLE_FLOWS_MAX + 16 + 2, "{flows}");
    }
}
