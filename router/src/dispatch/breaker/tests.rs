use proptest::prelude::*;

use super::*;

const POLICY: BreakerPolicy = BreakerPolicy {
    window: Duration::from_secs(30),
    samples_min: 10,
    failure_share: 0.5,
    failures_in_a_row: 5,
    open_first: Duration::from_secs(5),
    open_max: Duration::from_secs(60),
    probes: 3,
};

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn send(breaker: &mut Breaker, outcome: Outcome, now: Instant) -> Option<BreakerState> {
    let pass = breaker.admit(now).expect("it admits");
    breaker.record(pass, outcome, now)
}

#[test]
fn failures_in_a_row_open_and_probes_close() {
    let start = Instant::now();
    let mut breaker = Breaker::new(POLICY, 1, start);
    for _ in 0..4 {
        assert_eq!(send(&mut breaker, Outcome::Failed, start), None);
    }
    assert_eq!(send(&mut breaker, Outcome::Failed, start), Some(BreakerState::Open));
    assert_eq!(breaker.admit(start + seconds(4.9)), None);
    let later = start + seconds(5.0 * 1.25);
    let probes: Vec<Pass> = (0..3).filter_map(|_| breaker.admit(later)).collect();
    assert_eq!((probes.len(), breaker.admit(later)), (3, None), "only so many probes");
    assert_eq!(breaker.record(probes[0], Outcome::Answered, later), None);
    // A probe without a verdict makes room for another one.
    assert_eq!(breaker.record(probes[1], Outcome::NoVerdict, later), None);
    let again = breaker.admit(later).expect("a place is free");
    assert_eq!(breaker.record(again, Outcome::Answered, later), None);
    assert_eq!(breaker.record(probes[2], Outcome::Answered, later), Some(BreakerState::Closed));
}

#[test]
fn a_share_of_failures_opens_only_with_enough_outcomes_within_the_window() {
    let start = Instant::now();
    let mut breaker = Breaker::new(POLICY, 1, start);
    let mut last = None;
    for n in 0..10 {
        let outcome = if n % 2 == 0 { Outcome::Answered } else { Outcome::Failed };
        assert_eq!(last, None, "opened after {n} outcomes");
        last = send(&mut breaker, outcome, start);
    }
    assert_eq!(last, Some(BreakerState::Open));
    // The same, slower than the window.
    let mut breaker = Breaker::new(POLICY, 1, start);
    for n in 0..40 {
        let outcome = if n % 2 == 0 { Outcome::Answered } else { Outcome::Failed };
        let now = start + seconds(4.0) * n;
        assert_eq!(send(&mut breaker, outcome, now), None);
    }
}

#[test]
fn what_was_sent_before_an_opening_says_nothing_after_it() {
    let start = Instant::now();
    let mut breaker = Breaker::new(POLICY, 1, start);
    let old: Vec<Pass> = (0..10).filter_map(|_| breaker.admit(start)).collect();
    for pass in &old[..5] {
        breaker.record(*pass, Outcome::Failed, start);
    }
    let later = start + seconds(10.0);
    let probe = breaker.admit(later).expect("half open");
    assert_eq!(breaker.record(old[6], Outcome::Failed, later), None);
    assert_eq!(breaker.state(later), BreakerState::HalfOpen);
    assert_eq!(breaker.record(probe, Outcome::Failed, later), Some(BreakerState::Open));
    assert!(!breaker.admits(later + seconds(9.9)), "the second opening is twice as long");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send,
    End(usize, Outcome),
    Trip,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        Just(Outcome::Answered),
        Just(Outcome::Failed),
        Just(Outcome::Failed),
        Just(Outcome::NoVerdict)
    ];
    prop_oneof![
        4 => Just(Step::Send),
        4 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Step::End(which, outcome)),
        1 => Just(Step::Trip),
        2 => (1u64..20_000).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens: probes never exceed their bound, and openings come no faster than the backoff allows.
    #[test]
    fn probes_and_openings_are_bounded(steps in prop::collection::vec(step(), 1..600), seed in any::<u64>()) {
        let start = Instant::now();
        let mut now = start;
        let mut breaker = Breaker::new(POLICY, seed, start);
        let mut out: Vec<Pass> = Vec::new();
        for step in steps {
            match step {
                Step::Send => {
                    let admits = breaker.admits(now);
                    let pass = breaker.admit(now);
                    prop_assert_eq!(admits, pass.is_some());
                    out.extend(pass);
                }
                Step::End(which, outcome) => if !out.is_empty() {
                    let pass = out.swap_remove(which % out.len());
                    breaker.record(pass, outcome, now);
                },
                Step::Trip => { breaker.trip(now); }
                Step::Wait(ms) => now += Duration::from_millis(ms),
            }
            let current = Pass::Probe { opening: breaker.openings };
            let probes = out.iter().filter(|pass| **pass == current).count();
            prop_assert!(probes <= POLICY.probes as usize);
            let minutes = (now - start).as_secs() / 60;
            // 5, 10, 20 and 40 s, then at most one a minute.
            prop_assert!(u64::from(breaker.openings) <= 5 + minutes, "{} in {minutes} min", breaker.openings);
            if let Phase::Closed { outcomes, .. } = &breaker.phase {
                prop_assert!(outcomes.samples.len() <= SAMPLES_MAX);
                let failures = outcomes.samples.iter().filter(|(_, failed)| *failed).count();
                prop_assert_eq!(failures, outcomes.failures as usize);
            }
        }
    }

    #[test]
    fn what_the_client_caused_never_opens(count in 1usize..2_000, answered in 0usize..5) {
        let now = Instant::now();
        let mut breaker = Breaker::new(POLICY, 1, now);
        for _ in 0..answered {
            send(&mut breaker, Outcome::Answered, now);
        }
        for _ in 0..count {
            prop_assert_eq!(send(&mut breaker, Outcome::NoVerdict, now), None);
        }
    }
}
