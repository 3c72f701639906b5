//! Asking again, for as long as that may help.

use std::future::Future;
use std::time::Duration;

use phalanx_proto::fault::{Fault, FaultCode};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::backoff::Backoff;

/// Between the first two rounds of a call that is asked again.
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(100);

/// Between later ones: what nodes without a leader ask for.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(1);

/// Asks until the answer is good or final, or the time is up. `jitter` tells clients apart that ask side by side.
pub(super) async fn persist<T, F>(
    wait_max: Duration,
    jitter: u64,
    attempt: impl Fn() -> F,
    is_worth_asking_again: impl Fn(&Fault) -> bool,
) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let deadline = Instant::now() + wait_max;
    let mut backoff = Backoff::new(ASK_AGAIN_FIRST, ASK_AGAIN_MAX, jitter);
    loop {
        let mut fault = match timeout_at(deadline, attempt()).await {
            Ok(Err(fault)) if is_worth_asking_again(&fault) => fault,
            Ok(answer) => return answer,
            Err(_elapsed) => Fault::new(FaultCode::DeadlineExceeded, "the answer did not come"),
        };
        let again_at = Instant::now() + backoff.delay();
        if again_at >= deadline {
            fault.message = format!("{} (asked for {wait_max:?})", fault.message);
            return Err(fault);
        }
        sleep_until(again_at).await;
    }
}

/// Whether the same call may succeed later; a refusal of the state machine never does, and a URL of something else
/// stays one.
pub(super) fn is_passing(fault: &Fault) -> bool {
    match fault.code {
        FaultCode::Unavailable | FaultCode::DeadlineExceeded | FaultCode::Draining => {
            fault.param.is_none()
        }
        FaultCode::Overloaded => fault.retry_after.is_some(),
        _ => false,
    }
}

/// Whether a node that exists said that the same call may succeed later. One that is gone is told at once.
pub(super) fn is_between_leaders(fault: &Fault) -> bool {
    is_passing(fault) && fault.retry_after.is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Asks nodes that answer in turn as scripted, and then always as at last.
    async fn persist_over(answers: &[Result<u64, FaultCode>]) -> (Result<u64, String>, usize) {
        let asked = AtomicUsize::new(0);
        let attempt = || {
            let turn = asked.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1);
            std::future::ready(answers[turn].map_err(|code| Fault::new(code, code.as_str())))
        };
        let answer = persist(Duration::from_secs(1), 1, attempt, is_passing).await;
        (answer.map_err(|fault| fault.message), asked.into_inner())
    }

    #[tokio::test]
    async fn a_call_is_asked_again_for_as_long_as_that_may_help() {
        let (gone, lost) = (Err(FaultCode::Unavailable), Err(FaultCode::DeadlineExceeded));
        assert_eq!(persist_over(&[gone, lost, Ok(7)]).await, (Ok(7), 3));
        for code in [FaultCode::InvalidRequest, FaultCode::StaleEpoch, FaultCode::Overloaded] {
            let (answer, asked) = persist_over(&[gone, Err(code), Ok(7)]).await;
            assert_eq!((answer, asked), (Err(code.as_str().to_owned()), 2));
        }

        let (answer, asked) = persist_over(&[gone]).await;
        assert_eq!(answer, Err("unavailable (asked for 1s)".to_owned()));
        // Pauses of 50 to 100 ms, 100 to 200, 200 to 400, 400 to 800.
        assert!((3..=6).contains(&asked), "asked {asked} times");
    }
}
